"""The proxy's word: what it says to a request once the endpoint is chosen, and which rule's entry decided.

Allowed or not is asked of the rights that Envoy is given; the rules of both sides are looked at only to say
which one it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock.explain.model import Request
from penstock.explain.parties import name_of
from penstock.explain.requests import differences, nearest, shown
from penstock.explain.sides import Origins, Sides, by
from penstock.facts import Facts
from penstock.plan import Direction
from penstock.policy.identities import Member
from penstock.policy.labels import HOST
from penstock.policy.rights import rules_about
from penstock.policy.rules import Rule
from penstock.routing.model import RequestMatch

_DIRECTIONS = (Direction.EGRESS, Direction.INGRESS)


@dataclass(frozen=True, slots=True)
class Crossing:
    """From whom to which endpoint: what the rights are a function of.

    `identity` is the source's class, `peer` the identity of the endpoint.
    """

    source: Member | None
    identity: int
    target: Member | None
    peer: int
    port: int

    def subject(self, direction: Direction) -> Member | None:
        return self.source if direction is Direction.EGRESS else self.target


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the proxy says to a request at one endpoint.

    `failing` are the sides that forbid it; `explicit` if a deny rule does, which no other rule can open.
    """

    allowed: bool
    text: str
    origins: Origins = ()
    failing: tuple[Direction, ...] = ()
    explicit: bool = False


class Requests:
    def __init__(self, facts: Facts, sides: Sides) -> None:
        self._facts, self._sides = facts, sides

    def judge(self, crossing: Crossing, request: Request | None) -> Judgement:
        """Of `request`, or of requests at large if it is None."""
        to = self._facts.destination(crossing.peer, crossing.target, crossing.port)
        rights = [
            right
            for right in self._facts.rights([to])
            if to.policy_class in right.destinations
            and (right.sources is None or crossing.identity in right.sources)
        ]
        if not rights:
            return self._nothing(crossing)
        if request is None:
            groups = [" or ".join(map(shown, group)) for right in rights for group in right.requests]
            text = (
                f"each request is judged: {', and '.join(groups)}"
                if groups
                else "every request is allowed here"
            )
            return Judgement(True, text, self._origins(crossing))
        for right in rights:
            chosen = [next((m for m in g if not differences(m, request)), None) for g in right.requests]
            matched = [m for m in chosen if m is not None]
            if len(matched) < len(chosen):
                continue
            if not matched:
                return Judgement(True, "every request is allowed here")
            origins = self._origins(crossing, matched)
            return Judgement(True, f"{' and '.join(map(shown, matched))}: allowed by {by(origins)}", origins)
        return self._refused(crossing, rights[0].requests, request)

    def audited(self, crossing: Crossing, request: Request | None) -> bool:
        """Whether it would be allowed with the policies in audit enforced."""
        to = self._facts.destination(crossing.peer, crossing.target, crossing.port)
        rights = self._facts.audit_rights([to])
        if rights is None or request is None:
            return True
        return any(
            (right.sources is None or crossing.identity in right.sources)
            and all(any(not differences(m, request) for m in group) for group in right.requests)
            for right in rights
            if to.policy_class in right.destinations
        )

    def _refused(
        self, crossing: Crossing, groups: tuple[tuple[RequestMatch, ...], ...], request: Request
    ) -> Judgement:
        """Each group that nothing matches is one side's."""
        texts: list[str] = []
        origins: list[Origins] = []
        failing: list[Direction] = []
        for group in groups:
            near = nearest((m, differences(m, request)) for m in group)
            if near is None or not near[1]:
                continue
            sides = [
                direction
                for direction in _DIRECTIONS
                if set(group) <= {m for r in self._rules(crossing, direction) for m in r.http or ()}
                and direction not in failing
            ]
            failing += sides[:1]
            found = self._origins(crossing, [near[0]], sides[:1] or _DIRECTIONS)
            origins.append(found)
            side = f"{sides[0].name.lower()} " if sides else ""
            why = "; ".join(near[1])
            texts.append(f"no {side}rule matches; {why} (the nearest: {shown(near[0])}, in {by(found)})")
        return Judgement(
            False, "; ".join(texts), tuple(o for found in origins for o in found), tuple(failing)
        )

    def _nothing(self, crossing: Crossing) -> Judgement:
        """No right at all: say which side gives none."""
        texts: list[str] = []
        origins: list[Origins] = []
        failing: list[Direction] = []
        explicit = False
        for direction, peer in ((Direction.EGRESS, crossing.peer), (Direction.INGRESS, crossing.identity)):
            member = crossing.subject(direction)
            if member is None or (direction is Direction.INGRESS and crossing.identity == HOST):
                continue
            rules = self._rules(crossing, direction)
            closed = self._facts.stances.of(direction)[member.subject].default_deny
            denying = tuple((rule.policy, rule.origin) for rule in rules if rule.deny)
            way = direction.name.lower()
            if denying:
                explicit = True
                origins.append(denying)
                texts.append(f"{way} of {name_of(member)} is denied by {by(denying)}")
            elif not rules and closed:
                origins.append(self._sides.closers(member, direction))
                texts.append(
                    f"no {way} rule of {name_of(member)} names {self._sides.peer(peer)}: "
                    f"default deny by {by(origins[-1])}"
                )
            else:
                continue
            failing.append(direction)
        found = tuple(o for listed in origins for o in listed)
        return Judgement(False, "; ".join(texts), found, tuple(failing), explicit)

    def _rules(self, crossing: Crossing, direction: Direction) -> tuple[Rule, ...]:
        member = crossing.subject(direction)
        if member is None:
            return ()
        stance = self._facts.stances.of(direction)[member.subject]
        if direction is Direction.INGRESS:
            return rules_about(stance, crossing.identity, crossing.port, [member], self._facts.members)
        named = self._facts.by_identity.get(crossing.peer, ())
        return rules_about(stance, crossing.peer, crossing.port, named, self._facts.members)

    def _origins(
        self,
        crossing: Crossing,
        matches: Iterable[RequestMatch] | None = None,
        directions: Iterable[Direction] = _DIRECTIONS,
    ) -> Origins:
        """The rules that carry one of `matches` (None: any HTTP rule)."""
        wanted = None if matches is None else set(matches)
        return tuple(
            dict.fromkeys(
                (rule.policy, rule.origin)
                for direction in directions
                for rule in self._rules(crossing, direction)
                if rule.http and (wanted is None or wanted & set(rule.http))
            )
        )
