"""Packets that are hard to read: each trap by name (fragments, options, extension headers, broken ones)."""

from __future__ import annotations

import pytest
from bpf_kernel import OK, REDIRECT, SHOT, Kernel
from packets import (
    ICMPV6,
    TCP,
    UDP,
    extension,
    fragment_header,
    frame,
    icmp,
    ip,
    tcp,
    udp,
)
from small_node import ALLOW, FAMILIES, IN, OUT, V4, V6, A, B, closed, rule, up

from penstock.observe.reasons import Reason
from penstock.policy.labels import HOST, WORLD

families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
HOP_BY_HOP, ROUTING, FRAGMENT, NO_NEXT, OPTIONS = 0, 43, 44, 59, 60


@pytest.fixture(autouse=True)
def only_udp_53_and_tcp_80(kernel: Kernel) -> None:
    policy = closed(B, IN)
    policy |= rule(B, IN, ALLOW, peer=A, protocol=UDP, port=53)
    policy |= rule(B, IN, ALLOW, peer=A, protocol=TCP, port=80)
    up(kernel, policy)


def _fragment(at: dict[int, str], payload: bytes, ident: int, offset: int, *, more: bool) -> bytes:
    if at is V4:
        return frame(ip(at[A], at[B], UDP, payload, ident=ident, offset=offset, more=more))
    return frame(ip(at[A], at[B], FRAGMENT, fragment_header(UDP, ident, offset, more=more) + payload))


def _send(kernel: Kernel, packet: bytes) -> tuple[int, Reason | None]:
    ran = kernel.run("from_workload", packet, "wa")
    return ran.action, ran.reason


@families
def test_fragments_follow_the_first(kernel: Kernel, at: dict[int, str]) -> None:
    first = _fragment(at, udp(40000, 53, bytes(8)), 7, 0, more=True)
    assert _send(kernel, first) == (REDIRECT, Reason.FORWARDED_LOCAL)
    assert _send(kernel, _fragment(at, bytes(16), 7, 2, more=True)) == (REDIRECT, None)
    assert _send(kernel, _fragment(at, bytes(5), 7, 4, more=False)) == (REDIRECT, None)


@families
def test_fragments_of_a_denied_datagram_are_denied(kernel: Kernel, at: dict[int, str]) -> None:
    first = _fragment(at, udp(40000, 54, bytes(8)), 8, 0, more=True)
    assert _send(kernel, first) == (SHOT, Reason.POLICY_DENIED_INGRESS)
    assert _send(kernel, _fragment(at, bytes(16), 8, 2, more=False)) == (SHOT, Reason.POLICY_DENIED_INGRESS)


@families
def test_a_fragment_without_its_first_is_dropped(kernel: Kernel, at: dict[int, str]) -> None:
    later = _fragment(at, bytes(16), 9, 2, more=False)
    assert _send(kernel, later) == (SHOT, Reason.FRAGMENT_WITHOUT_FIRST)
    # The first of another datagram is no help.
    _send(kernel, _fragment(at, udp(40000, 53, bytes(8)), 10, 0, more=True))
    assert _send(kernel, later) == (SHOT, Reason.FRAGMENT_WITHOUT_FIRST)


@families
def test_a_second_first_fragment_is_judged_by_its_own_ports(kernel: Kernel, at: dict[int, str]) -> None:
    assert _send(kernel, _fragment(at, udp(40000, 53, bytes(8)), 11, 0, more=True))[0] == REDIRECT
    assert _send(kernel, _fragment(at, udp(40000, 54, bytes(8)), 11, 0, more=True))[0] == SHOT


@families
def test_a_first_fragment_too_short_for_its_ports(kernel: Kernel, at: dict[int, str]) -> None:
    assert _send(kernel, _fragment(at, b"\x9c\x40", 12, 0, more=True)) == (SHOT, Reason.MALFORMED)


def test_an_atomic_fragment_is_a_whole_packet(kernel: Kernel) -> None:
    assert _send(kernel, _fragment(V6, udp(40000, 53), 13, 0, more=False))[0] == REDIRECT
    assert _send(kernel, _fragment(V6, udp(40000, 54), 13, 0, more=False))[0] == SHOT
    assert not kernel.fragments.items()


@pytest.mark.parametrize("words", [1, 5, 10])
def test_ipv4_options_move_the_ports(kernel: Kernel, words: int) -> None:
    # No-operation options; the last word would be port 53 if the header were taken to have 20 bytes.
    options = b"\1" * (4 * words - 4) + b"\x9c\x40\x00\x35"
    allowed = frame(ip(V4[A], V4[B], UDP, udp(40000, 53), options=b"\1" * 4 * words))
    denied = frame(ip(V4[A], V4[B], UDP, udp(40000, 54), options=options))
    assert _send(kernel, allowed)[0] == REDIRECT
    assert _send(kernel, denied) == (SHOT, Reason.POLICY_DENIED_INGRESS)


@pytest.mark.parametrize(
    "kinds", [[HOP_BY_HOP], [OPTIONS], [ROUTING], [HOP_BY_HOP, OPTIONS, ROUTING, OPTIONS]]
)
@pytest.mark.parametrize("size", [6, 14, 30])
def test_ipv6_extension_headers_are_passed_over(kernel: Kernel, kinds: list[int], size: int) -> None:
    for port, action in ((53, REDIRECT), (54, SHOT)):
        packet, following = udp(40000, port), UDP
        for kind in reversed(kinds):
            packet, following = extension(following, bytes(size)) + packet, kind
        assert _send(kernel, frame(ip(V6[A], V6[B], following, packet)))[0] == action


def test_more_extension_headers_than_anybody_sends(kernel: Kernel) -> None:
    packet, following = udp(40000, 53), UDP
    for _ in range(5):
        packet, following = extension(following) + packet, OPTIONS
    assert _send(kernel, frame(ip(V6[A], V6[B], following, packet))) == (SHOT, Reason.UNKNOWN_PROTOCOL)


def test_a_fragment_header_behind_another(kernel: Kernel) -> None:
    first = fragment_header(UDP, 20, 0, more=True) + udp(40000, 53, bytes(8))
    later = fragment_header(UDP, 20, 2, more=False) + bytes(8)
    for part in (first, later):
        packet = frame(ip(V6[A], V6[B], HOP_BY_HOP, extension(FRAGMENT) + part))
        assert _send(kernel, packet)[0] == REDIRECT


@families
def test_a_tcp_header_too_short_for_its_flags(kernel: Kernel, at: dict[int, str]) -> None:
    assert _send(kernel, frame(ip(at[A], at[B], TCP, tcp(40000, 80)[:13]))) == (SHOT, Reason.MALFORMED)
    assert _send(kernel, frame(ip(at[A], at[B], TCP, tcp(40000, 80)[:14])))[0] == REDIRECT


@families
@pytest.mark.parametrize("protocol", [4, 41, 47, 50, 51, NO_NEXT, 103])
def test_what_has_no_ports_that_we_know_is_dropped(kernel: Kernel, at: dict[int, str], protocol: int) -> None:
    packet = frame(ip(at[A], at[WORLD], protocol, bytes(40)))
    assert _send(kernel, packet) == (SHOT, Reason.UNKNOWN_PROTOCOL)
    inbound = frame(ip(at[WORLD], at[A], protocol, bytes(40)))
    assert kernel.run("from_netdev", inbound, "eth").reason is Reason.UNKNOWN_PROTOCOL
    assert kernel.run("to_workload", inbound, "wa").reason is Reason.UNKNOWN_PROTOCOL


def test_the_ports_of_sctp_are_read(kernel: Kernel) -> None:
    up(kernel, closed(B, IN) | rule(B, IN, ALLOW, protocol=132, port=3868))
    for port, action in ((3868, REDIRECT), (3869, SHOT)):
        packet = frame(ip(V4[A], V4[B], 132, udp(40000, port)))
        assert _send(kernel, packet)[0] == action


@pytest.mark.parametrize("first", [0x35, 0x42, 0x64])
def test_a_header_that_lies_about_version_or_length(kernel: Kernel, first: int) -> None:
    packet = bytearray(frame(ip(V4[A], V4[B], UDP, udp(40000, 53))))
    packet[14] = first
    assert _send(kernel, bytes(packet)) == (SHOT, Reason.MALFORMED)


def test_a_header_longer_than_the_packet(kernel: Kernel) -> None:
    packet = bytearray(frame(ip(V4[A], V4[B], UDP, udp(40000, 53, b""))))
    packet[14] = 0x4F
    assert _send(kernel, bytes(packet)) == (SHOT, Reason.MALFORMED)


def test_an_echo_in_fragments(kernel: Kernel) -> None:
    up(kernel)
    first = fragment_header(ICMPV6, 30, 0, more=True) + icmp(128, ident=7, data=bytes(8))
    later = fragment_header(ICMPV6, 30, 2, more=False) + bytes(8)
    for part in (first, later):
        assert _send(kernel, frame(ip(V6[A], V6[B], FRAGMENT, part)))[0] == REDIRECT
    # Later parts are of the same flow and the same type, also when they are judged anew.
    policy = closed(A, OUT) | rule(A, OUT, ALLOW, protocol=ICMPV6, port=128)
    up(kernel, policy)
    assert _send(kernel, frame(ip(V6[A], V6[B], FRAGMENT, later)))[0] == REDIRECT
    assert len(kernel.conntrack.items()) == 1


def test_neighbour_discovery_does_not_hide_in_fragments(kernel: Kernel) -> None:
    """RFC 6980: or a policy of the link would not see it."""
    up(kernel, closed(A, OUT))
    later = fragment_header(ICMPV6, 31, 2, more=False) + bytes(8)
    assert _send(kernel, frame(ip(V6[A], V6[B], FRAGMENT, later)))[0] == SHOT


def _probe(source: str, target: str, hop_limit: int = 255) -> bytes:
    return frame(ip(source, target, ICMPV6, icmp(135, data=bytes(16)), hop_limit=hop_limit))


def test_neighbour_discovery_is_for_the_link_alone(kernel: Kernel) -> None:
    """It passes unjudged, so it must not be a way to carry anything further."""
    up(kernel, {})
    for target in ("fe80::1", "ff02::1:ff00:1", V6[HOST]):
        assert _send(kernel, _probe(V6[A], target)) == (OK, None)
    for target in (V6[B], V6[WORLD], "ff0e::1"):
        assert _send(kernel, _probe(V6[A], target)) == (SHOT, Reason.POLICY_DENIED_EGRESS)


def test_neighbour_discovery_that_was_forwarded_is_none(kernel: Kernel) -> None:
    up(kernel, {})
    assert kernel.run("to_workload", _probe(V6[HOST], V6[A]), "wa").action == OK
    ran = kernel.run("to_workload", _probe(V6[WORLD], V6[A], 254), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)
