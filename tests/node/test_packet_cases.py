"""The traps of a proxy in the kernel's way, end to end on bridges: path MTU, ports without a listener, the
spread over Envoy's workers, and a connection table that is full. (docs/datapath.md says where the others
are tested.)"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from clients import Http, ask, connect, echoes, status_or_reset, until
from conftest import MeshFactory
from objects import policy, ports, select
from rig import Mesh, workload

from penstock import lab
from penstock.lab import netns
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


# --- frames of bridges ----------------------------------------------------------------------------------

BPDU = bytes.fromhex("0180c2000000")
ROOT = struct.Struct("!3sBBBHIH6s")
"""What comes first in one: LLC, then who is the root (IEEE 802.1D-2004, 9.3.1)."""


def _ports_of(where: Path, bridge: str) -> set[tuple[str, str]]:
    """The names and states of a bridge's ports."""
    process = lab.run_in(where, ["bridge", "-j", "link"], stdout=subprocess.PIPE)
    found = json.loads(process.communicate(timeout=10)[0] or b"[]")
    return {(each["ifname"], each["state"]) for each in found if each.get("master") == bridge}


def _bridge(where: Path, device: str, priority: int) -> None:
    """Spanning tree with its shortest times (a port forwards after 4 s)."""
    times = ["stp_state", "1", "forward_delay", "200", "hello_time", "100", "priority", str(priority)]
    assert lab.run_in(where, ["ip", "link", "set", device, "type", "bridge", *times]).wait(timeout=10) == 0


@pytest.mark.parametrize("first", ["node", "switch"])
def test_bridges_hear_each_other(mesh: Mesh, first: str) -> None:
    """Two links between a node's bridge and another one: a loop, which spanning tree opens at one port.

    Whoever is not the root closes one of its own, by the frames that it hears from the other.
    """
    spec = mesh.spec.node("node-a")
    device = spec.bridges[0].device
    switch = f"{mesh.spec.name}.switch"
    netns.create([switch])
    where = netns.path_of(switch)
    try:
        assert lab.run_in(where, ["ip", "link", "add", "br0", "type", "bridge"]).wait(timeout=10) == 0
        _bridge(where, "br0", 4096 if first == "switch" else 32768)
        _bridge(spec.netns, device, 4096 if first == "node" else 32768)
        for number in range(2):
            names = (f"up{number}", f"down{number}")
            for at, what in (
                (spec.netns, ["add", names[0], "type", "veth", "peer", "name", names[1], "netns", switch]),
                (spec.netns, ["set", names[0], "master", device, "up"]),
                (where, ["set", names[1], "master", "br0", "up"]),
            ):
                assert lab.run_in(at, ["ip", "link", *what]).wait(timeout=10) == 0
        assert lab.run_in(where, ["ip", "link", "set", "br0", "up"]).wait(timeout=10) == 0
        closes = (where, "br0", "down") if first == "node" else (spec.netns, device, "up")

        def open_() -> bool:
            states = {name: state for name, state in _ports_of(*closes[:2]) if name.startswith(closes[2])}
            return sorted(states.values()) == ["blocking", "forwarding"]

        until("one of the two links is closed", open_, 30)
        # Workloads go on, as their ports do.
        until("the workloads speak", lambda: echoes(mesh["client"], mesh["api"].address(), 9090), 30)
        # A workload's own word about the tree is not heard.
        daemon = mesh.on("client")
        before = daemon.counter("LINK_PROTOCOL")
        with lab.entered(mesh["client"].netns):
            mouth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with mouth, inside(mesh["client"].netns) as ip:
            mac = bytes.fromhex(ip.get_links(ifname="eth0")[0].get("IFLA_ADDRESS").replace(":", ""))
            root = ROOT.pack(b"\x42\x42\x03", 0, 0, 0, 0, 0, 0, mac)
            mouth.bind(("eth0", 0))
            mouth.send(BPDU + mac + len(root).to_bytes(2, "big") + root + bytes(32))
        until("it is dropped", lambda: daemon.counter("LINK_PROTOCOL") > before)
        assert open_()
    finally:
        lab.run_in(spec.netns, ["ip", "link", "set", device, "type", "bridge", "stp_state", "0"]).wait(10)
        netns.remove(switch)
        until(
            "the links are gone",
            lambda: not any(n.startswith("up") for n, _ in _ports_of(spec.netns, device)),
        )
