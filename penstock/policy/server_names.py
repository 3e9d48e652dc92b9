"""Lists of server names (serverNames): which SNI a rule lets pass, and what the kernel knows of it. Pure.

The kernel sees no SNI. It knows which list a connection is under, by number, and steers it to the listener
that stands for just that list; the listener looks at the SNI, and lets pass or resets. Keeps true: a number
follows from the names alone, so it never means another list, whatever changes; a list that is edited is
another list, so what an edit forbids meets another listener, and ends (what it does not forbid is told to the
kernel: redirect/looked_at.py).

Where several rules speak of one connection, any of their names may be asked for. Lists for the same peer are
joined here; an address that a workload learned under several names meets its lists in the kernel, one by
one, so what any of them make together is written down for it (`Unions`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from itertools import combinations
from math import comb

from penstock.dns.patterns import Names

MOST_COMBINATIONS = 256
"""Of the lists for names of one workload; each is a listener. Pairs are written down whatever they are."""

Unions = dict[tuple[int, int], int]
"""Two numbers, the smaller first → the number of the list that both make together."""

_LABEL = "[-a-z0-9_]"


def number(names: Names) -> int:
    """The number of a list; 0 of none."""
    if not names:
        return 0
    return int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:4]) or 1


def union(*lists: Iterable[str]) -> Names:
    return tuple(sorted(frozenset().union(*lists)))


def together(lists: int) -> int:
    """How many of so many lists are joined with each other, whichever they are; all where that is few."""
    most, found = 1, lists
    while most < lists:
        found += comb(lists, most + 1)
        if found > MOST_COMBINATIONS and most > 1:
            break
        most += 1
    return most


def joined(lists: Iterable[Names]) -> frozenset[Names]:
    """All that these lists may come to mean together, themselves included."""
    each = sorted(frozenset(lists))
    most = together(len(each))
    return frozenset(union(*some) for size in range(1, most + 1) for some in combinations(each, size))


def unions(families: Iterable[frozenset[Names]]) -> Unions:
    """For lists that may meet; `families` are closed as `joined` makes them."""
    found: Unions = {}
    for family in families:
        for a, b in combinations(sorted(family), 2):
            both = union(a, b)
            if both in family:
                first, second = sorted((number(a), number(b)))
                found[first, second] = number(both)
    return found


def expression(pattern: str) -> str:
    """The pattern as a regular expression (RE2, full match) over an SNI in lower case."""
    if pattern == "*":
        return ".+"
    head, rest = "", pattern
    if pattern.startswith("**."):
        head, rest = rf"{_LABEL}+(\.{_LABEL}+)*\.", pattern[3:]
    return head + f"{_LABEL}*".join(map(re.escape, re.sub(r"\*+", "*", rest).split("*")))


def lets_pass(names: Names, server_name: str) -> bool:
    """Whether an SNI, in lower case, is in the list; none is in none."""
    return any(re.fullmatch(expression(each), server_name) for each in names)


def words(names: Names) -> str:
    return ", ".join(names)


def by_number(lists: Iterable[Names]) -> Mapping[int, Names]:
    return {number(each): each for each in lists}
