"""What will surprise in routes that are valid: rules that can never match, shares that go nowhere.

Warnings all. The codes: `shadowed` (another match, tried before, takes all of its requests), `weights` (they
sum to zero), `grant` (a backend in another namespace without its ReferenceGrant), `endpoints` (a backend
that no workload stands behind). Each is at the place in the route that would have to change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.problem import Finding, Path, Problem
from penstock.manifests.review import problem
from penstock.manifests.route_kinds import (
    GRPCRoute,
    GRPCRouteMatch,
    GRPCRouteRule,
    HTTPRoute,
    HTTPRouteMatch,
    HTTPRouteRule,
    ReferenceGrant,
)
from penstock.routing import patterns
from penstock.routing.matches import GROUP, grpc_match, http_match, permitted, precedence
from penstock.routing.model import RouteMatch
from penstock.routing.review_attach import attachments
from penstock.routing.review_backends import Behind, behind

Attachments = Mapping[ObjectKey, Sequence[tuple[tuple[ObjectKey, int], str]]]
"""Route → the listeners that it is attached to, each with a host name."""


@dataclass(frozen=True, slots=True)
class _Place:
    """One match and the order in which it is tried."""

    document: Document
    path: Path
    match: RouteMatch
    order: tuple[object, ...]


def review_routes(documents: Iterable[Document]) -> list[Problem]:
    """Every warning about the routes among `documents`, in the order of files and lines."""
    everything = list(documents)
    routes = [d for d in everything if isinstance(d.value, HTTPRoute | GRPCRoute)]
    if not routes:
        return []
    found = [problem(d, finding) for d, finding in _shadowed(routes, attachments(everything))]
    served = behind(everything)
    grants: dict[str, list[ReferenceGrant]] = defaultdict(list)
    for document in everything:
        if isinstance(document.value, ReferenceGrant):
            grants[document.key.namespace].append(document.value)
    for document in routes:
        found += [problem(document, finding) for finding in _backends(document, served, grants)]
    return sorted(found, key=lambda p: (p.file, p.line))


def _rules(document: Document) -> Sequence[HTTPRouteRule | GRPCRouteRule]:
    assert isinstance(document.value, HTTPRoute | GRPCRoute)
    return document.value.spec.rules


# --- backends -------------------------------------------------------------------------------------------


def _backends(
    document: Document,
    served: Behind,
    grants: Mapping[str, Sequence[ReferenceGrant]],
) -> Iterator[Finding]:
    dialled = _dialled(document)
    for i, rule in enumerate(_rules(document)):
        at: Path = ("spec", "rules", i, "backendRefs")
        if rule.backend_refs and not any(ref.weight for ref in rule.backend_refs):
            yield Finding(at, "has only weights of 0: its requests get 500", code="weights")
        for j, ref in enumerate(rule.backend_refs):
            if (ref.group, ref.kind) != ("", "Service"):
                continue
            namespace = ref.namespace or document.key.namespace
            granted = (namespace, ref.name) in dialled or permitted(
                document.key, namespace, ref.name, grants.get(namespace, ())
            )
            if not granted:
                message = f"no ReferenceGrant of namespace {namespace} permits it: its requests get 500"
                hint = f"one in {namespace}, from {document.key.kind} of {document.key.namespace}, to Service"
                yield Finding((*at, j, "namespace"), message, hint, code="grant")
            elif ref.weight and (why := served.nobody(namespace, ref.name, ref.port)):
                message = f"no endpoint stands behind Service {namespace}/{ref.name}: its requests get 503"
                yield Finding((*at, j, "name"), message, why, "endpoints")


def _dialled(document: Document) -> frozenset[tuple[str, str]]:
    """The Services whose clients a route of the mesh is for: it may name those without a grant."""
    assert isinstance(document.value, HTTPRoute | GRPCRoute)
    parents = document.value.spec.parent_refs
    if any(parent.group == GROUP for parent in parents):
        return frozenset()
    return frozenset((p.namespace or document.key.namespace, p.name) for p in parents)


# --- matches --------------------------------------------------------------------------------------------


def _places(document: Document) -> Iterator[_Place]:
    for i, rule in enumerate(_rules(document)):
        items: Sequence[HTTPRouteMatch | GRPCRouteMatch] = rule.matches
        for j, item in enumerate(items):
            match = grpc_match(item) if isinstance(item, GRPCRouteMatch) else http_match(item)
            at: Path = ("spec", "rules", i, "matches", j)
            yield _Place(document, at, match, precedence(document, match, (i, j)))


def _tables(routes: Iterable[Document], places: Attachments) -> Iterator[list[_Place]]:
    """Matches that are tried one after the other: of one listener and host name, or of one Service and by
    the same clients."""
    tables: dict[tuple[object, ...], list[_Place]] = defaultdict(list)
    for document in routes:
        assert isinstance(document.value, HTTPRoute | GRPCRoute)
        own = document.key.namespace
        matches = list(_places(document))
        for listener, host in places.get(document.key, ()):
            tables[(*listener, host)] += matches
        for parent in document.value.spec.parent_refs:
            if parent.kind == "Service":
                namespace = parent.namespace or own
                clients = None if namespace == own else own
                tables[("Service", namespace, parent.name, parent.port, clients)] += matches
    for found in tables.values():
        yield sorted(found, key=lambda place: place.order)


def _shadowed(routes: Iterable[Document], places: Attachments) -> Iterator[tuple[Document, Finding]]:
    """Where a match stands, another one stands before it: at every parent and for every host name."""
    found: dict[tuple[str, Path], tuple[_Place, _Place]] = {}
    free: set[tuple[str, Path]] = set()
    for table in _tables(routes, places):
        for number, place in enumerate(table):
            mark = (str(place.document.key), place.path)
            by = next((p for p in table[:number] if _covers(p.match, place.match)), None)
            if by is None:
                free.add(mark)
            else:
                found.setdefault(mark, (place, by))
    for mark, (place, by) in found.items():
        if mark not in free:
            origin = by.document.origin(*by.path)
            message = f"can never match: {origin} is tried before and takes all of its requests"
            yield place.document, Finding(place.path, message, code="shadowed")


def _covers(first: RouteMatch, second: RouteMatch) -> bool:
    """Whether `first` matches all that `second` matches."""
    if first.method not in (None, second.method):
        return False
    if not (set(first.headers) <= set(second.headers) and set(first.query) <= set(second.query)):
        return False
    path, other = first.path, second.path
    if path.kind == "prefix":
        prefix = path.value.rstrip("/")
        if other.kind == "regex":
            return not prefix or patterns.within(other.value, prefix)
        return f"{other.value.rstrip('/')}/".startswith(f"{prefix}/")
    if path.kind == other.kind == "regex":
        return patterns.all_of(path.value, other.value)
    return (path.kind, path.value) == (other.kind, other.value)
