"""HTTPRoutes and GRPCRoutes attached to a Service (GAMMA) → route tables.

A request to a Service's virtual address and port takes the first route that matches, whatever its Host
says; with a route attached nothing else answers (404). Rules of all routes of one Service stand in
one order: the API's precedence, then the oldest, then the name. A route of another namespace than the
Service's (a consumer route) is for clients of its own namespace only, and is all that they see.

Source: Gateway API v1.6, HTTPRouteRule (precedence) and GEP-1426 (mesh).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.route_kinds import (
    GRPCRoute,
    GRPCRouteMatch,
    GRPCRouteRule,
    HTTPBackendRef,
    HTTPRoute,
    HTTPRouteMatch,
    HTTPRouteRule,
    ParentReference,
    ReferenceGrant,
)
from penstock.plan import Condition, ObjectStatus
from penstock.routing.actions import Actions
from penstock.routing.filters import actions, header_changes, mirrors
from penstock.routing.matches import grpc_match, http_match, permitted, precedence
from penstock.routing.model import Route, RouteBackend, RouteMatch, StringMatch
from penstock.routing.services import ServedPort
from penstock.world import World

CONTROLLER = "penstock.dev/gateway-controller"

_EVERYTHING = RouteMatch(StringMatch("prefix", "/"))

_Ranked = tuple[tuple[object, ...], Route]
"""A route and its place in the order in which routes are tried."""


@dataclass(frozen=True, slots=True)
class RouteTable:
    """The routes of one Service port in one family, in the order in which they are tried.

    `plain` is set where no route applies any more: nothing new is steered here, but what the proxy
    carries already goes on to the Service's own endpoints.
    """

    served: ServedPort
    routes: tuple[Route, ...]
    clusters: tuple[ServedPort, ...]
    plain: bool = False


@dataclass(frozen=True, slots=True)
class MeshRoutes:
    tables: tuple[RouteTable, ...]
    statuses: Mapping[ObjectKey, ObjectStatus]


@dataclass(frozen=True, slots=True)
class _Services:
    ports: Mapping[tuple[str, str], tuple[ServedPort, ...]]
    grants: Mapping[str, tuple[ReferenceGrant, ...]]

    def find(self, namespace: str, name: str, port: int | None, family: int | None) -> list[ServedPort]:
        return [
            s
            for s in self.ports.get((namespace, name), ())
            if (port is None or s.port.port == port) and (family is None or s.family == family)
        ]


def _backend(
    document: Document, ref: HTTPBackendRef, family: int, services: _Services
) -> tuple[ServedPort | None, Condition | None]:
    """The Service port that a reference means, or why it means none."""
    namespace = ref.namespace or document.key.namespace
    what = f"{namespace}/{ref.name}"
    if ref.kind != "Service" or ref.group != "":
        return None, Condition("ResolvedRefs", False, "InvalidKind", f"backend {what} is a {ref.kind}")
    if not permitted(document.key, namespace, ref.name, services.grants.get(namespace, ())):
        why = f"no ReferenceGrant of namespace {namespace} permits Service {what}"
        return None, Condition("ResolvedRefs", False, "RefNotPermitted", why)
    found = services.find(namespace, ref.name, ref.port, family)
    if not found:
        if services.find(namespace, ref.name, ref.port, None):
            return None, None
        return None, Condition("ResolvedRefs", False, "BackendNotFound", f"no Service {what} port {ref.port}")
    return found[0], None


def _attached(
    document: Document, parent: ParentReference, services: _Services
) -> tuple[list[ServedPort], Condition]:
    namespace = parent.namespace or document.key.namespace
    if parent.kind != "Service" or parent.group not in ("", "core"):
        return [], Condition(
            "Accepted", False, "NoMatchingParent", f"{parent.kind} is not served by this version"
        )
    found = [
        s
        for s in services.find(namespace, parent.name, parent.port, None)
        if s.port.protocol == "TCP" and parent.section_name in (None, s.port.name)
    ]
    if not found:
        port = f" port {parent.port or parent.section_name}" if parent.port or parent.section_name else ""
        return [], Condition(
            "Accepted", False, "NoMatchingParent", f"no Service {namespace}/{parent.name}{port}"
        )
    return found, Condition("Accepted", True, "Accepted")


@dataclass(slots=True)
class _Compiled:
    """What one document gives one table."""

    routes: list[_Ranked]
    clusters: list[ServedPort]
    problems: list[Condition]


def _share(ref: HTTPBackendRef, cluster: str | None) -> RouteBackend:
    request = next((f.request_header_modifier for f in ref.filters if f.request_header_modifier), None)
    response = next((f.response_header_modifier for f in ref.filters if f.response_header_modifier), None)
    rewrite = next((f.url_rewrite for f in ref.filters if f.url_rewrite), None)
    return RouteBackend(
        cluster,
        ref.weight,
        header_changes(request),
        header_changes(response),
        rewrite.hostname or None if rewrite else None,
    )


def _routes(
    document: Document, route: HTTPRoute | GRPCRoute, parent: ServedPort, services: _Services
) -> _Compiled:
    made = _Compiled([], [], [])
    grpc = isinstance(route, GRPCRoute)

    def resolve(ref: HTTPBackendRef) -> str | None:
        target, problem = _backend(document, ref, parent.family, services)
        if problem is not None:
            made.problems.append(problem)
        if target is None:
            return None
        if grpc and not target.http2:
            target = replace(target, grpc=True)
        made.clusters.append(target)
        return target.name

    rules: Sequence[HTTPRouteRule | GRPCRouteRule] = route.spec.rules
    for index, rule in enumerate(rules):
        backends = tuple(_share(ref, resolve(ref)) for ref in rule.backend_refs)
        does = replace(actions(rule, parent.port.port), mirrors=mirrors(rule, resolve))
        items: Sequence[HTTPRouteMatch | GRPCRouteMatch] = rule.matches
        for place, item in enumerate(items):
            match = grpc_match(item) if isinstance(item, GRPCRouteMatch) else http_match(item)
            name = f"{document.key.namespace}/{document.key.name}/{rule.name or index}/{place}"
            compiled = Route(name, match, backends, does, grpc)
            made.routes.append((precedence(document, match, (index, place)), compiled))
    return made


def mesh_routes(world: World, served: tuple[ServedPort, ...]) -> MeshRoutes:
    """Every Service port with a route, and the status of every HTTPRoute."""
    grouped: dict[tuple[str, str], list[ServedPort]] = {}
    for s in served:
        grouped.setdefault((s.document.key.namespace, s.document.key.name), []).append(s)
    grants: dict[str, list[ReferenceGrant]] = {}
    for document, grant in world.of_kind(ReferenceGrant):
        grants.setdefault(document.key.namespace, []).append(grant)
    services = _Services(
        {key: tuple(ports) for key, ports in grouped.items()},
        {namespace: tuple(found) for namespace, found in grants.items()},
    )

    collected: dict[str, dict[str | None, list[_Ranked]]] = {}
    owners: dict[str, ServedPort] = {}
    clusters: dict[str, dict[str, ServedPort]] = {}
    statuses: dict[ObjectKey, ObjectStatus] = {}
    routes: list[tuple[Document, HTTPRoute | GRPCRoute]] = [
        *world.of_kind(HTTPRoute),
        *world.of_kind(GRPCRoute),
    ]
    for document, route in routes:
        parents = []
        pending = ""
        for parent in route.spec.parent_refs:
            attached, accepted = _attached(document, parent, services)
            problems: list[Condition] = []
            for target in attached:
                compiled = _routes(document, route, target, services)
                problems += compiled.problems
                if target.vip is None:
                    continue
                owners[target.name] = target
                own = document.key.namespace
                clients = None if own == target.document.key.namespace else own
                collected.setdefault(target.name, {}).setdefault(clients, []).extend(compiled.routes)
                clusters.setdefault(target.name, {}).update({c.name: c for c in compiled.clusters})
            resolved = problems[0] if problems else Condition("ResolvedRefs", True, "ResolvedRefs")
            parents.append((parent, (accepted, resolved)))
            for condition in (accepted, resolved):
                if not condition.status and not pending:
                    pending = condition.message
        statuses[document.key] = ObjectStatus(pending=pending, extra={"parents": tuple(parents)})

    tables = [
        RouteTable(
            owners[name],
            _in_order(owners[name], by_clients),
            _reached(owners[name], by_clients, clusters[name]),
        )
        for name, by_clients in sorted(collected.items())
    ]
    carried = {(address, port) for _, address, port in world.carried}
    tables += [_plain(s) for s in served if (s.vip, s.port.port) in carried and s.name not in collected]
    return MeshRoutes(tuple(tables), statuses)


def _in_order(served: ServedPort, by_clients: Mapping[str | None, list[_Ranked]]) -> tuple[Route, ...]:
    """Consumer routes first, each namespace by itself; what is left takes the producer's, if any."""
    routes: list[Route] = []
    for clients in sorted(c for c in by_clients if c is not None):
        for _, route in sorted(by_clients[clients], key=_rank):
            routes.append(replace(route, match=replace(route.match, namespace=clients)))
        rest = replace(_EVERYTHING, namespace=clients)
        routes.append(Route(f"{served.name}/{clients}", rest, (), Actions(missing=True)))
    if None in by_clients:
        routes += [route for _, route in sorted(by_clients[None], key=_rank)]
    else:
        routes.append(_to_itself(served))
    return tuple(routes)


def _reached(
    served: ServedPort, by_clients: Mapping[str | None, list[_Ranked]], named: Mapping[str, ServedPort]
) -> tuple[ServedPort, ...]:
    clusters = dict(named) if None in by_clients else {**named, served.name: served}
    return tuple(clusters[name] for name in sorted(clusters))


def _rank(ranked: _Ranked) -> tuple[object, ...]:
    return ranked[0]


def _to_itself(served: ServedPort) -> Route:
    return Route(f"{served.name}/plain", _EVERYTHING, (RouteBackend(served.name, 1),))


def _plain(served: ServedPort) -> RouteTable:
    return RouteTable(served, (_to_itself(served),), (served,), plain=True)
