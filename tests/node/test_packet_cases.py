"""The traps of a proxy in the kernel's way, end to end on bridges: path MTU, ports without a listener, the
spread over Envoy's workers, and a connection table that is full. (docs/datapath.md says where the others
are tested.)"""

from __future__ import annotations

import struct

import pytest
from clients import Http, ask, connect, status_or_reset
from conftest import MeshFactory
from objects import policy, ports, select
from rig import Mesh, workload

from penstock import lab
from penstock.lab.links import inside
from penstock.redirect.libbpf import BpfMap
from penstock.redirect.shapes import SHAPES

VERSIONS = pytest.mark.parametrize("version", [4, 6])
SMALL = 1400


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    found = make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        workload("far", "node-b", serves=True),
        bridged=True,
    )
    http = [{"method": "GET"}, {"method": "POST"}]
    rule = [
        {
            "fromEndpoints": [select(app="client")],
            "toPorts": [ports(8080, 8089, http=http), ports(9090, 9099)],
        }
    ]
    found.apply(*(policy(name, select(app=name), ingress=rule) for name in ("api", "far")))
    return found


def _mtu(mesh: Mesh, size: int) -> None:
    """Of the wire between the nodes: less than what every workload's own interface says."""
    for number in range(len(mesh.spec.nodes)):
        command = ["ip", "link", "set", f"port{number}", "mtu", str(size)]
        assert lab.run_in(mesh.spec.underlay_netns, command).wait(timeout=10) == 0
    for node in mesh.spec.nodes:
        assert lab.run_in(node.netns, ["ip", "link", "set", "eth0", "mtu", str(size)]).wait(timeout=10) == 0


@VERSIONS
def test_large_messages_pass_a_smaller_link(mesh: Mesh, version: int) -> None:
    """Through Envoy and past it, both ways: whoever must learn the path's MTU learns it."""
    _mtu(mesh, SMALL)
    try:
        far = mesh["far"].address(version)
        answer = ask(mesh["client"], far, 8080, "/", method="POST", body=b"x" * 300_000, timeout=10.0)
        assert answer.status == 200
        with connect(mesh["client"], far, 9090, timeout=10.0) as sock:
            for _ in range(20):
                sock.sendall(b"y" * 10_000)
                got = 0
                while got < 10_000:
                    got += len(sock.recv(65536))
    finally:
        _mtu(mesh, 1500)


def test_nobody_changes_the_mtu(mesh: Mesh) -> None:
    for each in mesh.spec.workloads:
        with inside(each.netns) as ip:
            assert ip.get_links(ifname="eth0")[0].get("IFLA_MTU") == 1500


@VERSIONS
@pytest.mark.parametrize("target", ["api", "far"])
def test_a_port_without_a_listener_says_so_at_once(mesh: Mesh, target: str, version: int) -> None:
    """At L4 with a reset, at L7 as Envoy's answer: never by silence."""
    address = mesh[target].address(version)
    with pytest.raises(ConnectionRefusedError):
        connect(mesh["client"], address, 9099).close()
    assert ask(mesh["client"], address, 8089, "/").status == 503


def test_connections_spread_over_envoys_workers(mesh: Mesh) -> None:
    """The kernel chooses again among the listener's sockets by each packet's own hash."""
    daemon = mesh.on("client")

    def of_workers() -> dict[str, int]:
        found = daemon.envoy_stats("listener.")
        return {k: n for k, n in found.items() if ".worker_" in k and k.endswith("downstream_cx_total")}

    before = of_workers()
    for _ in range(64):
        assert ask(mesh["client"], mesh["api"].address(), 8080, "/").status == 200
    more = {k: n - before.get(k, 0) for k, n in of_workers().items() if n > before.get(k, 0)}
    assert sum(more.values()) >= 64
    assert len(more) == 2
    assert min(more.values()) >= 10


@VERSIONS
def test_a_full_connection_table_ends_no_proxied_connection(mesh: Mesh, version: int) -> None:
    daemon = mesh.on("client")
    address = mesh["api"].address(version)
    with Http(mesh["client"], address, 8080) as l7, connect(mesh["client"], address, 9090) as l4:
        assert l7.ask("/").status == 200
        shape = SHAPES["conntrack"]
        table = BpfMap(daemon.run_dir / "bpf" / "conntrack", shape.key, shape.value)
        try:
            for number in range(shape.entries):
                table.put(struct.pack("=I36x", number), bytes(shape.value))
        finally:
            table.close()
        assert status_or_reset(l7, "/") == 200
        l4.sendall(b"still there")
        assert l4.recv(99) == b"still there"
