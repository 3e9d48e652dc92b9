"""Times to live: who understands them gets them, and hears in time that all is still so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from xds_dialogue import CDS, EDS, cds, res, snap

from penstock.xds.delta import DeltaSession
from penstock.xds.session import TTL_FEATURE, Session
from penstock.xds.state import StateSession

MORTAL = replace(res(EDS, "mortal"), ttl=1.5)
SNAPSHOT = snap(*cds("c"), MORTAL, res(EDS, "immortal"))


def delta(session: Session, names: list[str], *, feature: bool = True, nonce: str = "") -> list[Any]:
    request = discovery_pb2.DeltaDiscoveryRequest(
        type_url=EDS, resource_names_subscribe=names, response_nonce=nonce
    )
    if feature:
        request.node.client_features.append(TTL_FEATURE)
    heard = session.receive(request)
    return [discovery_pb2.DeltaDiscoveryResponse.FromString(session.encode(r)) for r in heard]


def beats(session: Session) -> list[Any]:
    heard = session.heartbeat()
    return [discovery_pb2.DeltaDiscoveryResponse.FromString(session.encode(r)) for r in heard]


def test_a_resource_says_how_long_it_lives_and_is_renewed_without_content() -> None:
    session = DeltaSession()
    session.publish(SNAPSHOT)
    heard = {r.resources[0].name: r for r in delta(session, ["mortal", "immortal"])}
    ttl = heard["mortal"].resources[0].ttl
    assert (ttl.seconds, ttl.nanos) == (1, 500_000_000)
    assert not heard["immortal"].resources[0].HasField("ttl")
    assert beats(session) == []  # the answers are on their way
    for response in heard.values():
        delta(session, [], nonce=response.nonce)
    (beat,) = beats(session)
    (item,) = beat.resources
    assert (item.name, item.version, item.ttl.seconds) == ("mortal", "1", 1)
    assert not item.HasField("resource")
    assert session.settled(EDS)  # a renewal is nothing that anybody waits for
    assert beats(session) == []  # not pressed
    delta(session, [], nonce=beat.nonce)
    assert len(beats(session)) == 1


def test_who_does_not_know_times_to_live_is_spared() -> None:
    session = DeltaSession()
    session.publish(SNAPSHOT)
    (said,) = delta(session, ["mortal"], feature=False)
    assert not said.resources[0].HasField("ttl")
    delta(session, [], feature=False, nonce=said.nonce)
    assert beats(session) == []


def test_who_comes_back_with_a_mortal_resource_has_it_renewed() -> None:
    session = DeltaSession()
    session.publish(SNAPSHOT)
    request = discovery_pb2.DeltaDiscoveryRequest(
        type_url=EDS, resource_names_subscribe=["mortal"], initial_resource_versions={"mortal": "1"}
    )
    request.node.client_features.append(TTL_FEATURE)
    assert session.receive(request) == []
    assert [item.name for beat in beats(session) for item in beat.resources] == ["mortal"]


def test_in_the_state_of_the_world_the_time_to_live_is_wrapped_around_the_resource() -> None:
    session = StateSession()
    session.publish(SNAPSHOT)
    request = discovery_pb2.DiscoveryRequest(type_url=EDS, resource_names=["mortal"])
    request.node.client_features.append(TTL_FEATURE)
    (said,) = session.receive(request)
    answer = discovery_pb2.DiscoveryResponse.FromString(session.encode(said))
    wrapped = discovery_pb2.Resource()
    assert answer.resources[0].Unpack(wrapped)
    assert (wrapped.name, wrapped.ttl.seconds, wrapped.resource.value) == ("mortal", 1, b"mortal@1")
    ack = discovery_pb2.DiscoveryRequest(
        type_url=EDS, resource_names=["mortal"], response_nonce=answer.nonce, version_info=answer.version_info
    )
    assert session.receive(ack) == []
    (beat,) = session.heartbeat()
    renewed = discovery_pb2.DiscoveryResponse.FromString(session.encode(beat))
    assert renewed.version_info == answer.version_info
    assert renewed.resources[0].Unpack(wrapped)
    assert not wrapped.HasField("resource")


def test_what_travels_whole_is_renewed_whole() -> None:
    """A response without the others would delete them."""
    session = StateSession()
    session.publish(snap(replace(res(CDS, "mortal"), ttl=1.0), *cds("immortal")))
    request = discovery_pb2.DiscoveryRequest(type_url=CDS)
    request.node.client_features.append(TTL_FEATURE)
    (said,) = session.receive(request)
    session.receive(discovery_pb2.DiscoveryRequest(type_url=CDS, response_nonce=said.nonce))
    (beat,) = session.heartbeat()
    assert {item.name for item in beat.resources} == {"mortal", "immortal"}
