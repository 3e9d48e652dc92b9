"""Rules about server names for workloads behind a bridge, as Docker's are."""

from __future__ import annotations

import pytest
from conftest import MeshFactory
from dns_rig import world
from rig import PENSTOCK, Mesh, workload
from test_server_names import EVERYBODY, TLS, at, into, out
from tls_clients import plain, tls

from penstock import lab


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    run = [[*PENSTOCK, "lab", "echo", "--name", "api", "--tls", str(TLS)]]
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", run=run, ports=[{"name": "tls", "containerPort": TLS}]),
        workload("far", "node-b", run=run, ports=[{"name": "tls", "containerPort": TLS}]),
        bridged=True,
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("target", ["api", "far"])
@pytest.mark.parametrize("side", ["out", "into"])
def test_only_these_names_pass(mesh: Mesh, side: str, target: str, version: int) -> None:
    names = at("one.example.com")
    rule = out({"toEndpoints": [{}], "toPorts": [names]})
    mesh.apply(rule if side == "out" else into(target, {**EVERYBODY, "toPorts": [names]}))
    client, address = mesh["client"], mesh[target].address(version)
    assert tls(client, address, TLS, "one.example.com") == "echo"
    assert tls(client, address, TLS, "two.example.com") == "reset"
    assert plain(client, address, TLS, b"GET / HTTP/1.1\r\n\r\n") == "reset"


def test_to_the_world_the_node_speaks_in_its_own_name(mesh: Mesh) -> None:
    """The addresses behind a bridge mean nothing out there: no route leads back to them."""
    mesh.apply(out({"toEntities": ["world"], "toPorts": [at("one.example.com")]}))
    with world(mesh) as outside:
        pods = next(c for c in mesh.spec.nodes[0].pod_cidrs if c.version == 4)
        outside.ip("route", "del", str(pods))
        command = [*PENSTOCK, "lab", "echo", "--name", "world", "--tls", str(TLS)]
        with lab.run_in(outside.netns, command, stdout=-1) as echo:
            assert echo.stdout is not None and b"ready" in echo.stdout.readline()
            assert tls(mesh["client"], outside.host(1), TLS, "one.example.com") == "echo"
            assert tls(mesh["client"], outside.host(1), TLS, "two.example.com") == "reset"
            echo.terminate()
