"""A client for dialogues with a Session: says one thing at a time and shows what came back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from envoy.service.discovery.v3 import discovery_pb2

from penstock.xds.delta import DeltaSession
from penstock.xds.said import Response
from penstock.xds.session import Session
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl
from penstock.xds.state import StateSession

SDS, CDS, EDS, LDS, SRDS, RDS = TypeUrl


def res(kind: TypeUrl, name: str, version: str = "1", endpoints: str = "") -> Resource:
    return Resource(name, kind, version, f"{name}@{version}".encode(), endpoints)


def snap(*resources: Resource) -> Snapshot:
    return Snapshot.of_resources(resources)


def cds(*names: str, version: str = "1") -> tuple[Resource, ...]:
    return tuple(res(CDS, name, version) for name in names)


@dataclass(frozen=True)
class Said:
    """One response: name → version, and removed names."""

    kind: TypeUrl
    nonce: str
    resources: Mapping[str, str]
    removed: tuple[str, ...]


class _Speaker:
    """What both variants have in common: `session`, and the way from its responses to `Said`."""

    session: Session

    def publish(self, snapshot: Snapshot) -> list[Said]:
        return self._hear(self.session.publish(snapshot))

    def _hear(self, said: list[Response]) -> list[Said]:
        raise NotImplementedError

    def ack(self, said: Said) -> list[Said]:
        raise NotImplementedError

    def ack_all(self, answers: list[Said]) -> list[Said]:
        """Acknowledge these and whatever comes of it; give back all that was said in between."""
        heard = list(answers)
        for said in heard:
            heard += self.ack(said)
        return heard[len(answers) :]


class Dialogue(_Speaker):
    def __init__(self, snapshot: Snapshot | None = None, only: TypeUrl | None = None) -> None:
        self.session = DeltaSession(only)
        if snapshot is not None:
            assert self.publish(snapshot) == []

    def ask(
        self,
        kind: TypeUrl | str,
        *names: str,
        drop: Iterable[str] = (),
        held: Mapping[str, str] | None = None,
        nonce: str = "",
        error: str = "",
        node: str = "",
    ) -> list[Said]:
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=kind,
            resource_names_subscribe=names,
            resource_names_unsubscribe=drop,
            initial_resource_versions=held or {},
            response_nonce=nonce,
        )
        if error:
            request.error_detail.message = error
        if node:
            request.node.id = node
        return self._hear(self.session.receive(request))

    def ack(self, said: Said) -> list[Said]:
        return self.ask(said.kind, nonce=said.nonce)

    def nack(self, said: Said, error: str = "bad") -> list[Said]:
        return self.ask(said.kind, nonce=said.nonce, error=error)

    def _hear(self, said: list[Response]) -> list[Said]:
        heard = []
        for message in said:
            response = discovery_pb2.DeltaDiscoveryResponse.FromString(self.session.encode(message))
            names = [item.name for item in response.resources] + list(response.removed_resources)
            assert len(names) == len(set(names)), "a client refuses a response that names a resource twice"
            for item in response.resources:
                assert item.resource.type_url == response.type_url
                assert item.resource.value == f"{item.name}@{item.version}".encode()
            heard.append(
                Said(
                    TypeUrl(response.type_url),
                    response.nonce,
                    {item.name: item.version for item in response.resources},
                    tuple(response.removed_resources),
                )
            )
        return heard


class StateDialogue(_Speaker):
    """The same in the state-of-the-world variant; `names` are what it watches, as of the last request."""

    def __init__(self, snapshot: Snapshot | None = None, only: TypeUrl | None = None) -> None:
        self.session = StateSession(only)
        self.versions: dict[str, str] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        if snapshot is not None:
            assert self.publish(snapshot) == []

    def ask(
        self,
        kind: TypeUrl | str,
        *names: str,
        nonce: str = "",
        version: str = "",
        error: str = "",
        features: Iterable[str] = (),
    ) -> list[Said]:
        self.names[kind] = names
        request = discovery_pb2.DiscoveryRequest(
            type_url=kind, resource_names=names, response_nonce=nonce, version_info=version
        )
        if error:
            request.error_detail.message = error
        if features:
            request.node.client_features.extend(features)
        return self._hear(self.session.receive(request))

    def ack(self, said: Said) -> list[Said]:
        version = self.versions[said.nonce]
        return self.ask(said.kind, *self.names[said.kind], nonce=said.nonce, version=version)

    def nack(self, said: Said, error: str = "bad") -> list[Said]:
        return self.ask(said.kind, *self.names[said.kind], nonce=said.nonce, error=error)

    def _hear(self, said: list[Response]) -> list[Said]:
        heard = []
        for message in said:
            response = discovery_pb2.DiscoveryResponse.FromString(self.session.encode(message))
            self.versions[response.nonce] = response.version_info
            bodies = [item.value.decode().partition("@") for item in response.resources]
            assert len({name for name, _, _ in bodies}) == len(bodies)
            assert {item.type_url for item in response.resources} <= {response.type_url}
            found = {name: version for name, _, version in bodies}
            heard.append(Said(TypeUrl(response.type_url), response.nonce, found, ()))
        return heard


def brief(answers: list[Said]) -> list[tuple[TypeUrl, dict[str, str], tuple[str, ...]]]:
    """What was said, without nonces."""
    return [(said.kind, dict(said.resources), said.removed) for said in answers]
