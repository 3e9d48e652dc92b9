"""Nodes that are no neighbours: a router stands between them, and knows nothing of their workloads."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from clients import Sniffer, ask, connect, echoes, pings, udp_echoes, until
from conftest import MeshFactory
from objects import peer_authentication, policy, ports, select
from rig import Mesh, workload

from penstock import lab
from penstock.lab import LabSpec
from penstock.lab.build import GATEWAY4
from penstock.redirect import tunnel

NEEDLE = "/nobody-is-to-read-this"
BULK = 3_000_000


def apart(spec: LabSpec) -> None:
    """Each node is on a link with a router alone."""

    def ip(where: Path, *arguments: str) -> None:
        process = lab.run_in(where, ["ip", *arguments])
        assert process.wait(10) == 0, arguments

    routers = [network[0xFE] for network in spec.underlay]
    with lab.entered(spec.underlay_netns):
        for name, value in (("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")):
            Path("/proc/sys/net", name).write_text(value)
        for which in ("all", "br0"):
            Path(f"/proc/sys/net/ipv4/conf/{which}/send_redirects").write_text("0")
    for network, router in zip(spec.underlay, routers, strict=True):
        ip(spec.underlay_netns, "addr", "add", f"{router}/{network.prefixlen}", "dev", "br0")
    for number, node in enumerate(spec.nodes):
        # Ports of the bridge that are isolated do not speak to each other, only to the router.
        ip(spec.underlay_netns, "link", "set", f"port{number}", "type", "bridge_slave", "isolated", "on")
        for network, router in zip(spec.underlay, routers, strict=True):
            address = next(a for a in node.addresses if a in network)
            full = str(address.max_prefixlen)
            ip(node.netns, "addr", "del", f"{address}/{network.prefixlen}", "dev", "eth0")
            ip(node.netns, "addr", "add", f"{address}/{full}", "dev", "eth0")
            ip(node.netns, "route", "replace", f"{router}/{full}", "dev", "eth0")
            ip(node.netns, "route", "replace", str(network), "via", str(router), "src", str(address))
        # The lab's own, which went with the address.
        ip(node.netns, "route", "replace", f"{GATEWAY4}/32", "dev", "eth0", "scope", "link")


@pytest.fixture(scope="module", params=["routed", "bridged"])
def mesh(make_mesh: MeshFactory, request: pytest.FixtureRequest) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("stranger", "node-a"),
        workload("far", "node-b", serves=True),
        bridged=request.param == "bridged",
        prepare=apart,
    )


def allowed(peer: str, *of: Any) -> dict[str, Any]:
    return policy(
        "far", select(app="far"), ingress=[{"fromEndpoints": [select(app=peer)], "toPorts": list(of)}]
    )


@pytest.mark.parametrize("version", [4, 6])
def test_what_stays_in_the_kernel_goes_through_the_tunnel(mesh: Mesh, version: int) -> None:
    mesh.apply(allowed("client", ports(9090), ports(9091, protocol="UDP")))
    client, far = mesh["client"], mesh["far"].address(version)
    with Sniffer(mesh.spec.underlay_netns, "port0") as wire:
        until("far answers", lambda: echoes(client, far, 9090))
        assert udp_echoes(client, far, 9091)
    assert not wire.segments, "on the wire there are only datagrams of the tunnel"
    before = mesh.on("far").counter("POLICY_DENIED_INGRESS")
    assert not echoes(mesh["stranger"], far, 9090)
    assert mesh.on("far").counter("POLICY_DENIED_INGRESS") > before


def test_a_ping_and_its_answer(mesh: Mesh) -> None:
    mesh.apply()
    assert pings(mesh["client"], mesh["far"].address())
    assert pings(mesh["client"], mesh["far"].address(6))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", ["DISABLE", "STRICT"])
def test_much_fits_through(mesh: Mesh, version: int, mode: str) -> None:
    """Packets of the workloads are larger than what fits into the tunnel's: they learn it."""
    mesh.apply(peer_authentication("far", mode, app="far"))
    data = bytes(range(256)) * (BULK // 256)
    with connect(mesh["client"], mesh["far"].address(version), 9090, timeout=10) as sock:
        got = bytearray()
        sock.setblocking(False)
        sent = 0

        def through() -> bool:
            nonlocal sent
            with suppress(BlockingIOError):
                sent += sock.send(data[sent : sent + 65536]) if sent < len(data) else 0
            with suppress(BlockingIOError):
                while piece := sock.recv(1 << 20):
                    got.extend(piece)
            return len(got) >= len(data)

        until("all is back", through, 20.0)
    assert bytes(got) == data


def test_an_l7_rule_holds_and_is_mutual_tls_inside_the_tunnel(mesh: Mesh) -> None:
    mesh.apply(
        allowed("client", ports(8080, http=[{"path": f"{NEEDLE}.*"}])),
        peer_authentication("far", "STRICT", app="far"),
    )
    client, far = mesh["client"], mesh["far"].address()
    until("it serves", lambda: ask(client, far, 8080, NEEDLE).status == 200)
    with Sniffer(mesh.on("far").node.netns, tunnel.DEVICES[4]) as inner:
        assert ask(client, far, 8080, NEEDLE).status == 200
        assert ask(client, far, 8080, "/other").status == 403
    assert inner.segments
    assert not inner.carried(NEEDLE.encode())


def forged(source: str, destination: str, text: bytes) -> bytes:
    """A vxlan frame with a datagram from one workload to another (RFC 7348 section 5)."""
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    datagram = struct.pack("!HHHH", 40000, 9091, 8 + len(text), 0) + text
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, socket.IPPROTO_UDP, 0) + ends
    total = sum(struct.unpack("!10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return struct.pack("!II", 0x08000000, tunnel.NUMBER << 8) + b"{MAC}" + head + datagram


def test_only_nodes_are_listened_to(mesh: Mesh) -> None:
    """Who can put a frame into the tunnel can say to be any workload: neither a stranger's machine nor a
    workload can, whether it sends to the node from elsewhere or from there.
    """
    mesh.apply(allowed("client", ports(9091, protocol="UDP")))
    there = mesh.on("far").node
    target, client, far = there.addresses[0], mesh["client"].address(), mesh["far"].address()

    def arrives(sender: Path, text: bytes) -> bool:
        """Whether what is sent from there reaches `far`, told by its answer on its way to `client`."""
        mac = tunnel.link_address(target) + bytes(6) + b"\x08\x00"
        frame = forged(str(client), str(far), text).replace(b"{MAC}", mac)
        with Sniffed(mesh.on("far").node.netns, tunnel.DEVICES[4]) as seen, lab.entered(sender):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(frame, (str(target), tunnel.PORT))
            try:
                until("it is answered", lambda: seen.saw(text, to=str(client)), 1.0)
            except AssertionError:
                return False
        return True

    assert arrives(mesh.on("client").node.netns, b"of the node itself"), "the test forges as it should"
    assert not arrives(mesh.spec.underlay_netns, b"of a stranger")
    assert not arrives(mesh["stranger"].netns, b"of another node's workload")
    assert not arrives(mesh["far"].netns, b"of its own workload")


class Sniffed:
    """Every frame that passes a device meanwhile."""

    def __init__(self, where: Path, device: str) -> None:
        with lab.entered(where):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.bind((device, 3))
        self._sock.setblocking(False)
        self._frames: list[bytes] = []

    def __enter__(self) -> Sniffed:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def saw(self, text: bytes, *, to: str) -> bool:
        with suppress(BlockingIOError):
            while frame := self._sock.recv(1 << 16):
                self._frames.append(frame)
        return any(text in frame and frame[30:34] == socket.inet_aton(to) for frame in self._frames)
