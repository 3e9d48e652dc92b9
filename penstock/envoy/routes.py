"""Route tables (RDS) and the scopes that choose them by the dialled address (SRDS).

A table carries its rights with it, so that a change of routes or of rules holds for the next request on
a connection that is already open.
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2 as components
from envoy.config.route.v3 import route_pb2, scoped_route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from google.protobuf import wrappers_pb2

from penstock.envoy import names, rbac
from penstock.envoy.protos import pack, seconds
from penstock.routing.model import Rights, Route, RouteBackend, RouteMatch, ServiceTable, StringMatch
from penstock.world import Address

_Action = components.RouteAction


def _string(match: StringMatch) -> string_pb2.StringMatcher:
    if match.kind == "exact":
        return string_pb2.StringMatcher(exact=match.value)
    if match.kind == "prefix":
        return string_pb2.StringMatcher(prefix=match.value)
    return rbac.regex(match.value)


def _match(match: RouteMatch) -> components.RouteMatch:
    headers = [
        components.HeaderMatcher(name=name, string_match=_string(value)) for name, value in match.headers
    ]
    if match.method is not None:
        exact = string_pb2.StringMatcher(exact=match.method)
        headers.append(components.HeaderMatcher(name=":method", string_match=exact))
    result = components.RouteMatch(
        headers=headers,
        query_parameters=[
            components.QueryParameterMatcher(name=name, string_match=_string(value))
            for name, value in match.query
        ],
    )
    value = match.path.value
    if match.path.kind == "exact":
        result.path = value
    elif match.path.kind == "regex":
        result.safe_regex.CopyFrom(regex_pb2.RegexMatcher(regex=value))
    elif segments := value.rstrip("/"):
        result.path_separated_prefix = segments
    else:
        result.prefix = "/"
    return result


def _action(backends: tuple[RouteBackend, ...]) -> components.RouteAction:
    """Shares of zero get nothing; what is left without a cluster answers 500 for just its share."""
    shares = [
        (backend.cluster or names.NO_BACKEND, backend.weight) for backend in backends if backend.weight > 0
    ]
    action = _Action(
        timeout=seconds(0),
        cluster_not_found_response_code=_Action.ClusterNotFoundResponseCode.INTERNAL_SERVER_ERROR,
    )
    if len(shares) > 1:
        action.weighted_clusters.CopyFrom(
            components.WeightedCluster(
                clusters=[
                    components.WeightedCluster.ClusterWeight(
                        name=cluster, weight=wrappers_pb2.UInt32Value(value=weight)
                    )
                    for cluster, weight in shares
                ]
            )
        )
    else:
        action.cluster = shares[0][0] if shares else names.NO_BACKEND
    return action


def _table(
    name: str, routes: Iterable[components.Route], rights: tuple[Rights, ...]
) -> route_pb2.RouteConfiguration:
    return route_pb2.RouteConfiguration(
        name=name,
        virtual_hosts=[components.VirtualHost(name=name, domains=["*"], routes=routes)],
        request_headers_to_remove=[names.DESTINATION_HEADER],
        typed_per_filter_config={
            names.RIGHTS_FILTER: pack(rbac_pb2.RBACPerRoute(rbac=rbac.rules(rights))),
        },
    )


def _route(route: Route) -> components.Route:
    return components.Route(name=route.name, match=_match(route.match), route=_action(route.backends))


def service(table: ServiceTable) -> route_pb2.RouteConfiguration:
    return _table(table.name, map(_route, table.routes), table.rights)


def scope(name: str, address: Address, port: int) -> scoped_route_pb2.ScopedRouteConfiguration:
    """Says which table serves requests to the virtual address."""
    key = scoped_route_pb2.ScopedRouteConfiguration.Key(
        fragments=[
            scoped_route_pb2.ScopedRouteConfiguration.Key.Fragment(string_key=names.host_port(address, port))
        ]
    )
    return scoped_route_pb2.ScopedRouteConfiguration(name=name, route_configuration_name=name, key=key)


def workloads(source_class: int, rights: tuple[Rights, ...]) -> route_pb2.RouteConfiguration:
    """The table for requests of a source class to a workload's own address: no routing, only rights."""
    route = components.Route(
        name=names.WORKLOADS,
        match=components.RouteMatch(prefix="/"),
        route=_Action(cluster=names.WORKLOADS, timeout=seconds(0)),
    )
    return _table(names.workloads_table(source_class), [route], rights)


def destination_header() -> base_pb2.HeaderValueOption:
    """Overwrites the header that carries the dialled address."""
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=names.DESTINATION_HEADER, value="%DOWNSTREAM_LOCAL_ADDRESS%"),
        append_action=base_pb2.HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )
