"""What will surprise in routes that are valid: rules that can never match, shares that go nowhere.

Warnings all. The codes: `shadowed` (another match, tried before, takes all of its requests), `weights` (they
sum to zero), `grant` (a backend in another namespace without its ReferenceGrant), `endpoints` (a backend
that no workload stands behind). Each is at the place in the route that would have to change.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.manifests.document import Document
from penstock.manifests.kinds import EndpointSlice, Service, Workload
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
from penstock.routing.endpoints import SLICE_LABEL
from penstock.routing.matches import GROUP, grpc_match, http_match, permitted, precedence
from penstock.routing.model import RouteMatch

_LITERAL = re.compile(r"[A-Za-z0-9/_-]*")
"""The beginning of a regular expression that stands for itself, but for its last character (see _head)."""


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
    found = [problem(document, finding) for document, finding in _shadowed(routes)]
    served = served_services(everything)
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


def served_services(documents: Iterable[Document]) -> Mapping[tuple[str, str], bool]:
    """Every Service, and whether anything stands behind it."""
    workloads: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    sliced: set[tuple[str, str]] = set()
    services: list[tuple[Document, Service]] = []
    for document in documents:
        value, namespace = document.value, document.key.namespace
        if isinstance(value, Workload):
            workloads[namespace].append(value.metadata.labels)
        elif isinstance(value, EndpointSlice) and value.endpoints:
            sliced.add((namespace, value.metadata.labels.get(SLICE_LABEL, "")))
        elif isinstance(value, Service):
            services.append((document, value))
    found = {}
    for document, service in services:
        key = (document.key.namespace, document.key.name)
        wanted = service.spec.selector
        if wanted:
            found[key] = any(wanted.items() <= labels.items() for labels in workloads[key[0]])
        else:
            found[key] = key in sliced
    return found


def _backends(
    document: Document,
    served: Mapping[tuple[str, str], bool],
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
            elif ref.weight and served.get((namespace, ref.name)) is False:
                message = f"no endpoint stands behind Service {namespace}/{ref.name}: its requests get 503"
                yield Finding((*at, j, "name"), message, code="endpoints")


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


def _tables(routes: Iterable[Document]) -> Iterator[list[_Place]]:
    """Matches that are tried one after the other: of one parent, for one host name, by the same clients."""
    tables: dict[tuple[object, ...], list[_Place]] = defaultdict(list)
    for document in routes:
        assert isinstance(document.value, HTTPRoute | GRPCRoute)
        own = document.key.namespace
        places = list(_places(document))
        for parent in document.value.spec.parent_refs:
            namespace = parent.namespace or own
            clients = None if namespace == own else own
            names: Sequence[str] = ("",)
            if parent.kind != "Service":
                clients, names = None, document.value.spec.hostnames or names
            for host in names:
                at = (parent.kind, namespace, parent.name, parent.port, parent.section_name)
                tables[(*at, clients, host.lower())] += places
    for places in tables.values():
        yield sorted(places, key=lambda place: place.order)


def _shadowed(routes: Iterable[Document]) -> Iterator[tuple[Document, Finding]]:
    """Where a match stands, another one stands before it: at every parent and for every host name."""
    found: dict[tuple[str, Path], tuple[_Place, _Place]] = {}
    free: set[tuple[str, Path]] = set()
    for places in _tables(routes):
        for number, place in enumerate(places):
            mark = (str(place.document.key), place.path)
            by = next((p for p in places[:number] if _covers(p.match, place.match)), None)
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
            return not prefix or _head(other.value).startswith(f"{prefix}/")
        return f"{other.value.rstrip('/')}/".startswith(f"{prefix}/")
    return (path.kind, path.value) == (other.kind, other.value)


def _head(pattern: str) -> str:
    """What every path that `pattern` matches begins with; '' where alternatives make that hard to say."""
    if "|" in pattern:
        return ""
    literal = _LITERAL.match(pattern)
    assert literal is not None
    # A quantifier after the last character may make that one optional.
    return literal.group() if literal.end() == len(pattern) else literal.group()[:-1]
