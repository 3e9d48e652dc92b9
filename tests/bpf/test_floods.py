"""Floods and full tables: a flood towards a closed port takes no room, and what was forgotten goes on."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from bpf_kernel import REDIRECT, SHOT, Kernel
from packets import frame, ip, tcp, tcp_frame
from small_node import ALLOW, FAMILIES, IN, OUT, A, B, closed, rule, up
from test_nat import NODE_PORT, external, whole

from penstock.observe.reasons import Reason
from penstock.policy.labels import HOST, WORLD

families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
SCTP = 132


def counted(kernel: Kernel, reason: Reason) -> int:
    return kernel.tables.counters().get(reason, (0, 0))[0]


@families
def test_a_closed_port_takes_no_room(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    before = counted(kernel, Reason.ANSWERED_RESET)
    for port in range(40000, 40050):
        assert kernel.run("from_workload", tcp_frame(at[A], at[B], port, 4444), "wa").action == REDIRECT
        reset = kernel.run("from_workload", tcp_frame(at[B], at[A], 4444, port, "RA"), "wb")
        assert reset.action == REDIRECT
    assert kernel.conntrack.count() == 0
    assert counted(kernel, Reason.ANSWERED_RESET) - before == 50


@families
def test_a_client_that_resets_ends_nothing_early(kernel: Kernel, at: dict[int, str]) -> None:
    """Only who was called may end the entry: its answers on the way are still answers."""
    up(kernel, closed(A, IN))
    kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    assert kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80, "R"), "wa").action == REDIRECT
    assert kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "A"), "wb").action == REDIRECT
    assert kernel.conntrack.count() == 1


@families
def test_after_its_reset_nobody_speaks_as_one_who_answers(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, IN))
    kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    assert kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "RA"), "wb").action == REDIRECT
    ran = kernel.run("from_workload", tcp_frame(at[B], at[A], 80, 40000, "PA"), "wb")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)


@families
def test_a_closed_port_behind_a_node_port_takes_no_room(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, services=external(at, (at[B], 8080)))
    syn = whole(tcp_frame(at[WORLD], at[HOST], 40000, NODE_PORT))
    assert kernel.run("from_netdev", syn, "eth", rewritten=True).action == REDIRECT
    assert [each.count() for each in kernel.nat[:2]] == [1, 1]
    reset = whole(tcp_frame(at[B], at[WORLD], 8080, 40000, "RA"))
    kernel.run("from_workload", reset, "wb")
    kernel.run("to_netdev", reset, "eth", rewritten=True)
    assert [each.count() for each in (*kernel.nat[:2], kernel.conntrack)] == [0, 0, 0]


@families
def test_a_forgotten_connection_goes_on_and_is_counted(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, {**closed(B, IN), **rule(B, IN, ALLOW, peer=A, protocol=6, port=80)})
    kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80), "wa")
    before = counted(kernel, Reason.CONNECTION_RESUMED)
    for key in list(kernel.conntrack.keys()):
        kernel.conntrack.delete(key)
    assert kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 80, "PA"), "wa").action == REDIRECT
    assert counted(kernel, Reason.CONNECTION_RESUMED) - before == 1
    # What no rule allows is not resumed.
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 81, "PA"), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)
    assert counted(kernel, Reason.CONNECTION_RESUMED) - before == 1


@families
def test_a_table_is_counted_as_it_is(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    for port in range(40000, 45000):
        kernel.call("from_workload", tcp_frame(at[A], at[B], port, 80), device="wa")
    assert kernel.conntrack.count() == len(kernel.conntrack.items()) == 5000


@families
def test_sctp_is_judged_by_its_ports(kernel: Kernel, at: dict[int, str]) -> None:
    """This kernel may have no SCTP sockets; its packets are judged like any other (RFC 9260, 3.1)."""
    up(kernel, {**closed(B, IN), **rule(B, IN, ALLOW, peer=A, protocol=SCTP, port=9899)})

    def sends(source: int, target: int, sport: int, dport: int, device: str) -> tuple[int, Reason | None]:
        raw = frame(ip(at[source], at[target], SCTP, tcp(sport, dport)[:12]))
        ran = kernel.run("from_workload", raw, device)
        return ran.action, ran.reason

    assert ip_address(at[A]).version in (4, 6)
    assert sends(A, B, 5000, 9899, "wa")[0] == REDIRECT
    assert sends(B, A, 9899, 5000, "wb")[0] == REDIRECT
    assert sends(A, B, 5000, 9900, "wa") == (SHOT, Reason.POLICY_DENIED_INGRESS)
    # The same port of another protocol is another matter.
    ran = kernel.run("from_workload", tcp_frame(at[A], at[B], 5000, 9899), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)
    kernel.tables.apply(up(kernel, closed(A, OUT)))
    assert sends(A, B, 5001, 9899, "wa") == (SHOT, Reason.POLICY_DENIED_EGRESS)
