"""NACKs: what is kept, what is sent again, and that a bad resource takes no good one with it."""

from __future__ import annotations

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from xds_dialogue import CDS, EDS, LDS, RDS, Dialogue, Said, brief, cds, res, snap

from penstock.xds.said import Acked, Nacked
from penstock.xds.snapshot import TypeUrl
from penstock.xds.watch import Refusal, SyncState


def judge(d: Dialogue, heard: list[Said], bad: set[str], hint: str = "") -> int:
    """Be a client that refuses any response with a bad resource; tell the number of responses it took."""
    count = 0
    heard = list(heard)
    for said in heard:
        count += 1
        found = bad & said.resources.keys()
        heard += d.nack(said, hint or "no") if found else d.ack(said)
    return count


def test_refused_bytes_are_not_sent_again_and_the_error_is_kept() -> None:
    d = Dialogue(snap(res(RDS, "r")))
    (said,) = d.ask(RDS, "r")
    assert d.nack(said, "bad regex") == []
    assert d.publish(snap(res(RDS, "r"), res(RDS, "other"))) == []
    assert d.session.refusals() == [Refusal(RDS, "r", "1", "bad regex")]
    assert d.session.drain_events() == [Nacked(RDS, ("r",), "bad regex")]
    assert d.session.nacks == 1
    assert d.session.settled(RDS)
    (status,) = [s for s in d.session.status()[RDS] if s.name == "r"]
    assert (status.state, status.error, status.acked) == (SyncState.ERROR, "bad regex", "")


def test_an_error_without_words_is_an_error() -> None:
    d = Dialogue(snap(res(RDS, "r")))
    (said,) = d.ask(RDS, "r")
    request = discovery_pb2.DeltaDiscoveryRequest(type_url=RDS, response_nonce=said.nonce)
    request.error_detail.SetInParent()
    assert d.session.receive(request) == []
    assert [refusal.name for refusal in d.session.refusals()] == ["r"]


def test_other_bytes_are_tried_and_clear_the_error() -> None:
    d = Dialogue(snap(res(RDS, "r")))
    d.nack(d.ask(RDS, "r")[0])
    (said,) = d.publish(snap(res(RDS, "r", "2")))
    d.ack(said)
    assert d.session.refusals() == []
    assert d.session.drain_events()[-1] == Acked(RDS, ("r",))


def test_two_bad_versions_in_turn_are_each_sent_once() -> None:
    d = Dialogue(snap(res(RDS, "r", "bad1")))
    d.nack(d.ask(RDS, "r")[0], "one")
    d.nack(d.publish(snap(res(RDS, "r", "bad2")))[0], "two")
    assert d.publish(snap(res(RDS, "r", "bad1"))) == []
    assert [refusal.message for refusal in d.session.refusals()] == ["one"]


def test_the_old_version_is_sent_again_when_it_is_wanted_again() -> None:
    d = Dialogue(snap(res(RDS, "r")))
    d.ack_all(d.ask(RDS, "r"))
    d.nack(d.publish(snap(res(RDS, "r", "bad")))[0])
    # Envoy applies parts of what it refuses, so that it still holds version 1 is not sure.
    assert brief(d.publish(snap(res(RDS, "r")))) == [(RDS, {"r": "1"}, ())]


def test_a_refused_resource_that_goes_is_removed() -> None:
    d = Dialogue(snap(*cds("bad")))
    d.nack(d.ask(CDS)[0])
    (said,) = d.publish(snap())
    assert brief([said]) == [(CDS, {}, ("bad",))]
    d.ack(said)
    assert d.session.refusals() == []


def test_who_asks_for_a_refused_resource_gets_the_last_good_one() -> None:
    d = Dialogue(snap(res(EDS, "e")))
    d.ack_all(d.ask(EDS, "e"))
    d.nack(d.publish(snap(res(EDS, "e", "bad")))[0])
    (said,) = d.ask(EDS, "e")
    assert brief([said]) == [(EDS, {"e": "1"}, ())]
    d.ack(said)
    assert [refusal.version for refusal in d.session.refusals()] == ["bad"]


def test_who_asks_for_a_resource_refused_from_the_start_is_told_there_is_none() -> None:
    d = Dialogue(snap(res(RDS, "bad")))
    d.nack(d.ask(RDS, "bad")[0])
    heard = d.ask(RDS, "bad")
    assert brief(heard) == [(RDS, {}, ("bad",))]
    d.ack_all(heard)
    assert [refusal.name for refusal in d.session.refusals()] == ["bad"]
    assert d.publish(snap(res(RDS, "bad"), res(RDS, "other"))) == []


@pytest.mark.parametrize("kind", [CDS, LDS])
@pytest.mark.parametrize("size", [2, 3, 8, 33])
@pytest.mark.parametrize("bad", [(0,), (1,), (0, 1), (1, 30)])
def test_bad_resources_end_alone_and_all_others_are_acknowledged(
    kind: TypeUrl, size: int, bad: tuple[int, ...]
) -> None:
    names = [f"c{number:02}" for number in range(size)]
    refused = {names[number % size] for number in bad}
    d = Dialogue(snap(*(res(kind, name) for name in names)))
    judge(d, d.ask(kind), refused)
    states = {s.name: s.state for s in d.session.status()[kind]}
    assert {name for name, state in states.items() if state is SyncState.ERROR} == refused
    assert {name for name, state in states.items() if state is SyncState.SYNCED} == set(names) - refused
    assert d.session.settled(kind)


def test_the_search_takes_few_steps_and_fewer_when_the_client_names_the_culprit() -> None:
    names = [f"c{number:03}" for number in range(256)]
    blind = Dialogue(snap(*cds(*names)))
    assert judge(blind, blind.ask(CDS), {"c100"}) <= 1 + 2 * 8
    told = Dialogue(snap(*cds(*names)))
    assert judge(told, told.ask(CDS), {"c100"}, hint="Error adding cluster(s) c100: bad") == 3


def test_a_new_version_of_a_refused_cluster_travels_alone() -> None:
    d = Dialogue(snap(*cds("bad", "good")))
    judge(d, d.ask(CDS), {"bad"})
    heard = d.publish(snap(*cds("bad", "good", version="2")))
    assert brief(heard) == [(CDS, {"good": "2"}, ()), (CDS, {"bad": "2"}, ())]


def test_good_clusters_of_a_refused_response_can_be_removed() -> None:
    d = Dialogue(snap(*cds("bad", "good")))
    (said,) = d.ask(CDS)
    parts = d.nack(said)
    d.publish(snap())  # before the parts are acknowledged
    heard = d.ack_all(parts)
    assert brief(heard) == [(CDS, {}, ("bad", "good"))]


def test_parts_carry_the_newest_version() -> None:
    d = Dialogue(snap(*cds("a", "b")))
    (said,) = d.ask(CDS)
    d.publish(snap(*cds("a", "b", version="2")))
    parts = d.nack(said)
    assert brief(parts) == [(CDS, {"a": "2"}, ()), (CDS, {"b": "2"}, ())]
    assert d.ack_all(parts) == []


def test_what_was_refused_in_company_is_not_taken_for_held_when_it_is_wanted_again() -> None:
    listener = res(LDS, "l")  # of a client that comes back, and not asked for yet: removals of clusters wait
    d = Dialogue(snap(*cds("a", "b"), listener))
    (batch,) = d.ask(CDS, held={"a": "0"})
    d.publish(snap(listener))
    assert d.nack(batch) == []
    assert brief(d.publish(snap(*cds("a", "b"), listener))) == [(CDS, {"a": "1", "b": "1"}, ())]


def test_parts_leave_out_what_was_refused_alone_meanwhile() -> None:
    d = Dialogue(snap(*cds("a", "b", "c")))
    (batch,) = d.ask(CDS)
    (alone,) = d.ask(CDS, "a")
    d.nack(alone)
    assert brief(d.nack(batch, "no")) == [(CDS, {"b": "1"}, ()), (CDS, {"c": "1"}, ())]


def test_parts_take_their_endpoints_along() -> None:
    d = Dialogue(snap(res(CDS, "c", endpoints="e"), res(EDS, "e")))
    d.ack_all(d.ask(CDS))
    d.ack_all(d.ask(EDS, "e"))
    heard = d.publish(snap(res(CDS, "c", "2", endpoints="e"), res(CDS, "bad"), res(EDS, "e")))
    d.ack(heard[1])
    assert (EDS, {"e": "1"}, ()) in brief(d.nack(heard[0]))
