"""Rules → what a request needs at the chosen endpoint: the rights that the proxy judges.

Both sides' rules towards an endpoint are judged once it is chosen (design §2): the sender's egress
and the receiver's ingress, each a list of alternatives. Nothing is decided by an address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.plan import Direction
from penstock.policy.entries import Stance, resolve
from penstock.policy.identities import Member, Members
from penstock.policy.labels import HOST, WORLD, Labels, reserved_labels
from penstock.policy.rules import TCP, Rule
from penstock.routing.model import RequestMatch, Rights

Requests = tuple[RequestMatch, ...]
"""Alternatives; the empty tuple allows every request."""


Destination = tuple[Member | None, int]
"""A workload, or None for an address that is none of ours, and the port at which it is reached."""


def policy_class(member: Member | None, port: int) -> str:
    """The class of an endpoint: all endpoints of it are judged alike."""
    return f"{member.subject if member else 'world'}:{port}"


def _covers(rule: Rule, port: int, named: Iterable[Member]) -> bool:
    if rule.ports is None:
        return True
    for wanted in rule.ports:
        for protocol, first, last in resolve(wanted, named):
            if protocol in (0, TCP) and first <= port <= last:
                return True
    return False


def _side(
    what: Stance | None, peer: int, labels: Labels, port: int, named: Iterable[Member]
) -> Requests | None:
    """What one side allows towards `peer`; None is nothing."""
    if what is None:
        return ()
    named = tuple(named)
    alternatives: list[RequestMatch] = []
    open_ = not what.default_deny
    for rule in what.rules:
        if rule.peers is not None and not rule.peers.selects(peer, labels):
            continue
        if not _covers(rule, port, named):
            continue
        if rule.deny:
            return None
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
    by_identity: Mapping[int, list[Member]]

    def of(self, direction: Direction) -> Mapping[int, Stance]:
        return self.ingress if direction is Direction.INGRESS else self.egress


def rights(
    destinations: Iterable[Destination], members: Members, stances: Stances, *, host_access: bool
) -> tuple[Rights, ...]:
    """Who may send what to each (workload, port) of `destinations`."""
    groups: dict[tuple[str, tuple[Requests, ...]], list[int]] = {}
    seen: set[str] = set()
    for member, port in destinations:
        name = policy_class(member, port)
        if name in seen:
            continue
        seen.add(name)
        for source, labels in sorted(members.labels.items()):
            ingress = _ingress(member, source, labels, port, stances)
            if host_access and source == HOST:
                ingress = ()
            egress = _egress(source, member, port, stances)
            if ingress is None or egress is None:
                continue
            requests = tuple(side for side in (egress, ingress) if side)
            groups.setdefault((name, requests), []).append(source)
    merged: dict[tuple[tuple[int, ...], tuple[Requests, ...]], list[str]] = {}
    for (name, requests), sources in groups.items():
        merged.setdefault((tuple(sources), requests), []).append(name)
    return tuple(
        Rights(sources, tuple(sorted(names)), requests)
        for (sources, requests), names in sorted(merged.items(), key=lambda item: (item[1], item[0][0]))
    )


def _ingress(
    member: Member | None, source: int, labels: Labels, port: int, stances: Stances
) -> Requests | None:
    if member is None:
        return ()
    return _side(stances.ingress.get(member.subject), source, labels, port, [member])


def _egress(source: int, member: Member | None, port: int, stances: Stances) -> Requests | None:
    """The sender's side. Workloads of one identity that differ in named ports send under the same rules."""
    senders = stances.by_identity.get(source)
    if not senders:
        return ()
    what = stances.egress.get(senders[0].subject)
    if member is None:
        return _side(what, WORLD, reserved_labels(WORLD), port, [])
    return _side(what, member.identity, member.labels, port, stances.by_identity.get(member.identity, []))
