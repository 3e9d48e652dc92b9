"""Fixtures of the tests that run in network namespaces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest
import rig

from penstock import lab
from penstock.lab import LabSpec

LabFactory = Callable[[Mapping[str, Any]], LabSpec]
Bridges = Mapping[str, Mapping[str, list[str]]]
MeshFactory = Callable[..., rig.Mesh]
_numbers = count(1)


def _named(content: Mapping[str, Any]) -> LabSpec:
    return lab.load({"name": f"t{os.getpid()}x{next(_numbers)}", **content})


@pytest.fixture
def make_lab() -> Iterator[LabFactory]:
    """Brings up labs under names of their own, and takes them down whatever happens to the test.

    Takes the content of a lab's file without `name`.
    """
    names: list[str] = []

    def make(content: Mapping[str, Any]) -> LabSpec:
        spec = _named(content)
        names.append(spec.name)
        lab.up(spec)
        return spec

    yield make
    for name in names:
        lab.down(name)


TWO_NODES: Mapping[str, Any] = {
    "node-a": {"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
    "node-b": {"podCIDRs": ["10.244.2.0/24", "fd00:10:244:2::/64"]},
}


@pytest.fixture
def two_nodes() -> Mapping[str, Any]:
    """The `nodes` of a lab with node-a and node-b, two families each."""
    return TWO_NODES


@pytest.fixture(scope="module")
def make_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshFactory]:
    """Brings up a mesh for the module: `make_mesh(*workloads)`, with those of TWO_NODES that they name.

    `bridges` are those of each node, with their ranges; `bridged` hangs all workloads on one for each node.
    """
    with ExitStack() as stack:

        def make(
            *workloads: Mapping[str, Any],
            bridges: Bridges | None = None,
            bridged: bool = False,
            serve_ca: bool = False,
            options: tuple[str, ...] = (),
            prepare: Callable[[LabSpec], None] = lambda _: None,
        ) -> rig.Mesh:
            used = {w["node"] for w in workloads}
            nodes = {
                name: {**entry, "bridges": (bridges or {}).get(name, {})}
                for name, entry in TWO_NODES.items()
                if name in used
            }
            if bridged:
                nodes = {n: {**e, "bridges": {"net": e["podCIDRs"]}} for n, e in nodes.items()}
                workloads = tuple({**w, "bridges": ["net"]} for w in workloads)
            spec = _named({"nodes": nodes, "workloads": list(workloads)})
            base = tmp_path_factory.mktemp("mesh")
            return stack.enter_context(
                rig.mesh(spec, base, serve_ca=serve_ca, options=options, prepare=prepare)
            )

        yield make
