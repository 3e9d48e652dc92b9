"""Recorded names, with the rules that use them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from penstock.plan import Direction

if TYPE_CHECKING:
    from penstock.facts import Facts


def with_rules(names: Iterable[dict[str, Any]], facts: Facts | None) -> list[dict[str, Any]]:
    """Each name with the rules by which its workload is allowed its address."""
    found = []
    for each in names:
        shown = {key: value for key, value in each.items() if key not in ("lists", "ifindex")}
        shown["rules"] = _rules(each, facts) if facts is not None else []
        found.append(shown)
    return found


def _rules(each: dict[str, Any], facts: Facts) -> list[dict[str, Any]]:
    member = next(
        (m for m in facts.members.local() if f"{m.namespace}/{m.document.key.name}" == each["workload"]), None
    )
    if member is None:
        return []
    numbers = facts.members.index.names
    return [
        {"policy": str(rule.policy), "file": rule.origin.file, "line": rule.origin.line}
        for rule in facts.stances.of(Direction.EGRESS)[member.subject].rules
        if rule.peers is not None and numbers.get(rule.peers.names) in each["lists"]
    ]
