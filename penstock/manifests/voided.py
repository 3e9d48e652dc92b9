"""L7 rules that an L4 rule beside them makes void.

Rules are ORed: where one rule names requests and another allows the same peers on the same port without
naming any, every request is allowed. That is Cilium's meaning and seldom the author's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from penstock.manifests.document import Document, Origin
from penstock.manifests.kinds import (
    CIDRRule,
    CiliumClusterwideNetworkPolicy,
    CiliumNetworkPolicy,
    EgressRule,
    IngressRule,
    LabelSelector,
    PortProtocol,
)
from penstock.manifests.peers import peers_of, rules_of
from penstock.manifests.problem import Finding, Path


@dataclass(frozen=True, slots=True)
class _Allow:
    """One peer set on one port of one direction. `peers` None is any peer, `port` None any port."""

    document: Document
    path: Path
    peers: str | None
    port: PortProtocol | None
    is_l7: bool

    @property
    def origin(self) -> Origin:
        return self.document.origin(*self.path)

    def voids(self, other: _Allow) -> bool:
        """Whether this L4 allow lets through all that the L7 rule `other` is about."""
        if self.peers is not None and self.peers != other.peers:
            return False
        return self.port is None or (other.port is not None and _covers(self.port, other.port))


def voided(documents: Iterable[Document]) -> Iterator[tuple[Document, Finding]]:
    """A warning for every L7 rule that is void, at the rule, naming the rule that voids it.

    Compared are rules of the same subjects: the same namespace and endpointSelector.
    """
    groups: dict[tuple[str, str, str], list[_Allow]] = defaultdict(list)
    for document in documents:
        if not isinstance(document.value, CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy):
            continue
        for path, rule in rules_of(document.value):
            subject = _canonical(rule.endpoint_selector)
            sections: tuple[tuple[str, Sequence[IngressRule | EgressRule] | None], ...] = (
                ("ingress", rule.ingress),
                ("egress", rule.egress),
            )
            for direction, entries in sections:
                allows = groups[document.key.namespace, subject, direction]
                for i, entry in enumerate(entries or ()):
                    allows += _allows(document, entry, (*path, direction, i))
    for allows in groups.values():
        broad = [allow for allow in allows if not allow.is_l7]
        told: set[tuple[str, Path]] = set()
        for allow in allows:
            place = (str(allow.document.key), allow.path)
            by = next((b for b in broad if allow.is_l7 and b.voids(allow)), None)
            if by is not None and place not in told:
                told.add(place)
                message = f"is void: {by.origin} allows every request of the same peers on this port"
                hint = "give that rule rules.http too, or remove it"
                yield allow.document, Finding(allow.path, message, hint)


def _canonical(selector: LabelSelector | None) -> str:
    if selector is None:
        return ""
    labels = sorted(
        (key.removeprefix("k8s:").removeprefix("any:"), v) for key, v in selector.match_labels.items()
    )
    return f"{labels} {sorted(map(repr, selector.match_expressions))}"


def _allows(document: Document, rule: IngressRule | EgressRule, path: Path) -> Iterator[_Allow]:
    listed = peers_of(rule)
    if rule.icmps is not None or (listed.absent and rule.to_ports is None):
        return
    sets: list[str | None]
    if listed.absent:
        sets = [None]
    else:
        sets = [_canonical(selector) for selector in listed.endpoints or ()]
        # To allow all is to allow every peer, written or not.
        sets += [None if entity == "all" else f"entity {entity}" for entity in listed.entities or ()]
        sets += [f"cidr {cidr}" for cidr in listed.cidrs or ()]
        sets += [_cidr_text(each) for each in listed.cidr_sets or ()]
        sets += [f"nodes {_canonical(selector)}" for selector in listed.nodes or ()]
        sets += [f"service {each!r}" for each in listed.services or ()]
    for peers in sets:
        if rule.to_ports is None:
            yield _Allow(document, path, peers, None, False)
        for i, ports in enumerate(rule.to_ports or ()):
            http = ports.rules is not None and bool(ports.rules.http)
            here = (*path, "toPorts", i)
            if http:
                here = (*here, "rules", "http")
            for port in ports.ports:
                yield _Allow(document, here, peers, port, http)
            if not ports.ports:
                yield _Allow(document, here, peers, None, http)


def _cidr_text(rule: CIDRRule) -> str:
    if rule.cidr is None:
        return repr(rule)
    return f"cidr {rule.cidr} {sorted(rule.except_)}".removesuffix(" []")


def _covers(broad: PortProtocol, narrow: PortProtocol) -> bool:
    if broad.protocol not in ("ANY", "TCP"):
        return False
    low, high = str(broad.port), broad.end_port
    if low == "0" or (low == str(narrow.port) and (high or 0) >= (narrow.end_port or 0)):
        return True
    if not (low.isdecimal() and str(narrow.port).isdecimal()) or high is None:
        return False
    return int(low) <= int(narrow.port) and (narrow.end_port or int(narrow.port)) <= high
