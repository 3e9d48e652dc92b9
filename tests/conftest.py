"""What all layers of tests share. Only the unit layer runs without root; the others fail then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT_LAYERS = ("bpf", "node", "compose")


def pytest_runtest_setup(item: pytest.Item) -> None:
    layer = item.path.relative_to(Path(__file__).parent).parts[0]
    if layer in ROOT_LAYERS and os.geteuid() != 0:
        pytest.fail(
            f"tests/{layer} needs root: it makes network namespaces and loads BPF programs", pytrace=False
        )


# `HYPOTHESIS_PROFILE=thorough make unit` looks further than a run in seconds can.
settings.register_profile("quick", max_examples=40, deadline=None)
settings.register_profile("thorough", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
