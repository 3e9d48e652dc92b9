"""Whatever is published and however the messages cross, the client ends with what is wanted.

The client behaves as Envoy does: it asks for the endpoints of its clusters and the routes of its listeners,
applies responses in order, refuses a response with a bad resource (but applies the good ones before
it), and brings along what it acknowledged when it comes back on a new stream.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from xds_dialogue import CDS, EDS, LDS, RDS, SDS, res, snap

from penstock.xds.delta import DeltaSession
from penstock.xds.order import Rollout
from penstock.xds.said import Response
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl

BAD = "bad"


class Client:
    """Held state by type; `told` is the part that it acknowledged and would tell on a new stream."""

    def __init__(self, session: DeltaSession) -> None:
        self.held: dict[TypeUrl, dict[str, str]] = {kind: {} for kind in TypeUrl}
        self.told: dict[TypeUrl, dict[str, str]] = {kind: {} for kind in TypeUrl}
        self.asked: dict[TypeUrl, set[str]] = {kind: set() for kind in (EDS, RDS, SDS)}
        self.refused: set[tuple[str, str]] = set()
        self.connect(session)

    def connect(self, session: DeltaSession) -> None:
        self.session = session
        self.inbox: deque[Any] = deque()
        self.refused.clear()
        # What Envoy applied of a refused response it does not tell on the next stream. If the stream breaks
        # before those resources were sent again, no server can know of them: left out of the model.
        for kind in (CDS, LDS):
            self.held[kind] = dict(self.told[kind])
        for kind in (CDS, EDS, LDS, RDS, SDS):
            self._say(kind, subscribe=self.asked.get(kind, set()), held=self.told[kind])

    def publish(self, snapshot: Snapshot) -> None:
        self._take(self.session.publish(snapshot))

    def _take(self, said: list[Response]) -> None:
        for message in said:
            response = discovery_pb2.DeltaDiscoveryResponse.FromString(self.session.encode(message))
            for item in response.resources:
                again = item.version == BAD and (response.type_url, item.name) in self.refused
                assert not again, "refused bytes are never sent again"
            self.inbox.append(response)

    def _say(self, kind: TypeUrl, subscribe: Any = (), held: Any = None, **fields: Any) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=kind, resource_names_subscribe=subscribe, initial_resource_versions=held or {}, **fields
        )
        self._take(self.session.receive(request))

    def ask(self, kind: TypeUrl, names: set[str]) -> None:
        """Watch exactly these names."""
        before, self.asked[kind] = self.asked[kind], names
        for name in before - names:
            self.held[kind].pop(name, None)
            self.told[kind].pop(name, None)
            self.refused.discard((kind, name))
        if names != before:
            self._say(kind, names - before, resource_names_unsubscribe=before - names)

    def hear(self) -> None:
        """Apply the next response and answer it."""
        if not self.inbox:
            return
        response = self.inbox.popleft()
        kind = TypeUrl(response.type_url)
        held, told = self.held[kind], self.told[kind]
        good = True
        for item in response.resources:
            if kind in self.asked and item.name not in self.asked[kind]:
                continue
            good = good and item.version != BAD
            if good:
                held[item.name] = item.version
            if item.version == BAD and len(response.resources) == 1:
                self.refused.add((kind, item.name))
            if good:
                self.refused.discard((kind, item.name))
        for name in response.removed_resources:
            held.pop(name, None)
            told.pop(name, None)
            self.refused.discard((kind, name))
        if kind == CDS:
            self.ask(EDS, set(held))
        elif kind == LDS:
            self.ask(RDS, set(held))
        if good:
            told.update({name: held[name] for name in (i.name for i in response.resources) if name in held})
            self._say(kind, response_nonce=response.nonce)
        else:
            error = {"code": 3, "message": "no"}
            self._say(kind, response_nonce=response.nonce, error_detail=error)

    def hear_all(self) -> None:
        for _ in range(2000):
            if not self.inbox:
                return
            self.hear()
        raise AssertionError("the two talk for ever")


NAMES = ("a", "b", "c")


def snapshots(versions: tuple[str, ...]) -> st.SearchStrategy[Snapshot]:
    """Any clusters with their endpoints, listeners each with its routes, which name a cluster; secrets."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> Snapshot:
        version = st.sampled_from(versions)
        clusters = draw(st.dictionaries(st.sampled_from(NAMES), version))
        found: list[Resource] = []
        for name, number in clusters.items():
            found.append(res(CDS, name, number, endpoints=name))
            found.append(res(EDS, name, draw(version)))
        if clusters:
            for name, number in draw(st.dictionaries(st.sampled_from(NAMES), version)).items():
                found.append(res(LDS, name, number))
                found.append(res(RDS, name, draw(st.sampled_from(sorted(clusters)))))
        found += [
            res(SDS, name, number)
            for name, number in draw(st.dictionaries(st.sampled_from(NAMES), version)).items()
        ]
        return snap(*found)

    return draw_one()


def actions(versions: tuple[str, ...]) -> st.SearchStrategy[list[Any]]:
    some = st.sampled_from(["hear", "hear", "hear", "reconnect"])
    secrets = st.frozensets(st.sampled_from(NAMES))
    return st.lists(st.one_of(some, snapshots(versions), secrets), max_size=25)


@settings(max_examples=200, deadline=None)
@given(actions(("1", "2", BAD)))
def test_a_client_ends_with_all_good_resources_that_are_wanted(steps: list[Any]) -> None:
    client = Client(DeltaSession())
    wanted: Snapshot | None = None
    for step in [*steps, "end"]:
        if isinstance(step, Snapshot):
            wanted = step
            client.publish(step)
        elif isinstance(step, frozenset):
            client.ask(SDS, set(step))
        elif step == "hear":
            client.hear()
        elif step == "reconnect":
            session = DeltaSession()
            if wanted is not None:
                session.publish(wanted)
            client.connect(session)
    client.hear_all()
    if wanted is None:
        return
    for kind in (CDS, EDS, LDS, RDS, SDS):
        assert client.session.settled(kind) or (kind in (CDS, LDS) and not wanted.of(kind))
        asked = client.asked.get(kind)
        expected = {
            item.name: item.version
            for item in wanted.of(kind).values()
            if asked is None or item.name in asked
        }
        bad = {name for name, version in expected.items() if version == BAD}
        held = {name: version for name, version in client.held[kind].items() if name not in bad}
        assert held == {name: version for name, version in expected.items() if name not in bad}
        refused = {refusal.name for refusal in client.session.refusals() if refusal.type_url == kind}
        assert refused == bad


@settings(max_examples=200, deadline=None)
@given(st.booleans(), actions(("1", "2")))
def test_a_route_never_names_a_cluster_that_the_client_lacks(staged: bool, steps: list[Any]) -> None:
    client = Client(DeltaSession())
    published: Snapshot | None = None

    def check() -> None:
        for name, target in client.held[RDS].items():
            assert name not in client.held[LDS] or target in client.held[CDS]

    for step in steps:
        if isinstance(step, Snapshot) and staged:
            for stage in Rollout(published, step).stages():
                client.publish(stage.snapshot)
                published = stage.snapshot
                while client.inbox:
                    client.hear()
                    check()
        elif isinstance(step, Snapshot):
            client.publish(step)
            published = step
        elif step == "hear":
            client.hear()
        elif step == "reconnect":
            session = DeltaSession()
            if published is not None:
                session.publish(published)
            client.connect(session)
        check()
