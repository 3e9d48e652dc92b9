"""Gateways, their listeners and the routes attached to them → what the proxy listens for at the edge, and
status.

For each port of a Gateway there is one listener. Plain HTTP has one table of host names; HTTPS has one for
each of its listeners, chosen by the client's SNI, in which the host names of the others are answered with
421. A host belongs to the most specific listener that covers it, before any route is looked at.

Source: Gateway API v1.6, Gateway, Listener, HTTPRoute (hostnames and precedence).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import GROUP, ConfigMap, Gateway, GatewayClass, ListenerSet, Secret
from penstock.manifests.ingress_kinds import Ingress, IngressClass
from penstock.manifests.kinds import Namespace
from penstock.manifests.l4_kinds import BackendTLSPolicy, TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ParentReference
from penstock.plan import Condition, ObjectStatus
from penstock.policy import ingress
from penstock.routing import hosts, ingresses
from penstock.routing.attach import Attached, Entry, ListenerStatus, Namespaces, attach, by_port, entries_of
from penstock.routing.backend_tls import BackendTls
from penstock.routing.certificates import Vault
from penstock.routing.frontend import client_certificate, lenient, server_tls
from penstock.routing.l4routes import L4_KINDS, L4Route, Streams, hostnames, shares
from penstock.routing.l4routes import Routed as L4Routed
from penstock.routing.model import (
    Authorities,
    Certificate,
    EdgeListener,
    HostRoutes,
    HostTable,
    HttpChain,
    Route,
    RouteBackend,
    TcpChain,
    UpstreamTls,
)
from penstock.routing.rules import Compiled, Ranked, Services, compile_rules
from penstock.routing.services import EDGE, ServedPort
from penstock.world import Address, World

EDGE_KINDS = (
    GatewayClass,
    Gateway,
    ListenerSet,
    Secret,
    ConfigMap,
    BackendTLSPolicy,
    *L4_KINDS,
    Ingress,
    IngressClass,
)
"""What the edge is made from, besides routes of HTTP, Services and Nodes."""

_RESOLVED = Condition("ResolvedRefs", True, "ResolvedRefs")

Routed = tuple[Document, HTTPRoute | GRPCRoute]


@dataclass(frozen=True, slots=True)
class EdgeTable:
    """A table and the clusters that its routes name (of which its rights speak)."""

    table: HostTable
    clusters: tuple[ServedPort, ...]


@dataclass(frozen=True, slots=True)
class EdgeCluster:
    """A backend of Gateways, with TLS to it or not."""

    name: str
    served: ServedPort
    tls: UpstreamTls | None = None


_Places = tuple[tuple[ObjectKey, int, tuple[tuple[str, str], ...]], ...]
"""Where a route is attached: (Gateway, position of the listener, hosts)."""


@dataclass(slots=True)
class Memo:
    """What the last World gave, for routes and tables whose inputs are the very same. `services` and
    `frame` (all that decides about attachments but the routes) are those it was made with."""

    services: Services | None = None
    frame: tuple[Document, ...] = ()
    attached: dict[ObjectKey, tuple[Document, _Places, ObjectStatus | None]] = field(default_factory=dict)
    rules: dict[tuple[ObjectKey, int, str], tuple[Document, Compiled]] = field(default_factory=dict)
    tables: dict[str, tuple[object, EdgeTable]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EdgeMix:
    """The backends of datagrams as one: (Service port, weight); without a Service the share gets lost."""

    name: str
    shares: tuple[tuple[ServedPort | None, int], ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """Everything north-south of one World. Ingress, TCPRoute and the like add to the same lists."""

    listeners: tuple[EdgeListener, ...] = ()
    tables: tuple[EdgeTable, ...] = ()
    clusters: tuple[EdgeCluster, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    authorities: tuple[Authorities, ...] = ()
    statuses: Mapping[ObjectKey, ObjectStatus] = field(default_factory=dict)
    addresses: tuple[Address, ...] = ()
    """Of the listeners, and the node's ingress addresses."""
    mixes: tuple[EdgeMix, ...] = ()
    backend_tls: BackendTls | None = field(default=None, compare=False)
    """TLS to the backends of routes of the mesh, too."""
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)


def listener_name(gateway: Document, port: int, protocol: str) -> str:
    return f"gateway/{gateway.key.namespace}/{gateway.key.name}:{port}/{protocol}"


def gateway_names(world: World) -> tuple[str, ...]:
    """What each listener's number in the kernel's service table is allocated for."""
    found = []
    sets = _sets(world)
    for document, gateway in ingress.gateways(world):
        listed = [gateway.spec.listeners, *(s.spec.listeners for _, s in sets.get(document.key, ()))]
        ports = {(x.port, "UDP" if x.protocol.upper() == "UDP" else "TCP") for each in listed for x in each}
        found += [listener_name(document, port, protocol) for port, protocol in sorted(ports)]
    return (*found, *ingresses.listener_names(world))


def _sets(world: World) -> dict[ObjectKey, list[tuple[Document, ListenerSet]]]:
    """ListenerSets by the Gateway that they name."""
    found: dict[ObjectKey, list[tuple[Document, ListenerSet]]] = {}
    for document, each in world.of_kind(ListenerSet):
        ref = each.spec.parent_ref
        if (ref.group, ref.kind) == (GROUP, "Gateway"):
            key = ObjectKey("Gateway", ref.namespace or document.key.namespace, ref.name)
            found.setdefault(key, []).append((document, each))
    return found


@dataclass(slots=True)
class _Gateway:
    """One Gateway while it is put together."""

    document: Document
    gateway: Gateway
    placed: ingress.Placed
    entries: list[Entry]
    sets: list[Document]
    refused: list[Document]
    routes: dict[int, list[tuple[Attached, Routed]]] = field(default_factory=dict)
    """By the position of their listener in `entries`."""
    streams: list[L4Routed] = field(default_factory=list)

    @property
    def edge(self) -> str:
        backend = self.gateway.spec.tls.backend if self.gateway.spec.tls else None
        if backend is None or backend.client_certificate_ref is None:
            return EDGE
        return f"{EDGE}/{self.document.key.namespace}/{self.document.key.name}"

    @property
    def accepted(self) -> Condition:
        if self.placed.unsupported:
            return Condition("Accepted", False, "UnsupportedAddress", self.placed.unsupported)
        own = [e for e in self.entries if e.owner is self.document]
        bad = [e for e in own if not e.accepted.status]
        if self.gateway.spec.infrastructure and self.gateway.spec.infrastructure.parameters_ref:
            why = "spec.infrastructure.parametersRef names nothing that Penstock knows"
            return Condition("Accepted", False, "InvalidParameters", why)
        if bad:
            why = f"listener {bad[0].listener.name}: {bad[0].accepted.message}"
            return Condition("Accepted", len(bad) < len(own), "ListenersNotValid", why)
        return Condition("Accepted", True, "Accepted")


class Edges:
    """Compiles the edge of one World."""

    def __init__(self, world: World, services: Services, before: Memo) -> None:
        self._world = world
        self._services = services
        self._sets = _sets(world)
        self._taken = ingress.taken(world)
        frame = tuple(world.of_kinds(GatewayClass, Gateway, ListenerSet, Namespace))
        self._memo = Memo(services, frame)
        self._before = before if before.services is services else Memo()
        self._memo.rules = self._before.rules
        self._same_frame = self._before.frame == frame
        self._namespaces = Namespaces(world)
        self._vault = Vault(world, self._services)
        self._backend_tls = BackendTls(world, self._vault)
        self._clusters: dict[str, EdgeCluster] = {}
        self._statuses: dict[ObjectKey, ObjectStatus] = {}
        self._mixes: list[EdgeMix] = []

    def compile(self) -> Edge:
        self._classes()
        found = {d.key: self._gateway(d, g) for d, g in ingress.gateways(self._world)}
        for document, _ in self._world.of_kind(Gateway):
            if document.key not in found:
                why = "its GatewayClass is not Penstock's"
                self._statuses[document.key] = ObjectStatus(pending=why)
        self._routes(found)
        listeners: list[EdgeListener] = []
        tables: list[EdgeTable] = []
        addresses: list[Address] = []
        for each in found.values():
            addresses += each.placed.addresses
            made, more = self._listeners(each)
            listeners += made
            tables += more
            self._report(each)
        self._lonely_sets(found)
        door = ingresses.compile_ingresses(self._world, self._services, self._vault)
        for table, clusters in door.tables:
            tables.append(EdgeTable(table, clusters))
            self._add_clusters(clusters, None)
        listeners += door.listeners
        addresses += door.addresses
        self._statuses.update(door.statuses)
        self._statuses.update(self._backend_tls.statuses())
        if found or door.addresses:
            addresses += ingress.of_node(self._world, self._world.node)
        return Edge(
            tuple(listeners),
            tuple(tables),
            tuple(self._clusters[name] for name in sorted(self._clusters)),
            tuple(self._vault.certificates[name] for name in sorted(self._vault.certificates)),
            tuple(self._vault.authorities[name] for name in sorted(self._vault.authorities)),
            self._statuses,
            tuple(dict.fromkeys(addresses)),
            tuple(self._mixes),
            self._backend_tls,
            self._remembered(),
        )

    def _remembered(self) -> Memo:
        if len(self._memo.rules) > 4 * len(self._memo.attached) + 64:
            present = self._memo.attached
            kept = {k: v for k, v in self._memo.rules.items() if k[0] in present}
            self._memo.rules = kept
        return self._memo

    # --- classes, Gateways ---------------------------------------------------------------------------------

    def _classes(self) -> None:
        for document, each in self._world.of_kind(GatewayClass):
            if each.spec.controller_name != ingress.CONTROLLER:
                why = f"its controller is {each.spec.controller_name}"
                self._statuses[document.key] = ObjectStatus(pending=why)
            elif each.spec.parameters_ref is not None:
                why = "spec.parametersRef names nothing that Penstock knows"
                conditions = (Condition("Accepted", False, "InvalidParameters", why),)
                self._statuses[document.key] = ObjectStatus(conditions, why)
            else:
                self._statuses[document.key] = ObjectStatus((Condition("Accepted", True, "Accepted"),))

    def _gateway(self, document: Document, gateway: Gateway) -> _Gateway:
        taken: list[tuple[Document, ListenerSet]] = []
        refused: list[tuple[Document, ListenerSet]] = []
        for owner, each in self._sets.get(document.key, ()):
            fits = self._namespaces.allowed(
                gateway.spec.allowed_listeners, document.key.namespace, owner.key.namespace
            )
            (taken if fits else refused).append((owner, each))
        entries = entries_of(document, gateway, taken)
        made = _Gateway(
            document,
            gateway,
            ingress.placed(self._world, document, gateway, self._taken),
            entries,
            [d for d, _ in taken],
            [d for d, _ in refused],
        )
        return made

    # --- routes ---------------------------------------------------------------------------------------------

    def _routes(self, found: Mapping[ObjectKey, _Gateway]) -> None:
        of_parent: dict[ObjectKey, tuple[_Gateway, list[Entry]]] = {}
        for key, each in found.items():
            of_parent[key] = (each, [e for e in each.entries if e.owner is each.document])
            for owner in each.sets:
                of_parent[owner.key] = (each, [e for e in each.entries if e.owner is owner])
        routes: list[tuple[Document, HTTPRoute | GRPCRoute | L4Route]] = [
            *self._world.of_kind(HTTPRoute),
            *self._world.of_kind(GRPCRoute),
            *self._world.of_kind(TLSRoute),
            *self._world.of_kind(TCPRoute),
            *self._world.of_kind(UDPRoute),
        ]
        for document, route in routes:
            known = self._before.attached.get(document.key) if self._same_frame else None
            if known is None or known[0] is not document:
                known = (document, *self._attach(document, route, of_parent))
            self._memo.attached[document.key] = known
            for key, position, pairs in known[1]:
                gateway = found[key]
                entry = gateway.entries[position]
                entry.attached.add(document.key)
                if isinstance(route, HTTPRoute | GRPCRoute):
                    listed = gateway.routes.setdefault(position, [])
                    listed.append((Attached(entry, pairs), (document, route)))
                else:
                    gateway.streams.append((Attached(entry, pairs), document, route))
            if known[2] is not None:
                self._statuses[document.key] = known[2]

    def _attach(
        self,
        document: Document,
        route: HTTPRoute | GRPCRoute | L4Route,
        of_parent: Mapping[ObjectKey, tuple[_Gateway, list[Entry]]],
    ) -> tuple[_Places, ObjectStatus | None]:
        """Where a route is attached, and its status; None if it has no parent here."""
        # Two parentRefs may name one listener.
        places: dict[tuple[ObjectKey, int], tuple[tuple[str, str], ...]] = {}
        parents: list[tuple[ParentReference, tuple[Condition, Condition]]] = []
        resolved = _RESOLVED
        http = isinstance(route, HTTPRoute | GRPCRoute)
        names = route.spec.hostnames if isinstance(route, HTTPRoute | GRPCRoute) else hostnames(route)
        for parent in route.spec.parent_refs:
            if parent.group != GROUP:
                continue
            if not parents:
                resolved = self._resolved(document, route)
            key = ObjectKey(parent.kind, parent.namespace or document.key.namespace, parent.name)
            if key not in of_parent:
                why = f"there is no {key} of a class of Penstock's"
                parents.append((parent, (Condition("Accepted", False, "NoMatchingParent", why), resolved)))
                continue
            gateway, entries = of_parent[key]
            attached, accepted = attach(
                document,
                parent,
                names,
                entries,
                self._namespaces,
                by_host=lambda e: http or e.protocol == "TLS",
            )
            parents.append((parent, (accepted, resolved)))
            for each in attached:
                position = next(i for i, e in enumerate(gateway.entries) if e is each.entry)
                places.setdefault((gateway.document.key, position), each.hosts)
        if not parents:
            return (), None
        pending = next((c.message for _, cs in parents for c in cs if not c.status), "")
        status = ObjectStatus(pending=pending, extra={"parents": tuple(parents)})
        return tuple((*place, pairs) for place, pairs in places.items()), status

    def _resolved(self, document: Document, route: HTTPRoute | GRPCRoute | L4Route) -> Condition:
        problems: Sequence[Condition]
        if isinstance(route, HTTPRoute | GRPCRoute):
            problems = self._rules(document, route, 0, EDGE).problems
        else:
            problems = shares(document, route, self._services).problems
        return problems[0] if problems else _RESOLVED

    def _rules(self, document: Document, route: HTTPRoute | GRPCRoute, port: int, edge: str) -> Compiled:
        """The rules of a route as dialled at `port`."""
        known = self._before.rules.get((document.key, port, edge))
        if known is None or known[0] is not document:
            made = compile_rules(document, route, self._services, port=port or 80, edge=edge)
            known = (document, made)
        self._memo.rules[(document.key, port, edge)] = known
        return known[1]

    # --- listeners ------------------------------------------------------------------------------------------

    def _listeners(self, each: _Gateway) -> tuple[list[EdgeListener], list[EdgeTable]]:
        listeners: list[EdgeListener] = []
        tables: list[EdgeTable] = []
        if not each.accepted.status or not each.placed.addresses:
            return listeners, tables
        for port, protocol, entries in by_port(each.entries):
            name = listener_name(each.document, port, protocol)
            chains: list[HttpChain | TcpChain] = []
            http = [e for e in entries if e.protocol == "HTTP"]
            if http:
                tables.append(self._table(name, port, http, http, each))
                chains.append(HttpChain(name))
            shows = {
                id(e): tls
                for e in entries
                if e.ends_tls and (tls := server_tls(e, each.gateway, self._vault)) is not None
            }
            by_name = [e for e in entries if e.passes_tls or id(e) in shows]
            streams = Streams(self._services, each.edge)
            for entry in entries:
                if entry.protocol in ("TCP", "UDP"):
                    streams.add_all(name, entry, each.streams)
            for entry in by_name:
                if entry.protocol == "TLS":
                    names = [e.hostname for e in by_name]
                    streams.add_tls(name, entry, each.streams, names, shows.get(id(entry)))
                    continue
                table = f"{name}/{entry.hostname or '*'}"
                tables.append(self._table(table, port, [entry], by_name, each))
                chains.append(HttpChain(table, entry.hostname, shows[id(entry)]))
            spoken: Literal["TCP", "UDP"] = "UDP" if protocol == "UDP" else "TCP"
            if protocol == "UDP":
                chains += self._mixed(streams)
            else:
                chains += streams.chains
                self._add_clusters(streams.clusters.values(), each)
            if chains:
                listeners.append(EdgeListener(name, each.placed.addresses, port, tuple(chains), spoken))
        return listeners, tables

    def _table(
        self, name: str, port: int, mine: list[Entry], beside: list[Entry], each: _Gateway
    ) -> EdgeTable:
        """The table of the listeners `mine`, which share a port with those of `beside`."""
        names = tuple(e.hostname for e in beside)
        routes = {
            id(entry): each.routes.get(position, [])
            for position, entry in enumerate(each.entries)
            if entry in mine
        }
        inputs = (
            port,
            each.edge,
            names,
            tuple(
                (e.hostname, tuple((a.hosts, document) for a, (document, _) in routes[id(e)])) for e in mine
            ),
        )
        known = self._before.tables.get(name)
        if known is None or known[0] != inputs:
            known = (inputs, self._made(name, port, mine, beside, routes, each.edge))
        self._memo.tables[name] = known
        self._add_clusters(known[1].clusters, each)
        return known[1]

    def _made(
        self,
        name: str,
        port: int,
        mine: list[Entry],
        beside: list[Entry],
        routes: Mapping[int, list[tuple[Attached, Routed]]],
        edge: str,
    ) -> EdgeTable:
        clusters: dict[str, ServedPort] = {}
        found: list[HostRoutes] = []
        names = [e.hostname for e in beside]
        for entry in mine:
            by_name: dict[str, list[tuple[ObjectKey, list[Ranked]]]] = {}
            wanted = {entry.hostname}
            for attached, (document, route) in routes[id(entry)]:
                made = self._rules(document, route, port, edge)
                wanted.update(host for host, _ in attached.hosts)
                for own in {each.lower() for _, each in attached.hosts}:
                    by_name.setdefault(own, []).append((document.key, made.routes))
                clusters.update({c.name: c for c in made.clusters})
            for host in sorted(wanted):
                if hosts.owner(host, names) == entry.hostname:
                    found.append(_host(host, by_name))
        for other in beside:
            if other not in mine and hosts.owner(other.hostname, names) == other.hostname:
                found.append(HostRoutes(other.hostname, misdirected=True))
        return EdgeTable(HostTable(name, tuple(found)), tuple(clusters[c] for c in sorted(clusters)))

    def _mixed(self, streams: Streams) -> Iterator[TcpChain]:
        """Datagrams are shared out among endpoints, for nothing shares them out among clusters."""
        for chain in streams.chains:
            shares = tuple((streams.clusters.get(b.cluster or ""), b.weight) for b in chain.backends)
            self._mixes.append(EdgeMix(f"{chain.name}/backends", shares))
            yield replace(chain, backends=(RouteBackend(f"{chain.name}/backends", 1),))

    def _add_clusters(self, clusters: Iterable[ServedPort], each: _Gateway | None) -> None:
        """Backends of one Gateway, or of Ingresses, with the TLS that is asked for."""
        certificate = ""
        if each is not None and each.edge != EDGE:
            certificate, _ = client_certificate(each.document, each.gateway, self._vault)
        for cluster in clusters:
            tls = self._backend_tls.of(cluster, each.document.key if each is not None else None)
            if tls is not None and certificate:
                tls = replace(tls, certificate=certificate)
            lost = tls is None and self._backend_tls.applies(cluster)
            served = replace(cluster, backends=()) if lost else cluster
            self._clusters.setdefault(cluster.name, EdgeCluster(cluster.name, served, tls))

    # --- status ------------------------------------------------------------------------------------------

    def _report(self, each: _Gateway) -> None:
        accepted = each.accepted
        problem = accepted.message if not accepted.status else ""
        programmed = Condition("Programmed", True, "Programmed")
        _, resolved = client_certificate(each.document, each.gateway, self._vault)
        own = [e for e in each.entries if e.owner is each.document]
        if not accepted.status:
            programmed = Condition("Programmed", False, "Invalid", problem)
        elif each.placed.unusable:
            programmed = Condition("Programmed", False, "AddressNotUsable", each.placed.unusable)
        elif not each.placed.addresses:
            programmed = Condition("Programmed", False, "AddressNotAssigned", "no address is left for it")
        elif own and not any(e.served for e in own):
            programmed = Condition("Programmed", False, "Invalid", own[0].why)
        pending = problem or programmed.message or next((e.why for e in own if not e.served), "")
        self._statuses[each.document.key] = ObjectStatus(
            (accepted, programmed, *(c for c in (resolved, lenient(each.gateway)) if c is not None)),
            pending,
            extra={
                "listeners": tuple(_listener_status(e, programmed) for e in own),
                "addresses": each.placed.addresses,
                "attached_sets": len(each.sets),
            },
        )
        for owner in each.sets:
            entries = [e for e in each.entries if e.owner is owner]
            bad = [e for e in entries if not e.served]
            why = f"listener {bad[0].listener.name}: {bad[0].why}" if bad else ""
            standing = len(bad) < len(entries) and programmed.status
            reason = "ListenersNotValid" if bad else "Accepted"
            conditions = (
                Condition("Accepted", len(bad) < len(entries), reason, why),
                Condition("Programmed", standing, "Programmed" if standing else "Invalid", why),
            )
            extra = {"listeners": tuple(_listener_status(e, programmed) for e in entries)}
            self._statuses[owner.key] = ObjectStatus(conditions, why or programmed.message, extra=extra)
        for owner in each.refused:
            why = f"{each.document.key} takes no listeners of namespace {owner.key.namespace}"
            self._statuses[owner.key] = _refused_set("NotAllowed", why)

    def _lonely_sets(self, found: Mapping[ObjectKey, _Gateway]) -> None:
        for document, _ in self._world.of_kind(ListenerSet):
            if document.key not in self._statuses:
                why = "there is no such Gateway of a class of Penstock's"
                self._statuses[document.key] = ObjectStatus(pending=why)


def _refused_set(reason: str, why: str) -> ObjectStatus:
    conditions = (Condition("Accepted", False, reason, why), Condition("Programmed", False, reason, why))
    return ObjectStatus(conditions, why)


def _listener_status(entry: Entry, gateway: Condition) -> ListenerStatus:
    standing = entry.served and gateway.status
    why = entry.why or gateway.message
    programmed = Condition("Programmed", True, "Programmed")
    if not standing:
        programmed = Condition("Programmed", False, "Invalid", why)
    return ListenerStatus(
        entry.listener.name,
        entry.supported,
        len(entry.attached),
        (entry.accepted, programmed, entry.resolved, entry.conflicted),
        listener_name(entry.gateway, entry.listener.port, "UDP" if entry.protocol == "UDP" else "TCP"),
    )


def _host(host: str, by_name: Mapping[str, list[tuple[ObjectKey, list[Ranked]]]]) -> HostRoutes:
    """The routes for one host, by their own host names: those of the most specific one first."""
    found: list[Route] = []
    seen: set[ObjectKey] = set()
    for name in hosts.covering(host):
        listed = [item for item in by_name.get(name, ()) if item[0] not in seen]
        seen.update(key for key, _ in listed)
        ranked = [r for _, routes in listed for r in routes]
        found += [route for _, route in sorted(ranked, key=_rank)]
    return HostRoutes(host, tuple(found))


def _rank(ranked: Ranked) -> tuple[object, ...]:
    return ranked[0]


def compile_edge(world: World, services: Services, before: Edge | None = None) -> Edge:
    """What stands at the edge of `world`. `before` never changes a result."""
    return Edges(world, services, before.memo if before else Memo()).compile()


def joined(mine: ObjectStatus | None, other: ObjectStatus) -> ObjectStatus:
    """The status of a route that has parents in the mesh and at the edge."""
    if mine is None:
        return other
    parents = (*mine.extra.get("parents", ()), *other.extra.get("parents", ()))  # type: ignore[misc]
    return replace(mine, pending=mine.pending or other.pending, extra={"parents": parents})
