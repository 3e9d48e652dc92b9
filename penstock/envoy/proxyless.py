"""Services for gRPC's own xDS client (`xds:///NAME`), which balances by itself, without a proxy.

Each TCP port of a Service is a target `SERVICE.NAMESPACE.svc:PORT`, also with `.svc.cluster.local`. What
routes attached to the Service say of paths, headers, weights, timeouts and retries holds here too, as far as
gRPC can do it; routes for clients of one namespace are left out, since nobody says what namespace a client is
of. No right is granted with it: the connection to an endpoint is the client's own, and the kernel judges it
like any other.

Source: gRPC proposals A27 (xDS), A28 (routing), A31 (timeouts), A44 (retries).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import api_listener_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2 as components
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from penstock.envoy.protos import ADS, pack, seconds
from penstock.routing.mesh import RouteTable
from penstock.routing.model import Route, RouteMatch, StringMatch
from penstock.routing.services import ServedPort

T = TypeVar("T")

_RETRY_ON = "unavailable,resource-exhausted,cancelled,deadline-exceeded,internal"
_Endpoints = tuple[tuple[str, int], ...]


def targets(service: str, namespace: str, port: int) -> tuple[str, str]:
    """What a client may call the port of a Service; the first is its table of routes too."""
    return f"{service}.{namespace}.svc:{port}", f"{service}.{namespace}.svc.cluster.local:{port}"


def _cluster_name(served: ServedPort) -> str:
    """Of both families: the client takes what it can reach."""
    return f"{served.document.key.namespace}/{served.document.key.name}:{served.port.port}"


def _listener(name: str, table: str) -> listener_pb2.Listener:
    manager = hcm_pb2.HttpConnectionManager(
        rds=hcm_pb2.Rds(config_source=ADS, route_config_name=table),
        http_filters=[
            hcm_pb2.HttpFilter(name="envoy.filters.http.router", typed_config=pack(router_pb2.Router()))
        ],
    )
    return listener_pb2.Listener(
        name=name, api_listener=api_listener_pb2.ApiListener(api_listener=pack(manager))
    )


def _cluster(name: str) -> cluster_pb2.Cluster:
    return cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.DiscoveryType.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=ADS),
        lb_policy=cluster_pb2.Cluster.LbPolicy.ROUND_ROBIN,
    )


def _assignment(name: str, endpoints: _Endpoints) -> endpoint_pb2.ClusterLoadAssignment:
    made = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    if endpoints:
        # A locality without a weight gets nothing (A27).
        place = made.endpoints.add(load_balancing_weight=wrappers_pb2.UInt32Value(value=1))
        place.locality.zone = "node"
        for address, port in endpoints:
            host = place.lb_endpoints.add().endpoint.address.socket_address
            host.address, host.port_value = address, port
    return made


def _match(match: RouteMatch) -> components.RouteMatch:
    made = components.RouteMatch()
    value = match.path.value
    if match.path.kind == "exact":
        made.path = value
    elif match.path.kind == "regex":
        made.safe_regex.CopyFrom(regex_pb2.RegexMatcher(regex=value))
    elif prefix := value.rstrip("/"):
        made.safe_regex.CopyFrom(regex_pb2.RegexMatcher(regex=f"{re.escape(prefix)}(/.*)?"))
    else:
        made.prefix = ""
    for name, wanted in match.headers:
        header = made.headers.add(name=name)
        header.string_match.CopyFrom(_string(wanted))
    return made


def _string(match: StringMatch) -> string_pb2.StringMatcher:
    if match.kind == "exact":
        return string_pb2.StringMatcher(exact=match.value)
    return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=match.value))


def _route(route: Route, clusters: Mapping[str, str]) -> components.Route:
    made = components.Route(name=route.name, match=_match(route.match))
    named = [(clusters.get(b.cluster or ""), b.weight) for b in route.backends]
    shares = [(cluster, weight) for cluster, weight in named if cluster and weight]
    does = route.actions
    if does.redirect is not None or does.missing or not shares:
        # gRPC fails the call: UNAVAILABLE.
        made.non_forwarding_action.SetInParent()
        return made
    for cluster, weight in shares:
        made.route.weighted_clusters.clusters.add(name=cluster, weight=wrappers_pb2.UInt32Value(value=weight))
    if does.timeout is not None:
        made.route.max_stream_duration.max_stream_duration.CopyFrom(seconds(does.timeout / 1000))
    if does.retry is not None:
        made.route.retry_policy.retry_on = _RETRY_ON
        made.route.retry_policy.num_retries.CopyFrom(wrappers_pb2.UInt32Value(value=does.retry.attempts))
    return made


def _table(name: str, routes: Iterable[components.Route]) -> route_pb2.RouteConfiguration:
    host = components.VirtualHost(name=name, domains=["*"], routes=routes)
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])


def _plain(name: str, cluster: str) -> route_pb2.RouteConfiguration:
    route = components.Route(
        match=components.RouteMatch(prefix=""), route=components.RouteAction(cluster=cluster)
    )
    return _table(name, [route])


def _routed(
    name: str, routes: tuple[Route, ...], clusters: tuple[tuple[str, str], ...]
) -> route_pb2.RouteConfiguration:
    """A call is a POST, which is all that a match of methods says; queries a call has none."""
    fit = [r for r in routes if r.match.namespace is None and r.match.method in (None, "POST")]
    return _table(name, [_route(r, dict(clusters)) for r in _whole(fit) if not r.match.query])


def _whole(routes: Iterable[Route]) -> list[Route]:
    """Routes that share a rule as one: gRPC draws for each of them anew, and takes no filters."""
    found: list[Route] = []
    open_ = False
    for route in routes:
        if open_:
            found[-1] = replace(found[-1], backends=found[-1].backends + route.backends)
        else:
            redirect = None if route.match.below is not None else route.actions.redirect
            found.append(replace(route, actions=replace(route.actions, redirect=redirect)))
        open_ = route.match.below is not None
    return found


class Proxyless(Generic[T]):
    """Builds one state after the other; `seal` (name, message) makes of a message what is kept."""

    def __init__(self, seal: Callable[[str, Message], T]) -> None:
        self._seal = seal
        self._last: dict[Hashable, T] = {}

    def build(self, served: Iterable[ServedPort], tables: Iterable[RouteTable]) -> Iterator[T]:
        """Every resource of every TCP port. The same Services and routes give the same bytes."""
        last, now = self._last, dict[Hashable, T]()
        routed = {table.served.name: table for table in tables if not table.plain}
        ports: dict[str, list[ServedPort]] = {}
        for each in served:
            if each.port.protocol == "TCP":
                ports.setdefault(_cluster_name(each), []).append(each)

        def made(name: str, make: Callable[..., Message], *arguments: Hashable) -> T:
            key = (make, *arguments)
            found = last.get(key)
            now[key] = self._seal(name, make(*arguments)) if found is None else found
            return now[key]

        for cluster, families in ports.items():
            key, port = families[0].document.key, families[0].port.port
            names = targets(key.name, key.namespace, port)
            for name in names:
                yield made(name, _listener, name, names[0])
            table = next((routed[f.name] for f in families if f.name in routed), None)
            if table is None:
                yield made(names[0], _plain, names[0], cluster)
            else:
                known = tuple(sorted((s.name, _cluster_name(s)) for s in table.clusters))
                yield made(names[0], _routed, names[0], table.routes, known)
            yield made(cluster, _cluster, cluster)
            backends = tuple((str(b.address), b.port) for f in families for b in f.backends)
            yield made(cluster, _assignment, cluster, backends)
        self._last = now
