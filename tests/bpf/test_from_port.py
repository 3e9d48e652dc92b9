"""Ports of a bridge: who speaks is told by frame and packet, and neighbours are judged though they never
meet the node's stack."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest
from bpf_kernel import OK, REDIRECT, SHOT, Kernel
from packets import (
    ICMPV6,
    TCP,
    UDP,
    echo,
    extension,
    frame,
    icmp,
    ip,
    tcp_frame,
    udp,
    udp_frame,
    unreachable,
)
from small_node import ALLOW, DEVICE, FAMILIES, IN, OPEN, OUT, STEER, V4, V6, A, B, R, closed, rule, tables

from penstock.observe.reasons import Reason
from penstock.plan import KernelTables, ListenerKey, PolicyEntry, PolicyKey, PortEntry
from penstock.policy.labels import HOST, WORLD
from penstock.routing.model import ListenerKind

families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
MAC = {A: b"\2\0\0\0\0\x0a", B: b"\2\0\0\0\0\x0b"}
BRIDGE_MAC, EVERYBODY = b"\2\0\0\0\0\xee", b"\xff" * 6
STEERED, TO_PROXY, JUDGED, PROVEN, DOWNSTREAM = 0x300, 0x200, 0x400, 0x600, 0xA00
BRIDGE, PORT = 1000, 15001


def up(
    kernel: Kernel,
    policy: dict[PolicyKey, PolicyEntry] | None = None,
    *,
    direct: tuple[int, ...] = (4, 6),
    bridge_of_b: int = BRIDGE,
    **more: object,
) -> KernelTables:
    """A and B on ports of a bridge; `eth` is a port of it too, and nobody's."""
    ports = {
        kernel.device[DEVICE[who]]: PortEntry(
            kernel.device[DEVICE[who]], who, MAC[who], bridge, BRIDGE_MAC, direct
        )
        for who, bridge in ((A, BRIDGE), (B, bridge_of_b))
    }
    ports[kernel.device["eth"]] = PortEntry(0, bridge=BRIDGE, bridge_mac=BRIDGE_MAC)
    wanted = replace(tables(kernel, policy), ports=ports, **more)  # type: ignore[arg-type]
    kernel.tables.apply(wanted)
    return wanted


def between(source: bytes, target: bytes, packet: bytes) -> bytes:
    """The same packet in a frame from `source` to `target`."""
    return target + source + packet[12:]


def said(who: int, packet: bytes, to: bytes = BRIDGE_MAC) -> bytes:
    return between(MAC[who], to, packet)


def arp(sender: bytes, address: str, *, operation: int = 1, source: bytes = b"") -> bytes:
    body = struct.pack("!HHBBH", 1, 0x800, 6, 4, operation) + sender + ip_address(address).packed
    return EVERYBODY + (source or sender) + b"\x08\x06" + body + bytes(6) + ip_address(V4[B]).packed


@contextmanager
def listening(at: dict[int, str]) -> Iterator[None]:
    version = socket.AF_INET if at is V4 else socket.AF_INET6
    with socket.socket(version) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1" if at is V4 else "::1", PORT))
        sock.listen()
        yield


# --- from_port: packets ------------------------------------------------------------------------------


@families
def test_neighbours_meet_past_the_bridge(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    ran = kernel.run("from_port", said(A, tcp_frame(at[A], at[B], 40000, 80), MAC[B]), "wa")
    assert (ran.action, ran.reason) == (REDIRECT, Reason.FORWARDED_LOCAL)
    answer = kernel.run("from_port", said(B, tcp_frame(at[B], at[A], 80, 40000, "SA"), MAC[A]), "wb")
    assert (answer.action, answer.events) == (REDIRECT, ())


@families
def test_where_netfilter_is_to_see_frames_they_pass_the_bridge(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, direct=(6,) if at is V4 else (4,))
    ran = kernel.run("from_port", said(A, tcp_frame(at[A], at[B], 40000, 80), MAC[B]), "wa")
    assert (ran.action, ran.mark) == (OK, PROVEN)
    ran = kernel.run("to_port", said(A, tcp_frame(at[A], at[B], 40000, 80), MAC[B]), "wb", mark=PROVEN)
    assert ran.action == OK
    answer = said(B, tcp_frame(at[B], at[A], 80, 40000, "SA"), MAC[A])
    assert kernel.run("from_port", answer, "wb").mark == PROVEN
    assert kernel.run("to_port", answer, "wa", mark=PROVEN, came_in="wb").action == OK


@families
def test_between_bridges_the_engines_own_rules_hold(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, bridge_of_b=BRIDGE + 1)
    ran = kernel.run("from_port", said(A, tcp_frame(at[A], at[B], 40000, 80)), "wa")
    assert (ran.action, ran.mark) == (OK, PROVEN)
    assert (
        kernel.run("from_bridge", said(A, tcp_frame(at[A], at[B], 40000, 80)), "eth", mark=PROVEN).action
        == OK
    )


@families
def test_both_sides_rules_hold_between_neighbours(kernel: Kernel, at: dict[int, str]) -> None:
    packet = said(A, tcp_frame(at[A], at[B], 40000, 80), MAC[B])
    up(kernel, closed(A, OUT))
    assert kernel.run("from_port", packet, "wa").reason is Reason.POLICY_DENIED_EGRESS
    up(kernel, closed(B, IN) | rule(B, IN, ALLOW, peer=A, protocol=UDP))
    assert kernel.run("from_port", packet, "wa").reason is Reason.POLICY_DENIED_INGRESS
    assert kernel.run("from_port", said(A, udp_frame(at[A], at[B], 1, 2), MAC[B]), "wa").action == REDIRECT


@families
def test_what_a_rule_steers_goes_up_the_bridge(kernel: Kernel, at: dict[int, str]) -> None:
    steer = OPEN | rule(B, IN, STEER, peer=A, protocol=TCP, port=80)
    up(kernel, steer, listeners={ListenerKey(A, ListenerKind.HTTP_WORKLOAD): PORT})
    packet = said(A, tcp_frame(at[A], at[B], 40000, 80), MAC[B])
    # No socket listens there: closed, not open.
    assert kernel.run("from_port", packet, "wa").reason is Reason.PROXY_NOT_READY
    with listening(at):
        ran = kernel.run("from_port", packet, "wa", to=BRIDGE_MAC)
        assert (ran.action, ran.mark) == (OK, STEERED)
    # What from_bridge did not catch is let through nowhere.
    ran = kernel.run("to_port", packet, "wb", mark=STEERED)
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)


@families
def test_a_steered_frame_without_its_socket_ends_at_the_bridge(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    ran = kernel.run("from_bridge", said(A, tcp_frame(at[A], at[B], 40000, 80)), "eth", mark=STEERED)
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)


@families
def test_the_bridge_is_a_device_like_any_other_for_strangers(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, IN))
    ran = kernel.run("from_bridge", tcp_frame(at[WORLD], at[A], 40000, 80), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)
    ran = kernel.run("from_bridge", tcp_frame(at[B], at[A], 40000, 80), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)
    assert kernel.run("from_bridge", tcp_frame(at[WORLD], at[HOST], 40000, 22), "eth").action == OK


@families
def test_the_world_reaches_a_bridge_by_the_engines_own_ways(kernel: Kernel, at: dict[int, str]) -> None:
    """Docker drops what is sent to a container that published nothing; other mesh nodes are no strangers."""
    up(kernel)
    assert kernel.run("from_netdev", tcp_frame(at[WORLD], at[A], 40000, 80), "eth").action == OK
    assert kernel.run("from_netdev", tcp_frame(at[R], at[A], 40000, 80), "eth").action == REDIRECT


# --- from_port: frames -------------------------------------------------------------------------------


def test_a_frame_bears_its_senders_own_address(kernel: Kernel) -> None:
    up(kernel)
    for packet in (tcp_frame(V4[A], V4[B], 40000, 80), echo(V6[A], V6[B], 1)):
        ran = kernel.run("from_port", between(MAC[B], BRIDGE_MAC, packet), "wa")
        assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)
    ran = kernel.run("from_port", arp(MAC[A], V4[A], source=MAC[B]), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)


@families
@pytest.mark.parametrize("who", [B, R, HOST, WORLD])
def test_a_packet_bears_its_senders_own_address(kernel: Kernel, at: dict[int, str], who: int) -> None:
    up(kernel)
    ran = kernel.run("from_port", said(A, udp_frame(at[who], at[B if who != B else R], 1, 2), MAC[B]), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)


@pytest.mark.parametrize("operation", [1, 2])
def test_arp_speaks_for_its_sender(kernel: Kernel, operation: int) -> None:
    up(kernel)
    assert kernel.run("from_port", arp(MAC[A], V4[A], operation=operation), "wa").action == OK
    assert kernel.run("from_port", arp(MAC[A], "0.0.0.0", operation=operation), "wa").action == OK
    for sender, address in ((MAC[A], V4[B]), (MAC[A], V4[HOST]), (MAC[A], V4[WORLD]), (MAC[B], V4[A])):
        ran = kernel.run("from_port", arp(sender, address, operation=operation, source=MAC[A]), "wa")
        assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE), address


def test_a_port_of_nobody_does_not_speak_for_a_workload(kernel: Kernel) -> None:
    up(kernel)
    other = b"\2\0\0\0\0\x77"
    assert kernel.run("from_port", arp(other, V4[WORLD]), "eth").action == OK
    assert kernel.run("from_port", arp(other, V4[A]), "eth").reason is Reason.SPOOFED_SOURCE
    for who in (A, HOST):
        packet = between(other, MAC[B], tcp_frame(V4[who], V4[B], 40000, 80))
        assert kernel.run("from_port", packet, "eth").reason is Reason.SPOOFED_SOURCE


def _discovery(who: str, to: str, kind: int, target: str, *, before: bytes = b"") -> bytes:
    body = before + icmp(kind, data=ip_address(target).packed)
    return frame(ip(who, to, 60 if before else ICMPV6, body, hop_limit=255))


def test_neighbour_discovery_speaks_for_its_sender(kernel: Kernel) -> None:
    up(kernel)
    own, link = V6[A], "fe80::a"
    for allowed in (
        _discovery(own, "ff02::1:ff00:2", 135, V6[B]),
        _discovery("::", "ff02::1:ff00:2", 135, V6[B]),
        _discovery(own, V6[B], 135, V6[B]),
        _discovery(own, V6[B], 136, own),
        _discovery(link, V6[B], 136, link),
    ):
        assert kernel.run("from_port", said(A, allowed, MAC[B]), "wa").action == OK
    for false in (
        _discovery(V6[B], "ff02::1:ff00:2", 135, V6[R]),
        _discovery(own, V6[B], 136, V6[HOST]),
        _discovery(link, "ff02::1", 136, V6[B]),
        _discovery(link, "ff02::1", 136, V6[B], before=extension(ICMPV6)),
        _discovery(link, "ff02::1", 134, "::"),
        _discovery(link, V6[B], 137, V6[R]),
    ):
        assert kernel.run("from_port", said(A, false, MAC[B]), "wa").action == SHOT


def test_a_probe_that_the_node_would_route_on_is_a_packet_like_any_other(kernel: Kernel) -> None:
    up(kernel, closed(B, IN))
    probe = _discovery(V6[A], V6[B], 135, V6[B])
    assert kernel.run("from_port", said(A, probe, BRIDGE_MAC), "wa").action == SHOT
    assert kernel.run("from_port", said(A, probe, MAC[B]), "wa").action == OK


@pytest.mark.parametrize("kind", [b"\x88\xb5", b"\x81\x00", b"\x00\x26", b"\x88\x63"])
def test_nothing_but_ip_is_spoken(kernel: Kernel, kind: bytes) -> None:
    up(kernel)
    for to in (MAC[B], EVERYBODY):
        raw = to + MAC[A] + kind + bytes(50)
        assert kernel.run("from_port", raw, "wa").reason is Reason.LINK_PROTOCOL
        assert kernel.run("to_port", raw, "wb").reason is Reason.LINK_PROTOCOL


# --- to_port -----------------------------------------------------------------------------------------


@families
def test_a_neighbours_address_is_worth_nothing_without_that_neighbours_port(
    kernel: Kernel, at: dict[int, str]
) -> None:
    up(kernel)
    packet = said(A, tcp_frame(at[A], at[B], 40000, 80), MAC[B])
    for mark in (0, TO_PROXY, STEERED):
        ran = kernel.run("to_port", packet, "wb", mark=mark)
        assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)
    kernel.run("from_port", packet, "wa")
    later = said(A, tcp_frame(at[A], at[B], 40000, 80, "A"), MAC[B])
    assert kernel.run("to_port", later, "wb").reason is Reason.SPOOFED_SOURCE
    sent = ip(at[A], at[B], UDP, udp(1, 9))
    kernel.run("from_port", said(A, frame(sent), MAC[B]), "wa")
    forged = between(MAC[B], MAC[A], unreachable(at[B], at[A], sent))
    assert kernel.run("to_port", forged, "wa").reason is Reason.SPOOFED_SOURCE


@families
def test_a_frame_that_is_flooded_reaches_nobody_else(kernel: Kernel, at: dict[int, str]) -> None:
    """A bridge that does not know an address sends to all ports, also what the proxy says."""
    up(kernel)
    before = kernel.counted().get(Reason.NOT_FOR_THIS_PORT, 0)
    for mark in (0, DOWNSTREAM, 0xB00, JUDGED, PROVEN):
        packet = between(BRIDGE_MAC, MAC[B], tcp_frame(at[HOST], at[B], 1, 2))
        ran = kernel.run("to_port", packet, "wa", mark=mark)
        assert (ran.action, ran.events) == (SHOT, ())
    assert kernel.counted()[Reason.NOT_FOR_THIS_PORT] == before + 5
    assert (
        kernel.run("to_port", between(BRIDGE_MAC, MAC[B], tcp_frame(at[HOST], at[B], 1, 2)), "wb").action
        == OK
    )


@pytest.mark.parametrize(
    ("at", "everybody"),
    [(V4, "255.255.255.255"), (V4, "10.1.255.255"), (V4, "224.0.0.251"), (V6, "ff02::fb")],
)
def test_broadcast_is_judged_where_it_arrives(kernel: Kernel, at: dict[int, str], everybody: str) -> None:
    group = b"\x33\x33\0\0\0\xfb" if at is V6 else EVERYBODY
    packet = said(A, udp_frame(at[A], everybody, 5353, 5353), group)
    up(kernel)
    ran = kernel.run("from_port", packet, "wa")
    assert (ran.action, ran.mark) == (OK, PROVEN)
    assert kernel.run("to_port", packet, "wb", mark=PROVEN).action == OK
    assert kernel.run("to_port", packet, "wb").reason is Reason.SPOOFED_SOURCE
    up(kernel, closed(B, IN))
    assert kernel.run("to_port", packet, "wb", mark=PROVEN).action == SHOT
    up(kernel, closed(B, IN) | rule(B, IN, ALLOW, peer=A, protocol=UDP, port=5353))
    assert kernel.run("to_port", packet, "wb", mark=PROVEN).action == OK
    up(kernel, closed(A, OUT))
    assert kernel.run("from_port", packet, "wa").reason is Reason.POLICY_DENIED_EGRESS
    host = between(BRIDGE_MAC, group, udp_frame(at[HOST], everybody, 5353, 5353))
    up(kernel, closed(B, IN))
    assert kernel.run("to_port", host, "wb").action == OK
    assert kernel.run("to_port", host, "wb", came_in="eth").reason is Reason.SPOOFED_SOURCE


@families
@pytest.mark.parametrize("program", ["to_port", "to_workload"])
def test_who_borrows_the_nodes_address_is_not_the_node(
    kernel: Kernel, at: dict[int, str], program: str
) -> None:
    """Masquerade gives it to what only passes through: what the node itself sends has come in nowhere."""
    up(kernel, closed(B, IN) | rule(B, IN, ALLOW, peer=WORLD, protocol=TCP, port=81))
    packet = between(BRIDGE_MAC, MAC[B], tcp_frame(at[HOST], at[B], 40000, 80))
    assert kernel.run(program, packet, "wb").action == OK
    later = between(BRIDGE_MAC, MAC[B], tcp_frame(at[HOST], at[B], 40000, 80, "A"))
    for borrowed in (packet, later):
        ran = kernel.run(program, borrowed, "wb", came_in="wa")
        assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)
        assert ran.events[0].source_identity == WORLD
    public = between(BRIDGE_MAC, MAC[B], tcp_frame(at[HOST], at[B], 40001, 81))
    assert kernel.run(program, public, "wb", came_in="eth").action == OK
    assert kernel.run(program, later, "wb").action == OK


# --- a workload with several links -------------------------------------------------------------------


@families
def test_any_link_of_a_workload_speaks_for_it(kernel: Kernel, at: dict[int, str]) -> None:
    """B has `wb` (home) and `eth`: an answer may leave by the other link than the question came in by."""
    wanted = up(kernel)
    home = kernel.device["wb"]
    second = PortEntry(home, B, b"\2\0\0\0\0\x1b", BRIDGE + 1, BRIDGE_MAC)
    endpoints = dict(wanted.endpoints)
    extra = "10.9.0.2" if at is V4 else "fd09::2"
    endpoints[ip_address(extra)] = replace(endpoints[ip_address(at[B])], elsewhere=True)
    ports = {**wanted.ports, kernel.device["eth"]: second}
    kernel.tables.apply(replace(wanted, ports=ports, endpoints=endpoints))
    question = said(A, tcp_frame(at[A], at[B], 40000, 80), MAC[B])
    assert kernel.run("from_port", question, "wa").action == REDIRECT
    answer = between(b"\2\0\0\0\0\x1b", BRIDGE_MAC, tcp_frame(at[B], at[A], 80, 40000, "SA"))
    assert kernel.run("from_port", answer, "eth").action == REDIRECT
    wrong = between(MAC[B], BRIDGE_MAC, tcp_frame(at[B], at[A], 80, 40000, "SA"))
    assert kernel.run("from_port", wrong, "eth").reason is Reason.SPOOFED_SOURCE
    # What is elsewhere is not behind the home's port.
    ran = kernel.run("from_port", said(A, tcp_frame(at[A], extra, 40000, 80)), "wa")
    assert (ran.action, ran.mark) == (OK, PROVEN)
    arrived = between(BRIDGE_MAC, b"\2\0\0\0\0\x1b", tcp_frame(at[A], extra, 40000, 80))
    assert kernel.run("to_port", arrived, "eth", mark=PROVEN, came_in="wa").action == OK


def test_a_port_that_no_table_knows_lets_nothing_pass(kernel: Kernel) -> None:
    kernel.tables.apply(tables(kernel))
    packet = said(A, tcp_frame(V4[A], V4[B], 40000, 80))
    assert kernel.run("from_port", packet, "wa").action == SHOT
    assert kernel.run("to_port", packet, "wb", mark=PROVEN).action == SHOT
