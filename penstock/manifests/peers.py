"""The peers of one rule of a CiliumNetworkPolicy, whichever of the four sections it stands in.

None is a list that is not written, which is not the same as an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penstock.manifests.kinds import (
    CIDRRule,
    CiliumClusterwideNetworkPolicy,
    CiliumNetworkPolicy,
    EgressDenyRule,
    EgressRule,
    FQDNSelector,
    IngressDenyRule,
    IngressRule,
    LabelSelector,
    PolicyRule,
    ServiceRef,
)
from penstock.manifests.problem import Path

DirectionRule = IngressRule | IngressDenyRule | EgressRule | EgressDenyRule
CiliumPolicy = CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy


@dataclass(frozen=True, slots=True)
class RulePeers:
    """`way` is "from" or "to", as the lists' names begin."""

    way: str
    endpoints: Sequence[LabelSelector] | None
    entities: Sequence[str] | None
    cidrs: Sequence[str] | None
    cidr_sets: Sequence[CIDRRule] | None
    nodes: Sequence[LabelSelector] | None
    services: Sequence[ServiceRef] | None = None
    fqdns: Sequence[FQDNSelector] | None = None

    @property
    def absent(self) -> bool:
        """Whether no list of peers is written at all."""
        return not self.written

    @property
    def written(self) -> tuple[str, ...]:
        """The names of the lists that are written."""
        lists = {
            "Endpoints": self.endpoints,
            "Entities": self.entities,
            "CIDR": self.cidrs,
            "CIDRSet": self.cidr_sets,
            "Nodes": self.nodes,
            "Services": self.services,
            "FQDNs": self.fqdns,
        }
        return tuple(self.way + name for name, listed in lists.items() if listed is not None)


def peers_of(rule: DirectionRule) -> RulePeers:
    if isinstance(rule, IngressRule | IngressDenyRule):
        return RulePeers(
            "from",
            rule.from_endpoints,
            rule.from_entities,
            rule.from_cidr,
            rule.from_cidr_set,
            rule.from_nodes,
        )
    return RulePeers(
        "to",
        rule.to_endpoints,
        rule.to_entities,
        rule.to_cidr,
        rule.to_cidr_set,
        rule.to_nodes,
        rule.to_services,
        rule.to_fqdns if isinstance(rule, EgressRule) else None,
    )


def rules_of(policy: CiliumPolicy) -> list[tuple[Path, PolicyRule]]:
    """spec and specs, each with its path."""
    first: list[tuple[Path, PolicyRule]] = [(("spec",), policy.spec)] if policy.spec else []
    return [*first, *((("specs", i), rule) for i, rule in enumerate(policy.specs or ()))]


def sections_of(rule: PolicyRule) -> Iterator[tuple[str, Sequence[DirectionRule] | None]]:
    """ingress, ingressDeny, egress and egressDeny, each with its name."""
    yield "ingress", rule.ingress
    yield "ingressDeny", rule.ingress_deny
    yield "egress", rule.egress
    yield "egressDeny", rule.egress_deny
