"""Services for clients from outside, and for what no connect hook has seen: each kind, no way around."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import Any

import pytest
from clients import REFUSED, ask, connect, echoes, make_socket, udp_echoes
from conftest import MeshFactory
from objects import policy, ports, select, service
from outside import BALANCED, DGRAM, DUAL, ECHO, EXTERNAL, World, node, outside, refused, world_of
from packets_raw import udp_packet
from rig import Mesh, workload

from penstock import lab


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        workload("far", "node-b", serves=True),
        workload("away", "node-b"),
    )


@pytest.fixture(scope="module")
def world(mesh: Mesh) -> Iterator[World]:
    with world_of(mesh) as found:
        yield found


# --- each kind of Service -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_a_node_port(mesh: Mesh, world: World, version: int) -> None:
    mesh.apply(outside())
    at = node(mesh, version)
    assert ask(world, at, 30080).pod == "api"
    assert echoes(world, at, 30007, timeout=3)
    assert udp_echoes(world, at, 30007, timeout=3)
    assert udp_echoes(world, at, 30007, connected=False, timeout=3)
    # The backend meets the client itself.
    flows = mesh.on("api").observed()
    assert any(
        f["source"]["address"] == world.addresses[version] and f["destination"]["port"] == 9090 for f in flows
    )


@pytest.mark.parametrize("version", [4, 6])
def test_a_load_balancer_and_an_external_address(mesh: Mesh, world: World, version: int) -> None:
    balanced = outside(kind="LoadBalancer", loadBalancerIP=BALANCED[version], externalIPs=[EXTERNAL[version]])
    mesh.apply(balanced)
    shown = mesh.on("api").call(
        "get", kind="service", object_name="api", namespace="default", all_namespaces=False
    )
    assert {"ip": BALANCED[version]} in shown["status"]["loadBalancer"]["ingress"]
    for address in (BALANCED[version], EXTERNAL[version]):
        assert ask(world, address, 80).pod == "api"
        assert udp_echoes(world, address, 7, timeout=3)
        # Another port is nobody's: the node says so itself.
        assert refused(world, address, 81)
    # Workloads of both nodes and the nodes themselves.
    for client in (mesh["client"], mesh["away"], *mesh.spec.nodes):
        for address in (BALANCED[version], EXTERNAL[version]):
            assert echoes(client, address, 7, timeout=3), (client.name, address)


@pytest.mark.parametrize("version", [4, 6])
def test_a_node_port_from_inside(mesh: Mesh, version: int) -> None:
    mesh.apply(outside())
    for client in (mesh["client"], mesh["away"], *mesh.spec.nodes):
        assert echoes(client, node(mesh, version), 30007, timeout=3), client.name
    assert udp_echoes(mesh["client"], node(mesh, version), 30007, timeout=3)
    # A workload that has no endpoint on its own node gets the one that there is.
    assert echoes(mesh["away"], node(mesh, version, 1), 30007, timeout=3)


def test_a_node_port_that_is_given_out(mesh: Mesh, world: World) -> None:
    mesh.apply(service("api", {"port": 80, "targetPort": 8080}, selector={"app": "api"}, type="NodePort"))
    shown = {}
    for daemon in mesh.daemons.values():
        found = daemon.call(
            "get", kind="service", object_name="api", namespace="default", all_namespaces=False
        )
        shown[daemon.name] = found["spec"]["ports"][0]["nodePort"]
    # Each node by itself comes to the same.
    (port,) = set(shown.values())
    assert 30000 <= port <= 32767
    assert ask(world, node(mesh, 4), port).pod == "api"


# --- nobody there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_without_an_endpoint_everybody_is_refused_at_once(mesh: Mesh, world: World, version: int) -> None:
    mesh.apply(outside("nobody"))
    for client in (world, mesh["client"]):
        assert refused(client, node(mesh, version), 30080)
        with make_socket(client.netns, socket.SOCK_DGRAM, version) as sock:
            sock.settimeout(3)
            with pytest.raises(ConnectionRefusedError):
                sock.connect((str(node(mesh, version)), 30007))
                sock.send(b"x")
                sock.recv(9)


# --- no way around a policy ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_policy_judges_who_really_asks(mesh: Mesh, world: World, version: int) -> None:
    friend = f"{world.addresses[version]}/{32 if version == 4 else 128}"
    of_node = f"{node(mesh, version, 1)}/{32 if version == 4 else 128}"
    closed = policy("api", select(app="api"), ingress=[{"fromEndpoints": [select(app="client")]}])
    mesh.apply(outside(), closed)
    assert not echoes(world, node(mesh, version), 30007)
    assert not udp_echoes(world, node(mesh, version), 30007)
    assert echoes(mesh["client"], node(mesh, version), 30007, timeout=3)
    assert not echoes(mesh["away"], node(mesh, version), 30007)
    # Neither the node that was asked, nor another: the world's host itself.
    for entity in ("host", "remote-node"):
        mesh.apply(outside(), policy("api", select(app="api"), ingress=[{"fromEntities": [entity]}]))
        assert not echoes(world, node(mesh, version), 30007)
    mesh.apply(outside(), policy("api", select(app="api"), ingress=[{"fromCIDR": [friend]}]))
    assert echoes(world, node(mesh, version), 30007, timeout=3)
    mesh.apply(outside(), policy("api", select(app="api"), ingress=[{"fromCIDR": [of_node]}]))
    assert not echoes(world, node(mesh, version), 30007)


@pytest.mark.parametrize("version", [4, 6])
def test_an_l7_rule_holds_at_every_address(mesh: Mesh, world: World, version: int) -> None:
    rule = {"fromEntities": ["all"], "toPorts": [ports(8080, http=[{"path": "/public/.*"}])]}
    balanced = outside(kind="LoadBalancer", loadBalancerIP=BALANCED[version], externalIPs=[EXTERNAL[version]])
    mesh.apply(balanced, policy("api", select(app="api"), ingress=[rule]))
    places = [(node(mesh, version), 30080), (BALANCED[version], 80), (EXTERNAL[version], 80)]
    for address, port in places:
        for client in (world, mesh["client"]):
            assert ask(client, address, port, "/public/1").pod == "api"
            assert ask(client, address, port, "/private").status == 403


def test_an_open_connection_obeys_the_policy_of_now(mesh: Mesh, world: World) -> None:
    mesh.apply(outside())
    with connect(world, node(mesh, 4), 30007) as sock:
        sock.sendall(b"one")
        assert sock.recv(9) == b"one"
        mesh.apply(outside(), policy("api", select(app="api"), ingress=[{}]))
        sock.settimeout(REFUSED)
        sock.sendall(b"two")
        with pytest.raises(TimeoutError):
            sock.recv(9)


# --- what no connect hook has seen ------------------------------------------------------------------------

OWN = "10.96.77.7"


def test_a_raw_packet_to_a_virtual_address(mesh: Mesh) -> None:
    mesh.apply(service("api", {**DGRAM, "nodePort": None}, selector={"app": "api"}, clusterIP=OWN))
    client = mesh["client"]
    with ExitStack() as stack:
        with lab.entered(client.netns):
            raw = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
            plain = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        plain.bind(("0.0.0.0", 45000))
        plain.settimeout(3)
        raw.sendto(udp_packet(str(client.address(4)), OWN, 45000, 7, b"raw"), (OWN, 0))
        assert plain.recvfrom(9) == (b"raw", (OWN, 7))


def test_a_connection_that_began_before_the_service(mesh: Mesh) -> None:
    """Its SYN is sent again, and that one is translated."""
    mesh.apply()
    with make_socket(mesh["client"].netns) as sock:
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect((OWN, 7))
        mesh.apply(service("api", {**ECHO, "nodePort": None}, selector={"app": "api"}, clusterIP=OWN))
        sock.settimeout(5)
        sock.sendall(b"late")
        assert sock.recv(9) == b"late"


def test_a_datagram_socket_that_was_connected_before_the_service(mesh: Mesh) -> None:
    mesh.apply()
    with make_socket(mesh["client"].netns, socket.SOCK_DGRAM) as sock:
        sock.connect((OWN, 7))
        mesh.apply(service("api", {**DGRAM, "nodePort": None}, selector={"app": "api"}, clusterIP=OWN))
        sock.settimeout(3)
        sock.send(b"late")
        assert sock.recv(9) == b"late"


def test_a_workload_that_calls_itself_past_the_hooks(mesh: Mesh) -> None:
    mesh.apply()
    with make_socket(mesh["api"].netns, socket.SOCK_DGRAM) as sock:
        sock.connect((OWN, 7))
        mesh.apply(service("api", {**DGRAM, "nodePort": None}, selector={"app": "api"}, clusterIP=OWN))
        sock.settimeout(3)
        sock.send(b"myself")
        assert sock.recv(9) == b"myself"


def test_a_far_backend_past_the_hooks(mesh: Mesh) -> None:
    mesh.apply()
    with make_socket(mesh["client"].netns, socket.SOCK_DGRAM) as sock:
        sock.connect((OWN, 7))
        mesh.apply(service("far", {**DGRAM, "nodePort": None}, selector={"app": "far"}, clusterIP=OWN))
        sock.settimeout(3)
        sock.send(b"far")
        assert sock.recv(9) == b"far"


def test_an_l7_rule_holds_past_the_hooks(mesh: Mesh) -> None:
    mesh.apply()
    guard = policy(
        "api",
        select(app="api"),
        ingress=[{"fromEntities": ["all"], "toPorts": [ports(8080, http=[{"path": "/public/.*"}])]}],
    )
    with make_socket(mesh["client"].netns) as sock:
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect((OWN, 80))
        mesh.apply(
            service("api", {"port": 80, "targetPort": 8080}, selector={"app": "api"}, clusterIP=OWN), guard
        )
        sock.settimeout(5)
        sock.sendall(b"GET /private HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(99).startswith(b"HTTP/1.1 403")


# --- who gets which endpoint -------------------------------------------------------------------------------


def test_a_client_stays_with_its_backend(mesh: Mesh, world: World) -> None:
    both = service(
        "both",
        {"port": 80, "targetPort": 8080},
        selector={"tier": "api"},
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
    )
    mesh.apply(both)
    vip = mesh.vip("both")
    # Nobody has the label: it is a Service without endpoints first.
    assert refused(mesh["client"], vip, 80)
    slices = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "both", "labels": {"kubernetes.io/service-name": "both"}},
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": [{"addresses": [str(mesh[name].address(4))]} for name in ("api", "far")],
    }
    del both["spec"]["selector"]
    mesh.apply(both, slices)
    first = {ask(mesh["client"], vip, 80).pod for _ in range(12)}
    assert len(first) == 1
    assert ip_address(vip)


def test_only_this_nodes_endpoints_where_the_policy_is_local(mesh: Mesh) -> None:
    local = {**DUAL, "internalTrafficPolicy": "Local"}
    mesh.apply(service("api", {"port": 7, "targetPort": 9090}, selector={"app": "api"}, **local))
    vip = mesh.vip("api")
    assert echoes(mesh["client"], vip, 7, timeout=3)
    assert refused(mesh["away"], vip, 7)


# --- endpoints that go -----------------------------------------------------------------------------


def slice_of(mesh: Mesh, *endpoints: tuple[str, dict[str, bool]]) -> dict[str, Any]:
    """An EndpointSlice of Service `by-hand`: workloads with their conditions."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "by-hand", "labels": {"kubernetes.io/service-name": "by-hand"}},
        "addressType": "IPv4",
        "ports": [
            {"name": "echo", "port": 9090},
            {"name": "dgram", "port": 9091, "protocol": "UDP"},
        ],
        "endpoints": [
            {"addresses": [str(mesh[name].address(4))], "conditions": conditions}
            for name, conditions in endpoints
        ],
    }


BY_HAND = service(
    "by-hand", {**ECHO, "nodePort": None}, {**DGRAM, "nodePort": None, "targetPort": 9091}, clusterIP=OWN
)
READY = {"ready": True}
ENDING = {"ready": False, "serving": True, "terminating": True}
GONE = {"ready": False, "serving": False, "terminating": True}


def test_datagram_sockets_end_with_their_backend_and_tcp_lives(mesh: Mesh) -> None:
    mesh.apply(BY_HAND, slice_of(mesh, ("api", READY)))
    client = mesh["client"]
    with (
        make_socket(client.netns, socket.SOCK_DGRAM) as datagrams,
        make_socket(client.netns, socket.SOCK_DGRAM) as direct,
        connect(client, OWN, 7) as stream,
    ):
        for sock, address in ((datagrams, (OWN, 7)), (direct, (str(mesh["api"].address(4)), 9091))):
            sock.settimeout(3)
            sock.connect(address)
            sock.send(b"1")
            assert sock.recv(9) == b"1"
        # Terminating but serving: nothing ends, and new ones go elsewhere.
        mesh.apply(BY_HAND, slice_of(mesh, ("api", ENDING), ("far", READY)))
        datagrams.send(b"2")
        assert datagrams.recv(9) == b"2"
        mesh.apply(BY_HAND, slice_of(mesh, ("api", GONE), ("far", READY)))
        with pytest.raises(ConnectionAbortedError):
            datagrams.recv(9)
        # It connects anew, and gets who is there.
        datagrams.connect((OWN, 7))
        datagrams.send(b"3")
        assert datagrams.recv(9) == b"3"
        # Who named the workload itself, and TCP, are left alone.
        direct.send(b"4")
        assert direct.recv(9) == b"4"
        stream.sendall(b"5")
        assert stream.recv(9) == b"5"


def test_where_all_are_terminating_they_still_serve(mesh: Mesh) -> None:
    mesh.apply(BY_HAND, slice_of(mesh, ("api", ENDING)))
    assert echoes(mesh["client"], OWN, 7, timeout=3)
    mesh.apply(BY_HAND, slice_of(mesh, ("api", GONE)))
    assert refused(mesh["client"], OWN, 7)
