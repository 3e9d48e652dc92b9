"""The kernel's look-up (bpf/policy.h) in Python: the reference that tests compare with, and what the
appliers ask before they write ("was this allowed until now?")."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.plan import Direction, PolicyEntry, PolicyKey, Verdict


def _longest(
    table: Mapping[PolicyKey, PolicyEntry],
    subject: int,
    direction: Direction,
    identity: int,
    protocol: int,
    port: int,
) -> PolicyEntry | None:
    for bits in range(16, -1, -1):
        masked = port & ((0xFFFF << (16 - bits)) & 0xFFFF)
        entry = table.get(PolicyKey(subject, direction, identity, protocol, masked, bits))
        if entry is not None:
            return entry
    return table.get(PolicyKey(subject, direction, identity))


def look_up(
    table: Mapping[PolicyKey, PolicyEntry],
    subject: int,
    direction: Direction,
    identity: int,
    protocol: int,
    port: int,
) -> Verdict:
    """The verdict for a packet of `identity` on `port` of `protocol`; nothing found is DENY."""
    found = [
        entry.verdict
        for peer in (identity, 0)
        if (entry := _longest(table, subject, direction, peer, protocol, port)) is not None
    ]
    return max(found, default=Verdict.DENY)
