"""Whatever a client says, in either variant: no crash, no wrong nonce, nothing twice, no talk for ever.

PENSTOCK_FUZZ_EXAMPLES is the number of dialogues (default: few, for `make test`).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from xds_dialogue import CDS, EDS, LDS, RDS, SDS, SRDS, res, snap

from penstock.xds.delta import DeltaSession
from penstock.xds.errors import ProtocolError
from penstock.xds.said import Response
from penstock.xds.session import Session
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl
from penstock.xds.state import StateSession

EXAMPLES = int(os.environ.get("PENSTOCK_FUZZ_EXAMPLES", "20"))
BAD = "bad"
KINDS = [CDS, EDS, LDS, RDS, SDS, SRDS, "type.googleapis.com/unknown.Type", ""]
NAMES = ["a", "b", "c", "*", "ü" * 40, ""]
NONCES = [-3, -2, -1, -1, 0, "", "0", "x"]
VERSIONS = ["1", "2", BAD]


class Dice:
    """Choices out of a few bytes: to draw each by itself takes ten times as long as the dialogue does."""

    def __init__(self, drawn: bytes) -> None:
        self._left = int.from_bytes(drawn, "big")

    def below(self, number: int) -> int:
        self._left, found = divmod(self._left, number)
        return found

    def some(self, of: list[Any], most: int) -> list[Any]:
        """The same one may come twice."""
        return [of[self.below(len(of))] for _ in range(self.below(most + 1))]


def snapshot(drawn: bytes) -> Snapshot:
    dice, found = Dice(drawn), list[Resource]()
    for kind in TypeUrl:
        for name in "abc":
            if version := [None, *VERSIONS][dice.below(4)]:
                found.append(res(kind, name, version, endpoints=name if kind == CDS else ""))
    return snap(*found)


def request_of(drawn: bytes) -> dict[str, Any]:
    dice = Dice(drawn)
    return {
        "kind": KINDS[dice.below(len(KINDS))],
        "nonce": NONCES[dice.below(len(NONCES))],
        "error": bool(dice.below(2)),
        "features": bool(dice.below(2)),
        "names": dice.some(NAMES, 4),
        "gone": dice.some(NAMES, 4),
        "held": {name: VERSIONS[dice.below(3)] for name in dice.some(["a", "b", "c"], 3)},
    }


def drawn(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


SNAPSHOTS = drawn(5).map(snapshot)
REQUESTS = drawn(12).map(request_of)
STEPS = st.lists(st.one_of(REQUESTS, REQUESTS, SNAPSHOTS, st.just("beat")), max_size=25)


class Listener:
    """Hears all that a session says and looks at it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.nonces: list[str] = []
        self.open: dict[str, Response] = {}

    def hear(self, said: list[Response]) -> None:
        for response in said:
            assert response.nonce not in self.nonces
            self.nonces.append(response.nonce)
            self.open[response.nonce] = response
            names = [item.name for item in response.resources] + list(response.removed)
            assert len(names) == len(set(names))
            self.read(response)
        whole = [r.type_url for r in self.open.values() if r.type_url in self.session.complete]
        assert len(whole) == len(set(whole))

    def read(self, response: Response) -> None:
        message = self.session.encode(response)
        if isinstance(self.session, DeltaSession):
            delta = discovery_pb2.DeltaDiscoveryResponse.FromString(message)
            assert (delta.nonce, delta.type_url) == (response.nonce, response.type_url)
            assert tuple(delta.removed_resources) == response.removed
        else:
            state = discovery_pb2.DiscoveryResponse.FromString(message)
            assert (state.nonce, state.type_url) == (response.nonce, response.type_url)
            assert len(state.resources) == len(response.resources) + len(response.kept)


def request(session: Session, step: dict[str, Any], nonce: str) -> Any:
    if isinstance(session, DeltaSession):
        made: Any = discovery_pb2.DeltaDiscoveryRequest(
            type_url=step["kind"],
            resource_names_subscribe=step["names"],
            resource_names_unsubscribe=step["gone"],
            initial_resource_versions=step["held"],
            response_nonce=nonce,
        )
    else:
        made = discovery_pb2.DiscoveryRequest(
            type_url=step["kind"], resource_names=step["names"], response_nonce=nonce
        )
    if step["error"]:
        made.error_detail.message = f"no: {step['names']}"
    if step["features"]:
        made.node.client_features.append("xds.config.supports-resource-ttl")
    return made


def play(session: Session, steps: list[Any]) -> None:
    listener = Listener(session)
    for step in steps:
        if isinstance(step, Snapshot):
            listener.hear(session.publish(step))
        elif step == "beat":
            listener.hear(session.heartbeat())
        else:
            nonce = step["nonce"]
            if isinstance(nonce, int):
                nonce = listener.nonces[nonce] if len(listener.nonces) >= max(-nonce, 1) else ""
            answered = listener.open.pop(nonce, None)
            try:
                listener.hear(session.receive(request(session, step, nonce)))
            except ProtocolError:
                assert step["kind"] == "" or session.only is not None
                if answered is not None:
                    listener.open[nonce] = answered
            if answered is not None and isinstance(session, StateSession) and not step["error"]:
                older = {n for n in listener.open if int(n) < int(nonce)}
                listener.open = {
                    n: r
                    for n, r in listener.open.items()
                    if n not in older or r.type_url != answered.type_url
                }
    for watch in session.watched():
        session.settled(watch.type_url)
        watch.status(session.snapshot)
    session.refusals()


@pytest.mark.parametrize("only", [None, EDS])
@pytest.mark.parametrize("face", [DeltaSession, StateSession])
@settings(max_examples=EXAMPLES, deadline=None)
@given(steps=STEPS)
def test_any_dialogue(face: type[Session], only: TypeUrl | None, steps: list[Any]) -> None:
    play(face(only), steps)


class StateClient:
    """Does what Envoy does in the state-of-the-world variant; refuses any response with something bad."""

    def __init__(self, session: StateSession) -> None:
        self.session = session
        self.held: dict[TypeUrl, dict[str, str]] = {kind: {} for kind in TypeUrl}
        self.asked: dict[TypeUrl, list[str]] = {kind: [] for kind in TypeUrl}
        self.inbox: list[Response] = []
        self.last: dict[str, str] = {}
        for kind in (CDS, LDS, SRDS):
            self.say(kind)

    def say(self, kind: TypeUrl, **more: Any) -> None:
        made = discovery_pb2.DiscoveryRequest(
            type_url=kind, resource_names=self.asked[kind], response_nonce=self.last.get(kind, "")
        )
        if more:
            made.error_detail.CopyFrom(more["error_detail"])
        self.inbox += self.session.receive(made)

    def watch(self, kind: TypeUrl, names: list[str]) -> None:
        if names != self.asked[kind]:
            self.asked[kind] = names
            self.held[kind] = {n: v for n, v in self.held[kind].items() if n in names}
            self.say(kind)

    def hear(self) -> None:
        if not self.inbox:
            return
        response = self.inbox.pop(0)
        kind = TypeUrl(response.type_url)
        self.last[kind] = response.nonce
        found = {item.name: item.version for item in response.resources}
        if BAD in found.values():
            from google.rpc import status_pb2

            self.say(kind, error_detail=status_pb2.Status(code=3, message="no"))
            return
        self.held[kind] = found if kind in (CDS, LDS, SRDS) else {**self.held[kind], **found}
        if kind == CDS:
            self.watch(EDS, sorted(found))
        if kind == LDS:
            self.watch(RDS, sorted(found))
        self.say(kind)


@settings(max_examples=EXAMPLES, deadline=None)
@given(steps=st.lists(st.one_of(SNAPSHOTS, st.just("hear")), max_size=20))
def test_a_client_of_the_state_of_the_world_ends_with_all_that_is_good(steps: list[Any]) -> None:
    client = StateClient(StateSession())
    wanted: Snapshot | None = None
    for step in steps:
        if isinstance(step, Snapshot):
            wanted = step
            client.inbox += client.session.publish(step)
        else:
            client.hear()
    for _ in range(3000):
        client.hear()
    assert not client.inbox, "the two talk for ever"
    if wanted is None:
        return
    for kind in (CDS, LDS, SRDS, EDS, RDS):
        good = {i.name: i.version for i in wanted.of(kind).values() if i.version != BAD}
        if kind in (EDS, RDS):
            good = {n: v for n, v in good.items() if n in client.asked[kind]}
        held = {n: v for n, v in client.held[kind].items() if n in good}
        assert held == good
        if kind in (CDS, LDS, SRDS):
            bad = {i.name for i in wanted.of(kind).values() if i.version == BAD}
            assert client.held[kind].keys() <= good.keys() | bad
        assert client.session.settled(kind)
