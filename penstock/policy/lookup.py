"""The kernel's look-up (bpf/policy.h) in Python: the reference that tests compare with, and what the
appliers ask before they write ("was this allowed until now?")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from penstock.dns.patterns import Names
from penstock.plan import Direction, PolicyEntry, PolicyKey, Verdict
from penstock.policy.server_names import union

Hit = tuple[PolicyKey, PolicyEntry]
"""An entry of the table, with its key."""


def longest(
    table: Mapping[PolicyKey, PolicyEntry],
    subject: int,
    direction: Direction,
    identity: int,
    protocol: int,
    port: int,
) -> Hit | None:
    """The entry of one peer (0: of any) with the longest prefix."""
    for bits in range(16, -1, -1):
        masked = port & ((0xFFFF << (16 - bits)) & 0xFFFF)
        key = PolicyKey(subject, direction, identity, protocol, masked, bits)
        if (entry := table.get(key)) is not None:
            return key, entry
    key = PolicyKey(subject, direction, identity)
    entry = table.get(key)
    return (key, entry) if entry is not None else None


def find(
    table: Mapping[PolicyKey, PolicyEntry],
    subject: int,
    direction: Direction,
    identity: int,
    protocol: int,
    port: int,
) -> Hit | None:
    """The entry that decides about a packet; None is a denial. Of two that say the same, the peer's own."""
    found = [
        hit
        for peer in (identity, 0)
        if (hit := longest(table, subject, direction, peer, protocol, port)) is not None
    ]
    return max(found, key=lambda hit: hit[1].verdict.strength, default=None)


def with_names(
    table: Mapping[PolicyKey, PolicyEntry],
    subject: int,
    packet: tuple[Direction, int, int, int],
    lists: Iterable[int],
) -> Verdict:
    """The same for an address that the subject has learned under `lists` of names. A denial that a rule
    spelled out stands."""
    direction, identity, protocol, port = packet
    hit = find(table, subject, direction, identity, protocol, port)
    if hit is not None and hit[1].verdict is Verdict.DENY:
        return Verdict.DENY
    found = [hit] if hit is not None else []
    named = (longest(table, subject, direction, number, protocol, port) for number in lists)
    found += [each for each in named if each is not None]
    best = max(found, key=lambda each: each[1].verdict.strength, default=None)
    return best[1].verdict if best is not None else Verdict.DENY


def server_names(
    table: Mapping[PolicyKey, PolicyEntry],
    subject: int,
    packet: tuple[Direction, int, int, int],
    lists: Iterable[int] = (),
) -> Names:
    """The server names of which TLS must have one, where the verdict for the same is NAMES."""
    direction, identity, protocol, port = packet
    hits = [find(table, subject, direction, identity, protocol, port)]
    hits += [longest(table, subject, direction, number, protocol, port) for number in lists]
    return union(*(hit[1].names for hit in hits if hit is not None and hit[1].verdict is Verdict.NAMES))


def both_sides(sender: Verdict, receiver: Verdict) -> Verdict | None:
    """Both must allow. None: one asks for server names and the other for requests, which nothing can meet."""
    if Verdict.DENY in (sender, receiver):
        return Verdict.DENY
    if Verdict.NAMES in (sender, receiver):
        return None if Verdict.REDIRECT in (sender, receiver) else Verdict.NAMES
    return max(sender, receiver)


def demands_proof(
    table: Mapping[PolicyKey, PolicyEntry],
    subject: int,
    direction: Direction,
    identity: int,
    protocol: int,
    port: int,
) -> bool:
    """Whether a rule about a packet demands authentication: one for any peer is one for this peer too."""
    return any(
        (hit := longest(table, subject, direction, peer, protocol, port)) is not None and hit[1].authenticated
        for peer in (identity, 0)
    )


def look_up(
    table: Mapping[PolicyKey, PolicyEntry],
    subject: int,
    direction: Direction,
    identity: int,
    protocol: int,
    port: int,
) -> Verdict:
    """The verdict for a packet of `identity` on `port` of `protocol`; nothing found is DENY."""
    hit = find(table, subject, direction, identity, protocol, port)
    return hit[1].verdict if hit is not None else Verdict.DENY
