"""What will surprise in how things at the edge hang together: routes that no listener takes, listeners that
are not served, policies and routes that stand behind an older one.

The same functions decide here as when the edge is compiled (routing/attach.py), so that what is told is what
comes to be. Warnings all; docs/findings.md tells of each code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import GROUP, Gateway, ListenerSet
from penstock.manifests.l4_kinds import BackendTLSPolicy, TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.problem import Finding, Problem
from penstock.manifests.review import problem
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute
from penstock.policy import ingress
from penstock.routing.attach import Entry, Namespaces, attach, entries_of
from penstock.routing.l4routes import hostnames
from penstock.world import World

Route = HTTPRoute | GRPCRoute | TLSRoute | TCPRoute | UDPRoute
ROUTES = (HTTPRoute, GRPCRoute, TLSRoute, TCPRoute, UDPRoute)


@dataclass(slots=True)
class _Edge:
    """The listeners of every Gateway of ours and of the ListenerSets that it takes, by whose they are."""

    world: World
    namespaces: Namespaces
    listeners: dict[ObjectKey, list[Entry]] = field(default_factory=dict)
    foreign: set[ObjectKey] = field(default_factory=set)
    """Gateways of other classes, and their ListenerSets: not for us to judge."""


def review_attachments(documents: Iterable[Document]) -> list[Problem]:
    """Every warning about what is attached to what, in the order of files and lines."""
    everything = {d.key: d for d in documents}
    world = World("", everything)
    edge = _Edge(world, Namespaces(world))
    found = [problem(document, f) for document, f in _listeners(edge)]
    found += [problem(document, f) for document, f in _routes(edge)]
    found += [problem(document, f) for document, f in _policies(world)]
    return sorted(found, key=lambda p: (p.file, p.line))


def attachments(
    documents: Iterable[Document],
) -> Mapping[ObjectKey, Sequence[tuple[tuple[ObjectKey, int], str]]]:
    """The listeners that each HTTPRoute and GRPCRoute is attached to, with the host names that it has there.

    A Gateway that is not among `documents` counts as one that takes all.
    """
    everything = {d.key: d for d in documents}
    world = World("", everything)
    edge = _Edge(world, Namespaces(world))
    for _ in _listeners(edge):
        pass
    found: dict[ObjectKey, dict[tuple[tuple[ObjectKey, int], str], None]] = {}
    for document in world.of_kinds(HTTPRoute, GRPCRoute):
        route = document.value
        assert isinstance(route, HTTPRoute | GRPCRoute)
        mine = found.setdefault(document.key, {})
        for parent in route.spec.parent_refs:
            key = ObjectKey(parent.kind, parent.namespace or document.key.namespace, parent.name)
            if key in edge.listeners:
                taken, _ = attach(
                    document, parent, route.spec.hostnames, edge.listeners[key], edge.namespaces
                )
                for each in taken:
                    place = (each.entry.owner.key, each.entry.index)
                    mine.update(dict.fromkeys((place, own.lower()) for _, own in each.hosts))
            elif parent.kind != "Service":
                section = ObjectKey(f"{parent.section_name}:{parent.port}", key.namespace, key.name)
                mine.update({((section, 0), host.lower()): None for host in route.spec.hostnames or ("",)})
    return {key: tuple(places) for key, places in found.items()}


def _age(document: Document) -> tuple[object, ...]:
    return document.since, document.key.namespace, document.key.name, document.key.kind


# --- listeners ------------------------------------------------------------------------------------------


def _parent(owner: Document, each: ListenerSet) -> ObjectKey:
    ref = each.spec.parent_ref
    return ObjectKey("Gateway", ref.namespace or owner.key.namespace, ref.name)


def _listeners(edge: _Edge) -> Iterator[tuple[Document, Finding]]:
    sets: dict[ObjectKey, list[tuple[Document, ListenerSet]]] = {}
    for owner, each in edge.world.of_kind(ListenerSet):
        sets.setdefault(_parent(owner, each), []).append((owner, each))
    ours = {d.key for d, _ in ingress.gateways(edge.world)}
    gateways = {d.key: (d, g) for d, g in edge.world.of_kind(Gateway)}
    for key, listed in sets.items():
        if key not in gateways:
            for owner, _ in listed:
                yield owner, Finding(("spec", "parentRef", "name"), f"there is no {key}", code="reference")
    for document, gateway in gateways.values():
        if document.key not in ours:
            edge.foreign |= {document.key, *(d.key for d, _ in sets.get(document.key, ()))}
            continue
        taken = []
        for owner, each in sets.get(document.key, ()):
            allowed = gateway.spec.allowed_listeners
            if edge.namespaces.allowed(allowed, document.key.namespace, owner.key.namespace):
                taken.append((owner, each))
                continue
            message = f"{document.key} takes no listeners of namespace {owner.key.namespace}"
            hint = "its spec.allowedListeners says which it takes"
            yield owner, Finding(("spec", "parentRef"), message, hint, code="unattached")
        entries = entries_of(document, gateway, taken)
        edge.listeners[document.key] = [e for e in entries if e.owner is document]
        for owner, _ in taken:
            edge.listeners[owner.key] = [e for e in entries if e.owner is owner]
        for entry in entries:
            bad = next((c for c in (entry.accepted, entry.resolved) if not c.status), None)
            if bad is not None:
                fate = "" if entry.served else ": it is not served"
                at = ("spec", "listeners", entry.index)
                yield entry.owner, Finding(at, f"{bad.message} ({bad.reason}){fate}", code="listener")


# --- routes ---------------------------------------------------------------------------------------------


def _routes(edge: _Edge) -> Iterator[tuple[Document, Finding]]:
    streams: dict[tuple[ObjectKey, int, str], list[Document]] = {}
    places: dict[ObjectKey, list[tuple[ObjectKey, int, str]]] = {}
    for document in sorted(edge.world.of_kinds(*ROUTES), key=_age):
        route = document.value
        assert isinstance(route, Route)
        for i, parent in enumerate(route.spec.parent_refs):
            if parent.group != GROUP:
                continue
            at = ("spec", "parentRefs", i)
            key = ObjectKey(parent.kind, parent.namespace or document.key.namespace, parent.name)
            if key in edge.foreign:
                continue
            if key not in edge.listeners:
                if key not in edge.world.documents:
                    yield document, Finding((*at, "name"), f"there is no {key}", code="reference")
                continue
            http = isinstance(route, HTTPRoute | GRPCRoute)
            names = route.spec.hostnames if isinstance(route, HTTPRoute | GRPCRoute) else hostnames(route)
            attached, accepted = attach(
                document,
                parent,
                names,
                edge.listeners[key],
                edge.namespaces,
                by_host=lambda e, http=http: http or e.protocol == "TLS",  # type: ignore[misc]
            )
            if not accepted.status:
                message = f"{accepted.message} ({accepted.reason}): nothing comes by it"
                yield document, Finding(at, message, code="unattached")
            if http:
                continue
            for each in attached:
                for host, _ in each.hosts:
                    place = (each.entry.owner.key, each.entry.index, host)
                    streams.setdefault(place, []).append(document)
                    places.setdefault(document.key, []).append(place)
    yield from _behind(edge.world, streams, places)


def _behind(
    world: World,
    streams: Mapping[tuple[ObjectKey, int, str], list[Document]],
    places: Mapping[ObjectKey, list[tuple[ObjectKey, int, str]]],
) -> Iterator[tuple[Document, Finding]]:
    """Streams of one listener (and name) go one way: that of the oldest route."""
    for key, own in places.items():
        firsts = [streams[place][0] for place in own]
        if all(first.key != key for first in firsts):
            by = firsts[0]
            message = f"gets nothing: {by.key} ({by.file}:{by.line}) has its listener already"
            yield world.documents[key], Finding(("spec", "parentRefs", 0), message, code="shadowed")


# --- BackendTLSPolicy -----------------------------------------------------------------------------------


def _policies(world: World) -> Iterator[tuple[Document, Finding]]:
    first: dict[tuple[str, str, str | None], Document] = {}
    for document in sorted(world.of_kinds(BackendTLSPolicy), key=_age):
        policy = document.value
        assert isinstance(policy, BackendTLSPolicy)
        own = document.key.namespace
        for i, ref in enumerate(policy.spec.target_refs):
            at = ("spec", "targetRefs", i)
            if (ref.group, ref.kind) != ("", "Service"):
                continue
            if ObjectKey("Service", own, ref.name) not in world.documents:
                yield (
                    document,
                    Finding((*at, "name"), f"there is no Service {own}/{ref.name}", code="reference"),
                )
            by = first.setdefault((own, ref.name, ref.section_name), document)
            if by is not document:
                message = f"counts for nothing: {by.key} ({by.file}:{by.line}) has this target already"
                yield document, Finding(at, message, code="shadowed")
        for i, trusted in enumerate(policy.spec.validation.ca_certificate_refs):
            if ObjectKey(trusted.kind, own, trusted.name) not in world.documents:
                where = ("spec", "validation", "caCertificateRefs", i, "name")
                message = f"there is no {trusted.kind} {own}/{trusted.name}: its backends are not spoken to"
                yield document, Finding(where, message, code="reference")
