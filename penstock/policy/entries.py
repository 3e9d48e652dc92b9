"""Rules → kernel entries of one subject: the second and third pure stage.

The kernel looks a packet up twice, for its peer and for any peer, takes the longest prefix of each, and
lets the stronger verdict win. So only entries of the *same* peer can hide each other: a narrow port under
a wide one. Each entry therefore carries the strongest verdict of all rules of its peer that cover it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.dns.patterns import Names
from penstock.manifests.document import ObjectKey, Origin
from penstock.plan import Direction, PolicyEntry, PolicyKey, Verdict
from penstock.policy.conflicts import Conflict, without_conflicts
from penstock.policy.identities import Member, Members
from penstock.policy.labels import DNS
from penstock.policy.rules import PROTOCOLS, TCP, UDP, PolicySpec, Port, Rule
from penstock.policy.server_names import union
from penstock.world import Enforcement

DNS_PORT = 53
ANY = 0
"""The identity that stands for every peer."""

_NAMES = {numbers[0]: name for name, numbers in PROTOCOLS.items() if len(numbers) == 1}


@dataclass(frozen=True, slots=True)
class Stance:
    """What one subject's policies say in one direction."""

    rules: tuple[Rule, ...]
    default_deny: bool
    conflicts: tuple[Conflict, ...] = ()
    """Why other rules are left out."""


def stances(
    specs: Iterable[PolicySpec], members: Members, direction: Direction, enforcement: Enforcement = "default"
) -> dict[int, Stance]:
    """Subject → what the policies that select it say, as far as they are enforced."""
    if enforcement == "never":
        return dict.fromkeys(members.representatives(), Stance((), False))
    rules: dict[int, list[Rule]] = {}
    closed: set[int] = set()
    for spec in specs:
        listed = [r for r in spec.rules if r.direction is direction]
        closes = direction in spec.default_deny
        if not listed and not closes:
            continue
        for identity in spec.selects.identities(members.index):
            rules.setdefault(identity, []).extend(listed)
            if closes:
                closed.add(identity)
    if enforcement == "always":
        closed.update(m.identity for m in members.representatives().values())
    found = {}
    for subject, m in members.representatives().items():
        ingress = direction is Direction.INGRESS
        held, conflicts = without_conflicts(rules.get(m.identity, ()), m, members, ingress=ingress)
        found[subject] = Stance(held, m.identity in closed, conflicts)
    return found


def port_prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The least set of (port, bits) prefixes that covers `first`..`last`; (0, 0) is every port."""
    while first <= last:
        size = first & -first if first else 65536
        while first + size - 1 > last:
            size //= 2
        yield first, 17 - size.bit_length()
        first += size


def resolve(port: Port, named: Iterable[Member]) -> list[tuple[int, int, int]]:
    """(protocol, first, last) of a port; a name is looked up on `named`, and may mean several numbers."""
    if not port.name:
        return [(port.protocol, port.first, port.last)]
    protocol = _NAMES[port.protocol]
    numbers = {m.port_named(port.name, protocol) for m in named}
    return [(port.protocol, n, n) for n in sorted(n for n in numbers if n is not None)]


def peers_of(rule: Rule, members: Members) -> list[int]:
    return [ANY] if rule.peers is None else sorted(members.meant(rule.peers))


@dataclass(frozen=True, slots=True)
class _Grant:
    protocol: int
    first: int
    last: int
    verdict: Verdict
    policy: ObjectKey
    origin: Origin
    authenticated: bool = False
    dns: bool = False
    names: Names = ()

    def covers(self, protocol: int, first: int, last: int) -> bool:
        return self.protocol in (0, protocol) and self.first <= first and last <= self.last


def _grants(
    what: Stance,
    member: Member,
    direction: Direction,
    members: Members,
    by_identity: Mapping[int, Sequence[Member]],
) -> dict[int, list[_Grant]]:
    found: dict[int, list[_Grant]] = {}
    for rule in what.rules:
        verdict = _verdict(rule)
        peers = peers_of(rule, members)
        for port in (Port(0),) if rule.ports is None else rule.ports:
            # A name means another number on each peer, so "any peer" is everyone who may have it.
            each = (
                sorted(by_identity) if port.name and direction is Direction.EGRESS and ANY in peers else peers
            )
            for peer in each:
                named = [member] if direction is Direction.INGRESS else by_identity.get(peer, ())
                for protocol, first, last in resolve(port, named):
                    found.setdefault(peer, []).append(
                        _Grant(
                            protocol,
                            first,
                            last,
                            verdict,
                            rule.policy,
                            rule.origin,
                            rule.authenticated,
                            rule.dns is not None,
                            rule.server_names or (),
                        )
                    )
    if direction is Direction.EGRESS:
        _watch(what, found, members)
    if ANY in found:
        _share_names(found)
    return found


def _verdict(rule: Rule) -> Verdict:
    if rule.deny:
        return Verdict.DENY
    if rule.http is not None or rule.dns is not None:
        return Verdict.REDIRECT
    return Verdict.ALLOW if rule.server_names is None else Verdict.NAMES


def _share_names(found: dict[int, list[_Grant]]) -> None:
    """The server names for any peer are those of each peer too that has some of its own: the kernel finds
    the peer's list alone."""
    anybodys = [grant for grant in found[ANY] if grant.verdict is Verdict.NAMES]
    for peer, listed in found.items():
        if peer != ANY and any(grant.verdict is Verdict.NAMES for grant in listed):
            listed.extend(anybodys)


def _watch(what: Stance, found: dict[int, list[_Grant]], members: Members) -> None:
    """Where rules name names: DNS is watched wherever it is allowed, and the node's own may be asked."""
    naming = [rule for rule in what.rules if rule.peers is not None and rule.peers.names and not rule.deny]
    if not naming:
        return
    lists = set(members.index.names.values())
    for peer, listed in found.items():
        if peer in lists:
            continue
        for grant in list(listed):
            if grant.verdict is Verdict.ALLOW:
                listed += [
                    replace(
                        grant,
                        protocol=protocol,
                        first=DNS_PORT,
                        last=DNS_PORT,
                        verdict=Verdict.REDIRECT,
                        dns=True,
                    )
                    for protocol in (TCP, UDP)
                    if grant.covers(protocol, DNS_PORT, DNS_PORT)
                ]
    asked = found.setdefault(DNS, []) if DNS in members.labels else []
    for rule in naming:
        asked += [
            _Grant(protocol, DNS_PORT, DNS_PORT, Verdict.REDIRECT, rule.policy, rule.origin, dns=True)
            for protocol in (TCP, UDP)
        ]
    if not what.default_deny:
        found.setdefault(ANY, []).extend(
            _Grant(protocol, DNS_PORT, DNS_PORT, Verdict.REDIRECT, rule.policy, rule.origin, dns=True)
            for rule in naming[:1]
            for protocol in (TCP, UDP)
        )


def entries(
    what: Stance,
    member: Member,
    direction: Direction,
    members: Members,
    by_identity: Mapping[int, Sequence[Member]],
) -> dict[PolicyKey, PolicyEntry]:
    """The kernel's entries for `member`'s subject in one direction.

    Without default deny the rest is allowed by an entry for any peer, which every rule is stronger than or
    equal to; with it the rest has no entry, and what has no entry is denied.
    """
    result: dict[PolicyKey, PolicyEntry] = {}
    grants = _grants(what, member, direction, members, by_identity)
    for peer, listed in grants.items():
        for grant in listed:
            for port, bits in port_prefixes(grant.first, grant.last):
                # The trie cannot hold "any protocol, this port": a wild protocol has wild ports.
                key = PolicyKey(member.subject, direction, peer, grant.protocol, port, bits)
                if key in result:
                    continue
                last = port + (1 << (16 - bits)) - 1
                over = [g for g in listed if g.covers(grant.protocol, port, last)]
                verdict = max((g.verdict for g in over), key=lambda v: v.strength)
                origins = tuple((g.policy, g.origin) for g in over if g.verdict is verdict)
                proven = any(g.authenticated for g in over)
                dns = any(g.dns for g in over if g.verdict is verdict)
                names = union(*(g.names for g in over)) if verdict is Verdict.NAMES else ()
                result[key] = PolicyEntry(verdict, origins, proven, dns, names)
    if not what.default_deny:
        wild = PolicyKey(member.subject, direction, ANY)
        result.setdefault(wild, PolicyEntry(Verdict.ALLOW))
    return result


def redirected_ports(table: Mapping[PolicyKey, PolicyEntry], peer: int | None = None) -> set[int]:
    """TCP ports on which the proxy stands between a subject and `peer` (None: anyone)."""
    found: set[int] = set()
    for key, entry in table.items():
        if (
            entry.verdict is Verdict.REDIRECT
            and not entry.dns
            and key.protocol == TCP
            and (peer is None or key.identity in (ANY, peer))
        ):
            found |= set(range(key.port, key.port + (1 << (16 - key.port_bits))))
    return found
