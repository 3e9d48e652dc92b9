"""What a client may ask for, and what it is answered: names, wildcards, giving up, coming back."""

from __future__ import annotations

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from xds_dialogue import CDS, EDS, LDS, RDS, SDS, SRDS, Dialogue, brief, cds, res, snap

from penstock.xds.errors import ProtocolError
from penstock.xds.snapshot import TypeUrl


def test_node_comes_with_the_first_request_only() -> None:
    d = Dialogue()
    d.ask(CDS, node="envoy-1")
    d.ask(EDS, "e")
    d.ask(EDS, "f", node="another")
    assert d.session.node_id == "envoy-1"


def test_a_request_without_type_is_refused() -> None:
    with pytest.raises(ProtocolError):
        Dialogue().ask("")


def test_nothing_is_answered_before_the_first_snapshot() -> None:
    d = Dialogue()
    assert d.ask(CDS) == []
    assert d.ask(SDS, "s") == []
    assert not d.session.settled(CDS)
    assert brief(d.publish(snap(*cds("a")))) == [(SDS, {}, ("s",)), (CDS, {"a": "1"}, ())]


@pytest.mark.parametrize("kind", [CDS, LDS, SRDS])
def test_no_names_in_the_first_request_mean_all(kind: TypeUrl) -> None:
    d = Dialogue(snap(res(kind, "a"), res(kind, "b")))
    names = {name for said in d.ask(kind) for name in said.resources}
    assert names == {"a", "b"}


@pytest.mark.parametrize("kind", [EDS, RDS, SDS])
def test_no_names_mean_none_for_types_that_are_asked_by_name(kind: TypeUrl) -> None:
    d = Dialogue(snap(res(kind, "a")))
    assert d.ask(kind) == []
    assert brief(d.ask(kind, "a")) == [(kind, {"a": "1"}, ())]


@pytest.mark.parametrize("kind", list(TypeUrl))
def test_a_star_is_explicit_for_every_type(kind: TypeUrl) -> None:
    d = Dialogue(snap(res(kind, "a"), res(kind, "b")))
    names = {name for said in d.ask(kind, "*") for name in said.resources}
    assert names == {"a", "b"}


@pytest.mark.parametrize(
    ("first", "later", "drop", "published"),
    [
        pytest.param((), (), (), {"new"}, id="silent wildcard"),
        pytest.param(("*",), (), (), {"new"}, id="star"),
        pytest.param((), ("a",), (), {"new"}, id="silent wildcard goes on beside a name"),
        pytest.param(("a",), ("*",), (), {"new"}, id="star beside a name"),
        pytest.param(("a",), (), (), set(), id="a name is no wildcard"),
        pytest.param((), ("a",), ("*",), set(), id="silent wildcard given up"),
        pytest.param(("*", "a"), (), ("*",), set(), id="star given up, name kept"),
        pytest.param(("*",), (), ("*",), set(), id="star given up"),
        pytest.param(("a",), (), ("a",), set(), id="last name given up is no wildcard"),
        pytest.param(("a", "new"), (), ("a",), {"new"}, id="another name kept"),
    ],
)
def test_wildcard_matrix(
    first: tuple[str, ...], later: tuple[str, ...], drop: tuple[str, ...], published: set[str]
) -> None:
    d = Dialogue(snap(*cds("a")))
    d.ack_all(d.ask(CDS, *first))
    if later:
        d.ack_all(d.ask(CDS, *later))
    if drop:
        d.ack_all(d.ask(CDS, drop=drop))
    d.ack_all(d.ask(CDS))
    heard = d.publish(snap(*cds("a", "new")))
    assert {name for said in heard for name in said.resources} == published


def test_a_wildcard_without_resources_is_answered_once() -> None:
    d = Dialogue(snap())
    (said,) = d.ask(CDS)
    assert brief([said]) == [(CDS, {}, ())]
    assert d.ack(said) == []
    assert d.ask(CDS) == []


def test_a_subscribed_name_is_answered_although_the_client_has_it() -> None:
    d = Dialogue(snap(res(RDS, "r")))
    d.ack_all(d.ask(RDS, "r"))
    assert brief(d.ask(RDS, "r")) == [(RDS, {"r": "1"}, ())]


def test_a_name_that_does_not_exist_is_answered_as_removed_and_pushed_once_it_does() -> None:
    d = Dialogue(snap())
    heard = d.ask(SDS, "10.0.0.1")
    assert brief(heard) == [(SDS, {}, ("10.0.0.1",))]
    d.ack_all(heard)
    assert brief(d.publish(snap(res(SDS, "10.0.0.1")))) == [(SDS, {"10.0.0.1": "1"}, ())]


def test_a_name_asked_twice_in_one_request_is_answered_once() -> None:
    d = Dialogue(snap(res(EDS, "e")))
    assert brief(d.ask(EDS, "e", "e")) == [(EDS, {"e": "1"}, ())]


def test_a_name_given_up_and_asked_in_one_request_is_answered() -> None:
    d = Dialogue(snap(res(EDS, "e")))
    d.ack_all(d.ask(EDS, "e"))
    assert brief(d.ask(EDS, "e", drop=["e"])) == [(EDS, {"e": "1"}, ())]
    assert brief(d.publish(snap(res(EDS, "e", "2")))) == []  # one push at a time: the answer is outstanding


def test_giving_up_a_name_that_the_wildcard_covers_is_answered_with_it() -> None:
    d = Dialogue(snap(*cds("a")))
    d.ack_all(d.ask(CDS, "*", "a", "missing"))
    heard = d.ask(CDS, drop=["a", "missing"])
    assert brief(heard) == [(CDS, {"a": "1"}, ()), (CDS, {}, ("missing",))]


def test_what_was_given_up_is_pushed_no_more_and_answered_when_asked_again() -> None:
    d = Dialogue(snap(res(RDS, "r")))
    d.ack_all(d.ask(RDS, "r"))
    assert d.ask(RDS, drop=["r"]) == []
    assert d.publish(snap(res(RDS, "r", "2"))) == []
    assert d.session.settled(RDS)
    assert brief(d.ask(RDS, "r")) == [(RDS, {"r": "2"}, ())]


def test_an_acknowledgement_of_what_was_given_up_meanwhile_leaves_no_trace() -> None:
    d = Dialogue(snap(res(RDS, "r")))
    (said,) = d.ask(RDS, "r")
    d.ask(RDS, drop=["r"])
    d.ack(said)
    assert [(s.name, s.acked) for s in d.session.status()[RDS]] == [("r", "")]
    assert d.publish(snap()) == []


def test_what_only_the_star_covered_is_not_removed_after_it_was_given_up() -> None:
    d = Dialogue(snap(*cds("a", "b")))
    d.ack_all(d.ask(CDS, "*", "b"))
    d.ask(CDS, drop=["*"])
    assert brief(d.publish(snap())) == [(CDS, {}, ("b",))]


def test_a_stale_nonce_acknowledges_nothing_but_its_subscription_counts() -> None:
    d = Dialogue(snap(res(EDS, "e"), res(EDS, "f")))
    d.ask(EDS, "e")
    assert brief(d.ask(EDS, "f", nonce="from-another-stream", error="nonsense")) == [(EDS, {"f": "1"}, ())]
    assert not d.session.settled(EDS)
    assert d.session.nacks == 0


@pytest.mark.parametrize(
    ("held", "wanted", "said"),
    [
        pytest.param({"a": "1"}, ("a",), [(CDS, {}, ())], id="the same: only a greeting"),
        pytest.param({"a": "0"}, ("a",), [(CDS, {"a": "1"}, ())], id="changed"),
        pytest.param({"a": "1"}, ("a", "b"), [(CDS, {"b": "1"}, ())], id="added"),
        pytest.param({"a": "1", "b": "1"}, ("a",), [(CDS, {}, ()), (CDS, {}, ("b",))], id="removed"),
        pytest.param({}, (), [(CDS, {}, ())], id="nothing on either side"),
    ],
)
def test_reconnect_matrix(
    held: dict[str, str], wanted: tuple[str, ...], said: list[tuple[TypeUrl, dict[str, str], tuple[str, ...]]]
) -> None:
    d = Dialogue(snap(*cds(*wanted)))
    heard = d.ask(CDS, held=held)
    assert brief(heard + d.ack_all(heard)) == said
    assert d.session.settled(CDS)
    assert {s.name for s in d.session.status()[CDS]} == set(wanted)


def test_names_brought_along_unchanged_are_not_sent_again() -> None:
    d = Dialogue(snap(res(EDS, "e"), res(EDS, "f", "2"), res(EDS, "g")))
    heard = d.ask(EDS, "e", "f", "g", "gone", held={"e": "1", "f": "1", "gone": "1"})
    assert brief(heard + d.ack_all(heard)) == [
        (EDS, {"g": "1"}, ()),
        (EDS, {"f": "2"}, ()),
        (EDS, {}, ("gone",)),
    ]


def test_versions_told_in_a_later_request_count_for_nothing() -> None:
    d = Dialogue(snap(res(EDS, "e"), res(EDS, "f")))
    d.ask(EDS, "e")
    assert brief(d.ask(EDS, "f", held={"f": "1"})) == [(EDS, {"f": "1"}, ())]


def test_a_type_we_do_not_know_is_answered_too() -> None:
    d = Dialogue(snap())
    kind = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
    request = discovery_pb2.DeltaDiscoveryRequest(type_url=kind, resource_names_subscribe=["x"])
    (response,) = d.session.receive(request)
    assert list(response.removed) == ["x"]
