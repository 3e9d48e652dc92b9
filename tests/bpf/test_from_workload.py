"""What a workload sends: judged by its own egress and the receiver's ingress, and by who it really is."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest
from bpf_kernel import OK, REDIRECT, SHOT, Kernel
from packets import ICMP, TCP, UDP, echo, frame, icmp, ip, tcp, tcp_frame, udp, udp_frame, unreachable
from pyroute2 import IPRoute
from small_node import ALLOW, DENY, FAMILIES, IN, OPEN, OUT, STEER, V4, V6, A, B, R, S, closed, rule, up

from penstock.envoy.marks import MARK_MASK
from penstock.manifests.document import ObjectKey, Origin
from penstock.observe.reasons import Reason
from penstock.plan import ListenerKey, MeshMode, PolicyEntry, PolicyKey, PortMode, ServiceEntry, ServiceKey
from penstock.policy.labels import HOST, WORLD
from penstock.redirect import layout
from penstock.routing.model import ListenerKind

JUDGED, TO_PROXY, PROVEN = 0x400, 0x200, 0x600
families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
PORT = 15001


@families
def test_an_allowed_connection_to_a_neighbour_goes_past_the_stack(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    before = kernel.counted().get(Reason.FORWARDED_LOCAL, 0)
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    assert ran.action == REDIRECT
    assert ran.reason is Reason.FORWARDED_LOCAL
    assert kernel.counted()[Reason.FORWARDED_LOCAL] == before + 1
    (event,) = ran.events
    assert (event.source, event.destination) == (ip_address(at[A]), ip_address(at[B]))
    assert (event.source_port, event.destination_port, event.protocol) == (40000, 80, TCP)
    assert (event.source_identity, event.destination_identity) == (A, B)
    assert event.verdict == ALLOW
    assert event.length == len(tcp_frame(at[A], at[B], 40000, 80))


@families
def test_a_flow_is_told_once_and_counted_always(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    before = kernel.counted().get(Reason.FORWARDED_LOCAL, 0)
    first = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    answer = kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "SA"), "wb")
    data = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80, "A"), "wa")
    assert [len(r.events) for r in (first, answer, data)] == [1, 0, 0]
    assert [r.action for r in (first, answer, data)] == [REDIRECT] * 3
    assert kernel.counted()[Reason.FORWARDED_LOCAL] == before + 3


@families
def test_what_leaves_the_node_says_only_that_its_sender_is_known(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    ran = kernel.run("from_workload", tcp_frame(at[A], at[WORLD], 40000, 443), "wa", mark=0xF0FF)
    assert (ran.action, ran.mark) == (OK, 0xF0FF | PROVEN)
    assert ran.reason is Reason.FORWARDED_STACK
    assert ran.events[0].destination_identity == WORLD


@families
def test_default_deny_of_the_sender(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, OUT))
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_EGRESS)
    assert not kernel.conntrack.items()


@families
def test_default_deny_of_the_receiver(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(B, IN))
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)


@families
def test_both_sides_must_allow(kernel: Kernel, at: dict[int, str]) -> None:
    one = closed(A, OUT) | rule(A, OUT, ALLOW, peer=B, protocol=TCP, port=80)
    up(kernel, {k: v for k, v in one.items() if (k.subject, k.direction) != (B, IN)})
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    assert ran.reason is Reason.POLICY_DENIED_INGRESS
    both = one | rule(B, IN, ALLOW, peer=A, protocol=TCP, port=80)
    up(kernel, {k: v for k, v in both.items() if k != next(iter(rule(B, IN, ALLOW)))})
    assert kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa").action == REDIRECT
    assert kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 81), "wa").action == SHOT
    assert kernel.run("from_workload", udp_frame(at[A], at[B], 40000, 80), "wa").action == SHOT


def test_an_event_names_the_rule_that_denied(kernel: Kernel) -> None:
    entry = PolicyEntry(DENY, ((ObjectKey("CiliumNetworkPolicy", "default", "p"), Origin("p.yaml", 7)),))
    wanted = up(kernel)
    kernel.tables.apply(replace(wanted, policy={**wanted.policy, PolicyKey(B, IN, A, TCP, 80, 16): entry}))
    ran = kernel.run("from_workload", tcp_frame(V4[A], V4[B], 40000, 80), "wa")
    assert ran.events[0].rule == layout.rule_number(entry) != 0


# --- who speaks -------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("who", [B, R, HOST, WORLD])
def test_a_borrowed_source_address_is_dropped(kernel: Kernel, at: dict[int, str], who: int) -> None:
    up(kernel)
    ran = kernel.run("from_workload", tcp_frame(at[who], at[S], 40000, 80), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)


def test_a_borrowed_source_address_does_not_ride_on_a_known_flow(kernel: Kernel) -> None:
    up(kernel)
    kernel.run("from_workload", tcp_frame(V4[B], V4[WORLD], 40000, 80), "wb")
    ran = kernel.run("from_workload", tcp_frame(V4[B], V4[WORLD], 40000, 80, "A"), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)
    # Nor as the answer of somebody else.
    kernel.run("from_workload", tcp_frame(V4[B], V4[A], 41000, 80), "wb")
    kernel.run("from_netdev", tcp_frame(V4[WORLD], V4[A], 41000, 80), "eth")
    ran = kernel.run("from_workload", tcp_frame(V4[A], V4[B], 80, 41000, "SA"), "wb")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)


# --- answers -----------------------------------------------------------------------------------------


@families
def test_an_answer_needs_no_rule(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(B, OUT))
    assert kernel.run("from_workload", udp_frame(at[B], at[A], 53, 40000), "wb").action == SHOT
    kernel.run("from_workload", udp_frame(at[A], at[B], 40000, 53), "wa")
    assert kernel.run("from_workload", udp_frame(at[B], at[A], 53, 40000), "wb").action == REDIRECT
    assert kernel.run("from_workload", udp_frame(at[B], at[A], 53, 40001), "wb").action == SHOT


@families
def test_an_answer_falls_with_the_rule_that_it_rests_on(kernel: Kernel, at: dict[int, str]) -> None:
    policy = closed(B, OUT)
    up(kernel, policy)
    kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    # Something else changes: the epoch moves on, the answer lives.
    up(kernel, policy | rule(A, OUT, DENY, protocol=UDP, port=9))
    ran = kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "SA"), "wb")
    assert ran.action == REDIRECT
    assert not ran.events
    up(kernel, policy | rule(B, IN, DENY, peer=A))
    ran = kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "A"), "wb")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_CHANGED)
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80, "A"), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)


@families
def test_an_open_connection_obeys_the_policy_of_now(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    up(kernel, OPEN | rule(A, OUT, DENY, peer=B))
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80, "A"), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_EGRESS)
    # Who began is remembered, as denied: the other side's next segment does not begin a flow of its own.
    answer = kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "A"), "wb")
    assert (answer.action, answer.reason) == (SHOT, Reason.POLICY_CHANGED)
    up(kernel)
    assert kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80, "A"), "wa").action == REDIRECT


def test_a_syn_of_the_answering_side_is_judged_anew(kernel: Kernel) -> None:
    up(kernel, closed(B, OUT))
    kernel.run("from_workload", tcp_frame(V4[A], V4[B], 40000, 80), "wa")
    ran = kernel.run("from_workload", tcp_frame(V4[B], V4[A], 80, 40000, "S"), "wb")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_EGRESS)


def test_an_unanswered_udp_flow_ages(kernel: Kernel) -> None:
    up(kernel, closed(B, OUT))
    kernel.run("from_workload", udp_frame(V4[A], V4[B], 40000, 53), "wa")
    ((key, value),) = kernel.conntrack.items().items()
    # `seen` stands first. Modulo 2^64, as the kernel counts: a machine may be younger than the limit.
    silent_since = (time.monotonic_ns() - 181 * 10**9) % 2**64
    kernel.conntrack.put(key, silent_since.to_bytes(8, "little") + value[8:])
    assert kernel.run("from_workload", udp_frame(V4[B], V4[A], 53, 40000), "wb").action == SHOT


# --- ICMP --------------------------------------------------------------------------------------------


@families
def test_echo_and_its_reply(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(B, OUT))
    assert kernel.run("from_workload", echo(at[A], at[B], 7), "wa").action == REDIRECT
    assert kernel.run("from_workload", echo(at[B], at[A], 7, reply=True), "wb").action == REDIRECT
    other = kernel.run("from_workload", echo(at[B], at[A], 8, reply=True), "wb")
    assert (other.action, other.reason) == (SHOT, Reason.POLICY_DENIED_EGRESS)


@families
def test_an_echo_request_is_no_answer_to_another(kernel: Kernel, at: dict[int, str]) -> None:
    """Found by the property test: an identifier that the other side uses let a denied request through."""
    up(kernel, closed(B, OUT))
    kernel.run("from_workload", echo(at[A], at[B], 7), "wa")
    ran = kernel.run("from_workload", echo(at[B], at[A], 7), "wb")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_EGRESS)
    assert kernel.run("from_workload", echo(at[B], at[A], 7, reply=True), "wb").action == REDIRECT


@families
def test_a_reply_falls_with_the_rule(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    kernel.run("from_workload", echo(at[A], at[B], 7), "wa")
    up(kernel, closed(B, IN))
    ran = kernel.run("from_workload", echo(at[B], at[A], 7, reply=True), "wb")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_CHANGED)


@families
def test_an_error_about_a_known_flow_passes(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(B, OUT))
    sent = ip(at[A], at[B], UDP, udp(40000, 9))
    kernel.run("from_workload", frame(sent), "wa")
    ran = kernel.run("from_workload", unreachable(at[B], at[A], sent), "wb")
    assert (ran.action, ran.mark & MARK_MASK) == (OK, JUDGED)
    assert not ran.events


@families
def test_an_error_about_no_flow_is_dropped(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    kernel.run("from_workload", udp_frame(at[A], at[B], 40000, 9), "wa")
    other = ip(at[A], at[B], UDP, udp(40001, 9))
    ran = kernel.run("from_workload", unreachable(at[B], at[A], other), "wb")
    assert (ran.action, ran.reason) == (SHOT, Reason.UNRELATED_ICMP_ERROR)


@families
def test_an_error_about_an_echo(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(B, OUT))
    sent = echo(at[A], at[B], 7)
    kernel.run("from_workload", sent, "wa")
    assert kernel.run("from_workload", unreachable(at[B], at[A], sent[14:]), "wb").action == OK


@families
def test_an_error_comes_only_from_who_it_was_sent_to(kernel: Kernel, at: dict[int, str]) -> None:
    """Or any workload could end its neighbours' connections."""
    up(kernel)
    sent = ip(at[B], at[WORLD], UDP, udp(40000, 9))
    kernel.run("from_workload", frame(sent), "wb")
    ran = kernel.run("from_workload", unreachable(at[WORLD], at[B], sent), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)
    ran = kernel.run("from_workload", unreachable(at[A], at[B], sent), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.UNRELATED_ICMP_ERROR)


def test_other_icmp_is_judged_like_the_rest(kernel: Kernel) -> None:
    timestamp = frame(ip(V4[A], V4[B], ICMP, icmp(13)))
    up(kernel)
    assert kernel.run("from_workload", timestamp, "wa").action == REDIRECT
    up(kernel, closed(B, IN))
    assert kernel.run("from_workload", timestamp, "wa").action == SHOT


# --- the proxy ----------------------------------------------------------------------------------------


@families
def test_what_a_rule_steers_waits_for_its_listener(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, OPEN | rule(B, IN, STEER, protocol=TCP, port=80))
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)
    assert kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 81), "wa").action == REDIRECT


@families
def test_the_listener_of_the_source_class_is_chosen(kernel: Kernel, at: dict[int, str]) -> None:
    up(
        kernel,
        OPEN | rule(B, IN, STEER, protocol=TCP, port=80),
        listeners={
            ListenerKey(A, ListenerKind.HTTP_WORKLOAD): PORT,
            ListenerKey(B, ListenerKind.HTTP_WORKLOAD): PORT + 1,
            ListenerKey(A, ListenerKind.HTTP_SERVICE): PORT + 2,
        },
    )
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    steered = ran.events[0]
    assert (steered.reason, steered.verdict, steered.proxy_port) == (Reason.REDIRECTED, STEER, PORT)
    # No socket listens there in this namespace: closed, not open.
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)


@families
def test_the_senders_egress_steers_too(kernel: Kernel, at: dict[int, str]) -> None:
    up(
        kernel,
        OPEN | rule(A, OUT, STEER, peer=B, protocol=TCP, port=80),
        listeners={ListenerKey(A, ListenerKind.HTTP_WORKLOAD): PORT},
    )
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    assert ran.events[0].proxy_port == PORT


@families
def test_a_denial_of_either_side_is_stronger_than_steering(kernel: Kernel, at: dict[int, str]) -> None:
    steer = rule(A, OUT, STEER, peer=B, protocol=TCP, port=80)
    up(kernel, OPEN | steer | rule(B, IN, DENY, peer=A))
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    assert ran.reason is Reason.POLICY_DENIED_INGRESS


@families
def test_a_neighbour_that_demands_mesh_tls_is_proven_by_the_kernel(
    kernel: Kernel, at: dict[int, str]
) -> None:
    up(kernel, modes={B: MeshMode.STRICT})
    assert kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa").action == REDIRECT


@families
def test_a_remote_workload_that_demands_mesh_tls_gets_it(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, listeners={ListenerKey(A, ListenerKind.TCP_MTLS, S): PORT})
    ran = kernel.run("from_workload", tcp_frame(at[A], at[S], 40000, 5432), "wa")
    assert ran.events[0].proxy_port == PORT
    # Not of the one that does not demand it, and only TCP.
    assert kernel.run("from_workload", tcp_frame(at[A], at[R], 40000, 5432), "wa").action == OK
    assert kernel.run("from_workload", udp_frame(at[A], at[S], 40000, 53), "wa").action == OK


@families
def test_a_port_of_a_remote_workload_may_ask_for_something_else(kernel: Kernel, at: dict[int, str]) -> None:
    strict = PortMode(MeshMode.STRICT, MeshMode.STRICT)
    up(
        kernel,
        port_modes={(R, 5432): strict, (S, 80): PortMode(MeshMode.OFF, MeshMode.OFF), (B, 80): strict},
        listeners={ListenerKey(A, ListenerKind.TCP_MTLS, R): PORT},
    )
    ran = kernel.run("from_workload", tcp_frame(at[A], at[R], 40000, 5432), "wa")
    assert ran.events[0].proxy_port == PORT
    assert kernel.run("from_workload", tcp_frame(at[A], at[R], 40000, 80), "wa").action == OK
    assert kernel.run("from_workload", tcp_frame(at[A], at[S], 40000, 80), "wa").action == OK
    ran = kernel.run("from_workload", tcp_frame(at[A], at[S], 40000, 81), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)
    # A neighbour is proven by the kernel.
    assert kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa").action == REDIRECT


def test_a_remote_workload_that_demands_mesh_tls_never_gets_plain_text(kernel: Kernel) -> None:
    up(kernel, listeners={ListenerKey(B, ListenerKind.TCP_MTLS, S): PORT})
    ran = kernel.run("from_workload", tcp_frame(V4[A], V4[S], 40000, 5432), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)


# --- services ------------------------------------------------------------------------------------------


def _service(at: dict[int, str], *, http: bool) -> dict[ServiceKey, ServiceEntry]:
    vip = ip_address("10.96.0.1" if at is V4 else "fd00:10:96::1")
    return {ServiceKey(vip, 80, TCP): ServiceEntry(1, "default/b:80/4", ((ip_address(at[B]), 80),), http)}


@families
def test_a_routed_service_goes_to_the_listener_of_the_class(kernel: Kernel, at: dict[int, str]) -> None:
    services = _service(at, http=True)
    vip = str(next(iter(services)).address)
    up(
        kernel,
        closed(A, OUT),
        services=services,
        listeners={ListenerKey(A, ListenerKind.HTTP_SERVICE): PORT},
    )
    ran = kernel.run("from_workload", tcp_frame(at[A], vip, 40000, 80), "wa")
    assert (ran.events[0].verdict, ran.events[0].proxy_port) == (STEER, PORT)
    spoofed = kernel.run("from_workload", tcp_frame(at[A], vip, 40000, 80), "wb")
    assert spoofed.reason is Reason.SPOOFED_SOURCE


# --- what is judged without a flow -----------------------------------------------------------------------


def test_link_housekeeping_passes(kernel: Kernel) -> None:
    up(kernel, closed(A, OUT))
    arp = bytes.fromhex("ffffffffffff02000000000a0806") + bytes(28)
    assert kernel.run("from_workload", arp, "wa").action == OK
    for kind in (130, 131, 132, 133, 134, 135, 136, 137, 143):
        solicitation = frame(ip(V6[A], "ff02::1", 58, icmp(kind, data=bytes(16))))
        assert kernel.run("from_workload", solicitation, "wa").action == OK, kind


def test_counters_of_what_is_not_ip(kernel: Kernel) -> None:
    up(kernel)
    before = kernel.counted().get(Reason.NOT_IP, 0)
    ran = kernel.run("from_workload", bytes.fromhex("ffffffffffff02000000000a0806") + bytes(28), "wa")
    assert not ran.events
    assert kernel.counted()[Reason.NOT_IP] == before + 1


def test_the_mark_of_a_denied_packet_is_left_alone(kernel: Kernel) -> None:
    up(kernel, closed(A, OUT))
    ran = kernel.run("from_workload", frame(ip(V4[A], V4[B], TCP, tcp(1, 2))), "wa", mark=0x1234)
    assert (ran.action, ran.mark) == (SHOT, 0x1234)


def test_a_flood_of_drops_is_counted_and_told_in_part(kernel: Kernel) -> None:
    """The events are for people; what is too much for them costs no more than a counter."""
    up(kernel, closed(A, OUT))
    kernel.run("from_workload", tcp_frame("10.1.0.1", "10.9.9.9", 40000, 80), "wa")
    before = kernel.counted()
    for port in range(2000):
        kernel.call("from_workload", tcp_frame("10.1.0.1", "10.9.9.9", 41000 + port, 80), device="wa")
    dropped = kernel.counted()[Reason.POLICY_DENIED_EGRESS] - before[Reason.POLICY_DENIED_EGRESS]
    lost = kernel.counted().get(Reason.EVENT_LOST, 0) - before.get(Reason.EVENT_LOST, 0)
    assert dropped == 2000
    assert 0 < lost < 2000


def test_an_error_about_the_proxys_own_connection_reaches_its_socket(kernel: Kernel) -> None:
    """Path MTU discovery of what the proxy sends under a client's address: no flow is kept for it."""
    client, server = V4[A], V4[B]
    up(kernel)
    with IPRoute() as ip_route:
        for address in (client, server):
            ip_route.addr("add", index=1, address=address, prefixlen=32)
        try:
            with (
                socket.create_server((server, 80)),
                socket.create_connection((server, 80), source_address=(client, 20001)),
            ):
                for port, action in ((20001, OK), (20002, SHOT)):
                    sent = ip(client, server, TCP, tcp(port, 80, "A"))
                    ran = kernel.run("from_workload", unreachable(server, client, sent), "wb")
                    assert (ran.action, ran.mark & MARK_MASK) == (action, TO_PROXY if action == OK else 0)
                    # Only the one whom it was sent to may speak of it.
                    assert kernel.run("from_workload", unreachable(client, client, sent), "wa").action == SHOT
        finally:
            for address in (client, server):
                ip_route.addr("del", index=1, address=address, prefixlen=32)


@families
def test_where_the_client_is_silent_a_connection_of_before_needs_both_ways(
    kernel: Kernel, at: dict[int, str]
) -> None:
    """Were the server taken for the client, a forbidden client would pass as its answer."""
    up(kernel, closed(B, IN))
    ran = kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "A"), "wb")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_CHANGED)
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80, "A"), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)
    # A server that may not speak by itself waits for its client.
    up(kernel, closed(B, OUT))
    assert kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "A"), "wb").action == SHOT
    assert kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80, "A"), "wa").action == REDIRECT
    assert kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "A"), "wb").action == REDIRECT


@families
def test_a_connection_of_before_goes_on_where_both_ways_are_open(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    assert kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "A"), "wb").action == REDIRECT
