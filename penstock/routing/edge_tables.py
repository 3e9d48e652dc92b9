"""The listeners of one Gateway and the routes on them → what the proxy listens for, and its tables of hosts.

For each port there is one listener. Plain HTTP has one table of host names; HTTPS has one for each of its
listeners, chosen by the client's SNI, in which the host names of the others are answered with 421. A host
belongs to the most specific listener that covers it, before any route is looked at.

Source: Gateway API v1.6, Listener (hostnames, isolation), HTTPRoute (hostnames and precedence).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

from penstock.manifests.document import Document
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute
from penstock.routing import hosts
from penstock.routing.attach import Entry, by_port
from penstock.routing.backend_tls import BackendTls
from penstock.routing.certificates import Vault
from penstock.routing.edge import EdgeCluster, EdgeMix, EdgeTable, Memo, OneGateway, listener_name
from penstock.routing.edge_hosts import listener_hosts
from penstock.routing.edge_routes import Attachments
from penstock.routing.frontend import client_certificate, server_tls
from penstock.routing.l4routes import Streams
from penstock.routing.model import (
    EdgeListener,
    HostRoutes,
    HostTable,
    HttpChain,
    RouteBackend,
    TcpChain,
)
from penstock.routing.rules import Compiled, Services
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
                    streams.add_all(name, entry, each.streams(entry))
            for entry in by_name:
                if entry.protocol == "TLS":
                    names = [e.hostname for e in by_name]
                    streams.add_tls(name, entry, each.streams(entry), names, shows.get(id(entry)))
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
        treatments = tuple(self._services.http.of(e.gateway.key, e.listener.name) for e in mine)
        inputs = (port, each.edge, names, tuple((e.hostname, each.at(e)) for e in mine), treatments)
        known = self._before.tables.get(name)
        same = known is not None and known[0] == inputs
        found: list[HostRoutes] = []
        clusters: dict[str, ServedPort] = {}

        def rules(document: Document) -> Compiled:
            assert isinstance(document.value, HTTPRoute | GRPCRoute)
            secure = mine[0].protocol == "HTTPS"
            return self._attachments.rules(document, document.value, port, each.edge, secure=secure)

        for entry, about in zip(mine, treatments, strict=True):
            place = (name, entry.hostname)
            hosts_of = self._before.hosts.get(place)
            if not same or hosts_of is None:
                hosts_of = listener_hosts(entry.hostname, names, each.at(entry), rules, hosts_of)
            self._memo.hosts[place] = hosts_of
            if not same:
                made = [host for host in hosts_of.made.values() if host is not None]
                found += [replace(host, treatment=about) for host in made] if about else made
                clusters.update({name: cluster for name, (cluster, _) in hosts_of.clusters.items()})
        if known is None or not same:
            for other in beside:
                if other not in mine and hosts.owner(other.hostname, names) == other.hostname:
                    found.append(HostRoutes(other.hostname, misdirected=True))
            table = EdgeTable(HostTable(name, tuple(found)), tuple(clusters[c] for c in sorted(clusters)))
            known = (inputs, table)
        self._memo.tables[name] = known
        self.add_clusters(known[1].clusters, each)
        return known[1]

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
