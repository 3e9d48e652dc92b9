"""Route tables (RDS) and the scopes that choose them by the dialled address (SRDS).

A table carries its rights with it, so that a change of routes or of rules holds for the next request on
a connection that is already open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2 as components
from envoy.config.route.v3 import route_pb2, scoped_route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import any_pb2, wrappers_pb2

from penstock.envoy import actions, names, rbac, treatments
from penstock.envoy.protos import pack, seconds
from penstock.routing.actions import NO_ACTIONS, Actions, Redirect
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
    if match.namespace is not None:
        clients = string_pb2.StringMatcher(exact=match.namespace)
        result.filter_state.add(key=names.SOURCE_NAMESPACE_STATE, string_match=clients)
    if match.below is not None:
        draw = percent_pb2.FractionalPercent(
            numerator=match.below, denominator=percent_pb2.FractionalPercent.DenominatorType.MILLION
        )
        result.runtime_fraction.default_value.CopyFrom(draw)
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


def _share(backend: RouteBackend, rule: Actions) -> components.WeightedCluster.ClusterWeight:
    """With the rule's changes of headers: Envoy would apply those of a route after those of a share."""
    share = components.WeightedCluster.ClusterWeight(
        name=backend.cluster or names.NO_BACKEND,
        weight=wrappers_pb2.UInt32Value(value=backend.weight),
        host_rewrite_literal=backend.hostname or "",
    )
    actions.change_headers(share, rule.request.then(backend.request), rule.response.then(backend.response))
    return share


def _alike(route: Route) -> bool:
    """Whether all shares are treated alike."""
    return all(b == RouteBackend(b.cluster, b.weight) for b in route.backends)


def _action(route: Route) -> components.RouteAction:
    """Shares of zero get nothing; what is left without a cluster answers 500 for just its share."""
    backends = [backend for backend in route.backends if backend.weight > 0]
    codes = _Action.ClusterNotFoundResponseCode
    # To a gRPC client Envoy tells a 503 as UNAVAILABLE, a 500 as UNKNOWN.
    code = codes.SERVICE_UNAVAILABLE if route.grpc else codes.INTERNAL_SERVER_ERROR
    action = _Action(cluster_not_found_response_code=code)
    if not backends:
        action.cluster = names.NO_BACKEND
    elif len(backends) == 1 and _alike(route):
        action.cluster = backends[0].cluster or names.NO_BACKEND
    else:
        common = NO_ACTIONS if _alike(route) else route.actions
        action.weighted_clusters.CopyFrom(
            components.WeightedCluster(clusters=[_share(backend, common) for backend in backends])
        )
    actions.act(action, route.actions, route.match.path)
    return action


def table(
    name: str,
    routes: Iterable[components.Route],
    allowed: tuple[Rights, ...],
    audit: tuple[Rights, ...] | None = None,
) -> route_pb2.RouteConfiguration:
    return route_pb2.RouteConfiguration(
        name=name,
        virtual_hosts=[components.VirtualHost(name=name, domains=["*"], routes=routes)],
        request_headers_to_remove=[names.DESTINATION_HEADER],
        typed_per_filter_config={names.RIGHTS_FILTER: rights(allowed, audit)},
    )


def rights(allowed: tuple[Rights, ...], audit: tuple[Rights, ...] | None = None) -> any_pb2.Any:
    """What a table configures the rights filter with."""
    return pack(rbac_pb2.RBACPerRoute(rbac=rbac.rules(allowed, audit)))


def _redirects(route: Route, redirect: Redirect) -> Iterator[components.Route]:
    """Envoy keeps the port that the request's Host has, unless it is to name one. Location has the scheme's
    own port only where it must be named to take that one's place."""
    if not redirect.names_port and redirect.hostname is None:
        with_port = components.HeaderMatcher(name=":authority", string_match=rbac.regex(r".*:[0-9]+"))
        match = _match(route.match)
        match.headers.append(with_port)
        action = actions.redirect(redirect, route.match.path, port=True)
        yield components.Route(name=route.name, match=match, redirect=action)
    action = actions.redirect(redirect, route.match.path, port=redirect.names_port)
    yield components.Route(name=route.name, match=_match(route.match), redirect=action)


def compiled(route: Route) -> Iterator[components.Route]:
    """Envoy's routes for one of the model."""
    if route.actions.missing:
        refusal = components.DirectResponseAction(status=404)
        yield components.Route(name=route.name, match=_match(route.match), direct_response=refusal)
        return
    if route.actions.redirect is not None:
        made: Iterable[components.Route] = _redirects(route, route.actions.redirect)
    else:
        made = (components.Route(name=route.name, match=_match(route.match), route=_action(route)),)
    for each in made:
        if _alike(route):
            actions.change_headers(each, route.actions.request, route.actions.response)
        if route.actions.cors is not None:
            each.typed_per_filter_config[names.CORS_FILTER].CopyFrom(pack(actions.cors(route.actions.cors)))
        treatments.configure(each, route.actions.treatment)
        yield each


def service(routes: ServiceTable) -> route_pb2.RouteConfiguration:
    made = chain.from_iterable(map(compiled, routes.routes))
    found = table(routes.name, made, routes.rights, routes.audit)
    treatments.configure(found.virtual_hosts[0], routes.treatment)
    return found


def scope(name: str, address: Address, port: int) -> scoped_route_pb2.ScopedRouteConfiguration:
    """Says which table serves requests to the virtual address."""
    key = scoped_route_pb2.ScopedRouteConfiguration.Key(
        fragments=[
            scoped_route_pb2.ScopedRouteConfiguration.Key.Fragment(string_key=names.host_port(address, port))
        ]
    )
    return scoped_route_pb2.ScopedRouteConfiguration(name=name, route_configuration_name=name, key=key)


def workloads(
    source_class: int, allowed: tuple[Rights, ...], audit: tuple[Rights, ...] | None = None
) -> route_pb2.RouteConfiguration:
    """The table for requests of a source class to a workload's own address: no routing, only rights."""
    route = components.Route(
        name=names.WORKLOADS,
        match=components.RouteMatch(prefix="/"),
        route=_Action(cluster=names.WORKLOADS, timeout=seconds(0)),
    )
    return table(names.workloads_table(source_class), [route], allowed, audit)


def destination_header() -> base_pb2.HeaderValueOption:
    """Overwrites the header that carries the dialled address."""
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=names.DESTINATION_HEADER, value="%DOWNSTREAM_LOCAL_ADDRESS%"),
        append_action=base_pb2.HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )
