"""Names as policies write them (matchName, matchPattern), and which names they mean. Pure.

A name without ``*`` means itself. ``*`` means any number of characters of one label, none included; a lone
``*`` any name; ``**.`` at the beginning one or more whole labels. Neither case counts nor the dot at the end.

Source: Cilium 1.20, pkg/fqdn/matchpattern; RFC 4343 (case).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

Names = tuple[str, ...]
"""A list of names and patterns: each in lower case and without its last dot, sorted."""

_CHARACTERS = "[-a-z0-9_]"


def canonical(name: str) -> str:
    """The name that names are compared by."""
    return name.lower().rstrip(".")


def name_list(written: Iterable[str]) -> Names:
    return tuple(sorted({canonical(each) for each in written}))


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    if pattern == "*":
        return re.compile(r".*", re.DOTALL)
    head, rest = "", pattern
    if pattern.startswith("**."):
        head, rest = rf"{_CHARACTERS}+(?:\.{_CHARACTERS}+)*\.", pattern[3:]
    # Stars side by side mean what one means; as two repetitions they would be tried in every way.
    rest = re.sub(r"\*+", "*", rest)
    return re.compile(head + f"{_CHARACTERS}*".join(map(re.escape, rest.split("*"))))


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` means `name`; both canonical."""
    if "*" not in pattern:
        return pattern == name
    return _compiled(pattern).fullmatch(name) is not None


def any_matches(names: Names, name: str) -> bool:
    return any(matches(pattern, name) for pattern in names)
