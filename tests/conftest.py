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


# The same examples every time: what a change did is told from what luck found.
# `HYPOTHESIS_PROFILE=thorough make unit` and `make fuzz` look further, and elsewhere each time.
settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
