"""BackendTLSPolicies that mesh TLS keeps from workloads of other nodes: only whole nodes show it.

What leaves for another mesh node is mesh TLS, which carries no TLS of a backend's own: routes of the mesh do
not reach such a workload there, and Gateways do not where it takes nothing else (STRICT). Each node is
compiled as it would be, and asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from penstock.allocate import AllocationError
from penstock.explain import offline
from penstock.facts import Facts
from penstock.manifests.document import Document
from penstock.manifests.kinds import Node
from penstock.manifests.l4_kinds import BackendTLSPolicy
from penstock.manifests.problem import Finding, Problem
from penstock.manifests.review import problem
from penstock.plan import MeshMode
from penstock.policy.identities import Member
from penstock.routing.services import ServedPort

HINT = "give it a PeerAuthentication with DISABLE, or leave the policy out"


def review_unreached(documents: Iterable[Document]) -> list[Problem]:
    """A warning for each target of a policy that cannot hold towards some workload."""
    everything = {d.key: d for d in documents}
    nodes = [d.key.name for d in everything.values() if isinstance(d.value, Node)]
    if len(nodes) < 2 or not any(isinstance(d.value, BackendTLSPolicy) for d in everything.values()):
        return []
    found: dict[tuple[str, str, str], Problem] = {}
    for node in sorted(nodes):
        try:
            facts, _ = offline.compiled(offline.world(everything, node))
        except AllocationError:
            return []
        for policy, served, member, who in _lost(facts):
            found.setdefault(
                (str(policy.key), served.document.key.name, who), _told(policy, served, member, who)
            )
    return sorted(found.values(), key=lambda p: (p.file, p.line))


def _lost(facts: Facts) -> Iterator[tuple[Document, ServedPort, Member, str]]:
    policies = facts.edge.backend_tls
    assert policies is not None
    ways = [(served, "of the mesh", MeshMode.PERMISSIVE) for t in facts.mesh.tables for served in t.clusters]
    ways += [
        (c.served, "through Gateways", MeshMode.STRICT) for c in facts.edge.clusters if c.tls is not None
    ]
    for served, who, least in ways:
        policy = policies.owner(served)
        for backend in served.backends if policy is not None else ():
            member = backend.member
            if policy is None or member is None or not member.mesh:
                continue
            mode = facts.modes.of(member, backend.port)
            if mode is MeshMode.STRICT or (mode is not MeshMode.OFF and least is MeshMode.PERMISSIVE):
                yield policy, served, member, who


def _told(policy: Document, served: ServedPort, member: Member, who: str) -> Problem:
    assert isinstance(policy.value, BackendTLSPolicy)
    refs = policy.value.spec.target_refs
    place = next(i for i, ref in enumerate(refs) if ref.name == served.document.key.name)
    message = (
        f"{member.document.key} is on another node than its clients, and spoken to in mesh TLS, which cannot"
    )
    message += f" carry its own: requests {who} do not reach it from there"
    return problem(policy, Finding(("spec", "targetRefs", place), message, HINT, "mesh-tls"))
