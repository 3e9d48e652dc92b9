"""ICMP errors about flows that are translated packet by packet: they tell of what their reader knows."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from bpf_kernel import OK, SHOT, Kernel
from packets import ICMP, ICMPV6, TCP, UDP, frame, ip, tcp, tcp_frame, udp, udp_frame
from small_node import FAMILIES, A, B, up
from test_nat import JUDGED, NODE_PORT, _sum, external, sends, served, vip, whole

from penstock.observe.reasons import Reason
from penstock.plan import BackendSet, ServiceEntry, ServiceKey
from penstock.policy.labels import HOST, REMOTE_NODE, WORLD

families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
MARK_MASK = 0xF00
ROUTER = {4: "192.0.2.77", 6: "fd99::77"}
KINDS = pytest.mark.parametrize("kind", ["too big", "port unreachable"])
TYPES = {(4, "too big"): (3, 4), (4, "port unreachable"): (3, 3)}
TYPES |= {(6, "too big"): (2, 0), (6, "port unreachable"): (1, 4)}


def error(source: str, target: str, quoted: bytes, kind: str = "too big") -> bytes:
    """An error about `quoted`, an IP packet, with all sums right: 1280 octets are the most that pass."""
    version = ip_address(source).version
    quoted = quoted[: 48 + 20] if version == 6 else quoted[:28]
    number, code = TYPES[version, kind]
    rest = 1280 if kind == "too big" else 0
    body = struct.pack("!BBHI", number, code, 0, rest) + quoted
    protocol = ICMP if version == 4 else ICMPV6
    ends = ip_address(source).packed + ip_address(target).packed
    pseudo = b"" if version == 4 else ends + struct.pack("!II", len(body), protocol)
    body = body[:2] + (0xFFFF ^ _sum(pseudo + body)).to_bytes(2, "big") + body[4:]
    packet = bytearray(ip(source, target, protocol, body))
    if version == 4:
        packet[10:12] = (0xFFFF ^ _sum(bytes(packet[:20]))).to_bytes(2, "big")
    return frame(bytes(packet))


@dataclass(frozen=True)
class Told:
    """An error as its reader sees it, and whether all its sums are right, the quoted header's too."""

    source: str
    target: str
    quoted: tuple[str, int, str, int]
    head: bytes
    sums: bool


def told(raw: bytes) -> Told:
    body = raw[14:]
    v4 = body[0] >> 4 == 4
    size, at = (20, slice(12, 20)) if v4 else (40, slice(8, 40))
    half = (at.stop - at.start) // 2
    message, ends = body[size:], body[at]
    inner = message[8:]
    pseudo = b"" if v4 else ends + struct.pack("!II", len(message), ICMPV6)
    right = _sum(pseudo + message) == 0xFFFF
    if v4:
        right = right and _sum(body[:20]) == 0xFFFF and _sum(inner[:20]) == 0xFFFF
    sport, dport = struct.unpack("!HH", inner[size : size + 4])
    source, target, a, b = (
        str(ip_address(each)) for each in (ends[:half], ends[half:], inner[at][:half], inner[at][half:])
    )
    return Told(source, target, (a, sport, b, dport), message[:2] + message[4:8], right)


def packet(raw: bytes) -> bytes:
    return whole(raw)[14:]


@families
@KINDS
@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
def test_an_error_about_an_answer_reaches_the_backend(
    kernel: Kernel, at: dict[int, str], kind: str, protocol: int
) -> None:
    """The answer bore the node's address; a router, or the client itself, has something against it."""
    up(kernel, services=external(at, (at[B], 8080)))
    make = tcp_frame if protocol == TCP else udp_frame
    sends(kernel, make(at[WORLD], at[HOST], 40000, NODE_PORT), device="eth", program="from_netdev")
    answer = packet(make(at[HOST], at[WORLD], NODE_PORT, 40000))
    for source in (ROUTER[ip_address(at[A]).version], at[WORLD]):
        raw = error(source, at[HOST], answer, kind)
        ran = kernel.run("from_netdev", raw, "eth", rewritten=True)
        found = told(ran.packet)
        assert (ran.action, ran.mark & MARK_MASK, found.sums) == (OK, JUDGED, True)
        assert (found.source, found.target) == (source, at[B])
        assert found.quoted == (at[B], 8080, at[WORLD], 40000)
        assert found.head == told(raw).head


@families
def test_an_error_about_no_answer_stays_the_nodes(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, services=external(at, (at[B], 8080)))
    sends(kernel, tcp_frame(at[WORLD], at[HOST], 40000, NODE_PORT), device="eth", program="from_netdev")
    for port, own in ((NODE_PORT, 40001), (22, 40000)):
        raw = error(at[WORLD], at[HOST], packet(tcp_frame(at[HOST], at[WORLD], port, own)))
        assert kernel.run("from_netdev", raw, "eth").action == OK


@families
@KINDS
@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
def test_an_error_about_a_question_speaks_of_the_service(
    kernel: Kernel, at: dict[int, str], kind: str, protocol: int
) -> None:
    """It leaves by the node's device; what the backend itself says comes from the Service, too."""
    up(kernel, services=external(at, (at[B], 8080)))
    make = tcp_frame if protocol == TCP else udp_frame
    sends(kernel, make(at[WORLD], at[HOST], 40000, NODE_PORT), device="eth", program="from_netdev")
    question = packet(make(at[WORLD], at[B], 40000, 8080))
    for source, shown in ((at[B], at[HOST]), (at[HOST], at[HOST])):
        raw = error(source, at[WORLD], question, kind)
        if source == at[B]:
            assert kernel.run("from_workload", raw, "wb").action == OK
        ran = kernel.run("to_netdev", raw, "eth", rewritten=True)
        found = told(ran.packet)
        assert (ran.action, found.sums) == (OK, True)
        assert (found.source, found.target) == (shown, at[WORLD])
        assert found.quoted == (at[WORLD], 40000, at[HOST], NODE_PORT)
        assert found.head == told(raw).head
    other = error(at[B], at[WORLD], packet(make(at[WORLD], at[B], 40001, 8080)), kind)
    assert kernel.run("to_netdev", other, "eth").action == OK


@families
@KINDS
def test_a_workload_that_asked_a_service_is_told_of_the_service(
    kernel: Kernel, at: dict[int, str], kind: str
) -> None:
    up(kernel, services=served(at))
    sends(kernel, udp_frame(at[A], vip(at), 40000, 53))
    raw = error(at[B], at[A], packet(udp_frame(at[A], at[B], 40000, 8080)), kind)
    ran = kernel.run("from_workload", raw, "wb")
    assert (ran.action, ran.mark & MARK_MASK) == (OK, JUDGED)
    ran = kernel.run("to_workload", raw, "wa", mark=JUDGED, came_in="wb", rewritten=True)
    found = told(ran.packet)
    assert (found.source, found.target, found.sums) == (vip(at), at[A], True)
    assert found.quoted == (at[A], 40000, vip(at), 53)


@families
@KINDS
def test_a_workload_speaks_of_a_services_answer(kernel: Kernel, at: dict[int, str], kind: str) -> None:
    up(kernel, services=served(at))
    sends(kernel, udp_frame(at[A], vip(at), 40000, 53))
    answer = packet(udp_frame(vip(at), at[A], 53, 40000))
    ran = kernel.run("from_workload", error(at[A], vip(at), answer, kind), "wa", rewritten=True)
    found = told(ran.packet)
    assert (ran.action, ran.mark & MARK_MASK, found.sums) == (OK, JUDGED, True)
    assert (found.source, found.target) == (at[A], at[B])
    assert found.quoted == (at[B], 8080, at[A], 40000)
    # Of another's flow nobody speaks.
    ran = kernel.run("from_workload", error(at[B], vip(at), answer, kind), "wb", rewritten=True)
    assert (ran.action, ran.reason) == (SHOT, Reason.UNRELATED_ICMP_ERROR)


@families
def test_an_error_about_an_answer_that_another_node_gave_goes_there(
    kernel: Kernel, at: dict[int, str]
) -> None:
    """The client was sent on to a node with an endpoint, which answers under this node's address."""
    services = {
        ServiceKey(ip_address(at[HOST]), NODE_PORT, UDP): ServiceEntry(
            3, "default/n:80/4", (), external=True, outside=BackendSet(4, ()),
            beyond=BackendSet(5, ((ip_address(at[REMOTE_NODE]), 0),)),
        )
    }  # fmt: skip
    up(kernel, services=services)
    sent = kernel.call("from_netdev", whole(udp_frame(at[WORLD], at[HOST], 40000, NODE_PORT)), device="eth")
    before = kernel.counted().get(Reason.NO_BACKEND, 0)
    raw = error(at[WORLD], at[HOST], packet(udp_frame(at[HOST], at[WORLD], NODE_PORT, 40000)))
    ran = kernel.run("from_netdev", raw, "eth")
    # There is no route to that node here: the question is refused, but an error is never answered by one.
    assert sent[0] != SHOT
    assert (ran.action, kernel.counted().get(Reason.NO_BACKEND, 0)) == (SHOT, before)


def test_an_error_of_the_node_itself_about_a_question(kernel: Kernel) -> None:
    """The way to the backend is smaller than the one to this node: its stack says so to a workload."""
    for at in FAMILIES:
        up(kernel, services=served(at))
        sends(kernel, tcp_frame(at[A], vip(at), 40000, 80))
        raw = error(at[HOST], at[A], packet(tcp_frame(at[A], at[B], 40000, 8080)))
        ran = kernel.run("to_workload", raw, "wa", rewritten=True)
        found = told(ran.packet)
        assert (ran.action, found.sums) == (OK, True)
        assert (found.source, found.quoted) == (at[HOST], (at[A], 40000, vip(at), 80))


def test_what_is_cut_off_is_left_alone(kernel: Kernel) -> None:
    at = FAMILIES[0]
    up(kernel, services=external(at, (at[B], 8080)))
    sends(kernel, tcp_frame(at[WORLD], at[HOST], 40000, NODE_PORT), device="eth", program="from_netdev")
    raw = error(at[WORLD], at[HOST], ip(at[HOST], at[WORLD], TCP, tcp(NODE_PORT, 40000)))
    for size in (14 + 20 + 8 + 10, 14 + 20 + 8 + 22):
        assert kernel.run("from_netdev", raw[:size], "eth").action == OK
    odd = ip(at[HOST], at[WORLD], ICMP, udp(1, 2))
    assert kernel.run("from_netdev", error(at[WORLD], at[HOST], odd), "eth").action == OK
