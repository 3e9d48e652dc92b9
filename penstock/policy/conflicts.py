"""Rules that cannot hold beside each other for the same peer and port. Pure.

Two rules conflict that both speak of some peer at some port, and say of the same connections
- that they must be authenticated, and that they must not be (`authentication.mode`), or
- what only different proxies could judge: requests (rules.http), questions (rules.dns), server names.

The one that stands first, in the order of policies by kind, namespace and name, holds; the other is left out
for the workloads that both select, and what it would have opened stays closed. Deny rules conflict with none.

Source: Cilium 1.20 refuses the policy whose rules it cannot merge (pkg/policy, MergePortProto).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from penstock.policy.identities import Member, Members
from penstock.policy.rules import PROTOCOLS, Port, Rule

_NAMES = {numbers[0]: name for name, numbers in PROTOCOLS.items() if len(numbers) == 1}


@dataclass(frozen=True, slots=True)
class Conflict:
    """`what` is the pair of fields that exclude each other."""

    left_out: Rule
    holds: Rule
    what: str

    @property
    def message(self) -> str:
        return (
            f"{self.left_out.origin} is left out: {self.what}, for the same peer and port as "
            f"{self.holds.policy} ({self.holds.origin})"
        )


def _kind(rule: Rule) -> str:
    if rule.http is not None:
        return "rules.http"
    if rule.dns is not None:
        return "rules.dns"
    return "serverNames" if rule.server_names is not None else ""


def _differ(rule: Rule, before: Rule) -> str:
    """What of two rules excludes each other; empty if nothing does."""
    if rule.authentication and before.authentication and rule.authentication != before.authentication:
        return f"authentication.mode is {rule.authentication} and {before.authentication}"
    if _kind(rule) and _kind(before) and _kind(rule) != _kind(before):
        return f"{_kind(rule)} and {_kind(before)}"
    return ""


def _mixed(rules: Sequence[Rule]) -> bool:
    """Whether there may be a conflict at all: there seldom is."""
    allowing = [rule for rule in rules if not rule.deny]
    kinds = {_kind(rule) for rule in allowing} - {""}
    return len(kinds) > 1 or len({rule.authentication for rule in allowing} - {None}) > 1


def without_conflicts(
    rules: Sequence[Rule], member: Member, members: Members, *, ingress: bool
) -> tuple[tuple[Rule, ...], tuple[Conflict, ...]]:
    """The rules of one subject in one direction that hold, and the conflicts of those that do not."""
    if not _mixed(rules):
        return tuple(rules), ()
    held: list[Rule] = []
    found: list[Conflict] = []
    for rule in rules:
        conflict = None if rule.deny else _against(rule, held, member, members, ingress=ingress)
        if conflict is None:
            held.append(rule)
        else:
            found.append(conflict)
    return tuple(held), tuple(found)


def _against(
    rule: Rule, held: Iterable[Rule], member: Member, members: Members, *, ingress: bool
) -> Conflict | None:
    for before in held:
        if before.deny or not (what := _differ(rule, before)):
            continue
        peers = _common(rule, before, members)
        if peers is not None and not peers:
            continue
        named: Iterable[Member] = (member,)
        if not ingress:
            identities = members.by_identity if peers is None else peers
            named = [m for i in identities for m in members.by_identity.get(i, ())]
        if _meet(rule.ports, before.ports, tuple(named)):
            return Conflict(rule, before, what)
    return None


def _common(a: Rule, b: Rule, members: Members) -> frozenset[int] | None:
    """Whom both mean; None is anybody."""
    if a.peers is None or b.peers is None:
        one = a.peers or b.peers
        return None if one is None else members.meant(one)
    return members.meant(a.peers) & members.meant(b.peers)


def _ranges(ports: Iterable[Port], named: Sequence[Member]) -> Iterator[tuple[int, int, int]]:
    for port in ports:
        numbers = [(port.first, port.last)]
        if port.name:
            protocol = _NAMES[port.protocol]
            known = {m.port_named(port.name, protocol) for m in named} - {None}
            numbers = [(n, n) for n in known if n is not None]
        # Any protocol is those that have ports.
        for protocol_number in (port.protocol,) if port.protocol else PROTOCOLS["ANY"]:
            yield from ((protocol_number, first, last) for first, last in numbers)


def _meet(a: tuple[Port, ...] | None, b: tuple[Port, ...] | None, named: Sequence[Member]) -> bool:
    """Whether some port is of both; None is every port."""
    if a is None or b is None:
        return (a is None or bool(a)) and (b is None or bool(b))
    both = [(each, 0) for each in _ranges(a, named)] + [(each, 1) for each in _ranges(b, named)]
    furthest: dict[tuple[int, int], int] = {}
    for (protocol, first, last), side in sorted(both):
        if furthest.get((protocol, 1 - side), -1) >= first:
            return True
        furthest[protocol, side] = max(last, furthest.get((protocol, side), -1))
    return False
