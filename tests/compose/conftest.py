"""One engine for all tests of this layer, and what they run in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The daemon of a node and how to wait for it stand with the node tests.
sys.path.insert(0, str(Path(__file__).parent.parent / "node"))

from penstock.lab.engine import Engine, copy_programs, engine

ROOT = Path(__file__).parents[2]
TINY = "tiny:latest"
BASE = "penstock-test-base:latest"
PROGRAMS = ("sh", "sleep", "cat", "ls", "ip", "kill")


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with the image TINY: a shell and a few programs of this machine."""
    base = tmp_path_factory.mktemp("docker")
    with engine(f"docker-{os.getpid()}", base) as made:
        copy_programs(base / "tiny", PROGRAMS)
        made.import_image(base / "tiny", TINY)
        yield made


@pytest.fixture(scope="session")
def base_image(docker: Engine) -> str:
    """The image that the repository's is built on: this machine's own distribution, small, with Python."""
    made = ROOT / "build" / "compose" / "base.tar"
    assert made.is_file(), f"{made} is not there: `make test-compose` makes it"
    docker.docker("import", str(made), BASE)
    return BASE


@pytest.fixture(scope="session")
def image(docker: Engine, base_image: str) -> str:
    """Builds the repository's image without any network, on the base image whose name this is."""
    assert list((ROOT / "build" / "wheels").glob("penstock-*.whl")), (
        "no wheels: `make test-compose` makes them"
    )
    docker.run("docker-compose", "build", cwd=ROOT, env={"PENSTOCK_BASE": base_image}, timeout=400)
    return base_image
