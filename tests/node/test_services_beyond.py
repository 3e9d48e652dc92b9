"""Clients from outside who ask a node without an endpoint: sent on, and judged there as who they are."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from clients import REFUSED, Http, ask, connect, echoes, make_socket, udp_echoes
from conftest import MeshFactory
from objects import policy, ports, select
from outside import World, node, outside, refused, world_of
from rig import Mesh, workload

VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True, labels={"app": "api", "tier": "back"}),
        workload("far", "node-b", serves=True, labels={"app": "far", "tier": "back"}),
    )


@pytest.fixture(scope="module")
def world(mesh: Mesh) -> Iterator[World]:
    with world_of(mesh) as found:
        yield found


@VERSIONS
def test_a_node_without_an_endpoint_sends_on(mesh: Mesh, world: World, version: int) -> None:
    mesh.apply(outside("far"))
    at = node(mesh, version)
    sent = mesh.on("client").counter("FORWARDED_NODE")
    assert ask(world, at, 30080).pod == "far"
    assert ask(world, at, 30080, "/", method="POST", body=b"x" * 300_000, timeout=5.0).status == 200
    assert udp_echoes(world, at, 30007, timeout=3)
    assert udp_echoes(world, at, 30007, connected=False, timeout=3)
    assert mesh.on("client").counter("FORWARDED_NODE") > sent
    # The backend meets the client itself; a node that has an endpoint answers by itself.
    assert any(f["source"]["address"] == world.addresses[version] for f in mesh.on("far").observed())
    assert ask(world, node(mesh, version, 1), 30080).pod == "far"
    # From inside it was never a matter of nodes.
    assert echoes(mesh["client"], at, 30007, timeout=3)


@VERSIONS
def test_a_load_balancers_address_is_sent_on(mesh: Mesh, world: World, version: int) -> None:
    balanced = {4: "10.98.0.9", 6: "fd00:10:98::9"}[version]
    mesh.apply(outside("far", kind="LoadBalancer", loadBalancerIP=balanced))
    assert ask(world, balanced, 80).pod == "far"


@VERSIONS
def test_each_stretch_costs_a_hop(mesh: Mesh, world: World, version: int) -> None:
    """So that nodes which think each of the other cannot send a packet to and fro for ever."""
    mesh.apply(outside("far"))
    with make_socket(world.netns, socket.SOCK_STREAM, version) as sock:
        level, option = (
            (socket.IPPROTO_IP, socket.IP_TTL)
            if version == 4
            else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        )
        sock.setsockopt(level, option, 1)
        sock.settimeout(REFUSED)
        with pytest.raises(TimeoutError):
            sock.connect((str(node(mesh, version)), 30080))


@VERSIONS
def test_policy_judges_who_really_asks(mesh: Mesh, world: World, version: int) -> None:
    bits = 32 if version == 4 else 128
    rule = {"toPorts": [ports(8080, http=[{"path": "/a"}]), ports(9090)]}
    asks, sends_on = world.addresses[version], node(mesh, version)
    friend, sender = ({"fromCIDR": [f"{a}/{bits}"], **rule} for a in (asks, sends_on))
    at = node(mesh, version)
    mesh.apply(outside("far"), policy("far", select(app="far"), ingress=[friend]))
    assert ask(world, at, 30080, "/a").status == 200
    assert ask(world, at, 30080, "/b").status == 403
    with Http(world, at, 30080) as kept, connect(world, at, 30007) as stream:
        assert kept.ask("/a").status == 200
        stream.sendall(b"here")
        assert stream.recv(9) == b"here"
        # The node that sends on is not the one who asks.
        mesh.apply(outside("far"), policy("far", select(app="far"), ingress=[sender]))
        stream.settimeout(REFUSED)
        stream.sendall(b"gone")
        with pytest.raises((TimeoutError, ConnectionError)):
            assert not stream.recv(9)
            raise ConnectionResetError
    assert not echoes(world, at, 30007)


def test_local_traffic_policy_sends_nothing_on(mesh: Mesh, world: World) -> None:
    mesh.apply(outside("far", externalTrafficPolicy="Local"))
    assert refused(world, node(mesh, 4), 30080)
    assert ask(world, node(mesh, 4, 1), 30080).pod == "far"


def test_a_connection_stays_where_it_is(mesh: Mesh, world: World) -> None:
    """Also when the node that was asked gets an endpoint of its own; new ones go there."""
    mesh.apply(outside("far"))
    at = node(mesh, 4)
    with Http(world, at, 30080) as kept:
        assert kept.ask("/").pod == "far"
        mesh.apply({**outside("far"), "spec": {**outside("far")["spec"], "selector": {"tier": "back"}}})
        assert kept.ask("/").pod == "far"
        assert ask(world, at, 30080).pod == "api"
        assert kept.ask("/").pod == "far"
