"""What paths a regular expression can match, as far as their beginnings tell.

A pattern is taken apart by Python's own parser, whose syntax RE2 shares but for what RE2 refuses anyway. What
it cannot say simply it leaves open: "begins like this, and then anything".
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

_MOST = 64
"""Alternatives that are followed; a pattern with more is left open where they begin."""

_OTHERWISE = re.compile(r"\[:|\[\[|--|&&|~~|\|\|")
"""What RE2 reads otherwise, or Python only for now: named classes, and sets in sets."""

_parser: Any = re._parser  # type: ignore[attr-defined]


class Head(NamedTuple):
    """How something matched begins; `whole` if it is no longer than that."""

    text: str
    whole: bool


OPEN = (Head("", False),)


@lru_cache(maxsize=4096)
def heads(pattern: str) -> tuple[Head, ...]:
    """Every way in which a full match of `pattern` can begin. None at all: nothing matches."""
    if _OTHERWISE.search(pattern):
        return OPEN
    try:
        parsed = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError):
        return OPEN
    if parsed.state.flags & re.IGNORECASE:
        return OPEN
    found = _sequence(list(parsed))
    return tuple(dict.fromkeys(found)) if found is not None else OPEN


def _sequence(items: list[Any]) -> list[Head] | None:
    """None where there are too many."""
    found = [Head("", True)]
    for item in items:
        if not any(head.whole for head in found):
            break
        follows = _item(item)
        if follows is None:
            follows = [Head("", False)]
        found = [
            Head(head.text + next_.text, next_.whole) if head.whole else head
            for head in found
            for next_ in (follows if head.whole else OPEN)
        ]
        if len(found) > _MOST:
            return None
    return found


def _item(item: Any) -> list[Head] | None:
    kind, value = str(item[0]), item[1]
    if kind == "LITERAL":
        return [Head(chr(value), True)]
    if kind == "AT":
        return [Head("", True)] if str(value) in ("AT_BEGINNING", "AT_END", "AT_BEGINNING_STRING") else None
    if kind == "SUBPATTERN":
        return None if value[1] & re.IGNORECASE else _sequence(list(value[3]))
    if kind == "BRANCH":
        return _joined([_sequence(list(each)) for each in value[1]])
    if kind == "IN" and all(str(each[0]) == "LITERAL" for each in value):
        return [Head(chr(each[1]), True) for each in value]
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, body = value
        once = _sequence(list(body))
        if once is None or most == 0:
            return [Head("", True)] if most == 0 else None
        if (least, most) == (1, 1):
            return once
        more = [Head(head.text, False) for head in once]
        if (least, most) == (0, 1):
            return [Head("", True), *once]
        return more if least else [Head("", True), *more]
    return None


def _joined(parts: list[list[Head] | None]) -> list[Head] | None:
    found: list[Head] = []
    for part in parts:
        if part is None:
            return None
        found += part
    return found if len(found) <= _MOST else None


def within(pattern: str, prefix: str) -> bool:
    """Whether every path that `pattern` matches lies under `prefix`, by whole segments."""
    folder = prefix.rstrip("/") + "/"
    return all(
        head.text.startswith(folder) or (head.whole and head.text == folder[:-1]) for head in heads(pattern)
    )


def never(pattern: str) -> bool:
    """Whether no path matches `pattern`: none begins with a slash, or all have two of them in a row."""
    return not any(_possible(head) for head in heads(pattern))


def _possible(head: Head) -> bool:
    if not head.text:
        return not head.whole
    return head.text.startswith("/") and "//" not in head.text.partition("?")[0]


def all_of(first: str, second: str) -> bool:
    """Whether `first` matches whatever `second` does; False where that is not easy to say."""
    if first == second:
        return True
    free = re.fullmatch(r"\^?(.*?)\.\*\$?", first)
    if free is None:
        return False
    begins = heads(free.group(1)) if free.group(1) else (Head("", True),)
    if len(begins) != 1 or not begins[0].whole:
        return False
    return all(head.text.startswith(begins[0].text) for head in heads(second))
