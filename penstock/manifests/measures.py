"""Checks of durations and numbers, for the rules of all kinds.

Source: GEP-2257 (durations).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from penstock.manifests.problem import Finding, Path

_DURATION = re.compile(r"([0-9]{1,5}(h|m|s|ms)){1,4}")
_PART = re.compile(r"([0-9]+)(ms|h|m|s)")
_UNITS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def duration(text: str | None, path: Path) -> Iterator[Finding]:
    if text is not None and not _DURATION.fullmatch(text):
        yield Finding(path, f'"{text}" is no duration', 'write it like "10s", "1m30s" or "500ms"')


def ms(text: str | None) -> int:
    """A valid duration in milliseconds."""
    return sum(int(n) * _UNITS[unit] for n, unit in _PART.findall(text or ""))


def interval(text: str, path: Path) -> Iterator[Finding]:
    """A duration that is more than nothing."""
    wrong = list(duration(text, path))
    yield from wrong
    if not wrong and not ms(text):
        yield Finding(path, f'"{text}" is no time at all')


def between(value: int, low: int, high: int, path: Path) -> Iterator[Finding]:
    if not low <= value <= high:
        yield Finding(path, f"{value} is not between {low} and {high}")
