"""The state-of-the-world variant: subscriptions, nonces, what travels whole, and quarantine."""

from __future__ import annotations

import pytest
from xds_dialogue import CDS, EDS, LDS, RDS, SDS, SRDS, Said, StateDialogue, brief, cds, res, snap

from penstock.xds.errors import ProtocolError
from penstock.xds.snapshot import TypeUrl
from penstock.xds.watch import SyncState

# --- what a client watches -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CDS, LDS, SRDS])
@pytest.mark.parametrize("names", [(), ("*",)])
def test_everything_is_one_answer(kind: TypeUrl, names: tuple[str, ...]) -> None:
    d = StateDialogue(snap(res(kind, "a"), res(kind, "b")))
    assert brief(d.ask(kind, *names)) == [(kind, {"a": "1", "b": "1"}, ())]


@pytest.mark.parametrize("kind", [CDS, LDS])
def test_everything_of_nothing_is_answered(kind: TypeUrl) -> None:
    assert brief(StateDialogue(snap()).ask(kind)) == [(kind, {}, ())]


@pytest.mark.parametrize("kind", [EDS, RDS, SDS])
def test_no_names_of_other_types_mean_nothing(kind: TypeUrl) -> None:
    d = StateDialogue(snap(res(kind, "a")))
    assert d.ask(kind) == []
    assert brief(d.ask(kind, "a")) == [(kind, {"a": "1"}, ())]


def test_who_ever_named_something_means_nothing_by_no_names() -> None:
    d = StateDialogue(snap(*cds("a", "b")))
    (said,) = d.ask(CDS, "a")
    d.ack(said)
    assert d.ask(CDS, nonce=said.nonce) == []
    assert d.publish(snap(*cds("a", "b", version="2"))) == []


def test_the_star_mixes_with_names_and_can_be_given_up() -> None:
    d = StateDialogue(snap(*cds("a", "b")))
    (said,) = d.ask(CDS, "*", "a")
    assert set(said.resources) == {"a", "b"}
    d.ack(said)
    d.ack_all(d.ask(CDS, "a", nonce=said.nonce))
    (said,) = d.publish(snap(*cds("a", "b", version="2")))
    assert brief([said]) == [(CDS, {"a": "2"}, ())]
    d.ack(said)
    assert brief(d.ask(CDS, "a", "*", nonce=said.nonce)) == [(CDS, {"a": "2", "b": "2"}, ())]


@pytest.mark.parametrize("kind", [EDS, RDS, SDS])
def test_added_names_are_answered_at_an_unchanged_version(kind: TypeUrl) -> None:
    d = StateDialogue(snap(res(kind, "a"), res(kind, "b")))
    (first,) = d.ask(kind, "a")
    d.ack(first)
    (second,) = d.ask(kind, "a", "b", nonce=first.nonce, version=d.versions[first.nonce])
    assert brief([second]) == [(kind, {"b": "1"}, ())]
    assert d.versions[first.nonce] == d.versions[second.nonce]


@pytest.mark.parametrize("kind", [CDS, LDS])
def test_an_added_name_is_answered_with_all_that_is_watched(kind: TypeUrl) -> None:
    d = StateDialogue(snap(res(kind, "a"), res(kind, "b"), res(kind, "c")))
    (said,) = d.ask(kind, "a")
    # Whole responses go one by one: the second waits until the client took the first.
    assert d.ask(kind, "a", "b", nonce=said.nonce, version="x") != []
    assert d.session.watched()[0].names == {"a", "b"}


def test_a_whole_type_by_name_tells_what_does_not_exist_by_leaving_it_out() -> None:
    d = StateDialogue(snap(res(LDS, "a")))
    (said,) = d.ask(LDS, "gone")
    assert brief([said]) == [(LDS, {}, ())]
    d.ack(said)
    assert brief(d.publish(snap(res(LDS, "a"), res(LDS, "gone")))) == [(LDS, {"gone": "1"}, ())]


def test_dropped_names_are_not_sent_any_more() -> None:
    d = StateDialogue(snap(res(EDS, "a"), res(EDS, "b")))
    heard = d.ask(EDS, "a", "b")
    d.ack_all(heard)
    assert d.ask(EDS, "a", nonce=heard[-1].nonce) == []
    assert brief(d.publish(snap(res(EDS, "a", "2"), res(EDS, "b", "2")))) == [(EDS, {"a": "2"}, ())]


# --- nonces and streams ------------------------------------------------------------------------------------


def test_nothing_is_said_before_the_first_snapshot() -> None:
    d = StateDialogue()
    assert d.ask(CDS) == []
    assert d.ask(EDS, "a") == []
    assert brief(d.publish(snap(*cds("a"), res(EDS, "a")))) == [(CDS, {"a": "1"}, ()), (EDS, {"a": "1"}, ())]


def test_a_stale_request_is_not_looked_at() -> None:
    d = StateDialogue(snap(res(EDS, "a"), res(EDS, "b")))
    (first,) = d.ask(EDS, "a")
    d.ack(first)
    (second,) = d.publish(snap(res(EDS, "a", "2"), res(EDS, "b")))
    assert d.ask(EDS, "a", "b", nonce=first.nonce) == []
    assert d.session.watched()[0].names == {"a"}
    assert brief(d.ask(EDS, "a", "b", nonce=second.nonce)) == [(EDS, {"b": "1"}, ())]


def test_an_unknown_nonce_is_stale() -> None:
    d = StateDialogue(snap(res(EDS, "a"), res(EDS, "b")))
    d.ack_all(d.ask(EDS, "a"))
    assert d.ask(EDS, "b", nonce="from elsewhere") == []
    assert d.session.watched()[0].names == {"a"}


@pytest.mark.parametrize("kind", [CDS, LDS])
def test_who_comes_back_is_answered_whatever_version_it_tells(kind: TypeUrl) -> None:
    snapshot = snap(res(kind, "a"))
    before = StateDialogue(snapshot)
    (said,) = before.ask(kind)
    after = StateDialogue(snapshot)
    (again,) = after.ask(kind, version=before.versions[said.nonce])
    assert (again.resources, after.versions[again.nonce]) == (said.resources, before.versions[said.nonce])


def test_a_nonce_of_an_earlier_stream_does_not_make_a_first_request_stale() -> None:
    d = StateDialogue(snap(res(EDS, "a")))
    assert brief(d.ask(EDS, "a", nonce="7", version="1")) == [(EDS, {"a": "1"}, ())]


def test_versions_are_those_of_the_content() -> None:
    one, two, three = (StateDialogue(snap(*cds("a", "b", version=v))) for v in ("1", "1", "2"))
    versions = [d.versions[d.ask(CDS)[0].nonce] for d in (one, two, three)]
    assert versions[0] == versions[1] != versions[2]


def test_an_acknowledgement_covers_the_responses_before_it() -> None:
    d = StateDialogue(snap(res(EDS, "a"), res(EDS, "b")))
    heard = d.ask(EDS, "a", "b")
    assert len(heard) == 2
    d.ack(heard[-1])
    assert d.session.settled(EDS)
    assert {s.state for s in d.session.status()[EDS]} == {SyncState.SYNCED}


def test_an_acknowledgement_is_told_by_the_error_alone() -> None:
    d = StateDialogue(snap(*cds("a")))
    (said,) = d.ask(CDS)
    # The version of before, and no error: accepted all the same.
    d.ask(CDS, nonce=said.nonce, version="")
    assert [s.state for s in d.session.status()[CDS]] == [SyncState.SYNCED]


def test_an_aggregated_stream_needs_a_type_and_another_has_one() -> None:
    with pytest.raises(ProtocolError):
        StateDialogue(snap()).ask("")
    alone = StateDialogue(snap(*cds("a"), res(LDS, "l")), only=CDS)
    assert brief(alone.ask("")) == [(CDS, {"a": "1"}, ())]
    with pytest.raises(ProtocolError):
        alone.ask(LDS)


def test_a_stream_of_one_type_waits_for_no_other() -> None:
    d = StateDialogue(snap(*cds("a", "b"), res(LDS, "l")), only=CDS)
    d.ack_all(d.ask(CDS, version="before"))
    assert brief(d.publish(snap(*cds("a"), res(LDS, "l")))) == [(CDS, {"a": "1"}, ())]
    assert d.session.settled(LDS)


# --- what travels whole ------------------------------------------------------------------------------------


def test_one_change_carries_everything_and_one_response_at_a_time() -> None:
    d = StateDialogue(snap(*cds("a", "b")))
    d.ack_all(d.ask(CDS))
    (said,) = d.publish(snap(res(CDS, "a", "2"), res(CDS, "b")))
    assert brief([said]) == [(CDS, {"a": "2", "b": "1"}, ())]
    assert d.publish(snap(res(CDS, "a", "3"), res(CDS, "b"))) == []
    assert d.publish(snap(res(CDS, "a", "4"), res(CDS, "b"))) == []
    assert brief(d.ack(said)) == [(CDS, {"a": "4", "b": "1"}, ())]


def test_a_removal_waits_for_the_routes_and_then_leaves_it_out() -> None:
    d = StateDialogue(snap(*cds("a"), res(LDS, "l"), res(RDS, "r")))
    d.ack_all(d.ask(CDS))
    d.ack_all(d.ask(LDS))
    d.ack_all(d.ask(RDS, "r"))
    heard = d.publish(snap(*cds("b"), res(LDS, "l"), res(RDS, "r", "2")))
    assert brief(heard) == [(CDS, {"a": "1", "b": "1"}, ())]
    (routes,) = d.ack(heard[0])
    assert brief([routes]) == [(RDS, {"r": "2"}, ())]
    assert brief(d.ack(routes)) == [(CDS, {"b": "1"}, ())]


def test_a_cluster_takes_its_endpoints_along() -> None:
    d = StateDialogue(snap(res(CDS, "c", endpoints="e"), res(EDS, "e")))
    d.ack_all(d.ask(CDS))
    d.ack_all(d.ask(EDS, "e"))
    heard = d.publish(snap(res(CDS, "c", "2", endpoints="e"), res(EDS, "e")))
    assert brief(heard) == [(CDS, {"c": "2"}, ()), (EDS, {"e": "1"}, ())]


def test_endpoints_that_go_are_not_spoken_of() -> None:
    d = StateDialogue(snap(res(EDS, "a"), res(EDS, "b")))
    d.ack_all(d.ask(EDS, "a", "b"))
    assert d.publish(snap(res(EDS, "a"))) == []
    assert [s.name for s in d.session.status()[EDS]] == ["a"]
    assert brief(d.publish(snap(res(EDS, "a"), res(EDS, "b")))) == [(EDS, {"b": "1"}, ())]


# --- quarantine --------------------------------------------------------------------------------------------


def judge(d: StateDialogue, heard: list[Said], bad: set[tuple[str, str]]) -> tuple[int, dict[str, str]]:
    """Be a client that refuses any response with something bad: how many there were, and what it holds."""
    count, held = 0, dict[str, str]()
    heard = list(heard)
    for said in heard:
        count += 1
        if bad & set(said.resources.items()):
            heard += d.nack(said)
        else:
            held = dict(said.resources)
            heard += d.ack(said)
    return count, held


@pytest.mark.parametrize("kind", [CDS, LDS])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 33])
@pytest.mark.parametrize("bad", [(0,), (1,), (0, 1), (1, 30)])
def test_bad_resources_are_left_out_and_all_others_in_force(
    kind: TypeUrl, size: int, bad: tuple[int, ...]
) -> None:
    names = [f"c{number:02}" for number in range(size)]
    refused = {names[number % size] for number in bad}
    d = StateDialogue(snap(*(res(kind, name) for name in names)))
    count, held = judge(d, d.ask(kind), {(name, "1") for name in refused})
    assert set(held) == set(names) - refused
    assert {refusal.name for refusal in d.session.refusals()} == refused
    assert count <= 1 + 2 * 6 * len(refused)
    assert d.session.settled(kind)


def test_a_bad_change_stays_at_its_last_good_version_through_all_later_changes() -> None:
    d = StateDialogue(snap(*cds("a", "b", "c")))
    judge(d, d.ask(CDS), set())
    bad = {("b", "bad")}
    wanted = [res(CDS, "a", "2"), res(CDS, "b", "bad"), res(CDS, "c", "2")]
    _, held = judge(d, d.publish(snap(*wanted)), bad)
    assert held == {"a": "2", "b": "1", "c": "2"}
    _, held = judge(d, d.publish(snap(*wanted, res(CDS, "d"))), bad)
    assert held == {"a": "2", "b": "1", "c": "2", "d": "1"}
    assert [(r.name, r.version) for r in d.session.refusals()] == [("b", "bad")]
    count, held = judge(d, d.publish(snap(*wanted[:1], res(CDS, "b", "3"))), bad)
    assert d.session.refusals() == []
    assert held == {"a": "2", "b": "3"}
    assert count == 2  # the change, then the removal


def test_refused_endpoints_are_not_sent_again() -> None:
    d = StateDialogue(snap(res(EDS, "a"), res(EDS, "b", "bad")))
    heard = d.ask(EDS, "a", "b")
    d.ack(heard[0])
    assert d.nack(heard[1]) == []
    assert d.publish(snap(res(EDS, "a", "2"), res(EDS, "b", "bad")))[0].resources == {"a": "2"}
    assert [refusal.name for refusal in d.session.refusals()] == ["b"]
