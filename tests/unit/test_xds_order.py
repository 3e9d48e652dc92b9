"""A change cut into stages: what each publishes, and what is left for the end."""

from __future__ import annotations

import pytest
from xds_dialogue import CDS, EDS, LDS, RDS, SDS, SRDS, res, snap

from penstock.xds.errors import DuplicateResourceError
from penstock.xds.order import Phase, Rollout, Stage
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl

OLD = snap(*(res(kind, name) for kind in TypeUrl for name in ("kept", "gone", "changed")))
NEW = snap(
    *(
        res(kind, name, version)
        for kind in TypeUrl
        for name, version in (("kept", "1"), ("changed", "2"), ("new", "1"))
    )
)


def names(stage: Stage, kind: TypeUrl) -> dict[str, str]:
    return {item.name: item.version for item in stage.snapshot.of(kind).values()}


BEFORE = {"kept": "1", "gone": "1", "changed": "1"}
BOTH = {"kept": "1", "gone": "1", "changed": "2", "new": "1"}
AFTER = {"kept": "1", "changed": "2", "new": "1"}


def test_all_stages() -> None:
    stages = Rollout(OLD, NEW).stages()
    assert [stage.phase for stage in stages] == [Phase.MAKE] * 2 + [Phase.BREAK] * 3
    assert [stage.await_types for stage in stages] == [
        (SDS, CDS, EDS),
        (LDS, SRDS, RDS),
        (LDS,),
        (SRDS, RDS),
        (CDS, EDS),
    ]
    table = {kind: [names(stage, kind) for stage in stages] for kind in TypeUrl}
    assert table == {
        SDS: [AFTER, AFTER, AFTER, AFTER, AFTER],
        CDS: [BOTH, BOTH, BOTH, BOTH, AFTER],
        EDS: [BOTH, BOTH, BOTH, BOTH, AFTER],
        LDS: [BEFORE, BOTH, AFTER, AFTER, AFTER],
        SRDS: [BEFORE, BOTH, BOTH, AFTER, AFTER],
        RDS: [BEFORE, BOTH, BOTH, AFTER, AFTER],
    }


def test_makes_and_breaks_are_told_apart() -> None:
    rollout = Rollout(OLD, NEW)
    assert rollout.makes + rollout.breaks == rollout.stages()
    assert len(rollout.makes) == 2


def test_stages_without_a_change_are_left_out() -> None:
    assert Rollout(OLD, OLD).stages() == ()
    (stage,) = Rollout(snap(res(EDS, "e")), snap(res(EDS, "e", "2"))).stages()
    assert (stage.phase, stage.await_types) == (Phase.MAKE, (EDS,))
    (stage,) = Rollout(snap(res(CDS, "c")), snap()).stages()
    assert (stage.phase, stage.await_types) == (Phase.BREAK, (CDS,))


def test_the_first_snapshot_is_published_whole() -> None:
    (stage,) = Rollout(None, NEW).stages()
    assert stage.snapshot == NEW
    assert stage.phase is Phase.MAKE
    assert set(stage.await_types) == set(TypeUrl)


def test_a_removed_secret_goes_first() -> None:
    stages = Rollout(snap(res(SDS, "s"), res(CDS, "c")), snap()).stages()
    assert [stage.await_types for stage in stages] == [(SDS,), (CDS,)]


def test_a_rollout_given_up_half_way_goes_on_from_what_was_published() -> None:
    half = Rollout(OLD, NEW).stages()[1].snapshot
    last = Rollout(half, OLD).stages()[-1].snapshot
    assert {kind: names(Stage(Phase.MAKE, last, ()), kind) for kind in TypeUrl} == dict.fromkeys(
        TypeUrl, BEFORE
    )


def test_one_name_for_two_resources_is_an_error() -> None:
    with pytest.raises(DuplicateResourceError, match="'c'"):
        snap(res(CDS, "c", "1"), res(CDS, "c", "2"))


def test_changes_between_snapshots() -> None:
    same: dict[str, Resource] = {"a": res(CDS, "a")}
    assert Snapshot({CDS: same}).changes(Snapshot({CDS: same}), CDS) == set()
    assert NEW.changes(OLD, CDS) == {"gone", "changed", "new"}
    assert NEW.changes(Snapshot(), CDS) == {"kept", "changed", "new"}


def test_endpoints_that_must_wait_come_after_the_tables() -> None:
    """One that comes (b) waits for its rights in the table; one that goes (x) does not."""
    old = snap(res(EDS, "c", "a x"), res(RDS, "t", "a x"))
    way = snap(res(EDS, "c", "a"), res(RDS, "t", "a b"))
    new = snap(res(EDS, "c", "a b"), res(RDS, "t", "a b"))
    stages = Rollout(old, new, way).stages()
    assert [(stage.phase, names(stage, EDS)["c"], names(stage, RDS)["t"]) for stage in stages] == [
        (Phase.MAKE, "a", "a x"),
        (Phase.MAKE, "a", "a b"),
        (Phase.MAKE, "a b", "a b"),
    ]


def test_tables_that_were_wider_on_the_way_are_narrowed_at_last() -> None:
    old = snap(res(EDS, "c", "a"), res(RDS, "t", "a"))
    way = snap(res(EDS, "c", "a"), res(RDS, "t", "a b"))
    new = snap(res(EDS, "c", "b"), res(RDS, "t", "b"))
    stages = Rollout(old, new, way).stages()
    assert [stage.phase for stage in stages] == [Phase.MAKE, Phase.MAKE, Phase.BREAK]
    assert (names(stages[-1], EDS), names(stages[-1], RDS)) == ({"c": "b"}, {"t": "b"})
    assert stages[-1].await_types == (RDS,)
