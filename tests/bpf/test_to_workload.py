"""What reaches a workload from the node itself: nothing can be steered here, only passed or dropped."""

from __future__ import annotations

import pytest
from bpf_kernel import OK, REDIRECT, SHOT, SOURCE_PORTS, Kernel
from packets import TCP, UDP, echo, frame, ip, tcp_frame, udp, udp_frame, unreachable
from small_node import ALLOW, DENY, FAMILIES, IN, OPEN, OUT, STEER, A, B, closed, rule, tables, up

from penstock.envoy.marks import DOWNSTREAM, UPSTREAM
from penstock.observe.reasons import Reason
from penstock.plan import MeshMode
from penstock.policy.labels import HOST, WORLD
from penstock.redirect import layout

families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
JUDGED, PROVEN = 0x400, 0x600


def _host_access(kernel: Kernel, *, on: bool) -> None:
    epoch = int.from_bytes((kernel.map("config").get(bytes(4)) or b"")[:4], "little") + 1
    kernel.map("config").put(bytes(4), layout.config(epoch, SOURCE_PORTS, host_access=on))


@families
@pytest.mark.parametrize("mark", [DOWNSTREAM, UPSTREAM, UPSTREAM | 0x7000])
def test_what_the_proxy_sends_was_judged_there(kernel: Kernel, at: dict[int, str], mark: int) -> None:
    up(kernel, {})
    before = kernel.counted().get(Reason.FROM_PROXY, 0)
    ran = kernel.run("to_workload", tcp_frame(at[B], at[A], 20000, 80), "wa", mark=mark)
    assert (ran.action, ran.mark, ran.events) == (OK, mark, ())
    assert kernel.counted()[Reason.FROM_PROXY] == before + 1


@families
def test_what_another_hook_judged_passes(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, {})
    assert kernel.run("to_workload", tcp_frame(at[B], at[A], 40000, 80), "wa", mark=JUDGED).action == OK
    assert kernel.run("to_workload", tcp_frame(at[B], at[A], 40000, 80), "wa").action == SHOT
    # The mark that steers to the proxy is no such word.
    assert kernel.run("to_workload", tcp_frame(at[B], at[A], 40000, 80), "wa", mark=0x200).action == SHOT


@families
def test_the_host_reaches_every_workload(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, IN), modes={A: MeshMode.STRICT})
    for packet in (
        tcp_frame(at[HOST], at[A], 40000, 80),
        udp_frame(at[HOST], at[A], 1, 2),
        echo(at[HOST], at[A], 3),
    ):
        ran = kernel.run("to_workload", packet, "wa")
        assert (ran.action, ran.reason) == (OK, Reason.FORWARDED_STACK if ran.events else None)
    assert kernel.run("from_workload", echo(at[A], at[HOST], 3, reply=True), "wa").action == OK


@families
def test_the_host_obeys_policy_where_it_is_told_to(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, IN) | rule(A, IN, ALLOW, peer=HOST, protocol=TCP, port=80))
    _host_access(kernel, on=False)
    try:
        assert kernel.run("to_workload", tcp_frame(at[HOST], at[A], 40000, 80), "wa").action == OK
        ran = kernel.run("to_workload", tcp_frame(at[HOST], at[A], 40000, 81), "wa")
        assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)
        assert ran.events[0].source_identity == HOST
    finally:
        _host_access(kernel, on=True)


@families
def test_others_from_a_device_without_program_are_judged_here(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, IN))
    ran = kernel.run("to_workload", tcp_frame(at[WORLD], at[A], 40000, 80), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)
    up(kernel)
    assert kernel.run("to_workload", tcp_frame(at[WORLD], at[A], 40000, 80), "wa").action == OK
    up(kernel, modes={A: MeshMode.STRICT})
    ran = kernel.run("to_workload", tcp_frame(at[WORLD], at[A], 40001, 80), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.PLAINTEXT_TO_STRICT)


@families
def test_nothing_can_be_steered_from_here(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, OPEN | rule(A, IN, STEER, protocol=TCP, port=80))
    ran = kernel.run("to_workload", tcp_frame(at[WORLD], at[A], 40000, 80), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)


@families
def test_a_packet_for_somebody_else_is_dropped(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    for target in (B, WORLD):
        ran = kernel.run("to_workload", tcp_frame(at[HOST], at[target], 40000, 80), "wa")
        assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)


@families
def test_the_hosts_answer_needs_no_rule(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, IN))
    _host_access(kernel, on=False)
    try:
        answer = udp_frame(at[HOST], at[A], 53, 40000)
        assert kernel.run("to_workload", answer, "wa").action == SHOT
        assert kernel.run("from_workload", udp_frame(at[A], at[HOST], 40000, 53), "wa").action == OK
        assert kernel.run("to_workload", answer, "wa").action == OK
        # It rests on the workload's egress, and falls with it.
        kernel.tables.apply(tables(kernel, closed(A, IN) | rule(B, IN, DENY)))
        _host_access(kernel, on=False)
        assert kernel.run("to_workload", answer, "wa").action == OK
        kernel.tables.apply(tables(kernel, closed(A, IN) | rule(A, OUT, DENY)))
        _host_access(kernel, on=False)
        ran = kernel.run("to_workload", answer, "wa")
        assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_CHANGED)
    finally:
        _host_access(kernel, on=True)


@families
def test_a_workload_answers_the_host(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, OUT))
    kernel.run("to_workload", tcp_frame(at[HOST], at[A], 40000, 80), "wa")
    ran = kernel.run("from_workload", tcp_frame(at[A], at[HOST], 80, 40000, "SA"), "wa")
    assert (ran.action, ran.mark) == (OK, PROVEN)
    assert kernel.run("from_workload", tcp_frame(at[A], at[HOST], 80, 40001, "SA"), "wa").action == SHOT


@families
def test_a_flow_is_told_once(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    assert kernel.run("to_workload", tcp_frame(at[WORLD], at[A], 40000, 80), "wa").events
    up(kernel, OPEN | rule(B, IN, DENY))
    ran = kernel.run("to_workload", tcp_frame(at[WORLD], at[A], 40000, 80, "A"), "wa")
    assert (ran.action, ran.events) == (OK, ())


@families
def test_a_tightened_rule_ends_what_it_allowed(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel)
    kernel.run("to_workload", tcp_frame(at[WORLD], at[A], 40000, 80), "wa")
    up(kernel, closed(A, IN))
    ran = kernel.run("to_workload", tcp_frame(at[WORLD], at[A], 40000, 80, "A"), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)


@families
def test_icmp_errors_of_the_node(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, closed(A, IN))
    sent = ip(at[A], at[WORLD], UDP, udp(40000, 9))
    ran = kernel.run("to_workload", unreachable(at[HOST], at[A], sent), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.UNRELATED_ICMP_ERROR)
    assert kernel.run("from_workload", frame(sent), "wa").action == OK
    assert kernel.run("to_workload", unreachable(at[HOST], at[A], sent), "wa").action == OK
    assert kernel.run("to_workload", unreachable(at[HOST], at[B], sent), "wb").action == SHOT


@families
def test_a_neighbours_flow_goes_its_own_way(kernel: Kernel, at: dict[int, str]) -> None:
    """What from_workload handed over by redirect does not pass here; what bears a neighbour's address must
    have passed at that neighbour's."""
    up(kernel)
    assert kernel.run("from_workload", tcp_frame(at[B], at[A], 40000, 80), "wb").action == REDIRECT
    ran = kernel.run("to_workload", tcp_frame(at[B], at[A], 40000, 80, "A"), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)
    proven = kernel.run("to_workload", tcp_frame(at[B], at[A], 40000, 80, "A"), "wa", mark=PROVEN)
    assert proven.action == OK
    for flags in ("S", "A"):
        ran = kernel.run("to_workload", tcp_frame(at[B], at[A], 40001, 80, flags), "wa")
        assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)
