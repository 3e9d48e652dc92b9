"""HTTPRoutes and GRPCRoutes attached to a Service (GAMMA) → route tables.

A request to a Service's virtual address and port takes the first route that matches, whatever its Host
says; with a route attached nothing else answers (404). Rules of all routes of one Service stand in
one order: the API's precedence, then the oldest, then the name. A route of another namespace than the
Service's (a consumer route) is for clients of its own namespace only, and is all that they see.

Source: Gateway API v1.6, HTTPRouteRule (precedence) and GEP-1426 (mesh).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import is_

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ParentReference
from penstock.plan import Condition, ObjectStatus
from penstock.routing.actions import Actions
from penstock.routing.matches import GROUP
from penstock.routing.model import Route, RouteBackend, RouteMatch, StringMatch
from penstock.routing.rules import Compiled, Ranked, Services, compile_rules, hashes_of, partly
from penstock.routing.services import ServedPort
from penstock.routing.treatment import NO_TREATMENT, Treatment
from penstock.world import World

_EVERYTHING = RouteMatch(StringMatch("prefix", "/"))


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
    treatment: Treatment | None = None
    helpers: tuple[ServedPort, ...] = ()
    """What the proxy itself asks for these routes."""


@dataclass(slots=True)
class Memo:
    """What the last World gave with these `services`: the rules of a route for a Service port, and tables
    with what they were put together from."""

    services: Services | None = None
    rules: dict[tuple[ObjectKey, str], tuple[Document, Compiled]] = field(default_factory=dict)
    tables: dict[str, tuple[tuple[object, ...], RouteTable]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MeshRoutes:
    tables: tuple[RouteTable, ...]
    statuses: Mapping[ObjectKey, ObjectStatus]
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)


def _resolved(route: HTTPRoute | GRPCRoute, made: Sequence[Compiled]) -> tuple[Condition, ...]:
    problems = [problem for compiled in made for problem in compiled.problems]
    resolved = problems[0] if problems else Condition("ResolvedRefs", True, "ResolvedRefs")
    return (resolved, *(partly(route, made[0]) if made else ()))


def _attached(
    document: Document, parent: ParentReference, services: Services
) -> tuple[list[ServedPort], Condition]:
    namespace = parent.namespace or document.key.namespace
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


def concerns_mesh(document: Document) -> bool:
    """Whether `mesh_routes` looks at this route at all."""
    route = document.value
    assert isinstance(route, HTTPRoute | GRPCRoute)
    parents = route.spec.parent_refs
    return not parents or any(parent.group != GROUP for parent in parents)


def mesh_routes(
    world: World, served: tuple[ServedPort, ...], services: Services, before: MeshRoutes | None = None
) -> MeshRoutes:
    """Every Service port with a route or a policy that needs the proxy, and the status of every HTTPRoute.

    `before` never changes a result.
    """
    memo = Memo(services)
    known = before.memo if before is not None and before.memo.services is services else Memo()
    collected: dict[str, dict[str | None, list[Ranked]]] = {}
    inputs: dict[str, list[Compiled]] = {}
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
            if parent.group == GROUP:
                continue  # a Gateway's or ListenerSet's: routing/gateways.py
            attached, accepted = _attached(document, parent, services)
            made: list[Compiled] = []
            for target in attached:
                compiled = _compiled(document, route, target, services, memo, known)
                made.append(compiled)
                if target.vip is None:
                    continue
                owners[target.name] = target
                inputs.setdefault(target.name, []).append(compiled)
                own = document.key.namespace
                clients = None if own == target.document.key.namespace else own
                collected.setdefault(target.name, {}).setdefault(clients, []).extend(compiled.routes)
                clusters.setdefault(target.name, {}).update({c.name: c for c in compiled.clusters})
            conditions = (accepted, *_resolved(route, made))
            parents.append((parent, conditions))
            for condition in conditions:
                if not condition.status and not pending:
                    pending = condition.message
        if not parents and route.spec.parent_refs:
            continue
        statuses[document.key] = ObjectStatus(pending=pending, extra={"parents": tuple(parents)})

    for name, by_clients in sorted(collected.items()):
        here, of_table = owners[name], (owners[name], *inputs[name])
        there = known.tables.get(name)
        if there is None or len(there[0]) != len(of_table) or not all(map(is_, there[0], of_table)):
            reached = _reached(here, by_clients, clusters[name])
            listed = _in_order(here, by_clients, services)
            there = (of_table, RouteTable(here, listed, reached, helpers=_asked(inputs[name])))
        memo.tables[name] = there
    tables = [table for _, table in memo.tables.values()]
    carried = {(address, port) for _, address, port in world.carried}
    for each in served:
        if each.vip is None or each.name in collected:
            continue
        if services.steers(each):
            tables.append(RouteTable(each, (_to_itself(each, services),), (each,)))
        elif (each.vip, each.port.port) in carried:
            tables.append(RouteTable(each, (_to_itself(each, services),), (each,), plain=True))
    about = services.http.of_service
    tables = [t if t.plain else replace(t, treatment=about(t.served)) for t in tables]
    return MeshRoutes(tuple(tables), statuses, memo)


def _compiled(
    document: Document,
    route: HTTPRoute | GRPCRoute,
    target: ServedPort,
    services: Services,
    memo: Memo,
    known: Memo,
) -> Compiled:
    """The rules of a route for requests to a Service port."""
    place = (document.key, target.name)
    found = known.rules.get(place)
    if found is None or found[0] is not document:
        made = compile_rules(
            document,
            route,
            services,
            port=target.port.port,
            family=target.family,
            dialled=target.document.key,
        )
        found = (document, made)
    memo.rules[place] = found
    return found[1]


def _in_order(
    served: ServedPort, by_clients: Mapping[str | None, list[Ranked]], services: Services
) -> tuple[Route, ...]:
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
        routes.append(_to_itself(served, services))
    return tuple(routes)


def _reached(
    served: ServedPort, by_clients: Mapping[str | None, list[Ranked]], named: Mapping[str, ServedPort]
) -> tuple[ServedPort, ...]:
    clusters = dict(named) if None in by_clients else {**named, served.name: served}
    return tuple(clusters[name] for name in sorted(clusters))


def _asked(rules: Iterable[Compiled]) -> tuple[ServedPort, ...]:
    found = {helper.name: helper for compiled in rules for helper in compiled.helpers}
    return tuple(found[name] for name in sorted(found))


def _rank(ranked: Ranked) -> tuple[object, ...]:
    return ranked[0]


def _to_itself(served: ServedPort, services: Services) -> Route:
    treatment = Treatment(session=services.policies.session_of(served))
    actions = Actions(
        hashes=hashes_of([served], services), treatment=treatment if treatment != NO_TREATMENT else None
    )
    return Route(f"{served.name}/plain", _EVERYTHING, (RouteBackend(served.name, 1),), actions)
