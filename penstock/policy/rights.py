"""Rules → what a request needs at the chosen endpoint: the rights that the proxy judges.

Both sides' rules towards an endpoint are judged once it is chosen (design §2): the sender's egress
and the receiver's ingress, each a list of alternatives. Nothing is decided by an address.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.plan import Direction
from penstock.policy.entries import Stance, resolve
from penstock.policy.identities import Member, Members
from penstock.policy.labels import HOST, WORLD
from penstock.policy.rules import TCP, Rule
from penstock.routing.model import RequestMatch, Rights

Requests = tuple[RequestMatch, ...]
"""Alternatives; the empty tuple allows every request."""

Groups = tuple[Requests, ...]
"""What a request must meet: one of the alternatives of each."""

SourceRights = tuple[tuple[int, ...] | None, Groups]
"""Sources (None: every one) and what their requests must meet."""


@dataclass(frozen=True, slots=True)
class Destination:
    """An address's identity, the workload that has it (None: it is none of ours), and the port."""

    identity: int
    member: Member | None
    port: int
    proven: bool = True
    """What senders of this node send there is proven by the kernel or by mesh TLS."""

    @property
    def policy_class(self) -> str:
        """The class of an endpoint: all endpoints of it are judged alike."""
        if self.member is not None:
            return f"{self.member.subject}:{self.port}" + ("" if self.proven else ":unproven")
        return f"{'world' if self.identity == WORLD else f'identity-{self.identity}'}:{self.port}"


def _covers(rule: Rule, port: int, named: Iterable[Member]) -> bool:
    if rule.ports is None:
        return True
    for wanted in rule.ports:
        for protocol, first, last in resolve(wanted, named):
            if protocol in (0, TCP) and first <= port <= last:
                return True
    return False


def _about(rules: Iterable[Rule], peer: int | None, members: Members) -> Iterator[Rule]:
    """Those that mean `peer` (None: whom no rule names)."""
    for rule in rules:
        if rule.peers is None or (peer is not None and peer in members.meant(rule.peers)):
            yield rule


def rules_about(
    what: Stance, peer: int, port: int, named: Iterable[Member], members: Members
) -> tuple[Rule, ...]:
    """The rules of one side that speak of TCP `port` and `peer`; a port's name is looked up on `named`."""
    named = tuple(named)
    return tuple(_about([r for r in what.rules if _covers(r, port, named)], peer, members))


def _side(
    rules: Iterable[Rule], default_deny: bool, peer: int | None, members: Members, *, proven: bool
) -> Requests | None:
    """What one side's rules allow towards `peer` (None: whom no rule names); None is nothing.

    `proven`: what goes to the endpoint is proven by the kernel or by mesh TLS. Rules about server names allow
    no requests: what they allow is TLS that nobody looks into.
    """
    alternatives: list[RequestMatch] = []
    open_ = not default_deny
    for rule in _about(rules, peer, members):
        if rule.deny or (rule.authenticated and not proven):
            return None
        if rule.server_names is not None:
            continue
        if rule.http is None:
            open_ = True
        else:
            alternatives += rule.http
    if open_:
        return ()
    return tuple(dict.fromkeys(alternatives)) or None


@dataclass(frozen=True, slots=True)
class Stances:
    """Both directions of every subject, and who speaks for each identity."""

    ingress: Mapping[int, Stance]
    egress: Mapping[int, Stance]
    by_identity: Mapping[int, Sequence[Member]]

    def of(self, direction: Direction) -> Mapping[int, Stance]:
        return self.ingress if direction is Direction.INGRESS else self.egress

    def bound_senders(self) -> dict[int, Stance]:
        """Identities whose egress is not simply open. Members of one identity send under the same rules."""
        found = {}
        for identity, senders in self.by_identity.items():
            what = self.egress[senders[0].subject]
            if what.rules or what.default_deny:
                found[identity] = what
        return found


def rights(
    destinations: Iterable[Destination],
    members: Members,
    stances: Stances,
    bound: Mapping[int, Stance],
    memo: dict[str, tuple[Stance | None, tuple[SourceRights, ...]]],
    *,
    host_access: bool,
) -> tuple[Rights, ...]:
    """Who may send what to each of `destinations`.

    `bound` are `stances.bound_senders()`. `memo` is read and filled: class of endpoints → the stance that its
    rights follow from, and they; it must belong to these members and bound senders.
    """
    found: dict[SourceRights, set[str]] = {}
    for name, to in {each.policy_class: each for each in destinations}.items():
        what = stances.ingress[to.member.subject] if to.member else None
        known = memo.get(name)
        if known is None or known[0] is not what:
            known = (what, tuple(_of_one(to, members, stances, bound, host_access=host_access)))
            memo[name] = known
        for each in known[1]:
            found.setdefault(each, set()).add(name)
    merged = [Rights(sources, tuple(sorted(names)), requests) for (sources, requests), names in found.items()]
    return tuple(sorted(merged, key=lambda r: (r.destinations, r.sources or ())))


def _of_one(
    to: Destination,
    members: Members,
    stances: Stances,
    bound: Mapping[int, Stance],
    *,
    host_access: bool,
) -> Iterator[SourceRights]:
    """Groups of sources that have the same rights at one class of endpoints.

    Most sources are named by no rule and fare alike, so only those that some rule names, or that are
    bound by an egress policy, are looked at one by one.
    """
    member, port = to.member, to.port
    what = stances.ingress[member.subject] if member else Stance((), False)
    rules = [r for r in what.rules if member and _covers(r, port, [member])]
    named = frozenset().union(*(members.meant(r.peers) for r in rules if r.peers is not None))
    special = named | bound.keys() | ({HOST} if host_access else frozenset())
    common = _side(rules, what.default_deny, None, members, proven=to.proven)
    everyone: Groups | None = None if common is None else tuple(side for side in (common,) if side)
    differing: dict[Groups, list[int]] = {}
    same = 0
    for source in sorted(special & members.labels.keys()):
        ingress: Requests | None = _side(rules, what.default_deny, source, members, proven=to.proven)
        if host_access and source == HOST:
            ingress = ()
        egress = _egress(bound.get(source), to, members, stances)
        own = None if ingress is None or egress is None else tuple(s for s in (egress, ingress) if s)
        same += own == everyone
        if own is not None:
            differing.setdefault(own, []).append(source)
    if everyone is not None:
        if same == len(special):
            yield None, everyone
            return
        differing.setdefault(everyone, []).extend(members.labels.keys() - special)
    for requests, sources in differing.items():
        yield tuple(sorted(sources)), requests


def _egress(what: Stance | None, to: Destination, members: Members, stances: Stances) -> Requests | None:
    """The sender's side."""
    if what is None:
        return ()
    named = stances.by_identity.get(to.identity, ())
    rules = [r for r in what.rules if _covers(r, to.port, named)]
    return _side(rules, what.default_deny, to.identity, members, proven=to.proven)
