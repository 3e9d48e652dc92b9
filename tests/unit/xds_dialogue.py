"""A client for dialogues with a Session: says one thing at a time and shows what came back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from penstock.xds.session import Session
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl

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


class Dialogue:
    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.session = Session()
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

    def publish(self, snapshot: Snapshot) -> list[Said]:
        return self._hear(self.session.publish(snapshot))

    def ack_all(self, answers: list[Said]) -> list[Said]:
        """Acknowledge these and whatever comes of it; give back all that was said in between."""
        heard = list(answers)
        for said in heard:
            heard += self.ack(said)
        return heard[len(answers) :]

    def _hear(self, responses: list[Any]) -> list[Said]:
        heard = []
        for response in responses:
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


def brief(answers: list[Said]) -> list[tuple[TypeUrl, dict[str, str], tuple[str, ...]]]:
    """What was said, without nonces."""
    return [(said.kind, dict(said.resources), said.removed) for said in answers]
