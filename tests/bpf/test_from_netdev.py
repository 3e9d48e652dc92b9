"""What comes in from other nodes and the world: who it is by its address, and whether it is mesh TLS."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from bpf_kernel import OK, REDIRECT, SHOT, Kernel, Ran
from packets import TCP, UDP, echo, frame, ip, tcp_frame, udp, udp_frame, unreachable
from small_node import (
    ALLOW,
    DENY,
    FAMILIES,
    IN,
    OPEN,
    OUT,
    STEER,
    V4,
    V6,
    A,
    B,
    R,
    S,
    closed,
    rule,
    tables,
    up,
)

from penstock.observe.reasons import Reason
from penstock.plan import AUDIT_VIEW, ListenerKey, MeshMode, PortMode
from penstock.policy.labels import HOST, REMOTE_NODE, WORLD
from penstock.routing.model import ListenerKind
from penstock.world import Proxied

families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
PORT, MESH_PORT = 15001, 20001


@families
@pytest.mark.parametrize("who", [R, REMOTE_NODE, WORLD])
def test_the_source_is_who_its_address_is(kernel: Kernel, at: dict[int, str], who: int) -> None:
    up(kernel, closed(A, IN) | rule(A, IN, ALLOW, peer=who))
    ran = kernel.run("from_netdev", tcp_frame(at[who], at[A], 40000, 80), "eth")
    assert (ran.action, ran.reason) == (REDIRECT, Reason.FORWARDED_LOCAL)
    assert (ran.events[0].source_identity, ran.events[0].destination_identity) == (who, A)
    other = WORLD if who != WORLD else R
    ran = kernel.run("from_netdev", tcp_frame(at[other], at[A], 40000, 80), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)


@families
@pytest.mark.parametrize("who", [A, B, HOST])
def test_nobody_of_this_node_comes_in_from_outside(kernel: Kernel, at: dict[int, str], who: int) -> None:
    up(kernel)
    target = B if who == A else A
    ran = kernel.run("from_netdev", tcp_frame(at[who], at[target], 40000, 80), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)


@families
def test_what_is_for_no_local_workload_is_the_nodes_own(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, {})
    for target in (HOST, WORLD, R):
        ran = kernel.run("from_netdev", tcp_frame(at[REMOTE_NODE], at[target], 40000, 22), "eth", mark=5)
        assert (ran.action, ran.mark, ran.events) == (OK, 5, ())


@families
def test_the_answer_of_the_world_needs_no_ingress_rule(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, IN))
    answer = udp_frame(at[WORLD], at[A], 53, 40000)
    assert kernel.run("from_netdev", answer, "eth").action == SHOT
    kernel.run("from_workload", udp_frame(at[A], at[WORLD], 40000, 53), "wa")
    assert kernel.run("from_netdev", answer, "eth").action == REDIRECT
    up(kernel, closed(A, IN) | rule(B, IN, DENY))
    assert kernel.run("from_netdev", answer, "eth").action == REDIRECT
    up(kernel, closed(A, IN) | rule(A, OUT, DENY))
    ran = kernel.run("from_netdev", answer, "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_CHANGED)


@families
def test_a_workloads_answer_to_the_world(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, OUT))
    kernel.run("from_netdev", tcp_frame(at[WORLD], at[A], 40000, 80), "eth")
    assert kernel.run("from_workload", tcp_frame(at[A], at[WORLD], 80, 40000, "SA"), "wa").action == OK
    assert kernel.run("from_workload", tcp_frame(at[A], at[WORLD], 80, 40001, "SA"), "wa").action == SHOT


@families
def test_echo(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, OUT))
    assert kernel.run("from_netdev", echo(at[WORLD], at[A], 5), "eth").action == REDIRECT
    assert kernel.run("from_workload", echo(at[A], at[WORLD], 5, reply=True), "wa").action == OK


# --- ICMP errors -----------------------------------------------------------------------------------


@families
def test_a_router_may_speak_of_a_known_flow(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, IN))
    sent = ip(at[A], at[WORLD], UDP, udp(40000, 9))
    router = "198.51.100.1" if at is V4 else "2001:db8:1::1"
    ran = kernel.run("from_netdev", unreachable(router, at[A], sent), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.UNRELATED_ICMP_ERROR)
    kernel.run("from_workload", frame(sent), "wa")
    assert kernel.run("from_netdev", unreachable(router, at[A], sent), "eth").action == OK
    # Not to somebody else, and not in the name of this node.
    assert kernel.run("from_netdev", unreachable(router, at[B], sent), "eth").action == SHOT
    ran = kernel.run("from_netdev", unreachable(at[B], at[A], sent), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)


# --- mesh TLS -----------------------------------------------------------------------------------------


def _listeners(*kinds: ListenerKind, source: int = R) -> dict[ListenerKey, int]:
    return {ListenerKey(source, kind): PORT + i for i, kind in enumerate(kinds)}


@families
def test_the_port_range_of_the_mesh_goes_to_the_tls_listener(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, listeners=_listeners(ListenerKind.TLS_TCP, ListenerKind.TLS_HTTP))
    for port in (20000, 31999):
        ran = kernel.run("from_netdev", tcp_frame(at[R], at[A], port, 5432), "eth")
        assert (ran.events[0].verdict, ran.events[0].proxy_port) == (STEER, PORT)
    for port in (19999, 32000):
        assert kernel.run("from_netdev", tcp_frame(at[R], at[A], port, 5432), "eth").action == REDIRECT


@families
def test_an_l7_rule_takes_the_listener_that_looks_into_it(kernel: Kernel, at: dict[int, str]) -> None:
    up(
        kernel,
        OPEN | rule(A, IN, STEER, peer=R, protocol=TCP, port=80),
        listeners=_listeners(ListenerKind.TLS_TCP, ListenerKind.TLS_HTTP),
    )
    ran = kernel.run("from_netdev", tcp_frame(at[R], at[A], MESH_PORT, 80), "eth")
    assert ran.events[0].proxy_port == PORT + 1


@families
def test_the_kernel_remembers_which_listener_took_a_connection(kernel: Kernel, at: dict[int, str]) -> None:
    tunnel = ListenerKey(A, ListenerKind.TCP_MTLS, S)
    up(kernel, listeners={**_listeners(ListenerKind.TLS_TCP), tunnel: PORT + 1})
    for sport in (20480, MESH_PORT):
        kernel.run("from_netdev", tcp_frame(at[R], at[A], sport, 80), "eth")
        kernel.run("from_workload", tcp_frame(at[A], at[S], sport, 22), "wa")
        came = Proxied(ip_address(at[R]), sport, ip_address(at[A]), 80)
        went = Proxied(ip_address(at[A]), sport, ip_address(at[S]), 22)
        assert (kernel.tables.proxy_port(came), kernel.tables.proxy_port(went)) == (PORT, PORT + 1)
        assert kernel.tables.proxy_port(replace(came, port=81)) == 0


@families
def test_a_live_connection_does_not_begin_anew_for_an_audit(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    begin, go_on = (tcp_frame(at[R], at[A], 40000, 80, flags) for flags in ("S", "A"))
    answer = tcp_frame(at[A], at[R], 80, 40000, "A")
    kernel.run("from_netdev", begin, "eth")
    view = OPEN | rule(A | AUDIT_VIEW, IN, STEER, protocol=TCP, port=80)
    wanted = tables(kernel, view)
    audited = replace(wanted.endpoints[ip_address(at[A])], audit=frozenset({IN}))
    up(
        kernel,
        view,
        endpoints={**wanted.endpoints, ip_address(at[A]): audited},
        listeners=_listeners(ListenerKind.HTTP_WORKLOAD),
    )
    assert kernel.run("from_netdev", go_on, "eth").action == REDIRECT
    assert kernel.run("from_workload", answer, "wa").action == OK
    # The same without an entry of the kernel's, and for what the stack brings.
    for key in list(kernel.conntrack.keys()):
        kernel.conntrack.delete(key)
    assert kernel.run("from_netdev", go_on, "eth").action == REDIRECT
    for key in list(kernel.conntrack.keys()):
        kernel.conntrack.delete(key)
    assert kernel.run("to_workload", go_on, "wa", came_in="eth").action == OK
    # The next one is watched.
    assert kernel.run("from_netdev", begin, "eth").reason is Reason.PROXY_NOT_READY


@families
def test_mesh_tls_waits_for_its_listener(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, listeners=_listeners(ListenerKind.TLS_TCP, source=S))
    ran = kernel.run("from_netdev", tcp_frame(at[R], at[A], MESH_PORT, 5432), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)


@families
def test_policy_comes_before_mesh_tls(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, IN), listeners=_listeners(ListenerKind.TLS_TCP))
    ran = kernel.run("from_netdev", tcp_frame(at[R], at[A], MESH_PORT, 5432), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)


@families
def test_the_range_means_nothing_outside_the_mesh(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    for who in (WORLD, REMOTE_NODE):
        assert kernel.run("from_netdev", tcp_frame(at[who], at[A], MESH_PORT, 80), "eth").action == REDIRECT
    up(kernel, modes={A: MeshMode.OFF})
    assert kernel.run("from_netdev", tcp_frame(at[R], at[A], MESH_PORT, 80), "eth").action == REDIRECT
    assert kernel.run("from_netdev", udp_frame(at[R], at[B], MESH_PORT, 80), "eth").action == REDIRECT


@families
@pytest.mark.parametrize("who", [R, REMOTE_NODE, WORLD])
def test_plain_text_to_a_strict_workload_is_dropped(kernel: Kernel, at: dict[int, str], who: int) -> None:
    up(kernel, modes={A: MeshMode.STRICT})
    ran = kernel.run("from_netdev", tcp_frame(at[who], at[A], 40000, 80), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.PLAINTEXT_TO_STRICT)
    # Strict concerns TCP.
    assert kernel.run("from_netdev", udp_frame(at[who], at[A], 40000, 53), "eth").action == REDIRECT
    assert kernel.run("from_netdev", echo(at[who], at[A], 5), "eth").action == REDIRECT


@families
def test_a_port_may_ask_for_something_else_than_the_others(kernel: Kernel, at: dict[int, str]) -> None:
    own = {
        (A, 80): PortMode(MeshMode.STRICT, MeshMode.STRICT),
        (A, 81): PortMode(MeshMode.OFF, MeshMode.OFF),
    }
    listeners = _listeners(ListenerKind.TLS_TCP)

    def ran(source_port: int, port: int) -> Ran:
        return kernel.run("from_netdev", tcp_frame(at[R], at[A], source_port, port), "eth")

    up(kernel, port_modes=own, listeners=listeners)
    assert (ran(40000, 80).action, ran(40001, 80).reason) == (SHOT, Reason.PLAINTEXT_TO_STRICT)
    assert ran(MESH_PORT, 80).events[0].verdict == STEER
    assert ran(40000, 82).action == REDIRECT
    # Nobody speaks mesh TLS to the one that is off: its range means nothing there.
    assert ran(MESH_PORT + 1, 81).action == REDIRECT
    up(kernel, modes={A: MeshMode.STRICT}, port_modes=own, listeners=listeners)
    assert ran(40002, 81).action == REDIRECT
    assert ran(40003, 82).reason is Reason.PLAINTEXT_TO_STRICT
    # Of UDP nothing is asked.
    assert kernel.run("from_netdev", udp_frame(at[R], at[A], 40000, 80), "eth").action == REDIRECT


@families
def test_turning_strict_ends_plain_connections(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    kernel.run("from_netdev", tcp_frame(at[R], at[A], 40000, 80), "eth")
    up(kernel, modes={A: MeshMode.STRICT})
    ran = kernel.run("from_netdev", tcp_frame(at[R], at[A], 40000, 80, "A"), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.PLAINTEXT_TO_STRICT)


@families
def test_an_l7_rule_without_mesh_tls_goes_to_the_plain_listener(kernel: Kernel, at: dict[int, str]) -> None:
    up(
        kernel,
        OPEN | rule(A, IN, STEER, protocol=TCP, port=80),
        listeners={ListenerKey(WORLD, ListenerKind.HTTP_WORKLOAD): PORT + 9},
    )
    ran = kernel.run("from_netdev", tcp_frame(at[WORLD], at[A], 40000, 80), "eth")
    assert (ran.events[0].verdict, ran.events[0].proxy_port) == (STEER, PORT + 9)


def test_housekeeping_and_what_is_not_ip_pass(kernel: Kernel) -> None:
    up(kernel, {})
    arp = bytes.fromhex("ffffffffffff02000000000a0806") + bytes(28)
    assert kernel.run("from_netdev", arp, "eth").action == OK
    probe = frame(ip(V6[WORLD], V6[A], 58, bytes([135]) + bytes(23), hop_limit=255))
    assert kernel.run("from_netdev", probe, "eth").action == OK
