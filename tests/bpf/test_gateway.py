"""What is sent to a Gateway: judged as reserved:ingress, neither translated nor given to a workload."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from bpf_kernel import OK, SHOT, Kernel
from packets import TCP, tcp_frame
from small_node import ALLOW, DENY, FAMILIES, IN, OPEN, OUT, STEER, A, B, closed, rule, up

from penstock.observe.reasons import Reason
from penstock.plan import PolicyEntry, PolicyKey, ServiceEntry, ServiceKey
from penstock.policy.identities import INGRESS_SUBJECT
from penstock.policy.labels import HOST, INGRESS, WORLD

families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
GATEWAY = {4: "10.97.0.7", 6: "fd97::7"}
EVERYONE = {PolicyKey(INGRESS_SUBJECT, IN, 0): PolicyEntry(ALLOW)}


def address(at: dict[int, str]) -> str:
    return GATEWAY[6 if ":" in at[A] else 4]


def gateway(kernel: Kernel, policy: dict[PolicyKey, PolicyEntry]) -> None:
    services = {
        ServiceKey(ip_address(where), 80, TCP): ServiceEntry(9, "gateway/default/gw:80/TCP", (), gateway=True)
        for where in GATEWAY.values()
    }
    up(kernel, policy, services=services)


@families
def test_from_a_workload(kernel: Kernel, at: dict[int, str]) -> None:
    gateway(kernel, OPEN | EVERYONE)
    ran = kernel.run("from_workload", tcp_frame(at[A], address(at), 40000, 80), "wa")
    assert (ran.action, ran.reason) == (OK, Reason.FORWARDED_STACK)
    assert ran.events[0].destination_identity == INGRESS
    gateway(kernel, OPEN)
    ran = kernel.run("from_workload", tcp_frame(at[A], address(at), 40001, 80), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)


@families
def test_the_senders_egress_counts(kernel: Kernel, at: dict[int, str]) -> None:
    gateway(kernel, closed(A, OUT) | EVERYONE)
    asked = tcp_frame(at[A], address(at), 40000, 80)
    assert kernel.run("from_workload", asked, "wa").reason == Reason.POLICY_DENIED_EGRESS
    gateway(kernel, closed(A, OUT) | EVERYONE | rule(A, OUT, ALLOW, peer=INGRESS))
    assert kernel.run("from_workload", asked, "wa").action == OK


@families
def test_a_rule_for_one_peer(kernel: Kernel, at: dict[int, str]) -> None:
    gateway(kernel, OPEN | rule(INGRESS_SUBJECT, IN, ALLOW, peer=A) | rule(INGRESS_SUBJECT, IN, DENY, peer=B))
    assert kernel.run("from_workload", tcp_frame(at[A], address(at), 40000, 80), "wa").action == OK
    assert kernel.run("from_workload", tcp_frame(at[B], address(at), 40000, 80), "wb").action == SHOT


@families
def test_from_outside(kernel: Kernel, at: dict[int, str]) -> None:
    asked = tcp_frame(at[WORLD], address(at), 40000, 80)
    gateway(kernel, OPEN | EVERYONE)
    assert kernel.run("from_netdev", asked, "eth").action == OK
    gateway(kernel, OPEN | rule(INGRESS_SUBJECT, IN, ALLOW, peer=A))
    ran = kernel.run("from_netdev", asked, "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.POLICY_DENIED_INGRESS)
    # Nobody of this node comes in from outside, not to a Gateway either.
    ran = kernel.run("from_netdev", tcp_frame(at[A], address(at), 40001, 80), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)
    ran = kernel.run("from_netdev", tcp_frame(at[HOST], address(at), 40001, 80), "eth")
    assert (ran.action, ran.reason) == (SHOT, Reason.SPOOFED_SOURCE)


@families
def test_other_ports_of_the_address_are_the_nodes_own_affair(kernel: Kernel, at: dict[int, str]) -> None:
    gateway(kernel, OPEN)
    assert kernel.run("from_netdev", tcp_frame(at[WORLD], address(at), 40000, 81), "eth").action == OK


@families
def test_what_an_l7_rule_names_waits_for_its_listener(kernel: Kernel, at: dict[int, str]) -> None:
    gateway(kernel, OPEN | rule(INGRESS_SUBJECT, IN, STEER, protocol=TCP, port=80))
    ran = kernel.run("from_workload", tcp_frame(at[A], address(at), 40000, 80), "wa")
    assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)
