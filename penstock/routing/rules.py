"""The rules of one HTTPRoute or GRPCRoute as the neutral model says them: one compiler for mesh and Gateways.

What differs between parents is only where a request was dialled (its port, for redirects) and which endpoints
may serve it: in the mesh those of the client's own address family, behind a Gateway those of either.

Source: Gateway API v1.6, HTTPRouteRule, GRPCRouteRule, BackendObjectReference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.route_kinds import (
    GRPCRoute,
    GRPCRouteMatch,
    GRPCRouteRule,
    HTTPBackendRef,
    HTTPRoute,
    HTTPRouteFilter,
    HTTPRouteMatch,
    HTTPRouteRule,
    ReferenceGrant,
)
from penstock.manifests.shared_kinds import ServiceBackend
from penstock.plan import Condition
from penstock.routing import backend_filters
from penstock.routing.actions import Actions, Mirror
from penstock.routing.backend_policies import BackendPolicies, session
from penstock.routing.filters import actions, header_changes, mirrors
from penstock.routing.http_policies import HttpPolicies
from penstock.routing.matches import grpc_match, http_match, permitted, precedence
from penstock.routing.model import Route, RouteBackend
from penstock.routing.services import ServedPort
from penstock.routing.traffic import HashOn
from penstock.routing.treatment import NO_TREATMENT, ExternalAuth, Treatment
from penstock.world import World

Ranked = tuple[tuple[object, ...], Route]
"""A route and its place in the order in which routes are tried."""


@dataclass(frozen=True, slots=True)
class Services:
    """Every Service port by namespace and name, and who may name Services of other namespaces."""

    ports: Mapping[tuple[str, str], tuple[ServedPort, ...]]
    grants: Mapping[str, tuple[ReferenceGrant, ...]]
    policies: BackendPolicies
    http: HttpPolicies
    _ways: dict[tuple[str, bool, str], ServedPort] = field(default_factory=dict, compare=False, repr=False)
    """The same ports by other ways, each made once."""

    def by_way(self, served: ServedPort, *, grpc: bool, edge: str) -> ServedPort:
        """A port as `ports` have it, as the backend of a GRPCRoute or of Gateways."""
        way = (served.place, grpc, edge)
        found = self._ways.get(way)
        if found is None:
            found = self._ways[way] = replace(served, grpc=grpc, edge=edge)
        return found

    def steers(self, served: ServedPort) -> bool:
        """Whether a policy has requests to a port go through the proxy even without a route."""
        return self.policies.steers(served) or self.http.steers(served)

    def find(self, namespace: str, name: str, port: int | None, family: int | None) -> list[ServedPort]:
        return [
            s
            for s in self.ports.get((namespace, name), ())
            if (port is None or s.port.port == port) and (family is None or s.family == family)
        ]

    def allow(self, source: ObjectKey, kind: str, namespace: str, name: str) -> bool:
        """Whether `source` may name the `kind` (of the core group) `name` of `namespace`."""
        return permitted(source, namespace, name, self.grants.get(namespace, ()), kind)


def services_of(world: World, served: tuple[ServedPort, ...]) -> Services:
    grouped: dict[tuple[str, str], list[ServedPort]] = {}
    for s in served:
        grouped.setdefault((s.document.key.namespace, s.document.key.name), []).append(s)
    grants: dict[str, list[ReferenceGrant]] = {}
    for document, grant in world.of_kind(ReferenceGrant):
        grants.setdefault(document.key.namespace, []).append(grant)
    by_name = {key: tuple(ports) for key, ports in grouped.items()}
    services = Services(
        by_name,
        {namespace: tuple(found) for namespace, found in grants.items()},
        BackendPolicies(world, by_name),
        HttpPolicies(world),
    )
    services.http.read(partial(_helper, services=services))
    return services


def _helper(
    document: Document, ref: ServiceBackend, *, services: Services
) -> tuple[ServedPort | None, Condition | None]:
    named = HTTPBackendRef(
        name=ref.name, group=ref.group, kind=ref.kind, namespace=ref.namespace, port=ref.port
    )
    return backend(document, named, None, services)


def backend(
    document: Document,
    ref: HTTPBackendRef,
    family: int | None,
    services: Services,
    dialled: ObjectKey | None = None,
) -> tuple[ServedPort | None, Condition | None]:
    """The Service port that a reference means, or why it means none. Without a `family` the one that has
    endpoints, IPv4 if both have. The Service that was `dialled` needs no ReferenceGrant: a client may have it
    without any route."""
    namespace = ref.namespace or document.key.namespace
    what = f"{namespace}/{ref.name}"
    if ref.kind != "Service" or ref.group != "":
        return None, Condition("ResolvedRefs", False, "InvalidKind", f"backend {what} is a {ref.kind}")
    asked = dialled is not None and (dialled.namespace, dialled.name) == (namespace, ref.name)
    if not asked and not services.allow(document.key, "Service", namespace, ref.name):
        why = f"no ReferenceGrant of namespace {namespace} permits Service {what}"
        return None, Condition("ResolvedRefs", False, "RefNotPermitted", why)
    found = services.find(namespace, ref.name, ref.port, family)
    if not found:
        if services.find(namespace, ref.name, ref.port, None):
            return None, None
        return None, Condition("ResolvedRefs", False, "BackendNotFound", f"no Service {what} port {ref.port}")
    return min(found, key=lambda s: (s.empty, s.family)), None


@dataclass(slots=True)
class Compiled:
    """What one document gives one table."""

    routes: list[Ranked] = field(default_factory=list)
    clusters: list[ServedPort] = field(default_factory=list)
    helpers: list[ServedPort] = field(default_factory=list)
    """What the proxy itself asks for these routes."""
    problems: list[Condition] = field(default_factory=list)
    closed: list[HTTPRouteRule | GRPCRouteRule] = field(default_factory=list)
    """Rules that nobody passes, since whom they ask is not there."""


def _share(ref: HTTPBackendRef, cluster: str | None) -> RouteBackend:
    if not ref.filters:
        return RouteBackend(cluster, ref.weight)
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


def partly(route: HTTPRoute | GRPCRoute, compiled: Compiled) -> tuple[Condition, ...]:
    """PartiallyInvalid, where some rules of `route` are closed and others are not."""
    closed = compiled.closed
    if not closed or len(closed) == len(route.spec.rules):
        return ()
    rules: Sequence[HTTPRouteRule | GRPCRouteRule] = route.spec.rules
    numbers = ", ".join(str(i) for i, rule in enumerate(rules) if any(rule is each for each in closed))
    why = f"nobody passes rules[{numbers}]: the service that they ask is not there"
    return (Condition("PartiallyInvalid", True, "BackendNotFound", why),)


def hashes_of(reached: Sequence[ServedPort], services: Services) -> tuple[HashOn, ...]:
    """What chooses the endpoints behind these ports; a port that hashes nothing does not look at it."""
    said = (services.policies.of(port) for port in reached)
    return tuple(dict.fromkeys(key for traffic in said if traffic is not None for key in traffic.hashes))


def _asked(
    document: Document, filters: Sequence[HTTPRouteFilter], services: Services, made: Compiled
) -> ExternalAuth | None:
    """The service that `filters` have asked whether a request may pass."""
    asked = next((f.external_auth for f in filters if f.external_auth is not None), None)
    if asked is None:
        return None
    auth, helper, problem = services.http.external_auth(document, asked)
    made.helpers += [helper] if helper is not None else []
    made.problems += [problem] if problem is not None else []
    return auth


def _treatment(
    document: Document,
    rule: HTTPRouteRule | GRPCRouteRule,
    reached: Sequence[ServedPort],
    services: Services,
    made: Compiled,
) -> Treatment | None:
    """What the rule itself says, over what policies say of it and of its route."""
    auth = _asked(document, rule.filters, services, made)
    if auth is not None and auth.cluster is None:
        made.closed.append(rule)
    kept = session(rule.session_persistence) or next(
        (found for port in reached if (found := services.policies.session_of(port)) is not None), None
    )
    said = services.http.of(document.key, rule.name)
    if auth is None and kept is None and said is None:
        return None
    does = Treatment(auth=auth, session=kept).over(said)
    return does if does != NO_TREATMENT else None


def compile_rules(
    document: Document,
    route: HTTPRoute | GRPCRoute,
    services: Services,
    *,
    port: int,
    family: int | None = None,
    edge: str = "",
    secure: bool = False,
    dialled: ObjectKey | None = None,
) -> Compiled:
    """All rules of `route` for requests that were dialled at `port`, `secure` over TLS; `edge`: through
    Gateways, and which; `dialled`: in the mesh, at which Service."""
    made = Compiled()
    grpc = isinstance(route, GRPCRoute)

    def resolve(ref: HTTPBackendRef) -> str | None:
        target, problem = backend(document, ref, family, services, dialled)
        if problem is not None:
            made.problems.append(problem)
        if target is None:
            return None
        if edge or (grpc and not target.http2):
            target = services.by_way(target, grpc=grpc and not target.http2, edge=edge)
        made.clusters.append(target)
        reached.append(target)
        return target.name

    def copies(filters: Sequence[HTTPRouteFilter]) -> tuple[Mirror, ...]:
        found = mirrors(filters, resolve)
        if edge and found:
            families = {c.name: c.family for c in made.clusters}
            found = tuple(replace(m, edge6=families[m.cluster] == 6) for m in found)
        return found

    def ways(
        rule: HTTPRouteRule | GRPCRouteRule, backends: tuple[RouteBackend, ...], does: Actions
    ) -> list[tuple[int | None, tuple[RouteBackend, ...], Actions]]:
        """One, or where a backend has filters of its own that need it, one for each share of the rule."""
        refs = rule.backend_refs
        if not backend_filters.divides(refs):
            return [(None, backends, does)]
        found: list[tuple[int | None, tuple[RouteBackend, ...], Actions]] = []
        of_ref = {id(ref): share for ref, share in zip(refs, backends, strict=True)}
        for ref, below in backend_filters.draws(refs):
            share = backend_filters.plain(of_ref[id(ref)])
            own = does
            if share.cluster is not None:
                own = backend_filters.with_filters(does, ref, port, secure=secure)
                own = replace(own, mirrors=(*own.mirrors, *copies(ref.filters)))
                asked = _asked(document, ref.filters, services, made)
                if asked is not None:
                    own = replace(own, treatment=Treatment(auth=asked).over(own.treatment))
            found.append((below, () if own.redirect is not None else (share,), own))
        return found

    rules: Sequence[HTTPRouteRule | GRPCRouteRule] = route.spec.rules
    reached: list[ServedPort] = []
    for index, rule in enumerate(rules):
        reached.clear()
        backends = tuple(_share(ref, resolve(ref)) for ref in rule.backend_refs)
        hashes = hashes_of(reached, services)
        treatment = _treatment(document, rule, reached, services, made)
        does, sent = actions(rule, port, secure=secure), copies(rule.filters)
        if sent or hashes or treatment is not None:
            does = replace(does, mirrors=sent, hashes=hashes, treatment=treatment)
        divided = ways(rule, backends, does)
        items: Sequence[HTTPRouteMatch | GRPCRouteMatch] = rule.matches
        for place, item in enumerate(items):
            match = grpc_match(item) if isinstance(item, GRPCRouteMatch) else http_match(item)
            name = f"{document.key.namespace}/{document.key.name}/{rule.name or index}/{place}"
            for number, (below, shares, own) in enumerate(divided):
                each = replace(match, below=below) if below is not None else match
                compiled = Route(name, each, shares, own, grpc)
                made.routes.append((precedence(document, match, (index, place, number)), compiled))
    return made
