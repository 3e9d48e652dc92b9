"""Three readings of the same random policies: plain words, the look-up in Python, the kernel."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import ip_address

import policy_cases as cases
import policy_words as words_of
from bpf_kernel import OK, REDIRECT, SHOT, Kernel
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from packets import ICMP, UDP, frame, icmp, ip, tcp_frame, udp
from policy_cases import POLICIES, Policy
from policy_parties import HOST, OTHERS, PORT_NUMBERS, PROTOCOL_NUMBERS, Party, parties
from worlds import identity_of, make

from penstock.observe.reasons import Reason
from penstock.plan import Direction, KernelTables, MeshMode, Verdict
from penstock.policy.lookup import demands_proof, look_up
from penstock.world import host_network

EXAMPLES = 2000 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 60
SCTP = 132
_DENIED = (
    Reason.POLICY_DENIED_EGRESS,
    Reason.POLICY_DENIED_INGRESS,
    Reason.UNAUTHENTICATED,
    Reason.RULES_CLASH,
)


def _packet(source: Party, target: Party, protocol: str, port: int) -> bytes:
    if protocol == "TCP":
        return tcp_frame(source.address, target.address, 40000, port)
    if protocol == "ICMP":
        # A type that stands for an answer would belong to the question that came before.
        return frame(ip(source.address, target.address, ICMP, icmp(port, 0, 1)))
    number = SCTP if protocol == "SCTP" else UDP
    return frame(ip(source.address, target.address, number, udp(40000, port)))


def _by_kernel(kernel: Kernel, source: Party, target: Party, packet: bytes, device: dict[str, str]) -> str:
    if source.local:
        ran = kernel.run("from_workload", packet, device[source.name])
    elif source is HOST:
        ran = kernel.run("to_workload", packet, device[target.name])
    else:
        ran = kernel.run("from_netdev", packet, "eth")
    if ran.action == SHOT:
        # Without any listener, what is steered is closed.
        assert ran.reason is Reason.PROXY_NOT_READY or ran.reason in _DENIED, ran
        return "proxy" if ran.reason is Reason.PROXY_NOT_READY else "deny"
    assert ran.action in (OK, REDIRECT), ran
    return "allow"


def _by_lookup(
    tables: KernelTables, numbers: dict[str, int], source: Party, target: Party, protocol: int, port: int
) -> str:
    """What bpf/flow.h makes of the two sides' verdicts."""
    by_address = {str(a): e.subject for a, e in tables.endpoints.items()}
    found, sides = [Verdict.ALLOW], list[Verdict]()
    proof = False
    for here, there, direction in ((source, target, Direction.EGRESS), (target, source, Direction.INGRESS)):
        if here.local and not (direction is Direction.INGRESS and source is HOST):
            packet = (by_address[here.address], direction, numbers[there.name], protocol, port)
            found.append(look_up(tables.policy, *packet))
            sides.append(found[-1])
            proof = proof or demands_proof(tables.policy, *packet)
    if proof and max(found) is not Verdict.DENY and HOST not in (source, target):
        if source.local and not target.local:
            found.append(Verdict.REDIRECT if target.workload and protocol == 6 else Verdict.DENY)
        elif target.local and not source.local:
            found.append(Verdict.DENY)
    if {Verdict.NAMES, Verdict.REDIRECT} <= {*sides} or Verdict.DENY in found:
        return "deny"
    there = tables.ipcache.get(host_network(ip_address(target.address)))
    strict = there is not None and there.mesh and there.mode is MeshMode.STRICT
    if source.local and protocol == 6 and strict:
        found.append(Verdict.REDIRECT)
    return "allow" if {*found} == {Verdict.ALLOW} else "proxy"


def compare(kernel: Kernel, everyone: list[Party], policies: list[Policy], ports: list[int]) -> int:
    """All packets between all: how many there were. AssertionError for the first that is read differently."""
    _, plan = make(cases.manifests(everyone, policies), node_addresses=(ip_address(HOST.address),))
    numbers = {p.name: identity_of(plan, p.address) for p in [*everyone, *OTHERS]}
    device = {"w0": "wa", "w1": "wb", "w2": "peer-of-eth"}
    at = {p.address: kernel.device[device[p.name]] for p in everyone if p.local}
    tables = replace(
        plan.kernel,
        endpoints={a: replace(e, ifindex=at[str(a)]) for a, e in plan.kernel.endpoints.items()},
        listeners={},
    )
    kernel.forget()
    kernel.tables.apply(tables)
    compared = 0
    for source in [*everyone, *OTHERS]:
        for target in [*everyone, *OTHERS]:
            if source is target or not (target.local or source.local):
                continue
            for protocol, number in PROTOCOL_NUMBERS.items():
                for port in ports if protocol != "ICMP" else (8, 13, 17):
                    packet = _packet(source, target, protocol, port)
                    words = words_of.packet(policies, source, target, protocol, port)
                    looked_up = _by_lookup(tables, numbers, source, target, number, port)
                    judged = _by_kernel(kernel, source, target, packet, device)
                    where = (source.name, target.name, protocol, port)
                    assert (words, looked_up, judged) == (words, words, words), where
                    compared += 1
    return compared


_PORTS = st.lists(PORT_NUMBERS, min_size=2, max_size=2, unique=True)


_PLAIN = [Party(f"w{n}", f"10.{2 if n == 3 else 1}.0.{n + 1}", {}, "default", local=n < 3) for n in range(4)]
_PROVEN_BY_NOBODY = Policy(
    "default",
    {
        "endpointSelector": {},
        "ingress": [{"fromEndpoints": [], "authentication": {"mode": "required"}, "icmps": []}],
    },
)


@example(_PLAIN, [Policy("default", {"endpointSelector": {}, "ingress": []}), _PROVEN_BY_NOBODY], [79, 80])
@given(parties(), POLICIES, _PORTS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_look_up_and_kernel_agree(
    kernel: Kernel, everyone: list[Party], policies: list[Policy], ports: list[int]
) -> None:
    assert compare(kernel, everyone, policies, ports) > 0
