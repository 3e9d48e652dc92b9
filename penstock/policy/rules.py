"""CiliumNetworkPolicy, clusterwide or not → rules with origin: the first of the three pure stages.

A `Rule` is one (direction, peers, ports, L7) of one policy; what is absent and what is empty stay apart
(facts of the API): absent peers are any peer, an empty list selects nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from penstock.dns.patterns import Names, name_list
from penstock.manifests.document import Document, ObjectKey, Origin
from penstock.manifests.header import header_parts
from penstock.manifests.icmp import type_number
from penstock.manifests.kinds import (
    EgressDenyRule,
    EgressRule,
    FQDNSelector,
    ICMPRule,
    IngressDenyRule,
    IngressRule,
    LabelSelector,
    PolicyRule,
    PortDenyRule,
    PortHTTP,
    PortProtocol,
    PortRule,
)
from penstock.manifests.peers import (
    CiliumPolicy,
    DirectionRule,
    RulePeers,
    peers_of,
    rules_of,
    sections_of,
)
from penstock.plan import Direction
from penstock.policy.labels import (
    DNS,
    HOST,
    INGRESS,
    REMOTE_NODE,
    WORLD,
    WORLD_LABELS,
    LabelIndex,
    Selector,
    predicate,
    reserved_labels,
    subjects,
)
from penstock.policy.prefixes import Block, block, is_prefix
from penstock.policy.references import KUBE_APISERVER, References
from penstock.routing.model import RequestMatch

ICMP, TCP, UDP, ICMP6, SCTP = 1, 6, 17, 58, 132
PROTOCOLS = {"TCP": (TCP,), "UDP": (UDP,), "SCTP": (SCTP,), "ANY": (TCP, UDP, SCTP)}


@dataclass(frozen=True, slots=True)
class Port:
    """Ports `first`..`last` of `protocol` (0: any protocol), or a name to be resolved on the workload.

    The port of an ICMP message is its type, as for the kernel.
    """

    protocol: int
    first: int = 0
    last: int = 65535
    name: str = ""


@dataclass(frozen=True, slots=True)
class Peers:
    """Any of `selectors`, of `blocks` or of the reserved identities; `cluster` is every workload.

    `nodes` select nodes of the mesh, this one among them; `names` mean addresses that were learned from DNS.
    """

    selectors: tuple[Selector, ...] = ()
    blocks: tuple[Block, ...] = ()
    identities: frozenset[int] = frozenset()
    cluster: bool = False
    nodes: tuple[Selector, ...] = ()
    names: Names = ()

    def resolve(self, index: LabelIndex) -> frozenset[int]:
        """Every identity that is meant."""
        found = {i for i in self.identities if i in index.labels}
        if WORLD in self.identities:
            found |= index.with_all(WORLD_LABELS.items())
        if REMOTE_NODE in self.identities:
            found |= index.with_all(reserved_labels(REMOTE_NODE).items())
        if self.cluster:
            found |= {i for i in index.labels if i >= 256 and not is_prefix(i)}
        for wanted in self.blocks:
            found |= index.prefixes.meant(wanted)
        for selector in self.selectors:
            found |= selector.identities(index)
        for selector in self.nodes:
            found |= {i for i in (HOST, *index.nodes) if selector(index.labels[i])}
        if self.names in index.names:
            found.add(index.names[self.names])
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
    authentication: Literal["required", "disabled"] | None = None
    """As it is written (authentication.mode)."""
    dns: Names | None = None
    """The names that may be asked for; None: it does not speak of DNS."""
    server_names: Names | None = None
    """The SNI that TLS must have one of; None: it asks for none."""

    @property
    def authenticated(self) -> bool:
        """Between nodes only over mesh TLS."""
        return self.authentication == "required"


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """One spec: whom it selects, what it says, and in which directions it closes what it does not name."""

    selects: Selector
    rules: tuple[Rule, ...]
    default_deny: frozenset[Direction]
    audit: bool = False
    """It is only to be told what this spec would deny."""


_ENTITY_IDENTITIES = {
    "world": {WORLD},
    "host": {HOST},
    "remote-node": {REMOTE_NODE},
    "ingress": {INGRESS},
    "cluster": {HOST, REMOTE_NODE, INGRESS, DNS},
}


def _peers(listed: RulePeers, namespace: str, references: References) -> Peers | None:
    entities = listed.entities or ()
    if listed.absent or "all" in entities:
        return None
    identities: set[int] = set()
    for entity in entities:
        identities |= _ENTITY_IDENTITIES.get(entity, set())
    selectors = [predicate(s, within=namespace) for s in listed.endpoints or ()]
    blocks = [block(cidr) for cidr in listed.cidrs or ()]
    for each in listed.cidr_sets or ():
        blocks += references.blocks(each)
    named = [service for each in listed.services or () for service in references.services(each, namespace)]
    if "kube-apiserver" in entities:
        named.append(KUBE_APISERVER)
    for service in named:
        workloads, addresses = references.endpoints(service)
        selectors += workloads
        blocks += addresses
    return Peers(
        selectors=tuple(selectors),
        blocks=tuple(blocks),
        identities=frozenset(identities),
        cluster="cluster" in entities,
        nodes=tuple(predicate(s) for s in listed.nodes or ()),
        names=names_of(listed.fqdns or ()),
    )


def names_of(listed: Sequence[FQDNSelector]) -> Names:
    return name_list(each.match_name or each.match_pattern for each in listed)


def _ports(ports: list[PortProtocol], *, tcp: bool, dns: bool = False) -> tuple[Port, ...]:
    """HTTP and TLS ride on TCP (`tcp`), DNS on TCP and UDP, whatever `protocol: ANY` says. No ports are
    none, not all."""
    found = []
    for p in ports:
        protocols = (TCP,) if tcp else PROTOCOLS[p.protocol]
        if dns:
            protocols = tuple(each for each in protocols if each in (TCP, UDP))
        text = str(p.port)
        if not text.isdigit():
            found += [Port(protocol, name=text) for protocol in protocols]
        elif int(text) == 0:
            wild = (0,) if p.protocol == "ANY" and not (tcp or dns) else protocols
            found += [Port(protocol) for protocol in wild]
        else:
            found += [Port(protocol, int(text), p.end_port or int(text)) for protocol in protocols]
    return tuple(found)


def _request(http: PortHTTP, *, strict: bool) -> RequestMatch:
    headers: list[tuple[str, str | None]] = []
    for header in http.headers:
        name, value = header_parts(header)
        headers.append((name.lower(), value))
    asked = (match for match in http.header_matches if strict or match.mismatch is None)
    headers += [(match.name.lower(), match.value) for match in asked]
    return RequestMatch(http.method or None, http.path or None, http.host or None, tuple(headers))


def _types(icmps: Sequence[ICMPRule]) -> Iterator[Port]:
    for each in icmps:
        for field in each.fields:
            number = type_number(field)
            if number is not None:
                yield Port(ICMP if field.family == "IPv4" else ICMP6, number, number)


@dataclass(frozen=True, slots=True)
class _AtPorts:
    """One entry of toPorts, and where it stands; what there is without any."""

    index: int | None = None
    ports: tuple[Port, ...] | None = None
    http: tuple[RequestMatch, ...] | None = None
    dns: Names | None = None
    server_names: Names | None = None


def _port_rules(to_ports: Sequence[PortRule | PortDenyRule] | None, *, strict: bool) -> Iterator[_AtPorts]:
    if to_ports is None:
        yield _AtPorts()
        return
    for index, item in enumerate(to_ports):
        http = dns = server_names = None
        if isinstance(item, PortRule) and item.rules is not None:
            http = tuple(_request(h, strict=strict) for h in item.rules.http) or None
            dns = names_of(item.rules.dns) or None
        if isinstance(item, PortRule):
            server_names = name_list(item.server_names or ()) or None
        ports = _ports(item.ports, tcp=bool(http or server_names), dns=dns is not None)
        yield _AtPorts(index, ports, http, dns, server_names)


def _section(
    document: Document,
    path: tuple[str | int, ...],
    section: Sequence[DirectionRule] | None,
    references: References,
    *,
    strict: bool,
) -> Iterator[Rule]:
    for index, item in enumerate(section or ()):
        listed = peers_of(item)
        if listed.absent and item.to_ports is None and item.icmps is None:
            # `ingress: [{}]` closes the direction and allows nothing.
            continue
        authentication = item.authentication if isinstance(item, IngressRule | EgressRule) else None
        peers = _peers(listed, document.key.namespace, references)
        messages = None if item.icmps is None else tuple(_types(item.icmps))
        for at in _port_rules(item.to_ports, strict=strict):
            where = (*path, index) if at.index is None else (*path, index, "toPorts", at.index)
            yield Rule(
                Direction.INGRESS if listed.way == "from" else Direction.EGRESS,
                peers,
                at.ports if messages is None else messages,
                at.http,
                isinstance(item, IngressDenyRule | EgressDenyRule),
                document.key,
                document.origin(*where),
                authentication=authentication.mode if authentication is not None else None,
                dns=at.dns,
                server_names=at.server_names,
            )


def _spec(
    document: Document, path: tuple[str | int, ...], spec: PolicyRule, references: References, *, strict: bool
) -> PolicySpec:
    rules = tuple(
        rule
        for name, section in sections_of(spec)
        for rule in _section(document, (*path, name), section, references, strict=strict)
    )
    closes = set()
    for direction, said, sections in (
        (Direction.INGRESS, spec.enable_default_deny.ingress, (spec.ingress, spec.ingress_deny)),
        (Direction.EGRESS, spec.enable_default_deny.egress, (spec.egress, spec.egress_deny)),
    ):
        if said is True or (said is None and any(sections)):
            closes.add(direction)
    selects = subjects(spec.endpoint_selector or LabelSelector(), document.key.namespace)
    return PolicySpec(selects, rules, frozenset(closes))


def policy_specs(
    document: Document, policy: CiliumPolicy, references: References, *, strict: bool = False
) -> tuple[PolicySpec, ...]:
    """The specs of one document, in order. With `strict` also what a rule only wants told (mismatch: LOG)
    must be met."""
    return tuple(_spec(document, path, spec, references, strict=strict) for path, spec in rules_of(policy))
