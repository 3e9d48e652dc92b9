"""`penstock block`, as an operator types it, and what it does to a host on the wire."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from clients import connect, echoes, until
from conftest import MeshFactory
from objects import service
from rig import PENSTOCK, Mesh, workload
from test_services_outside import ECHO, World, node, world

__all__ = ["world"]


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    found = make_mesh(workload("client", "node-a"), workload("api", "node-a", serves=True))
    echo = service("api", ECHO, selector={"app": "api"}, type="NodePort", ipFamilyPolicy="RequireDualStack")
    found.apply(echo)
    return found


def block(mesh: Mesh, *arguments: str) -> Any:
    command = [*PENSTOCK, "block", *arguments, "--run-dir", str(mesh.on("api").run_dir), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done.returncode


def _links(mesh: Mesh) -> list[str]:
    return [p.name for p in (mesh.on("api").run_dir / "bpf" / "links").iterdir() if "block_xdp" in p.name]


@pytest.mark.parametrize("version", [4, 6])
def test_it_drops_until_it_is_deleted(mesh: Mesh, world: World, version: int) -> None:
    at, cidr = node(mesh, version), f"{world.addresses[version]}/{32 if version == 4 else 128}"
    assert echoes(world, at, 30007, timeout=3)
    assert not _links(mesh)
    with connect(world, at, 30007) as open_:
        block(mesh, "add", cidr)
        assert not echoes(world, at, 30007)
        open_.settimeout(0.5)
        open_.sendall(b"x")
        with pytest.raises(TimeoutError):
            open_.recv(9)
    (entry,) = block(mesh, "list")
    assert (entry["cidr"], entry["until"]) == (cidr, None)
    assert entry["packets"] >= 2
    assert mesh.on("api").counter("BLOCKLISTED") >= entry["packets"]
    # What is inside the node goes on.
    assert echoes(mesh["client"], at, 30007, timeout=3)
    block(mesh, "delete", cidr)
    assert echoes(world, at, 30007, timeout=3)
    assert not _links(mesh)
    assert block(mesh, "delete", cidr) == 1
    assert block(mesh, "add", "203.0.113.9/24") == 2


def test_it_ends_by_itself(mesh: Mesh, world: World) -> None:
    block(mesh, "add", f"{world.addresses[4]}/32", "--ttl", "1s")
    assert not echoes(world, node(mesh, 4), 30007, timeout=0.3)
    until("it is over", lambda: echoes(world, node(mesh, 4), 30007, timeout=0.3))
    until("nothing is left of it", lambda: not _links(mesh))
    assert block(mesh, "list") == []


def test_it_survives_the_daemon(mesh: Mesh, world: World) -> None:
    daemon = mesh.on("api")
    block(mesh, "add", f"{world.addresses[4]}/32", "--ttl", "1h")
    daemon.kill()
    assert not echoes(world, node(mesh, 4), 30007)
    assert block(mesh, "list") == 3
    daemon.start()
    until("the daemon answers", daemon.answers, 15)
    daemon.wait()
    assert not echoes(world, node(mesh, 4), 30007)
    (entry,) = block(mesh, "list")
    assert entry["packets"] >= 2
    block(mesh, "delete", entry["cidr"])
    assert echoes(world, node(mesh, 4), 30007, timeout=3)
