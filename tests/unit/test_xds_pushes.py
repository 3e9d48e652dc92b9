"""What a publish says, when it waits, and in what order."""

from __future__ import annotations

from xds_dialogue import CDS, EDS, LDS, RDS, SDS, SRDS, Dialogue, brief, cds, res, snap

from penstock.xds.said import Acked
from penstock.xds.watch import SyncState


def test_only_changes_are_sent() -> None:
    d = Dialogue(snap(*cds("a", "b")))
    d.ack_all(d.ask(CDS))
    assert d.publish(snap(*cds("a", "b"))) == []
    assert brief(d.publish(snap(*cds("a"), *cds("b", version="2")))) == [(CDS, {"b": "2"}, ())]


def test_later_pushes_merge_while_one_is_outstanding() -> None:
    d = Dialogue(snap(res(EDS, "e")))
    d.ack_all(d.ask(EDS, "e"))
    (second,) = d.publish(snap(res(EDS, "e", "2")))
    assert d.publish(snap(res(EDS, "e", "3"))) == []
    assert d.publish(snap(res(EDS, "e", "4"))) == []
    assert brief(d.ack(second)) == [(EDS, {"e": "4"}, ())]


def test_a_change_taken_back_while_waiting_is_not_sent() -> None:
    d = Dialogue(snap(res(EDS, "e")))
    d.ack_all(d.ask(EDS, "e"))
    (second,) = d.publish(snap(res(EDS, "e", "2")))
    d.publish(snap(res(EDS, "e", "3")))
    d.publish(snap(res(EDS, "e", "2")))
    assert d.ack(second) == []
    assert d.session.settled(EDS)


def test_questions_are_answered_while_a_push_is_outstanding() -> None:
    d = Dialogue(snap(res(EDS, "e")))
    d.ask(EDS, "e")
    d.publish(snap(res(EDS, "e", "2"), res(EDS, "f")))
    assert brief(d.ask(EDS, "f")) == [(EDS, {"f": "1"}, ())]


def test_a_slow_cluster_holds_back_neither_secrets_nor_endpoints() -> None:
    d = Dialogue(snap(*cds("a"), res(SDS, "s"), res(EDS, "e")))
    for said in (d.ask(SDS, "s"), d.ask(EDS, "e")):
        d.ack_all(said)
    d.ask(CDS)
    heard = d.publish(snap(*cds("a"), res(EDS, "e", "2")))
    assert brief(heard) == [(SDS, {}, ("s",)), (EDS, {"e": "2"}, ())]


def test_routes_and_listeners_wait_for_the_clusters_acknowledgement() -> None:
    d = Dialogue(snap(*cds("a"), res(LDS, "l"), res(RDS, "r")))
    for heard in (d.ask(CDS), d.ask(LDS), d.ask(RDS, "r")):
        d.ack_all(heard)
    (clusters,) = d.publish(snap(*cds("a", "b"), res(LDS, "l", "2"), res(RDS, "r", "2")))
    assert brief([clusters]) == [(CDS, {"b": "1"}, ())]
    assert brief(d.ack(clusters)) == [(LDS, {"l": "2"}, ()), (RDS, {"r": "2"}, ())]


def test_a_question_about_routes_waits_while_their_clusters_wait() -> None:
    d = Dialogue(snap(*cds("a"), res(LDS, "l")))
    (first,) = d.ask(CDS)
    d.publish(snap(*cds("a", "b"), res(LDS, "l"), res(RDS, "to-b")))
    assert d.ask(RDS, "to-b") == []
    assert not d.session.settled(RDS)
    assert brief(d.ack(first)) == [(CDS, {"b": "1"}, ()), (RDS, {"to-b": "1"}, ())]


def test_removals_come_apart_and_after_all_that_may_use_them() -> None:
    d = Dialogue(
        snap(
            *cds("old"), res(EDS, "old"), res(LDS, "old"), res(SRDS, "old"), res(RDS, "old"), res(SDS, "old")
        )
    )
    for heard in (
        d.ask(SDS, "old"),
        d.ask(CDS),
        d.ask(EDS, "old"),
        d.ask(LDS),
        d.ask(SRDS),
        d.ask(RDS, "old"),
    ):
        d.ack_all(heard)
    heard = d.publish(snap(*cds("new"), res(LDS, "new")))
    assert brief(heard + d.ack_all(heard)) == [
        (SDS, {}, ("old",)),
        (CDS, {"new": "1"}, ()),
        (LDS, {"new": "1"}, ()),
        (LDS, {}, ("old",)),
        (SRDS, {}, ("old",)),
        (RDS, {}, ("old",)),
        (CDS, {}, ("old",)),
        (EDS, {}, ("old",)),
    ]


def test_a_client_that_comes_back_loses_a_cluster_only_after_its_routes_have_left_it() -> None:
    d = Dialogue(snap(*cds("new"), res(LDS, "l"), res(RDS, "r", "to-new")))
    (clusters,) = d.ask(CDS, held={"old": "1"})
    assert brief([clusters]) == [(CDS, {"new": "1"}, ())]
    assert d.ack(clusters) == []
    (greeting,) = d.ask(LDS, held={"l": "1"})
    assert brief([greeting]) == [(LDS, {}, ())]
    (routes,) = d.ask(RDS, "r", held={"r": "to-old"})
    assert brief([routes]) == [(RDS, {"r": "to-new"}, ())]
    assert d.ack(greeting) == []
    assert brief(d.ack(routes)) == [(CDS, {}, ("old",))]


def test_clusters_and_listeners_travel_together_the_others_one_by_one() -> None:
    d = Dialogue(
        snap(
            *cds("a", "b"),
            res(EDS, "e"),
            res(EDS, "f"),
            res(RDS, "r"),
            res(RDS, "s"),
            res(SRDS, "x"),
            res(SRDS, "y"),
        )
    )
    heard = d.ask(CDS) + d.ask(EDS, "e", "f")
    d.ack_all(heard)
    heard += d.ask(RDS, "r", "s") + d.ask(SRDS)
    assert [len(said.resources) for said in heard] == [2, 1, 1, 1, 1, 1, 1]


def test_a_changed_cluster_takes_its_endpoints_along_unasked() -> None:
    d = Dialogue(snap(res(CDS, "c", "1", endpoints="e"), res(EDS, "e")))
    d.ack_all(d.ask(CDS))
    d.ack_all(d.ask(EDS, "e"))
    heard = d.publish(snap(res(CDS, "c", "2", endpoints="e"), res(EDS, "e")))
    assert brief(heard) == [(CDS, {"c": "2"}, ()), (EDS, {"e": "1"}, ())]


def test_a_new_cluster_is_asked_about_by_the_client_itself() -> None:
    d = Dialogue(snap(res(CDS, "c", endpoints="e"), res(EDS, "e")))
    d.ack_all(d.ask(CDS))
    d.ack_all(d.ask(EDS, "e"))
    new = res(CDS, "d", endpoints="f"), res(EDS, "f")
    heard = d.publish(snap(res(CDS, "c", endpoints="e"), res(EDS, "e"), *new))
    assert brief(heard) == [(CDS, {"d": "1"}, ())]
    assert brief(d.ask(EDS, "f")) == [(EDS, {"f": "1"}, ())]


def test_endpoints_of_a_cluster_changed_while_away_are_sent_although_unchanged() -> None:
    d = Dialogue(snap(res(CDS, "c", "2", endpoints="e"), res(EDS, "e"), res(EDS, "f")))
    d.ask(CDS, held={"c": "1"})
    assert brief(d.ask(EDS, "e", "f", held={"e": "1", "f": "1"})) == [(EDS, {"e": "1"}, ())]


def test_status_tells_wanted_and_acknowledged() -> None:
    d = Dialogue(snap(res(EDS, "e"), res(EDS, "unasked")))
    d.ack_all(d.ask(EDS, "e"))
    d.session.drain_events()
    (said,) = d.publish(snap(res(EDS, "e", "2"), res(EDS, "unasked")))

    def table() -> dict[str, tuple[str, str, SyncState]]:
        return {s.name: (s.version, s.acked, s.state) for s in d.session.status()[EDS]}

    assert table() == {"e": ("2", "1", SyncState.STALE), "unasked": ("1", "", SyncState.NOT_SENT)}
    d.ack(said)
    assert table()["e"] == ("2", "2", SyncState.SYNCED)
    assert d.session.drain_events() == [Acked(EDS, ("e",))]
    (gone,) = d.publish(snap())
    assert table() == {"e": ("", "2", SyncState.STALE)}
    d.ack(gone)
    assert table() == {}


def test_listeners_and_clusters_are_unsettled_until_the_client_asks() -> None:
    d = Dialogue(snap(*cds("a"), res(LDS, "l"), res(RDS, "r")))
    assert [d.session.settled(kind) for kind in (CDS, LDS, RDS)] == [False, False, True]
    d.ack_all(d.ask(CDS))
    assert [d.session.settled(kind) for kind in (CDS, LDS, RDS)] == [True, False, True]
