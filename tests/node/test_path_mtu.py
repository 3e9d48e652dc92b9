"""ICMP errors end to end, through a link that is really smaller than all others: whoever must learn the
path's MTU, or that nobody listens, learns it, whatever address was asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import ask, connect, make_socket, until
from conftest import MeshFactory
from objects import policy, ports, select
from outside import node, outside
from rig import Mesh, workload

from penstock import lab
from penstock.lab import netns

VERSIONS = pytest.mark.parametrize("version", [4, 6])
SMALL = 1300
MIDDLE = {4: ("192.0.2.1", "192.0.2.2", 30), 6: ("fd00:77:1::1", "fd00:77:1::2", 126)}
FAR = {4: ("203.0.113.1", "203.0.113.2", 30), 6: ("fd00:77:2::1", "fd00:77:2::2", 126)}
IP_RECVERR, IPV6_RECVERR = 11, 25


@dataclass(frozen=True)
class Client:
    """A host of the world behind two routers, between which the link is small."""

    name: str
    netns: Path
    addresses: dict[int, str]


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        workload("far", "node-b", serves=True),
    )


def _ip(where: Path, *arguments: str) -> None:
    assert lab.run_in(where, ["ip", *arguments]).wait(timeout=10) == 0


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> Iterator[Client]:
    """client -- 1500 -- router -- 1300 -- the wire between the nodes, whose namespace is the other router."""
    wire, router, host = mesh.spec.underlay_netns, f"{mesh.spec.name}.router", f"{mesh.spec.name}.host"
    netns.create([router, host])
    try:
        for where in (wire, netns.path_of(router), netns.path_of(host)):
            with netns.entered(where):
                netns.write_sysctls(
                    [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]
                    + [(f"net/ipv4/conf/{each}/rp_filter", "0") for each in ("all", "default")]
                    + [("net/ipv6/conf/default/accept_dad", "0")]
                )
        _ip(wire, "link", "add", "small0", "type", "veth", "peer", "name", "small1", "netns", router)
        _ip(
            netns.path_of(router),
            "link",
            "add",
            "wide",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            host,
        )
        links = ((wire, "small0", SMALL), (netns.path_of(router), "small1", SMALL))
        links += ((netns.path_of(router), "wide", 1500), (netns.path_of(host), "eth0", 1500))
        for where, device, mtu in links:
            _ip(where, "link", "set", device, "mtu", str(mtu), "up")
        for network in mesh.spec.underlay:
            _ways(mesh, network.version, str(network.network_address + 200), network.prefixlen, router, host)
        yield Client("host", netns.path_of(host), {v: FAR[v][1] for v in (4, 6)})
    finally:
        for each in mesh.spec.nodes:
            for version in (4, 6):
                _nodes_way(each.netns, "del", version)
        netns.end_processes([router, host])
        netns.remove(host)
        netns.remove(router)


def _ways(mesh: Mesh, version: int, at: str, prefix: int, router: str, host: str) -> None:
    wire, middle, far = mesh.spec.underlay_netns, MIDDLE[version], FAR[version]
    flags = ["nodad"] if version == 6 else []
    _ip(wire, "addr", "add", f"{at}/{prefix}", "dev", "br0", *flags)
    _ip(wire, "addr", "add", f"{middle[0]}/{middle[2]}", "dev", "small0", *flags)
    inner = netns.path_of(router)
    _ip(inner, "addr", "add", f"{middle[1]}/{middle[2]}", "dev", "small1", *flags)
    _ip(inner, "addr", "add", f"{far[0]}/{far[2]}", "dev", "wide", *flags)
    _ip(netns.path_of(host), "addr", "add", f"{far[1]}/{far[2]}", "dev", "eth0", *flags)
    everything = "default" if version == 4 else "::/0"
    _ip(netns.path_of(host), "route", "add", everything, "via", far[0])
    _ip(inner, "route", "add", everything, "via", middle[0])
    _ip(wire, "route", "add", f"{far[1]}/{32 if version == 4 else 128}", "via", middle[1])
    for each in mesh.spec.nodes:
        _nodes_way(each.netns, "add", version, at)
    for number, cidr in enumerate(c for n in mesh.spec.nodes for c in n.pod_cidrs if c.version == version):
        _ip(wire, "route", "add", str(cidr), "via", str(node(mesh, version, number)))


def _nodes_way(where: Path, what: str, version: int, via: str = "") -> None:
    for address in (FAR[version][1], MIDDLE[version][1]):
        target = f"{address}/{32 if version == 4 else 128}"
        _ip(where, "route", what, target, *(["via", via] if via else []))


def _comes_and_goes(client: Client, address: object, port: int) -> None:
    """More than fits one packet, both ways, by the echo server there."""
    with connect(client, address, port, timeout=15.0) as sock:  # type: ignore[arg-type]
        for _ in range(3):
            sock.sendall(b"x" * 40_000)
            got = 0
            while got < 40_000:
                got += len(sock.recv(65536))


# --- the path's MTU -------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("target", ["api", "far"])
def test_path_mtu_of_a_node_port(mesh: Mesh, client: Client, target: str, version: int) -> None:
    """`far`: another node answers the client itself, under the address of the one that was asked."""
    mesh.apply(outside(target))
    _comes_and_goes(client, node(mesh, version), 30007)


@VERSIONS
@pytest.mark.parametrize("target", ["api", "far"])
def test_path_mtu_of_what_the_proxy_answers(mesh: Mesh, client: Client, target: str, version: int) -> None:
    rule = {"fromEntities": ["all"], "toPorts": [ports(8080, http=[{"method": "POST"}])]}
    mesh.apply(outside(target), policy(target, select(app=target), ingress=[rule]))
    for address, port in ((node(mesh, version), 30080), (mesh[target].address(version), 8080)):
        answer = ask(client, address, port, "/", method="POST", body=b"x" * 60_000, timeout=15.0)  # type: ignore[arg-type]
        assert answer.status == 200
    answer = ask(client, node(mesh, version), 30080, "/", headers={"x-large": "y" * 7000}, method="POST")  # type: ignore[arg-type]
    assert len(answer.body) > 7000


@VERSIONS
def test_path_mtu_of_a_workloads_own_address(mesh: Mesh, client: Client, version: int) -> None:
    mesh.apply()
    _comes_and_goes(client, mesh["api"].address(version), 9090)


@VERSIONS
@pytest.mark.parametrize("target", ["api", "far"])
def test_path_mtu_of_datagrams(mesh: Mesh, client: Client, target: str, version: int) -> None:
    """The first answers that do not fit are lost; then who sends them knows, and takes them apart."""
    mesh.apply(outside(target))
    data = b"d" * 1400

    def answered() -> bool:
        with suppress(TimeoutError, OSError):
            sock.send(data)
            return sock.recv(2000) == data
        return False

    with make_socket(client.netns, socket.SOCK_DGRAM, version) as sock:
        sock.settimeout(0.3)
        sock.connect((str(node(mesh, version)), 30007))
        until("a large answer", answered, 15)


# --- nobody listens -------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("target", ["api", "far"])
def test_a_closed_port_behind_a_node_port_says_so(
    mesh: Mesh, client: Client, target: str, version: int
) -> None:
    """The client asked the node, and is told of the node's port."""
    served = outside(target)
    served["spec"]["ports"][2]["targetPort"] = 9
    mesh.apply(served)
    with make_socket(client.netns, socket.SOCK_DGRAM, version) as sock:
        sock.settimeout(5)
        sock.connect((str(node(mesh, version)), 30007))
        with pytest.raises(ConnectionRefusedError):
            sock.send(b"anybody?")
            sock.recv(9)


@VERSIONS
@pytest.mark.parametrize("target", ["api", "far"])
def test_a_backend_learns_that_its_client_has_gone(
    mesh: Mesh, client: Client, target: str, version: int
) -> None:
    served = outside(target)
    served["spec"]["ports"][2]["targetPort"] = 9
    mesh.apply(served)
    with make_socket(mesh[target].netns, socket.SOCK_DGRAM, version) as backend:
        backend.settimeout(5)
        backend.bind(("0.0.0.0" if version == 4 else "::", 9))
        with make_socket(client.netns, socket.SOCK_DGRAM, version) as sock:
            sock.connect((str(node(mesh, version)), 30007))
            sock.send(b"and away")
            data, peer = backend.recvfrom(99)
            assert (data, peer[0]) == (b"and away", client.addresses[version])
        backend.connect(peer)
        with pytest.raises(ConnectionRefusedError):
            backend.send(b"late")
            backend.recv(9)


@VERSIONS
def test_every_error_belonged_to_a_flow(mesh: Mesh, client: Client, version: int) -> None:
    """What the routers said of large packets was all about flows that there are."""
    mesh.apply(outside("api"))
    daemon = mesh.on("api")
    before = daemon.counter("UNRELATED_ICMP_ERROR")
    _comes_and_goes(client, node(mesh, version), 30007)
    assert daemon.counter("UNRELATED_ICMP_ERROR") == before
