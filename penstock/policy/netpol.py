"""NetworkPolicy → the same rules as CiliumNetworkPolicy's. Pure.

Its lists mean other things: an empty one is as an absent one (everyone, every port), and what it closes
follows from policyTypes alone.

Source: Kubernetes API v1.31, networking.k8s.io/v1 NetworkPolicy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from penstock.manifests.document import Document
from penstock.manifests.kinds import (
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
)
from penstock.plan import Direction
from penstock.policy.labels import pods, subjects
from penstock.policy.prefixes import block
from penstock.policy.rules import PROTOCOLS, Peers, PolicySpec, Port, Rule


def network_policy_specs(document: Document, policy: NetworkPolicy) -> tuple[PolicySpec, ...]:
    """What `policy` says; rules of a direction that it is not about say nothing."""
    spec = policy.spec
    types: Sequence[str] = spec.policy_types or (("Ingress", "Egress") if spec.egress else ("Ingress",))
    rules: list[Rule] = []
    closes = set()
    if "Ingress" in types:
        closes.add(Direction.INGRESS)
        listed = [(rule.from_, rule.ports) for rule in spec.ingress]
        rules += _rules(document, Direction.INGRESS, "ingress", listed)
    if "Egress" in types:
        closes.add(Direction.EGRESS)
        listed = [(rule.to, rule.ports) for rule in spec.egress]
        rules += _rules(document, Direction.EGRESS, "egress", listed)
    selects = subjects(spec.pod_selector, document.key.namespace)
    return (PolicySpec(selects, tuple(rules), frozenset(closes)),)


def _rules(
    document: Document,
    direction: Direction,
    section: str,
    listed: Sequence[tuple[list[NetworkPolicyPeer], list[NetworkPolicyPort]]],
) -> Iterator[Rule]:
    for index, (peers, ports) in enumerate(listed):
        yield Rule(
            direction,
            _peers(peers, document.key.namespace) if peers else None,
            tuple(_port(port) for port in ports) if ports else None,
            None,
            False,
            document.key,
            document.origin("spec", section, index),
        )


def _peers(peers: list[NetworkPolicyPeer], namespace: str) -> Peers:
    return Peers(
        selectors=tuple(
            pods(p.pod_selector, p.namespace_selector, namespace) for p in peers if p.ip_block is None
        ),
        blocks=tuple(block(p.ip_block.cidr, p.ip_block.except_) for p in peers if p.ip_block is not None),
    )


def _port(port: NetworkPolicyPort) -> Port:
    (protocol,) = PROTOCOLS[port.protocol]
    if port.port is None:
        return Port(protocol)
    if isinstance(port.port, str):
        return Port(protocol, name=port.port)
    return Port(protocol, port.port, port.end_port or port.port)
