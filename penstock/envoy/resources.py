"""The route model as Envoy resources: a pure function, with a memory of what the last model gave.

Keys of the result are xDS type URLs, then resource names. Messages must not be changed by their
receivers: the next build hands out the same ones for what stayed the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2, scoped_route_pb2
from google.protobuf.message import Message

from penstock.envoy import clusters, listeners, names, routes
from penstock.routing.model import ProxyModel
from penstock.world import Settings

Resources = Mapping[str, Mapping[str, Message]]


def type_url(message: type[Message]) -> str:
    return f"type.googleapis.com/{message.DESCRIPTOR.full_name}"


CLUSTER = type_url(cluster_pb2.Cluster)
ENDPOINT = type_url(endpoint_pb2.ClusterLoadAssignment)
LISTENER = type_url(listener_pb2.Listener)
ROUTE = type_url(route_pb2.RouteConfiguration)
SCOPED_ROUTE = type_url(scoped_route_pb2.ScopedRouteConfiguration)


class Builder:
    """Builds models one after the other; what did not change since the last one is not built again."""

    def __init__(self, settings: Settings) -> None:
        self._source_ports = settings.proxy_source_ports
        self._last: dict[Hashable, Message] = {}

    def build(self, model: ProxyModel) -> Resources:
        """Everything that Envoy must hold for `model`. The same model gives the same bytes."""
        last, now = self._last, dict[Hashable, Message]()
        ports = self._source_ports

        def once(make: Callable[..., Message], *args: Hashable) -> Message:
            key = (make, *args)
            made = last.get(key)
            now[key] = make(*args) if made is None else made
            return now[key]

        demanded = {item.server_id for item in model.listeners if item.server_id is not None}
        result = {
            CLUSTER: {
                names.ORIGINAL_DST: once(clusters.original_dst, names.ORIGINAL_DST, ports),
                names.WORKLOADS: once(clusters.workloads, clusters.servers(model.workloads), ports),
            },
            ENDPOINT: {
                names.WORKLOADS: once(clusters.assignment, names.WORKLOADS, model.workloads, True),
            },
            LISTENER: {item.name: once(listeners.listener, item) for item in model.listeners},
            SCOPED_ROUTE: {
                item.name: once(routes.scope, item.name, item.address, item.port) for item in model.services
            },
            ROUTE: {item.name: once(routes.service, item) for item in model.services},
        }
        for server_id in sorted(demanded):
            name = names.mtls_cluster(server_id)
            result[CLUSTER][name] = once(clusters.original_dst, name, ports, server_id)
        for item in model.clusters:
            demands = clusters.servers(item.endpoints)
            result[CLUSTER][item.name] = once(clusters.service, item.name, item.http2, demands, ports)
            result[ENDPOINT][item.name] = once(clusters.assignment, item.name, item.endpoints)
        result[ROUTE][names.WORKLOADS] = once(routes.workloads, model.workload_rights)
        self._last = now
        return result


def build(model: ProxyModel, settings: Settings) -> Resources:
    """One model by itself."""
    return Builder(settings).build(model)
