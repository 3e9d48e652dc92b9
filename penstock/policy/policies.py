"""Every policy of a World, read: what it says, and what must have a number for it. Pure.

A policy is read again only if its document has changed, or what it names in other objects; so a change of
workloads reads none, and the same policies are the very same value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import is_

from penstock.dns.patterns import Names
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy, NetworkPolicy
from penstock.manifests.peers import RulePeers, peers_of, rules_of, sections_of
from penstock.manifests.policy_checks import AUDIT_ANNOTATION
from penstock.policy.netpol import network_policy_specs
from penstock.policy.references import REFERRED, References
from penstock.policy.rules import PolicySpec, policy_specs
from penstock.world import Network, World

POLICY_KINDS = (CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, NetworkPolicy)


@dataclass(frozen=True, slots=True)
class PolicyRead:
    """One policy. `refers`: what it means depends on other objects. `strict` is what it would say if what it
    only wants told (headerMatches with mismatch: LOG) were asked for."""

    document: Document
    specs: tuple[PolicySpec, ...]
    strict: tuple[PolicySpec, ...]
    refers: bool
    networks: frozenset[Network]
    nodes: bool
    names: frozenset[Names]


@dataclass(frozen=True, slots=True)
class Policies:
    """`networks` are all that any policy writes; `nodes` and `audit`: whether any names nodes, is in audit.

    `documents` are those that they were read from, kind by kind.
    """

    documents: tuple[tuple[Document, ...], ...]
    read: Mapping[ObjectKey, PolicyRead]
    networks: frozenset[Network]
    nodes: bool
    audit: bool
    names: frozenset[Names] = frozenset()
    """Every list of names that a rule allows (toFQDNs)."""

    def specs(self, *, audit: bool) -> Iterator[PolicySpec]:
        """Those that are enforced, and with `audit` the others too, and what is only to be told."""
        for each in self.read.values():
            for spec in each.strict if audit else each.specs:
                if audit or not spec.audit:
                    yield spec


def policies(world: World, before: Policies | None = None) -> Policies:
    """`before` itself if nothing that they depend on has changed since."""
    documents = tuple(world.documents_of(kind) for kind in (*REFERRED, *POLICY_KINDS))
    same_others = False
    if before is not None:
        same = [_same(a, b) for a, b in zip(documents, before.documents, strict=True)]
        if all(same):
            return before
        same_others = all(same[: len(REFERRED)])
        if all(same[len(REFERRED) :]) and not any(each.refers for each in before.read.values()):
            return before
    references = References(world)
    read = {}
    for document in world.of_kinds(*POLICY_KINDS):
        known = before.read.get(document.key) if before is not None else None
        if known is None or known.document is not document or (known.refers and not same_others):
            known = _read(document, references)
        read[document.key] = known
    networks = frozenset().union(*(each.networks for each in read.values()))
    return Policies(
        documents,
        read,
        networks,
        any(each.nodes for each in read.values()),
        any(r.strict is not r.specs or s.audit for r in read.values() for s in r.specs),
        frozenset().union(*(each.names for each in read.values())),
    )


def _same(documents: tuple[Document, ...], before: tuple[Document, ...]) -> bool:
    return documents is before or (len(documents) == len(before) and all(map(is_, documents, before)))


def _read(document: Document, references: References) -> PolicyRead:
    specs = specs_of(document, references)
    strict = specs_of(document, references, strict=True) if _tells(document) else specs
    if document.metadata.annotations.get(AUDIT_ANNOTATION) == "true":
        strict = specs = tuple(replace(spec, audit=True) for spec in strict)
    peers = [rule.peers for spec in specs for rule in spec.rules if rule.peers is not None]
    blocks = [each for listed in peers for each in listed.blocks]
    return PolicyRead(
        document,
        specs,
        strict,
        any(map(_refers, _peers(document))),
        frozenset(n for each in blocks for n in (each.network, *each.excepted)),
        any(listed.nodes for listed in peers),
        frozenset(listed.names for listed in peers if listed.names),
    )


def specs_of(document: Document, references: References, *, strict: bool = False) -> tuple[PolicySpec, ...]:
    """What a policy of any kind says."""
    policy = document.value
    if isinstance(policy, NetworkPolicy):
        return network_policy_specs(document, policy)
    assert isinstance(policy, CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy)
    return policy_specs(document, policy, references, strict=strict)


def _peers(document: Document) -> Iterator[RulePeers]:
    if isinstance(document.value, CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy):
        for _, spec in rules_of(document.value):
            for _, section in sections_of(spec):
                yield from map(peers_of, section or ())


def _tells(document: Document) -> bool:
    """Whether there is something that is not asked for, but told where it is missing."""
    if not isinstance(document.value, CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy):
        return False
    return any(
        match.mismatch is not None
        for _, spec in rules_of(document.value)
        for rule in (*(spec.ingress or ()), *(spec.egress or ()))
        for ports in rule.to_ports or ()
        for http in (ports.rules.http if ports.rules else ())
        for match in http.header_matches
    )


def _refers(listed: RulePeers) -> bool:
    return (
        bool(listed.services)
        or "kube-apiserver" in (listed.entities or ())
        or any(each.cidr is None for each in listed.cidr_sets or ())
    )
