"""A host of the world beside the nodes, and Services that are served to it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients import connect
from objects import service
from rig import Mesh

from penstock import lab

DUAL = {"ipFamilyPolicy": "RequireDualStack"}
HTTP = {"name": "web", "port": 80, "targetPort": "http", "nodePort": 30080}
ECHO = {"name": "echo", "port": 7, "targetPort": 9090, "nodePort": 30007}
DGRAM = {"name": "dgram", "port": 7, "targetPort": "dgram", "protocol": "UDP", "nodePort": 30007}
BALANCED = {4: "10.98.0.9", 6: "fd00:10:98::9"}
EXTERNAL = {4: "198.51.100.7", 6: "2001:db8:7::7"}


@dataclass(frozen=True)
class World:
    """A host on the wire between the nodes that is none of them."""

    netns: Path
    addresses: dict[int, str]


def _ip(where: Path, *arguments: str) -> None:
    assert lab.run_in(where, ["ip", *arguments], stderr=subprocess.DEVNULL).wait() == 0


@contextmanager
def world_of(mesh: Mesh) -> Iterator[World]:
    """The world's host. It knows the way to the addresses of Services: by node-a."""
    where, addresses = mesh.spec.underlay_netns, {}
    for network in mesh.spec.underlay:
        address = str(network.network_address + 200)
        addresses[network.version] = address
        flags = ["nodad"] if network.version == 6 else []
        _ip(where, "addr", "add", f"{address}/{network.prefixlen}", "dev", "br0", *flags)
        via = str(node(mesh, network.version))
        for target in (BALANCED[network.version], EXTERNAL[network.version]):
            _ip(where, "route", "add", target, "via", via, "dev", "br0")
    yield World(where, addresses)


def node(mesh: Mesh, version: int, number: int = 0) -> Any:
    return next(a for a in mesh.spec.nodes[number].addresses if a.version == version)


def outside(name: str = "api", kind: str = "NodePort", **more: Any) -> dict[str, Any]:
    return service(name, *deepcopy((HTTP, ECHO, DGRAM)), selector={"app": name}, type=kind, **DUAL, **more)


def refused(client: Any, address: Any, port: int) -> bool:
    """At once, and not by silence."""
    with suppress(ConnectionRefusedError):
        connect(client, address, port, timeout=3).close()
        return False
    return True
