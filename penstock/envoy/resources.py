"""The route model as Envoy resources: a pure function, with a memory of what the last model gave.

Keys of the result are xDS type URLs, then resource names.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2, scoped_route_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf.message import Message

from penstock.envoy import clusters, edge, edge_tls, listeners, mirrors, names, routes, server_names
from penstock.envoy.protos import Joined
from penstock.routing.model import ListenerKind, ProxyCluster, ProxyModel, Rights
from penstock.world import Settings

T = TypeVar("T")

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


class Builder(Generic[T]):
    """Builds models one after the other; what did not change since the last one is not built again.

    `seal` (name, message) turns a message into what is kept of it and handed out: bytes take a twentieth of
    the memory of messages.
    """

    def __init__(self, settings: Settings, seal: Callable[[str, Message | Joined], T]) -> None:
        self._source_ports = settings.proxy_source_ports
        self._seal = seal
        self._last: dict[Hashable, T] = {}

    def beside(self, model: ProxyModel) -> dict[str, dict[str, T]]:
        """The endpoints and route tables of `model`, which hardly differs from the last one that was built
        and does not take its place."""
        last = self._last
        try:
            made = self.build(model)
        finally:
            self._last = last
        return {kind: made[kind] for kind in (ENDPOINT, ROUTE)}

    def build(self, model: ProxyModel) -> dict[str, dict[str, T]]:
        """Everything that Envoy must hold for `model`. The same model gives the same bytes."""
        last, now = self._last, dict[Hashable, T]()
        ports = self._source_ports
        result: dict[str, dict[str, T]] = {
            kind: {} for kind in (CLUSTER, ENDPOINT, LISTENER, SCOPED_ROUTE, ROUTE)
        }

        def add(kind: str, name: str, make: Callable[..., Message | Joined], *args: Hashable) -> None:
            key = (make, *args)
            made = last.get(key)
            result.setdefault(kind, {})[name] = now[key] = (
                self._seal(name, make(*args)) if made is None else made
            )

        servers = clusters.servers(model.workloads)
        add(CLUSTER, names.WORKLOADS, clusters.workloads, servers, ports)
        add(ENDPOINT, names.WORKLOADS, clusters.assignment, names.WORKLOADS, model.workloads)
        for cluster in model.clusters:
            _add_cluster(add, cluster, ports)
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
        return result


def _add_cluster(add: Callable[..., None], cluster: ProxyCluster, ports: tuple[int, int]) -> None:
    """A cluster of the model with its endpoints."""
    servers, name, traffic = clusters.servers(cluster.endpoints), cluster.name, cluster.traffic
    assignment: Callable[..., Message] = clusters.assignment
    if cluster.stream:
        add(CLUSTER, name, clusters.stream, name, servers, ports, cluster.source, cluster.tls)
    elif cluster.helper:
        protocol = clusters.Protocol.HTTP2 if cluster.http2 else clusters.Protocol.HTTP1
        add(CLUSTER, name, clusters.helper, name, protocol, ports)
    else:
        how: tuple[Hashable, ...] = (cluster.source, cluster.tls, traffic)
        while how and how[-1] is None:
            how = how[:-1]
        protocol = clusters.Protocol.HTTP2 if cluster.http2 else clusters.Protocol.HTTP1
        add(CLUSTER, name, clusters.service, name, protocol, servers, ports, *how)
        if traffic is not None and traffic.probe is not None:
            assignment = clusters.probed_assignment
    add(ENDPOINT, name, assignment, name, cluster.endpoints)


def _of(source: int, rights: tuple[Rights, ...]) -> tuple[Rights, ...]:
    """Those that a source class has."""
    return tuple(item for item in rights if item.sources is None or source in item.sources)


def _as_is(_: str, message: Message | Joined) -> Message:
    return message.whole() if isinstance(message, Joined) else message


def build(model: ProxyModel, settings: Settings) -> Mapping[str, Mapping[str, Message]]:
    """One model by itself, as messages."""
    return Builder(settings, _as_is).build(model)
