"""The endpoints of EDS clusters, written as bytes.

There may be tens of thousands, and of each little differs from the others: to build a message of it takes ten
times as long as to write what protobuf would make of that (tests/unit/test_envoy_resources.py compares them).

Source: envoy/config/endpoint/v3/endpoint.proto and endpoint_components.proto (the field numbers).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from envoy.config.endpoint.v3 import endpoint_pb2

from penstock.envoy import names
from penstock.envoy.protos import Written, delimited, number
from penstock.routing.model import ProxyEndpoint
from penstock.world import Address, address_text

_NOT_PROBED = delimited(2, number(4, 1))
"""Endpoint.health_check_config.disable_active_health_check."""


@dataclass(frozen=True, slots=True)
class Over:
    """How a backend's own TLS goes inside mesh TLS: from which address (None: the client's), and whether what
    it carries was `judged` here."""

    source: Address | None
    judged: bool

    @property
    def listener(self) -> str:
        return names.OVER_MESH if self.source is None else names.OVER_MESH_OWN

    def cluster(self, server_id: str) -> str:
        return names.mtls_cluster(server_id, self.source, judged=self.judged)


def assignment(
    name: str, endpoints: Iterable[ProxyEndpoint], over: Over | None = None, *, probed: bool = False
) -> Written:
    """The endpoints of an EDS cluster, in the order of the model; weight 0 gets no requests.

    Each carries its address as metadata too, by which the workloads cluster picks it. Where endpoints are
    `probed`, those of mesh TLS are not. With `over` those of mesh TLS have a TLS of their own in it.
    """
    served: dict[int, list[bytes]] = {}
    for endpoint in endpoints:
        if endpoint.weight > 0:
            asked = not probed or endpoint.server_id is None
            inside = over is not None and endpoint.server_id is not None
            host = _inside(endpoint, over) if inside and over else _host(endpoint, asked=asked)
            served.setdefault(endpoint.priority, []).append(delimited(2, host))
    parts = [delimited(1, name.encode())]
    for priority in sorted(served):
        group = b"".join(served[priority])
        parts.append(delimited(2, group + number(5, priority) if priority else group))
    return Written(endpoint_pb2.ClusterLoadAssignment, b"".join(parts))


def probed_assignment(name: str, endpoints: Iterable[ProxyEndpoint], over: Over | None = None) -> Written:
    """The same for a cluster with health checks."""
    return assignment(name, endpoints, over, probed=True)


def _host(endpoint: ProxyEndpoint, *, asked: bool) -> bytes:
    """An LbEndpoint. Entries of maps are in the order of their keys, as deterministic bytes must be."""
    text, port = address_text(endpoint.address), endpoint.port
    address = text.encode()
    named = delimited(3, address)
    socket = b"\x12" + named[1:] + _number(3, port) if port else b"\x12" + named[1:]
    where = delimited(1, delimited(1, socket)) + (b"" if asked else _NOT_PROBED) + named
    shown = f"[{text}]:{port}" if endpoint.address.version == 6 else f"{text}:{port}"
    metadata = _told(names.METADATA_LB, names.METADATA_ADDRESS, shown)
    if endpoint.server_id is not None:
        metadata += _told(names.METADATA_TLS, names.METADATA_PEER, endpoint.server_id)
    metadata += _told(names.METADATA, names.METADATA_CLASS, endpoint.policy_class)
    return delimited(1, where) + delimited(3, metadata) + _weight(endpoint.weight)


def _inside(endpoint: ProxyEndpoint, over: Over) -> bytes:
    """The same for one that is reached by way of a listener in user space (`penstock.envoy.over_mesh`)."""
    shown = names.host_port(endpoint.address, endpoint.port)
    internal = delimited(1, over.listener.encode()) + delimited(2, shown.encode())
    where = delimited(1, delimited(3, internal)) + _NOT_PROBED
    where += delimited(3, address_text(endpoint.address).encode())
    assert endpoint.server_id is not None
    metadata = _told(names.METADATA_ORIGINAL_DST, names.METADATA_LOCAL, shown)
    metadata += _told(names.METADATA_LB, names.METADATA_ADDRESS, shown)
    metadata += _told(names.METADATA_TLS, names.METADATA_OVER, "mesh")
    metadata += _told(names.METADATA_OVER_MESH, names.METADATA_CLUSTER, over.cluster(endpoint.server_id))
    metadata += _told(names.METADATA, names.METADATA_CLASS, endpoint.policy_class)
    return delimited(1, where) + delimited(3, metadata) + _weight(endpoint.weight)


def _told(of: str, key: str, value: str) -> bytes:
    """An entry of Metadata.filter_metadata: a Struct of one text."""
    raw = value.encode()
    return _before(of, key, len(raw)) + raw


@lru_cache(maxsize=4096)
def _before(of: str, key: str, size: int) -> bytes:
    """All of such an entry but the text, which stands at its end and has this size."""
    text = bytes(size)
    fields = delimited(1, delimited(1, key.encode()) + delimited(2, delimited(3, text)))
    whole = delimited(1, delimited(1, of.encode()) + delimited(2, fields))
    return whole[: len(whole) - size]


_number = lru_cache(maxsize=4096)(number)


@lru_cache(maxsize=256)
def _weight(weight: int) -> bytes:
    return delimited(4, number(1, weight))
