"""Names where workloads are ports of a bridge, and nothing of DNS is served but what rules name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clients import echoes
from conftest import MeshFactory
from dns_rig import WEB, World, Zone, addresses, query, rcode, world
from objects import policy, ports, select
from rig import Mesh, workload

UPSTREAM, API, EVIL = 1, 3, 5


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("names", "node-a"),
        workload("plain", "node-a"),
        bridged=True,
        options=("--dns-address", "none"),
    )


@pytest.fixture(scope="module")
def outside(mesh: Mesh) -> Iterator[World]:
    zone = Zone()
    with world(mesh) as made:
        for version, kind in ((4, "A"), (6, "AAAA")):
            zone.records["api.example.com", kind] = [made.host(API, version)]
            zone.records["evil.example.org", kind] = [made.host(EVIL, version)]
            made.names(made.host(UPSTREAM, version), zone)
            made.names(str(mesh["names"].address(version)), zone, mesh["names"].netns)
        yield made


def test_without_a_rule_no_proxy_runs(mesh: Mesh, outside: World) -> None:
    mesh.apply()
    assert mesh.daemons["node-a"].status()["dns"]["needed"] is False
    assert rcode(query(mesh["plain"], outside.host(UPSTREAM), "evil.example.org")) == "NOERROR"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("server", ["outside", "neighbour"])
def test_names_on_a_bridge(mesh: Mesh, outside: World, server: str, tcp: bool, version: int) -> None:
    dns = [{**ports(53, protocol="ANY"), "rules": {"dns": [{"matchPattern": "*.example.com"}]}}]
    peers = {"toEntities": ["world"]} if server == "outside" else {"toEndpoints": [select(app="names")]}
    reach = {"toFQDNs": [{"matchName": "api.example.com"}], "toPorts": [ports(WEB)]}
    mesh.apply(
        policy("out", select(app="client"), egress=[{**peers, "toPorts": dns}, reach]),
        policy("closed", select(app="names"), egress=[], enableDefaultDeny={"egress": True}),
    )
    client, kind = mesh["client"], "A" if version == 4 else "AAAA"
    at = outside.host(UPSTREAM, version) if server == "outside" else str(mesh["names"].address(version))
    assert rcode(query(client, at, "evil.example.org", kind, tcp=tcp)) == "REFUSED"
    assert addresses(query(client, at, "api.example.com", kind, tcp=tcp)) == [outside.host(API, version)]
    assert echoes(client, outside.host(API, version), WEB)
    assert not echoes(client, outside.host(EVIL, version), WEB)
    assert rcode(query(mesh["plain"], at, "evil.example.org", kind, tcp=tcp)) == "NOERROR"
