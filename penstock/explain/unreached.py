"""BackendTLSPolicies that do not hold towards workloads of other nodes: only whole nodes show it.

A backend's own TLS goes to another node inside mesh TLS, or as it is. Either way that node sees nothing of
the requests: where an L7 rule of the backend wants to judge them there, they do not get through. On the
backend's own node the same rule judges them before they are encrypted. Each node is compiled as it would be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from penstock.allocate import AllocationError
from penstock.explain import offline
from penstock.facts import Facts
from penstock.manifests.document import Document
from penstock.manifests.kinds import Node, Workload
from penstock.manifests.l4_kinds import BackendTLSPolicy
from penstock.manifests.problem import Finding, Problem
from penstock.manifests.review import problem
from penstock.plan import Direction
from penstock.policy.entries import redirected_ports
from penstock.policy.identities import Member
from penstock.policy.labels import INGRESS
from penstock.routing.services import ServedPort

HINT = (
    "judge requests where they are sent (egress), and leave rules.http out of what the backend's policies say"
)


def review_unreached(documents: Iterable[Document]) -> list[Problem]:
    """A warning for each target of a policy that cannot hold towards some workload."""
    everything = {d.key: d for d in documents}
    nodes = [d.key.name for d in everything.values() if isinstance(d.value, Node)]
    if len(nodes) < 2 or not any(isinstance(d.value, BackendTLSPolicy) for d in everything.values()):
        return []
    try:
        compiled = {node: offline.compiled(offline.world(everything, node))[0] for node in sorted(nodes)}
    except AllocationError:
        return []
    found: dict[tuple[str, str, str], Problem] = {}
    for policy, served, member, who in chain.from_iterable(_lost(f, compiled) for f in compiled.values()):
        found.setdefault((str(policy.key), served.document.key.name, who), _told(policy, served, member, who))
    return sorted(found.values(), key=lambda p: (p.file, p.line))


def _lost(facts: Facts, compiled: Mapping[str, Facts]) -> Iterator[tuple[Document, ServedPort, Member, str]]:
    policies = facts.edge.backend_tls
    assert policies is not None
    ways: list[tuple[ServedPort, str, int | None]] = [
        (served, "of the mesh", None) for t in facts.mesh.tables for served in t.clusters
    ]
    ways += [(c.served, "through Gateways", INGRESS) for c in facts.edge.clusters if c.tls is not None]
    for served, who, peer in ways:
        policy = policies.owner(served)
        for backend in facts.served.of(served).backends if policy is not None else ():
            member = backend.member
            if policy is None or member is None or not member.mesh:
                continue
            if backend.port in _judged(compiled, member, peer):
                yield policy, served, member, who


def _judged(compiled: Mapping[str, Facts], member: Member, peer: int | None) -> set[int]:
    """The ports at which requests of `peer` (None: of anybody) are judged on the workload's own node."""
    workload = member.document.value
    assert isinstance(workload, Workload)
    there = compiled[workload.spec.node or ""]
    subject = next(m.subject for m in there.members.all if m.document.key == member.document.key)
    return redirected_ports(there.all_entries.get((subject, Direction.INGRESS), {}), peer)


def _told(policy: Document, served: ServedPort, member: Member, who: str) -> Problem:
    assert isinstance(policy.value, BackendTLSPolicy)
    refs = policy.value.spec.target_refs
    place = next(i for i, ref in enumerate(refs) if ref.name == served.document.key.name)
    message = (
        f"{member.document.key} is on another node than its clients, and an L7 rule judges requests there,"
    )
    message += f" where only its TLS is seen: requests {who} do not reach it"
    return problem(policy, Finding(("spec", "targetRefs", place), message, HINT, "mesh-tls"))
