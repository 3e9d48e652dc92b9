"""The route model as Envoy resources: a pure function, with a memory of what the last model gave.

Keys of the result are xDS type URLs, then resource names.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2, scoped_route_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf.message import Message

from penstock.collection import uncollected
from penstock.envoy import (
    assignments,
    clusters,
    edge,
    edge_tls,
    listeners,
    mirrors,
    names,
    over_mesh,
    routes,
    server_names,
)
from penstock.envoy.protos import Made, Named
from penstock.routing.model import ListenerKind, ProxyCluster, ProxyModel, Rights
from penstock.world import Settings

T = TypeVar("T")

_MOST_PATTERNS = 256

_BY_NAME = (ListenerKind.NAMES, ListenerKind.TLS_NAMES, ListenerKind.NAMES_AUDIT)
_TO_WORKLOADS = (ListenerKind.HTTP_WORKLOAD, ListenerKind.TLS_HTTP)


def type_url(message: type[Message]) -> str:
    return f"type.googleapis.com/{message.DESCRIPTOR.full_name}"


CLUSTER = type_url(cluster_pb2.Cluster)
ENDPOINT = type_url(endpoint_pb2.ClusterLoadAssignment)
LISTENER = type_url(listener_pb2.Listener)
ROUTE = type_url(route_pb2.RouteConfiguration)
SECRET = type_url(secret_pb2.Secret)
SCOPED_ROUTE = type_url(scoped_route_pb2.ScopedRouteConfiguration)


@dataclass(frozen=True, slots=True)
class _Cluster(Generic[T]):
    """A cluster of the model, and what was made of it in which way."""

    cluster: ProxyCluster
    way: tuple[Any, ...]
    made: T
    endpoints: tuple[Any, ...]
    assigned: T


class Builder(Generic[T]):
    """Builds models one after the other; what did not change since the last one is not built again.

    `seal` (name, message) turns a message into what is kept of it and handed out: bytes take a twentieth of
    the memory of messages.
    """

    def __init__(self, settings: Settings, seal: Callable[[str, Made], T]) -> None:
        self._source_ports = settings.proxy_source_ports
        self._seal = seal
        self._last: dict[Hashable, T] = {}
        self._clusters: dict[str, _Cluster[T]] = {}
        self._result: dict[str, dict[str, T]] = {}
        self._patterns: dict[tuple[Any, ...], tuple[Message, bytes]] = {}

    def beside(self, model: ProxyModel) -> dict[str, dict[str, T]]:
        """The endpoints and route tables of `model`, which hardly differs from the last one that was built
        and does not take its place."""
        kept = self._last, self._clusters, self._result
        try:
            made = self.build(model)
        finally:
            self._last, self._clusters, self._result = kept
        return {kind: made[kind] for kind in (ENDPOINT, ROUTE)}

    @uncollected
    def build(self, model: ProxyModel) -> dict[str, dict[str, T]]:
        """Everything that Envoy must hold for `model`. The same model gives the same bytes."""
        last, now = self._last, dict[Hashable, T]()
        ports = self._source_ports
        result: dict[str, dict[str, T]] = {
            kind: {} for kind in (CLUSTER, ENDPOINT, LISTENER, SCOPED_ROUTE, ROUTE)
        }

        def add(kind: str, name: str, make: Callable[..., Made], *args: Hashable) -> None:
            key = (make, *args)
            made = last.get(key)
            result.setdefault(kind, {})[name] = now[key] = (
                self._seal(name, make(*args)) if made is None else made
            )

        servers = clusters.servers(model.workloads)
        add(CLUSTER, names.WORKLOADS, clusters.workloads, servers, ports)
        add(ENDPOINT, names.WORKLOADS, assignments.assignment, names.WORKLOADS, model.workloads)
        known, self._clusters = self._clusters, {}
        for cluster in model.clusters:
            name = cluster.name
            self._clusters[name] = found = self._cluster(cluster, known.get(name))
            result[CLUSTER][name], result[ENDPOINT][name] = found.made, found.assigned
        self._over_mesh(model, add)
        add(CLUSTER, names.ORIGINAL_DST, clusters.original_dst, names.ORIGINAL_DST, ports)
        for server_id in sorted({item.server_id for item in model.listeners if item.server_id}):
            name = names.mtls_cluster(server_id)
            add(CLUSTER, name, clusters.original_dst, name, ports, server_id)
        at_edge = {each.name: each for each in model.edge}
        for listener in model.listeners:
            if listener.kind is ListenerKind.GATEWAY:
                where = at_edge[listener.edge]
                add(LISTENER, listener.name, edge.steered, listener, where, model.edge_secrets)
            elif listener.kind in _BY_NAME:
                add(LISTENER, listener.name, server_names.listener, listener)
                if listener.kind is ListenerKind.TLS_NAMES:
                    inside = server_names.inside(listener)
                    add(CLUSTER, inside, server_names.inner_cluster, listener)
                    add(LISTENER, inside, server_names.inner_listener, listener)
            else:
                add(LISTENER, listener.name, listeners.listener, listener)
        for table in model.services:
            add(SCOPED_ROUTE, table.name, routes.scope, table.name, table.address, table.port)
            add(ROUTE, table.name, routes.service, table)
        if model.mirrored:
            add(CLUSTER, names.MIRRORS, mirrors.cluster)
            add(LISTENER, names.MIRRORS, mirrors.listener)
            more = () if model.mirror_audit is None else (model.mirror_audit,)
            add(ROUTE, names.MIRRORS, mirrors.table, model.mirror_rights, *more)
        for source in sorted({item.source_class for item in model.listeners if item.kind in _TO_WORKLOADS}):
            rights = _of(source, model.workload_rights)
            audit = None if model.workload_audit is None else _of(source, model.workload_audit)
            # Without a difference the table is the one that it is without any audit.
            more = () if audit in (None, rights) else (audit,)
            add(ROUTE, names.workloads_table(source), routes.workloads, source, rights, *more)
        for each in model.edge:
            add(LISTENER, each.name, edge.listener, each, model.edge_secrets)
        for hosts in model.tables:
            add(ROUTE, hosts.name, edge.table, hosts)
        for certificate in model.certificates:
            add(SECRET, certificate.name, edge_tls.certificate, certificate)
        for authority in model.authorities:
            add(SECRET, authority.name, edge_tls.authorities, authority)
        self._last = now
        # The very same where nothing is another: nobody need look for what has changed there.
        self._result = {
            kind: before if (before := self._result.get(kind)) == made else made
            for kind, made in result.items()
        }
        return dict(self._result)

    def _over_mesh(self, model: ProxyModel, add: Callable[..., None]) -> None:
        """What carries backends' own TLS inside mesh TLS. The listeners are there before the first endpoint
        needs one, for endpoints are told before listeners."""
        own = [each for each in model.clusters if each.tls is not None]
        for listener in (names.OVER_MESH, names.OVER_MESH_OWN) if own else ():
            add(LISTENER, listener, over_mesh.borrowing if listener == names.OVER_MESH else over_mesh.own)
        found = {
            (way.cluster(server), server, way)
            for each in own
            if (way := _over(each)) is not None
            for server in clusters.servers(each.endpoints)
        }
        for name, server, way in sorted(found, key=lambda each: each[0]):
            make = clusters.original_dst if way.judged else clusters.original_dst_stream
            add(CLUSTER, name, make, name, self._source_ports, server, way.source)

    def _cluster(self, cluster: ProxyCluster, known: _Cluster[T] | None) -> _Cluster[T]:
        """A cluster with its endpoints. There are thousands, most of them the very same as before."""
        if known is not None and known.cluster is cluster:
            return known
        name = cluster.name
        assign = assignments.probed_assignment if _probed(cluster) else assignments.assignment
        over = _over(cluster)
        way, endpoints = _way_of(cluster, self._source_ports), (assign, cluster.endpoints, over)
        if known is not None and known.way == way:
            made = known.made
        else:
            made = self._seal(name, self._patterned(name, way))
        if known is not None and known.endpoints == endpoints:
            assigned = known.assigned
        else:
            assigned = self._seal(name, assign(name, cluster.endpoints, over))
        return _Cluster(cluster, way, made, endpoints, assigned)

    def _patterned(self, name: str, way: tuple[Any, ...]) -> Named:
        """Of clusters that are made in the same way each is like the first but for its name."""
        found = self._patterns.get(way)
        if found is None:
            make, *arguments = way
            pattern = make("", *arguments)
            if len(self._patterns) > _MOST_PATTERNS:
                self._patterns.clear()
            found = self._patterns[way] = (pattern, pattern.SerializeToString(deterministic=True))
        return Named(name, *found)


def _way_of(cluster: ProxyCluster, ports: tuple[int, int]) -> tuple[Any, ...]:
    """What makes a cluster of the model, and from what besides its name."""
    servers, traffic = clusters.servers(cluster.endpoints), cluster.traffic
    if cluster.stream:
        return clusters.stream, servers, ports, cluster.source, cluster.tls
    protocol = clusters.Protocol.HTTP2 if cluster.http2 else clusters.Protocol.HTTP1
    if cluster.helper:
        return clusters.helper, protocol, ports
    return clusters.service, protocol, servers, ports, cluster.source, cluster.tls, traffic


def _over(cluster: ProxyCluster) -> assignments.Over | None:
    """How its endpoints of mesh TLS are reached, if they have a TLS of their own."""
    return None if cluster.tls is None else assignments.Over(cluster.source, judged=not cluster.stream)


def _probed(cluster: ProxyCluster) -> bool:
    """Whether Envoy asks its endpoints for their health."""
    traffic = cluster.traffic
    return not (cluster.stream or cluster.helper) and traffic is not None and traffic.probe is not None


def _of(source: int, rights: tuple[Rights, ...]) -> tuple[Rights, ...]:
    """Those that a source class has."""
    return tuple(item for item in rights if item.sources is None or source in item.sources)


def _as_is(_: str, message: Made) -> Message:
    return message if isinstance(message, Message) else message.whole()


def build(model: ProxyModel, settings: Settings) -> Mapping[str, Mapping[str, Message]]:
    """One model by itself, as messages."""
    return Builder(settings, _as_is).build(model)
