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
class Step:
    """What was sent, what came back, where it went, and the claims that this proves.

    `sent`, `got` and `went` have an entry for each thing that was tried.
    """

    name: str
    title: str
    sent: tuple[str, ...] = ()
    got: tuple[str, ...] = ()
    went: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def ok(self) -> bool:
        """True if every claim held. A step that claims nothing proves nothing."""
        return bool(self.checks) and all(check.held for check in self.checks)


def as_data(steps: Iterable[Step]) -> dict[str, Any]:
    """What `penstock demo -o json` prints."""
    shown = [
        {
            "name": step.name,
            "ok": step.ok,
            "title": step.title,
            "sent": list(step.sent),
            "got": list(step.got),
            "went": list(step.went),
            "checks": [{"claim": check.claim, "ok": check.held} for check in step.checks],
        }
        for step in steps
    ]
    return {"ok": bool(shown) and all(step["ok"] for step in shown), "steps": shown}


Line = tuple[str, str]
"""A style (``ok``, ``fail``, ``title``, ``dim``, or nothing) and the text."""


def lines(number: int, step: Step) -> Iterator[Line]:
    """A step for people, line by line."""
    yield "ok" if step.ok else "fail", f"{number} {_mark(step.ok)} {step.title}"
    for label, texts in (("sent", step.sent), ("got", step.got), ("went", step.went)):
        for index, text in enumerate(texts):
            first, *more = text.splitlines() or [""]
            yield "", f"    {label if index == 0 else '':5} {first}"
            for line in more:
                yield "", f"          {line}"
    for check in step.checks:
        yield "dim" if check.held else "fail", f"    {_mark(check.held)} {check.claim}"


def _mark(held: bool) -> str:
    return "✓" if held else "✗"
