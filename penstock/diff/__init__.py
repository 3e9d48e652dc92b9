"""What a change of manifests would do, before it is made: to the objects, the kernel and Envoy. Pure.

Both sides are compiled as the daemon would; what is compared are the Plans and the resources made of them.
Numbers that were given out stay what they are, so that nothing differs that would not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from penstock.diff.envoy import envoy_changes
from penstock.diff.kernel import kernel_changes
from penstock.explain import offline
from penstock.explain.conflicts import conflicts
from penstock.facts import Facts
from penstock.manifests.document import Document, ObjectKey, place
from penstock.manifests.problem import Problem
from penstock.plan import Plan
from penstock.world import World

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared."""

    facts: Facts
    plan: Plan

    @property
    def world(self) -> World:
        return self.facts.world


def planned(documents: Mapping[ObjectKey, Document], node: str, before: Side | None = None) -> Side:
    """What `documents` would mean on `node`, with the numbers, attachments and settings of `before`.

    A workload whose namespace `before` does not know is taken as attached. Raises AllocationError.
    """
    world = offline.world(documents, node)
    if before is not None:
        known = before.world
        attachments = {name: known.attachments.get(name, at) for name, at in world.attachments.items()}
        world = replace(known, documents=documents, attachments=attachments)
    return Side(*offline.compiled(world))


def differences(before: Side, after: Side, problems: Iterable[Problem] = ()) -> Json:
    """Everything that would be another, as plain data. `problems` are those of the manifests `after`."""
    refused = [p for p in problems if p.severity == "error"]
    found: Json = {
        "objects": _objects(before.world.documents, after.world.documents),
        "refused": [str(p) for p in refused],
        "pending": _pending(before.plan, after.plan),
        "warnings": _warnings(before.facts, after.facts),
        "kernel": kernel_changes(before.facts, before.plan, after.facts, after.plan),
        "envoy": envoy_changes(before.plan.proxy, after.plan.proxy, after.world.settings),
    }
    found["changed"] = any(found[part] for part in ("objects", "kernel", "envoy"))
    return found


def _objects(
    before: Mapping[ObjectKey, Document], after: Mapping[ObjectKey, Document]
) -> list[dict[str, Any]]:
    found = []
    for key in sorted(before.keys() | after.keys(), key=place):
        old, new = before.get(key), after.get(key)
        if old is not None and new is not None and old.value == new.value:
            continue
        document = new or old
        assert document is not None
        found.append(
            {
                "change": "added" if old is None else "removed" if new is None else "changed",
                "kind": key.kind,
                "namespace": key.namespace,
                "name": key.name,
                "file": document.file,
                "line": document.line,
            }
        )
    return found


def _warnings(before: Facts, after: Facts) -> list[Json]:
    """Rules that would exclude each other, and do not now."""
    known = {str(problem) for problem in conflicts(before)}
    return [
        {
            "code": problem.code,
            "kind": problem.kind,
            "namespace": problem.namespace,
            "name": problem.name,
            "file": problem.file,
            "line": problem.line,
            "field": problem.field,
            "message": problem.message,
        }
        for problem in conflicts(after)
        if str(problem) not in known
    ]


def _pending(before: Plan, after: Plan) -> list[Json]:
    """Objects that would wait for something, and did not before for the same reason."""
    return [
        {"kind": key.kind, "namespace": key.namespace, "name": key.name, "message": status.pending}
        for key, status in sorted(after.statuses.items(), key=lambda item: place(item[0]))
        if status.pending and (key not in before.statuses or before.statuses[key].pending != status.pending)
    ]
