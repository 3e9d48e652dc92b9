"""Make before break: a change of configuration cut into stages, each published when the last is acknowledged.

A route that names a missing or warming cluster answers 503, and a listener that goes while the kernel
still points at it refuses connections. So a change first makes everything new, then lets the kernel
follow, then breaks what nobody uses any more:

    make   1  clusters and endpoints, added and changed; all secrets   Envoy's ACK of CDS means: all warm
           2  listeners, scopes and routes, added and changed          may name the clusters of stage 1
           3  endpoints that had to wait for stage 2 (`between`)       the tables have their rights now
                 ── here the caller moves the kernel's redirects ──
    break  4  listeners that the kernel no longer points at
           5  scopes and route tables that no listener uses
           6  clusters and endpoints that no route names

Additions and removals never share a stage: Envoy given both in one CDS update drops the old cluster
before routes have left it.

Secrets stand apart. A removed secret goes in stage 1, not last: when an address changes hands, the old
workload's certificate must be gone before the new workload is steered (and Envoy keeps asking for the
name, so the next secret of that name is still delivered).

Two resources that exclude one another (two listeners on one port) do not fit this order: both exist between
stage 2 and 4. Names stand for things and ports belong to names, so this does not happen by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from penstock.xds.snapshot import Resource, Snapshot, TypeUrl

_BACKENDS = (TypeUrl.CDS, TypeUrl.EDS)
_FRONTENDS = (TypeUrl.LDS, TypeUrl.SRDS, TypeUrl.RDS)


class Phase(Enum):
    MAKE = "make"
    BREAK = "break"


@dataclass(frozen=True, slots=True)
class Stage:
    """A complete snapshot to publish, and the types whose acknowledgement ends the stage."""

    phase: Phase
    snapshot: Snapshot
    await_types: tuple[TypeUrl, ...]


class Rollout:
    """The way from `current` to `wanted`.

    `current` is what was last published, whether it was acknowledged or not, or None when nothing was
    yet. Then the whole of `wanted` is a single stage: a partial first snapshot would take from a
    reconnecting Envoy what it has; the sessions keep the order between types by themselves.

    `between` is what endpoints and route tables are to be until all is made, if that is not `wanted`.
    """

    def __init__(self, current: Snapshot | None, wanted: Snapshot, between: Snapshot | None = None) -> None:
        self._current = current
        self._wanted = wanted
        self._between = between or wanted

    @property
    def makes(self) -> tuple[Stage, ...]:
        """The stages before the kernel follows."""
        return tuple(stage for stage in self.stages() if stage.phase is Phase.MAKE)

    @property
    def breaks(self) -> tuple[Stage, ...]:
        """The stages after the kernel has followed."""
        return tuple(stage for stage in self.stages() if stage.phase is Phase.BREAK)

    def stages(self) -> tuple[Stage, ...]:
        """Stages in order; those that change nothing are left out. The last one publishes `wanted`."""
        wanted = self._wanted
        if self._current is None:
            return (Stage(Phase.MAKE, wanted, tuple(TypeUrl)),)
        first = self._between
        union = {kind: _union(self._current.of(kind), first.of(kind)) for kind in _BACKENDS + _FRONTENDS}
        endpoints = _union(self._current.of(TypeUrl.EDS), wanted.of(TypeUrl.EDS))
        steps: tuple[tuple[Phase, dict[str, Mapping[str, Resource]]], ...] = (
            (
                Phase.MAKE,
                {TypeUrl.SDS: wanted.of(TypeUrl.SDS), **{kind: union[kind] for kind in _BACKENDS}},
            ),
            (Phase.MAKE, {kind: union[kind] for kind in _FRONTENDS}),
            (Phase.MAKE, {TypeUrl.EDS: endpoints}),
            (Phase.BREAK, {TypeUrl.LDS: wanted.of(TypeUrl.LDS)}),
            (Phase.BREAK, {kind: wanted.of(kind) for kind in (TypeUrl.SRDS, TypeUrl.RDS)}),
            (Phase.BREAK, {kind: wanted.of(kind) for kind in _BACKENDS}),
        )
        stages: list[Stage] = []
        before = self._current
        for phase, types in steps:
            after = before.with_types(types)
            moved = tuple(kind for kind in TypeUrl if kind in types and after.changes(before, kind))
            if moved:
                stages.append(Stage(phase, after, moved))
                before = after
        return tuple(stages)


def _union(current: Mapping[str, Resource], wanted: Mapping[str, Resource]) -> Mapping[str, Resource]:
    """What is wanted, and what is there and no longer wanted. Shares `wanted` where that is all."""
    if current is wanted or current.keys() <= wanted.keys():
        return wanted
    return {**current, **wanted}
