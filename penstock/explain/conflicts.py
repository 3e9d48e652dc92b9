"""Rules that cannot hold beside each other, told before they are in force: each with both places.

Two rules for one workload that exclude each other (policy/conflicts.py), of which one is left out; and what a
sender's rules and a receiver's rules ask together, where nothing can be both (server names and requests): at
run time RULES_CLASH. Policies in audit are looked at as if they were enforced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.allocate import AllocationError
from penstock.explain import offline
from penstock.facts import Facts
from penstock.manifests.document import Document, ObjectKey, Origin
from penstock.manifests.kinds import CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy
from penstock.manifests.peers import rules_of
from penstock.manifests.problem import Code, Problem, show_path
from penstock.manifests.voided import voided
from penstock.plan import Direction, PolicyEntry, PolicyKey, Verdict
from penstock.policy.conflicts import Conflict
from penstock.policy.entries import ANY, entries
from penstock.policy.identities import Member
from penstock.policy.labels import INGRESS
from penstock.policy.lookup import both_sides, find
from penstock.policy.rights import Stances
from penstock.policy.rules import TCP, Port, Rule
from penstock.policy.server_names import together
from penstock.routing.model import EdgeListener

Table = Mapping[PolicyKey, PolicyEntry]
Place = tuple[ObjectKey, Origin]

_L7 = (Verdict.NAMES, Verdict.REDIRECT)


@dataclass(frozen=True, slots=True)
class _Side:
    """Somebody whose rules look into connections in one direction; his entries, and where they begin to."""

    member: Member
    table: Table
    asking: Mapping[int, Sequence[PolicyKey]]
    """By the peer that they are about."""


def review_conflicts(documents: Iterable[Document]) -> list[Problem]:
    """A warning for each rule that is left out, and for each pair of rules that let nothing pass together."""
    everything = {d.key: d for d in documents}
    if not any(_may_conflict(d) for d in everything.values()):
        return []
    try:
        facts, _ = offline.compiled(offline.world(everything, offline.node_of(everything)))
    except AllocationError:
        return []
    return rule_problems(facts)


def rule_problems(facts: Facts) -> list[Problem]:
    """The same of what is compiled already."""
    known = {(d.key, show_path(f.path[:-2])) for d, f in voided(facts.world.documents.values())}
    found = [*conflicts(facts), *(p for place, p in _voided(facts) if place not in known), *_unjoined(facts)]
    return sorted(found, key=lambda p: (p.file, p.line, p.message))


def conflicts(facts: Facts) -> list[Problem]:
    """Rules that exclude each other, of what is compiled already."""
    found: dict[tuple[Origin, Origin], Problem] = {}
    for stances in (facts.stances, facts.audited):
        if stances is None:
            continue
        for each in _left_out(stances):
            found.setdefault((each.left_out.origin, each.holds.origin), _told_left_out(each))
        if not _names_anywhere(stances):
            continue
        senders = list(_sides(facts, stances, Direction.EGRESS))
        receivers = list(_sides(facts, stances, Direction.INGRESS))
        for out, into in _clashes(senders, receivers):
            found.setdefault((out[1], into[1]), _told_clash(out, into))
        for out, listener in _at_gateways(senders, facts.edge.listeners):
            found.setdefault((out[1], Origin(listener.name, listener.port)), _told_at_gateway(out, listener))
    return sorted(found.values(), key=lambda p: (p.file, p.line, p.message))


def _may_conflict(document: Document) -> bool:
    """Whether a policy says anything that another rule can exclude."""
    if not isinstance(document.value, CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy):
        return False
    for _, rule in rules_of(document.value):
        for entry in (*(rule.ingress or ()), *(rule.egress or ())):
            if entry.authentication is not None:
                return True
            if any(p.server_names or p.rules is not None for p in entry.to_ports or ()):
                return True
    return False


def _left_out(stances: Stances) -> Iterator[Conflict]:
    for by_subject in (stances.ingress, stances.egress):
        for stance in by_subject.values():
            yield from stance.conflicts


def _told_left_out(each: Conflict) -> Problem:
    message = f"is left out where it meets {each.holds.policy} ({each.holds.origin}): {each.what}"
    hint = "for the same peer and port only one of the two can hold"
    return _problem(each.left_out.policy, each.left_out.origin, message, hint, "rules-conflict")


def _told_clash(out: Place, into: Place) -> Problem:
    message = (
        f"lets nothing pass towards what {into[0]} ({into[1]}) is about: one of them asks for server names"
        " and the other for requests (RULES_CLASH)"
    )
    return _problem(*out, message, "ask for the same on both sides, or for nothing on one", "rules-clash")


def _told_at_gateway(out: Place, listener: EdgeListener) -> Problem:
    message = (
        f"lets nothing pass to port {listener.port} of the Gateways' listener {listener.name}, which looks at"
        " no server names for anybody (RULES_CLASH)"
    )
    return _problem(
        *out, message, "allow the Gateways (entity ingress) on that port by a rule of its own", "rules-clash"
    )


def _problem(policy: ObjectKey, origin: Origin, message: str, hint: str, code: Code) -> Problem:
    where = (policy.kind, policy.namespace, policy.name, origin.rule)
    return Problem(origin.file, origin.line, message, *where, hint, "warning", code)


# --- what is wider than it looks, and what is narrower ----------------------------------------------------


def _voided(facts: Facts) -> Iterator[tuple[tuple[ObjectKey, str], Problem]]:
    """Rules about requests or server names beside which another policy allows all, for some workload."""
    told = set()
    for by_subject in (facts.stances.ingress, facts.stances.egress):
        for subject, stance in by_subject.items():
            allows = [r for r in stance.rules if not (r.deny or r.http or r.dns or r.server_names)]
            for rule in stance.rules if allows else ():
                if rule.deny or not (rule.http or rule.server_names) or rule.origin in told:
                    continue
                by = next((a for a in allows if a.policy != rule.policy and _wider(a, rule, facts)), None)
                if by is None:
                    continue
                told.add(rule.origin)
                who = facts.members.representatives()[subject].document.key
                what = "every request" if rule.http else "all that is spoken there"
                message = f"is void for {who}: {by.policy} ({by.origin}) allows {what} of the same peers"
                hint = "make that rule narrower, or remove it"
                made = _problem(rule.policy, rule.origin, message, hint, "reference")
                yield (rule.policy, rule.origin.rule), made


def _wider(broad: Rule, narrow: Rule, facts: Facts) -> bool:
    """Whether one covers the peers and the ports of the other."""
    if broad.peers is not None:
        if narrow.peers is None or narrow.peers.names or not facts.members.meant(narrow.peers):
            return False
        if not facts.members.meant(narrow.peers) <= facts.members.meant(broad.peers):
            return False
    return broad.ports is None or all(any(_holds(b, n) for b in broad.ports) for n in narrow.ports or ())


def _holds(broad: Port, narrow: Port) -> bool:
    if broad.protocol not in (0, narrow.protocol) or broad.name != narrow.name:
        return False
    return broad.first <= narrow.first and narrow.last <= broad.last


def _unjoined(facts: Facts) -> Iterator[Problem]:
    """Lists of server names for names, where there are more than are joined in every way."""
    told = set()
    for subject, stance in facts.stances.egress.items():
        named = [r for r in stance.rules if r.peers is not None and r.peers.names and r.server_names]
        lists = list(dict.fromkeys(r.server_names for r in named))
        most = together(len(lists))
        if most >= len(lists):
            continue
        rule = next(r for r in named if r.server_names == lists[-1])
        if rule.origin in told:
            continue
        told.add(rule.origin)
        who = facts.members.representatives()[subject].document.key
        message = (
            f"is one of {len(lists)} lists of server names for names of {who}: an address that it learns"
            f" under more than {most} of them may have the server names of {most} only"
        )
        hint = "write names that share addresses in one rule, with the server names of all of them"
        yield _problem(rule.policy, rule.origin, message, hint, "server-names")


# --- both sides ------------------------------------------------------------------------------------------


def _names_anywhere(stances: Stances) -> bool:
    both = (*stances.ingress.values(), *stances.egress.values())
    return any(rule.server_names is not None for stance in both for rule in stance.rules)


def _clashes(senders: Sequence[_Side], receivers: Sequence[_Side]) -> Iterator[tuple[Place, Place]]:
    """The places of an egress and an ingress rule that let nothing pass together."""
    for sender in senders:
        for receiver in receivers:
            for port in _ports(sender, receiver):
                out = find(sender.table, *_packet(sender, Direction.EGRESS, receiver, port))
                into = find(receiver.table, *_packet(receiver, Direction.INGRESS, sender, port))
                if out is None or into is None or both_sides(out[1].verdict, into[1].verdict) is not None:
                    continue
                yield from ((a, b) for a in out[1].origins[:1] for b in into[1].origins[:1])


def _at_gateways(
    senders: Sequence[_Side], gateways: Iterable[EdgeListener]
) -> Iterator[tuple[Place, EdgeListener]]:
    """The places of egress rules about server names that are about a Gateway's own port too."""
    for listener in gateways:
        for sender in senders if listener.protocol == "TCP" else ():
            packet = (sender.member.subject, Direction.EGRESS, INGRESS, TCP, listener.port)
            hit = find(sender.table, *packet)
            if hit is not None and hit[1].verdict is Verdict.NAMES:
                yield from ((place, listener) for place in hit[1].origins[:1])


def _packet(
    side: _Side, direction: Direction, other: _Side, port: int
) -> tuple[int, Direction, int, int, int]:
    return side.member.subject, direction, other.member.identity, TCP, port


def _sides(facts: Facts, stances: Stances, direction: Direction) -> Iterator[_Side]:
    enforced = stances is facts.stances
    for subject, member in facts.members.representatives().items():
        stance = stances.of(direction)[subject]
        if not any(r.server_names is not None or r.http is not None for r in stance.rules):
            continue
        table = facts.entries.get((subject, direction)) if enforced else None
        if table is None:
            table = entries(stance, member, direction, facts.members, facts.by_identity)
        asking: dict[int, list[PolicyKey]] = {}
        for key, entry in table.items():
            if entry.verdict in _L7 and not entry.dns and key.protocol == TCP:
                asking.setdefault(key.identity, []).append(key)
        if asking:
            yield _Side(member, table, asking)


def _ports(sender: _Side, receiver: _Side) -> Iterator[int]:
    """A port of each pair of entries by which the two look into what they send each other."""
    seen = set()
    for a in _about(sender, receiver):
        for b in _about(receiver, sender):
            first = max(a.port, b.port)
            if first <= min(_last(a), _last(b)) and first not in seen:
                seen.add(first)
                yield first


def _about(side: _Side, peer: _Side) -> Iterator[PolicyKey]:
    yield from side.asking.get(ANY, ())
    yield from side.asking.get(peer.member.identity, ())


def _last(key: PolicyKey) -> int:
    return key.port + (1 << (16 - key.port_bits)) - 1
