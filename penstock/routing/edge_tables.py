"""The listeners of one Gateway and the routes on them → what the proxy listens for, and its tables of hosts.

For each port there is one listener. Plain HTTP has one table of host names; HTTPS has one for each of its
listeners, chosen by the client's SNI, in which the host names of the others are answered with 421. A host
belongs to the most specific listener that covers it, before any route is looked at.

Source: Gateway API v1.6, Listener (hostnames, isolation), HTTPRoute (hostnames and precedence).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from penstock.manifests.document import ObjectKey
from penstock.routing import hosts
from penstock.routing.attach import Attached, Entry, by_port
from penstock.routing.backend_tls import BackendTls
from penstock.routing.certificates import Vault
from penstock.routing.edge import EdgeCluster, EdgeMix, EdgeTable, Memo, OneGateway, Routed, listener_name
from penstock.routing.edge_routes import Attachments
from penstock.routing.frontend import client_certificate, server_tls
from penstock.routing.l4routes import Streams
from penstock.routing.model import (
    EdgeListener,
    HostRoutes,
    HostTable,
    HttpChain,
    Route,
    RouteBackend,
    TcpChain,
)
from penstock.routing.rules import Ranked, Services
from penstock.routing.services import EDGE, ServedPort


class Tables:
    """What is served. `clusters` and `mixes` are the backends that are named by what was made so far."""

    def __init__(
        self,
        services: Services,
        vault: Vault,
        backend_tls: BackendTls,
        attachments: Attachments,
        memo: Memo,
        before: Memo,
    ) -> None:
        self._services = services
        self._vault = vault
        self._backend_tls = backend_tls
        self._attachments = attachments
        self._memo = memo
        self._before = before
        self.clusters: dict[str, EdgeCluster] = {}
        self.mixes: list[EdgeMix] = []

    def listeners(self, each: OneGateway) -> tuple[list[EdgeListener], list[EdgeTable]]:
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
                self.add_clusters(streams.clusters.values(), each)
            if chains:
                listeners.append(EdgeListener(name, each.placed.addresses, port, tuple(chains), spoken))
        return listeners, tables

    def _table(
        self, name: str, port: int, mine: list[Entry], beside: list[Entry], each: OneGateway
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
        self.add_clusters(known[1].clusters, each)
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
                made = self._attachments.rules(document, route, port, edge)
                wanted.update(host for host, _ in attached.hosts)
                for own in {each.lower() for _, each in attached.hosts}:
                    by_name.setdefault(own, []).append((document.key, made.routes))
                clusters.update({c.name: c for c in made.clusters})
            for host in sorted(wanted):
                if hosts.owner(host, names) == entry.hostname:
                    about = self._services.http.of(entry.gateway.key, entry.listener.name)
                    found.append(replace(_host(host, by_name), treatment=about))
        for other in beside:
            if other not in mine and hosts.owner(other.hostname, names) == other.hostname:
                found.append(HostRoutes(other.hostname, misdirected=True))
        return EdgeTable(HostTable(name, tuple(found)), tuple(clusters[c] for c in sorted(clusters)))

    def _mixed(self, streams: Streams) -> Iterator[TcpChain]:
        """Datagrams are shared out among endpoints, for nothing shares them out among clusters."""
        for chain in streams.chains:
            shares = tuple((streams.clusters.get(b.cluster or ""), b.weight) for b in chain.backends)
            self.mixes.append(EdgeMix(f"{chain.name}/backends", shares))
            yield replace(chain, backends=(RouteBackend(f"{chain.name}/backends", 1),))

    def add_clusters(self, clusters: Iterable[ServedPort], each: OneGateway | None) -> None:
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
            self.clusters.setdefault(cluster.name, EdgeCluster(cluster.name, served, tls))


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
