"""What should be in force at the clients: xDS resources as bytes, by type and name.

A message is built and serialised once and kept as bytes from then on: 100,000 endpoints are 54 MB as
messages and 2.3 MB as bytes, and copying bytes into a response costs a fiftieth of rebuilding it.

A version is a hash of the content. So the same content has the same version after a restart of the
daemon, and a client that reconnects and tells what it holds (`initial_resource_versions`) is sent only
what differs. Serialisation is deterministic (map fields in key order) for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

from penstock.xds.errors import DuplicateResourceError

_PREFIX = "type.googleapis.com/"


class TypeUrl(StrEnum):
    """The resource types we serve, in the order in which additions go out (make before break).

    Secrets come first because nothing has to be there before them while clusters and listeners wait for them.
    """

    SDS = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
    CDS = _PREFIX + "envoy.config.cluster.v3.Cluster"
    EDS = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
    LDS = _PREFIX + "envoy.config.listener.v3.Listener"
    SRDS = _PREFIX + "envoy.config.route.v3.ScopedRouteConfiguration"
    RDS = _PREFIX + "envoy.config.route.v3.RouteConfiguration"


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: `body` is the serialised message, the content of the Any that travels.

    `endpoints` is set on a cluster that takes its endpoints from EDS: the name of that EDS resource. A
    cluster that changes waits for its endpoints without asking for them again, so both must be sent.

    `ttl` is in seconds: a client that understands it drops the resource when nobody renews it for so long.
    `wire` is for `wire.py`, which keeps there what it made of the other fields.
    """

    name: str
    type_url: str
    version: str
    body: bytes
    endpoints: str = ""
    ttl: float | None = None
    wire: bytes = field(default=b"", compare=False, repr=False)

    def keep_wire(self, wire: bytes) -> None:
        object.__setattr__(self, "wire", wire)


def resource(name: str, message: Any, ttl: float | None = None) -> Resource:
    """Serialise a protobuf message into a Resource.

    `name` must be what the message calls itself; clients look resources up by it.
    """
    body: bytes = message.SerializeToString(deterministic=True)
    type_url = _PREFIX + message.DESCRIPTOR.full_name
    endpoints = ""
    if type_url == TypeUrl.CDS and message.type == message.EDS:
        endpoints = message.eds_cluster_config.service_name or message.name
    hashed = body if ttl is None else body + str(ttl).encode()
    return Resource(name, type_url, blake2b(hashed, digest_size=8).hexdigest(), body, endpoints, ttl)


def version_of(resources: Iterable[Resource]) -> str:
    """One version for all of these: a hash of their names and versions, whatever their order."""
    listed = sorted((item.name, item.version) for item in resources)
    return blake2b(repr(listed).encode(), digest_size=8).hexdigest()


_NOTHING: Mapping[str, Resource] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every resource that should be in force: type → name → resource. Never changed once made."""

    types: Mapping[str, Mapping[str, Resource]] = field(default_factory=dict)
    _versions: dict[str, str] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def of_resources(cls, resources: Iterable[Resource]) -> Snapshot:
        """Sort resources by type. Raises DuplicateResourceError when two share type and name."""
        types: dict[str, dict[str, Resource]] = {}
        for item in resources:
            named = types.setdefault(item.type_url, {})
            if item.name in named:
                raise DuplicateResourceError(
                    f"two resources of type {item.type_url} are named {item.name!r}",
                    hint="this is a bug in Penstock: please report it",
                )
            named[item.name] = item
        return cls(types)

    def of(self, type_url: str) -> Mapping[str, Resource]:
        return self.types.get(type_url, _NOTHING)

    def get(self, type_url: str, name: str) -> Resource | None:
        return self.of(type_url).get(name)

    def version(self, type_url: str) -> str:
        """The version of a type as a whole; the same content has the same."""
        found = self._versions.get(type_url)
        if found is None:
            found = self._versions[type_url] = version_of(self.of(type_url).values())
        return found

    def with_types(self, types: Mapping[str, Mapping[str, Resource]]) -> Snapshot:
        """This snapshot with some types replaced; the others are shared, so comparing them costs nothing."""
        return Snapshot({**self.types, **types})

    def changes(self, older: Snapshot, type_url: str) -> set[str]:
        """Names of one type that were added, changed or removed since `older`."""
        new, old = self.of(type_url), older.of(type_url)
        if new is old:
            return set()
        changed = {name for name in old if name not in new}
        for name, item in new.items():
            before = old.get(name)
            if before is not item and (before is None or before.version != item.version):
                changed.add(name)
        return changed
