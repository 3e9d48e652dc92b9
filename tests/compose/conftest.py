"""One engine for all tests of this layer, and what they run in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The daemon of a node and how to wait for it stand with the node tests.
sys.path.insert(0, str(Path(__file__).parent.parent / "node"))

from engine import Engine, copy_programs, engine

TINY = "tiny:latest"
PROGRAMS = ("sh", "sleep", "cat", "ls", "ip", "kill")


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with the image TINY: a shell and a few programs of this machine."""
    base = tmp_path_factory.mktemp("docker")
    with engine(f"docker-{os.getpid()}", base) as made:
        copy_programs(base / "tiny", PROGRAMS)
        made.import_image(base / "tiny", TINY)
        yield made
