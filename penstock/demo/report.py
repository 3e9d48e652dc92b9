"""What a step found, as data and as lines for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """One claim, and whether it held."""

    claim: str
    held: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What was sent, what came back, where it went (an entry for each thing tried), and the claims."""

    sent: tuple[str, ...] = ()
    got: tuple[str, ...] = ()
    went: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """`ok` if every claim held. A step that claims nothing proves nothing."""

    name: str
    title: str
    found: Found

    @property
    def ok(self) -> bool:
        checks = self.found.checks
        return bool(checks) and all(check.held for check in checks)


def as_data(steps: Iterable[Step]) -> dict[str, Any]:
    """What `penstock demo -o json` prints."""
    shown = [
        {
            "name": step.name,
            "ok": step.ok,
            "title": step.title,
            "sent": list(step.found.sent),
            "got": list(step.found.got),
            "went": list(step.found.went),
            "checks": [{"claim": check.claim, "ok": check.held} for check in step.found.checks],
        }
        for step in steps
    ]
    return {"ok": bool(shown) and all(step["ok"] for step in shown), "steps": shown}


Line = tuple[str, str]
"""A style (``ok``, ``fail``, ``title``, ``dim``, or nothing) and the text."""


def lines(number: int, step: Step) -> Iterator[Line]:
    """A step for people, line by line."""
    yield "ok" if step.ok else "fail", f"{number} {_mark(step.ok)} {step.title}"
    for label, texts in (("sent", step.found.sent), ("got", step.found.got), ("went", step.found.went)):
        for index, text in enumerate(texts):
            first, *more = text.splitlines() or [""]
            yield "", f"    {label if index == 0 else '':5} {first}"
            for line in more:
                yield "", f"          {line}"
    for check in step.found.checks:
        yield "dim" if check.held else "fail", f"    {_mark(check.held)} {check.claim}"


def _mark(held: bool) -> str:
    return "✓" if held else "✗"
