"""Services packet by packet: what no connect hook has translated, from workloads and from outside."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from bpf_kernel import OK, REDIRECT, SHOT, Kernel, Ran
from packets import ICMP, ICMPV6, TCP, UDP, frame, ip, tcp_frame, udp, udp_frame
from small_node import ALLOW, FAMILIES, IN, OPEN, STEER, V4, A, B, R, closed, rule, up

from penstock.observe.reasons import Reason
from penstock.plan import BackendSet, ListenerKey, ServiceEntry, ServiceKey
from penstock.policy.labels import HOST, WORLD
from penstock.redirect import maglev
from penstock.routing.model import ListenerKind

families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
JUDGED = 0x400
VIPS = {4: "10.96.0.1", 6: "fd00:10:96::1"}
NODE_PORT = 30080
TO_B = 1
TO_A = 2


@dataclass(frozen=True)
class Seen:
    """Addresses, ports and flags of a frame, and whether its checksums are right (RFC 1071)."""

    src: str
    dst: str
    protocol: int
    sport: int
    dport: int
    payload: bytes
    sums: bool

    @property
    def ends(self) -> tuple[str, int, str, int]:
        return self.src, self.sport, self.dst, self.dport


def _sum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def seen(raw: bytes) -> Seen:
    body = raw[14:]
    if body[0] >> 4 == 4:
        size, protocol = (body[0] & 15) * 4, body[9]
        src, dst, rest = body[12:16], body[16:20], body[size : int.from_bytes(body[2:4], "big")]
        right = _sum(body[:size]) == 0xFFFF
    else:
        protocol, src, dst, rest = body[6], body[8:24], body[24:40], body[40:]
        assert len(rest) == int.from_bytes(body[4:6], "big")
        right = True
    pseudo = src + dst + struct.pack("!II", len(rest), protocol)
    if protocol == ICMP:
        pseudo = b""
    right = right and _sum(pseudo + rest) == 0xFFFF
    sport, dport = struct.unpack("!HH", rest[:4])
    return Seen(str(ip_address(src)), str(ip_address(dst)), protocol, sport, dport, rest, right)


def whole(raw: bytes) -> bytes:
    """The frame with its checksums filled in."""
    frame_, body = raw[:14], bytearray(raw[14:])
    if body[0] >> 4 == 4:
        size, protocol, ends = (body[0] & 15) * 4, body[9], bytes(body[12:20])
        body[10:12] = (0xFFFF ^ _sum(bytes(body[:size]))).to_bytes(2, "big")
    else:
        size, protocol, ends = 40, body[6], bytes(body[8:40])
    at = size + (16 if protocol == TCP else 6)
    rest = bytes(body[size:])
    body[at : at + 2] = (0xFFFF ^ _sum(ends + struct.pack("!II", len(rest), protocol) + rest)).to_bytes(
        2, "big"
    )
    return frame_ + bytes(body)


def vip(at: Mapping[int, str]) -> str:
    return VIPS[ip_address(at[A]).version]


def served(at: Mapping[int, str], **more: object) -> dict[ServiceKey, ServiceEntry]:
    """The virtual address 80/TCP, 53/UDP → b:8080, and 81 → nobody."""
    address, end = ip_address(vip(at)), ((ip_address(at[B]), 8080),)
    return {
        ServiceKey(address, 80, TCP): ServiceEntry(TO_B, "default/b:80/4", end, **more),  # type: ignore[arg-type]
        ServiceKey(address, 53, UDP): ServiceEntry(TO_B, "default/b:53/4", end),
        ServiceKey(address, 81, TCP): ServiceEntry(9, "default/c:81/4", ()),
        ServiceKey(address, 81, UDP): ServiceEntry(9, "default/c:81/4", ()),
    }


def external(at: Mapping[int, str], *ends: tuple[str, int], **more: object) -> dict[ServiceKey, ServiceEntry]:
    """The node's port NODE_PORT, TCP and UDP, for clients from outside → `ends`."""
    backends = tuple((ip_address(a), port) for a, port in ends)
    return {
        ServiceKey(ip_address(at[HOST]), NODE_PORT, protocol): ServiceEntry(
            3,
            "default/n:80/4",
            backends,
            external=True,
            outside=BackendSet(4, backends),
            **more,  # type: ignore[arg-type]
        )
        for protocol in (TCP, UDP)
    }


def sends(kernel: Kernel, raw: bytes, *, device: str = "wa", program: str = "from_workload") -> Ran:
    return kernel.run(program, whole(raw), device, rewritten=True)


# --- from a workload ----------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("make", [tcp_frame, udp_frame], ids=["tcp", "udp"])
def test_there_and_back(kernel: Kernel, at: dict[int, str], make: type) -> None:
    up(kernel, services=served(at))
    port = 80 if make is tcp_frame else 53
    ran = sends(kernel, make(at[A], vip(at), 40000, port))
    there = seen(ran.packet)
    assert (ran.action, there.ends, there.sums) == (REDIRECT, (at[A], 40000, at[B], 8080), True)
    # What is told is who really spoke to whom.
    assert str(ran.events[0].destination) == at[B]
    ran = sends(kernel, make(at[B], at[A], 8080, 40000, *(["SA"] if port == 80 else [])), device="wb")
    back = seen(ran.packet)
    assert (ran.action, back.ends, back.sums) == (REDIRECT, (vip(at), port, at[A], 40000), True)


@families
def test_policy_judges_the_backend(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(B, IN), services=served(at))
    ran = sends(kernel, tcp_frame(at[A], vip(at), 40000, 80))
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)
    up(kernel, closed(B, IN) | rule(B, IN, ALLOW, peer=A, protocol=TCP, port=8080), services=served(at))
    assert sends(kernel, tcp_frame(at[A], vip(at), 40000, 80)).action == REDIRECT


@families
def test_an_l7_rule_of_the_backend_holds(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, OPEN | rule(B, IN, STEER, protocol=TCP, port=8080), services=served(at))
    ran = sends(kernel, tcp_frame(at[A], vip(at), 40000, 80))
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)


@families
def test_a_borrowed_address_touches_no_flow(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, services=served(at))
    ran = kernel.run("from_workload", whole(tcp_frame(at[B], vip(at), 40000, 80)), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)
    assert not [e for each in kernel.nat for e in each.items()]


@families
def test_a_direct_flow_of_the_same_ports_is_no_services(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, services=served(at))
    sends(kernel, tcp_frame(at[A], vip(at), 40000, 80))
    kernel.run("from_workload", whole(tcp_frame(at[A], at[B], 40000, 8080)), "wa")
    answer = whole(tcp_frame(at[B], at[A], 8080, 40000, "SA"))
    assert kernel.run("from_workload", answer, "wb").action == REDIRECT


@families
@pytest.mark.parametrize("make", [tcp_frame, udp_frame], ids=["tcp", "udp"])
def test_a_workload_that_calls_itself(kernel: Kernel, at: dict[int, str], make: type) -> None:
    services = {
        ServiceKey(ip_address(vip(at)), 80, p): ServiceEntry(TO_A, "s", ((ip_address(at[A]), 8080),))
        for p in (TCP, UDP)
    }
    up(kernel, closed(A, IN), services=services)
    ran = sends(kernel, make(at[A], vip(at), 40000, 80))
    there = seen(ran.packet)
    assert (ran.action, there.ends, there.sums) == (REDIRECT, (vip(at), 40000, at[A], 8080), True)
    ran = sends(kernel, make(at[A], vip(at), 8080, 40000, *(["SA"] if make is tcp_frame else [])))
    back = seen(ran.packet)
    assert (ran.action, back.ends, back.sums) == (REDIRECT, (vip(at), 80, at[A], 40000), True)


def test_a_fragment_follows_its_first(kernel: Kernel) -> None:
    at = V4
    up(kernel, services=served(at))
    data = udp(40000, 53, b"x" * 16)
    first = frame(ip(at[A], vip(at), UDP, data[:16], ident=7, more=True))
    rest = frame(ip(at[A], vip(at), UDP, data[16:], ident=7, offset=2))
    ran = kernel.run("from_workload", first, "wa", rewritten=True)
    assert ran.action == REDIRECT
    ran = kernel.run("from_workload", rest, "wa", rewritten=True)
    assert ran.action == REDIRECT
    assert ran.packet[30:34] == ip_address(at[B]).packed
    assert ran.packet[34:] == rest[34:]


# --- nobody there -------------------------------------------------------------------------------------


@families
def test_without_a_backend_tcp_is_reset(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, services=served(at))
    ran = sends(kernel, tcp_frame(at[A], vip(at), 40000, 81))
    back = seen(ran.packet)
    assert (ran.action, ran.reason, ran.mark) == (REDIRECT, Reason.NO_BACKEND, JUDGED)
    assert (back.ends, back.sums) == ((vip(at), 81, at[A], 40000), True)
    # RST and ACK of the SYN, whose number was 1.
    assert (back.payload[13], int.from_bytes(back.payload[8:12], "big")) == (0x14, 2)
    assert ran.packet[:12] == tcp_frame(at[A], vip(at), 1, 1)[6:12] + tcp_frame(at[A], vip(at), 1, 1)[:6]


@families
def test_without_a_backend_udp_is_unreachable(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, services=served(at))
    sent = whole(udp_frame(at[A], vip(at), 40000, 81))
    ran = kernel.run("from_workload", sent, "wa", rewritten=True)
    back = seen(ran.packet)
    assert (ran.action, ran.reason, ran.mark) == (REDIRECT, Reason.NO_BACKEND, JUDGED)
    assert (back.src, back.dst, back.sums) == (vip(at), at[A], True)
    assert back.protocol == (ICMPV6 if ":" in at[A] else ICMP)
    assert tuple(back.payload[:2]) == ((1, 4) if ":" in at[A] else (3, 3))
    assert sent[14:].startswith(back.payload[8:])
    assert len(back.payload) == 8 + (40 if ":" in at[A] else 20) + 8


# --- from outside -------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("make", [tcp_frame, udp_frame], ids=["tcp", "udp"])
def test_a_node_port(kernel: Kernel, at: dict[int, str], make: type) -> None:
    up(kernel, services=external(at, (at[B], 8080)))
    out = sends(kernel, make(at[WORLD], at[HOST], 40000, NODE_PORT), device="eth", program="from_netdev")
    there = seen(out.packet)
    assert (out.action, there.ends, there.sums) == (REDIRECT, (at[WORLD], 40000, at[B], 8080), True)
    assert out.events[0].source_identity == WORLD
    # The answer leaves as it is, and becomes the node's on the device.
    answer = whole(make(at[B], at[WORLD], 8080, 40000, *(["SA"] if make is tcp_frame else [])))
    assert kernel.run("from_workload", answer, "wb").action == OK
    ran = kernel.run("to_netdev", answer, "eth", rewritten=True)
    back = seen(ran.packet)
    assert (ran.action, back.ends, back.sums) == (OK, (at[HOST], NODE_PORT, at[WORLD], 40000), True)
    # What belongs to no such flow is left alone.
    other = whole(make(at[B], at[WORLD], 8080, 40001, *(["SA"] if make is tcp_frame else [])))
    assert kernel.run("to_netdev", other, "eth").action == OK


@families
@pytest.mark.parametrize("who", [WORLD, R])
def test_a_node_port_is_judged_as_who_really_asks(kernel: Kernel, at: dict[int, str], who: int) -> None:
    allowed = rule(B, IN, ALLOW, peer=R, protocol=TCP, port=8080)
    up(kernel, closed(B, IN) | allowed, services=external(at, (at[B], 8080)))
    ran = sends(kernel, tcp_frame(at[who], at[HOST], 40000, NODE_PORT), device="eth", program="from_netdev")
    assert ran.action == (REDIRECT if who == R else SHOT)
    assert ran.reason is (Reason.FORWARDED_LOCAL if who == R else Reason.POLICY_DENIED_INGRESS)


@families
def test_an_l7_rule_holds_at_a_node_port(kernel: Kernel, at: dict[int, str]) -> None:
    up(
        kernel,
        OPEN | rule(B, IN, STEER, protocol=TCP, port=8080),
        services=external(at, (at[B], 8080), http=True),
        listeners={ListenerKey(A, ListenerKind.HTTP_WORKLOAD): 15001},
    )
    ran = sends(kernel, tcp_frame(at[WORLD], at[HOST], 40000, NODE_PORT), device="eth", program="from_netdev")
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)


@families
def test_a_borrowed_address_from_outside(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, services=external(at, (at[B], 8080)))
    kernel.run("from_netdev", whole(tcp_frame(at[A], at[HOST], 40000, NODE_PORT)), "eth")
    assert not kernel.nat[0].items()


@families
def test_a_virtual_address_is_not_served_to_the_outside(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, services=served(at))
    ran = kernel.run("from_netdev", whole(tcp_frame(at[WORLD], vip(at), 40000, 80)), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.UNTRANSLATED_SERVICE)


@families
def test_a_node_port_without_a_backend_says_so(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, services=external(at))
    ran = sends(kernel, tcp_frame(at[WORLD], at[HOST], 40000, NODE_PORT), device="eth", program="from_netdev")
    assert (ran.action, ran.reason) == (REDIRECT, Reason.NO_BACKEND)
    assert seen(ran.packet).ends == (at[HOST], NODE_PORT, at[WORLD], 40000)


def test_other_ports_of_the_node_are_its_own_business(kernel: Kernel) -> None:
    up(kernel, services=external(V4, (V4[B], 8080)))
    packet = whole(tcp_frame(V4[WORLD], V4[HOST], 40000, 22))
    assert kernel.run("from_netdev", packet, "eth").action == OK


# --- routes -------------------------------------------------------------------------------------------


@families
def test_with_a_route_a_workload_is_sent_to_the_services_own_address(
    kernel: Kernel, at: dict[int, str]
) -> None:
    own = ip_address(vip(at))
    services = external(at, (at[B], 8080), http=True, alias=BackendSet(5, ((own, 80),)))
    services |= {ServiceKey(own, 80, TCP): ServiceEntry(3, "s", ((ip_address(at[B]), 8080),), http=True)}
    up(kernel, services=services)
    ran = sends(kernel, tcp_frame(at[A], at[HOST], 40000, NODE_PORT))
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)
    assert seen(ran.packet).ends == (at[A], 40000, vip(at), 80)


# --- which backend ------------------------------------------------------------------------------------

TEN = tuple((ip_address(f"10.1.9.{n}"), 8080) for n in range(1, 11))


def _chosen(kernel: Kernel, port: int, protocol: int = UDP) -> str:
    make = udp_frame if protocol == UDP else tcp_frame
    return seen(sends(kernel, make(V4[A], VIPS[4], port, 80)).packet).dst


def _many(protocol: int, backends: tuple = TEN, **more: object) -> dict[ServiceKey, ServiceEntry]:
    key = ServiceKey(ip_address(VIPS[4]), 80, protocol)
    return {key: ServiceEntry(6, "s", backends, **more)}  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 16381], ids=["random", "maglev"])
def test_every_backend_has_its_share(kernel: Kernel, size: int) -> None:
    up(kernel, services=_many(UDP, maglev=size))
    found = [_chosen(kernel, port) for port in range(20000, 21000)]
    counts = {a: found.count(a) for a in set(found)}
    # 100 each on average, standard deviation 9.5.
    assert len(counts) == 10
    assert all(55 < n < 145 for n in counts.values())


def test_maglev_moves_next_to_nothing_when_a_backend_goes(kernel: Kernel) -> None:
    ports = range(20000, 24000)
    up(kernel, services=_many(TCP, maglev=16381))
    before = {port: _chosen(kernel, port, TCP) for port in ports}
    gone = TEN[3]
    up(kernel, services=_many(TCP, tuple(b for b in TEN if b != gone), maglev=16381))
    after = {port: _chosen(kernel, port, TCP) for port in ports}
    stayed = [port for port in ports if before[port] != str(gone[0])]
    moved = [port for port in stayed if before[port] != after[port]]
    assert len(moved) <= len(stayed) * 0.01
    assert str(gone[0]) not in after.values()


def test_maglev_tables_are_whole_and_even() -> None:
    for size in (251, 16381):
        table = maglev.table(TEN, size)
        counts = [table.count(n) for n in range(10)]
        assert sum(counts) == size
        assert max(counts) - min(counts) <= 1


def test_a_flow_keeps_its_backend_while_that_stands(kernel: Kernel) -> None:
    up(kernel, services=_many(UDP))
    port = next(p for p in range(20000, 20100) if _chosen(kernel, p) == str(TEN[9][0]))
    # Another number of backends would choose another one; the old one is terminating.
    up(kernel, services=_many(UDP, TEN[:3], ending=TEN[9:]))
    assert _chosen(kernel, port) == str(TEN[9][0])
    assert _chosen(kernel, port + 1000) != str(TEN[9][0])
    up(kernel, services=_many(UDP, TEN[:3]))
    assert _chosen(kernel, port) in {str(a) for a, _ in TEN[:3]}


def test_a_connection_whose_backend_is_gone_is_reset(kernel: Kernel) -> None:
    up(kernel, services=_many(TCP))
    was = _chosen(kernel, 20000, TCP)
    up(kernel, services=_many(TCP, tuple(b for b in TEN if str(b[0]) != was)))
    ran = sends(kernel, tcp_frame(V4[A], VIPS[4], 20000, 80, "A"))
    assert (ran.action, ran.reason) == (REDIRECT, Reason.NO_BACKEND)
    assert seen(ran.packet).payload[13] == 0x04


def test_a_client_stays_with_its_backend(kernel: Kernel) -> None:
    up(kernel, services=_many(UDP, affinity=60))
    first = _chosen(kernel, 20000)
    assert {_chosen(kernel, port) for port in range(20001, 20050)} == {first}
    # It goes: another one, and again the same one each time.
    up(kernel, services=_many(UDP, tuple(b for b in TEN if str(b[0]) != first), affinity=60))
    found = {_chosen(kernel, port) for port in range(21000, 21050)}
    assert len(found) == 1
    assert first not in found


def test_affinity_ends_with_its_time(kernel: Kernel) -> None:
    up(kernel, services=_many(UDP, affinity=60))
    _chosen(kernel, 20000)
    affinity = kernel.nat[2]
    again = {_chosen(kernel, port) for port in range(20001, 20050)}
    assert len(again) == 1
    changed = set()
    for port in range(21000, 21020):
        ((key, value),) = affinity.items().items()
        affinity.put(key, bytes(8) + value[8:])
        changed.add(_chosen(kernel, port))
    assert len(changed) > 3
