"""CiliumNetworkPolicy → rules with origin: the first of the three pure stages.

A `Rule` is one (direction, peers, ports, L7) of one policy; what is absent and what is empty stay apart
(facts of the API): absent peers are any peer, an empty list selects nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penstock.manifests.document import Document, ObjectKey, Origin
from penstock.manifests.kinds import (
    CiliumNetworkPolicy,
    EgressDenyRule,
    EgressRule,
    IngressDenyRule,
    IngressRule,
    LabelSelector,
    PolicyRule,
    PortDenyRule,
    PortHTTP,
    PortProtocol,
    PortRule,
)
from penstock.plan import Direction
from penstock.policy.labels import HOST, INGRESS, REMOTE_NODE, WORLD, LabelIndex, Selector, predicate
from penstock.routing.model import RequestMatch

TCP, UDP, SCTP = 6, 17, 132
PROTOCOLS = {"TCP": (TCP,), "UDP": (UDP,), "SCTP": (SCTP,), "ANY": (TCP, UDP, SCTP)}


@dataclass(frozen=True, slots=True)
class Port:
    """Ports `first`..`last` of `protocol` (0: any protocol), or a name to be resolved on the workload."""

    protocol: int
    first: int = 0
    last: int = 65535
    name: str = ""


@dataclass(frozen=True, slots=True)
class Peers:
    """Any of `selectors`, or any of the reserved identities; `cluster` is every workload of the mesh."""

    selectors: tuple[Selector, ...] = ()
    identities: frozenset[int] = frozenset()
    cluster: bool = False

    def resolve(self, index: LabelIndex) -> frozenset[int]:
        """Every identity that is meant."""
        found = {i for i in self.identities if i in index.labels}
        if self.cluster:
            found |= {i for i in index.labels if i >= 256}
        for selector in self.selectors:
            found |= selector.identities(index)
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class Rule:
    """`peers` None is any peer, `ports` None any port (empty: no port), `http` None no L7 condition."""

    direction: Direction
    peers: Peers | None
    ports: tuple[Port, ...] | None
    http: tuple[RequestMatch, ...] | None
    deny: bool
    policy: ObjectKey
    origin: Origin


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """One spec: whom it selects, what it says, and in which directions it closes what it does not name."""

    selects: Selector
    rules: tuple[Rule, ...]
    default_deny: frozenset[Direction]


_ENTITY_IDENTITIES = {
    "world": {WORLD},
    "host": {HOST},
    "remote-node": {REMOTE_NODE},
    "ingress": {INGRESS},
    "cluster": {HOST, REMOTE_NODE, INGRESS},
}


def _peers(
    endpoints: list[LabelSelector] | None, entities: Sequence[str] | None, namespace: str
) -> Peers | None:
    if endpoints is None and entities is None:
        return None
    if entities is not None and "all" in entities:
        return None
    identities: set[int] = set()
    for entity in entities or ():
        identities |= _ENTITY_IDENTITIES.get(entity, set())
    return Peers(
        selectors=tuple(predicate(s, within=namespace) for s in endpoints or ()),
        identities=frozenset(identities),
        cluster="cluster" in (entities or ()),
    )


def _ports(ports: list[PortProtocol], *, http: bool) -> tuple[Port, ...]:
    """HTTP rides on TCP alone, whatever `protocol: ANY` says. No ports are none, not all."""
    found = []
    for p in ports:
        protocols = (TCP,) if http else PROTOCOLS[p.protocol]
        text = str(p.port)
        if not text.isdigit():
            found += [Port(protocol, name=text) for protocol in protocols]
        elif int(text) == 0:
            wild = (0,) if p.protocol == "ANY" and not http else protocols
            found += [Port(protocol) for protocol in wild]
        else:
            found += [Port(protocol, int(text), p.end_port or int(text)) for protocol in protocols]
    return tuple(found)


def _request(http: PortHTTP) -> RequestMatch:
    headers: list[tuple[str, str | None]] = []
    for header in http.headers:
        name, colon, value = header.partition(":")
        headers.append((name.strip().lower(), value.strip() if colon else None))
    return RequestMatch(http.method or None, http.path or None, http.host or None, tuple(headers))


def _port_rules(
    to_ports: Sequence[PortRule | PortDenyRule] | None,
) -> Iterator[tuple[int | None, tuple[Port, ...] | None, tuple[RequestMatch, ...] | None]]:
    if to_ports is None:
        yield None, None, None
        return
    for index, item in enumerate(to_ports):
        http = None
        if isinstance(item, PortRule) and item.rules is not None and item.rules.http:
            http = tuple(_request(h) for h in item.rules.http)
        yield index, _ports(item.ports, http=http is not None), http


_Section = Sequence[IngressRule | IngressDenyRule | EgressRule | EgressDenyRule] | None


def _section(document: Document, path: tuple[str | int, ...], section: _Section) -> Iterator[Rule]:
    for index, item in enumerate(section or ()):
        if isinstance(item, IngressRule | IngressDenyRule):
            direction = Direction.INGRESS
            peers = _peers(item.from_endpoints, item.from_entities, document.key.namespace)
        else:
            direction = Direction.EGRESS
            peers = _peers(item.to_endpoints, item.to_entities, document.key.namespace)
        empty = peers is None and item.to_ports is None
        if empty and _names_no_peer(item):
            # `ingress: [{}]` closes the direction and allows nothing.
            continue
        for port_index, ports, http in _port_rules(item.to_ports):
            where = (*path, index) if port_index is None else (*path, index, "toPorts", port_index)
            yield Rule(
                direction,
                peers,
                ports,
                http,
                isinstance(item, IngressDenyRule | EgressDenyRule),
                document.key,
                document.origin(*where),
            )


def _names_no_peer(item: IngressRule | IngressDenyRule | EgressRule | EgressDenyRule) -> bool:
    """True if no list of peers is written at all (entities: [all] is written, and means any peer)."""
    if isinstance(item, IngressRule | IngressDenyRule):
        return item.from_endpoints is None and item.from_entities is None
    return item.to_endpoints is None and item.to_entities is None


def _spec(document: Document, path: tuple[str | int, ...], spec: PolicyRule) -> PolicySpec:
    rules = (
        *_section(document, (*path, "ingressDeny"), spec.ingress_deny),
        *_section(document, (*path, "ingress"), spec.ingress),
        *_section(document, (*path, "egressDeny"), spec.egress_deny),
        *_section(document, (*path, "egress"), spec.egress),
    )
    closes = set()
    for direction, said, sections in (
        (Direction.INGRESS, spec.enable_default_deny.ingress, (spec.ingress, spec.ingress_deny)),
        (Direction.EGRESS, spec.enable_default_deny.egress, (spec.egress, spec.egress_deny)),
    ):
        if said is True or (said is None and any(sections)):
            closes.add(direction)
    selector = spec.endpoint_selector or LabelSelector()
    return PolicySpec(predicate(selector, within=document.key.namespace), rules, frozenset(closes))


def policy_specs(document: Document, policy: CiliumNetworkPolicy) -> tuple[PolicySpec, ...]:
    """The specs of one document, in order."""
    found = []
    if policy.spec is not None:
        found.append(_spec(document, ("spec",), policy.spec))
    for index, spec in enumerate(policy.specs or ()):
        found.append(_spec(document, ("specs", index), spec))
    return tuple(found)
