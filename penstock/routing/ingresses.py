"""Ingresses → one front door: HTTP at port 80, and at port 443 TLS by the client's SNI.

All rules of all Ingresses stand in one table by host. For a host its own paths come first, then those of
rules without a host, then default backends: first those of Ingresses that know the host, then everybody's.
Exact paths come before prefixes, longer ones before shorter ones, and of equals the oldest Ingress counts. A
host ``*.x`` means exactly one label before x.

Source: Kubernetes API v1.31, Ingress (hosts, path types, TLS, defaultBackend).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import ObjectReference
from penstock.manifests.ingress_kinds import HTTPIngressPath, Ingress, IngressBackend, IngressClass
from penstock.plan import Condition, ObjectStatus
from penstock.policy import ingress_classes
from penstock.routing import hosts
from penstock.routing.actions import Actions
from penstock.routing.certificates import Vault
from penstock.routing.matches import precedence
from penstock.routing.model import (
    EdgeListener,
    HostRoutes,
    HostTable,
    HttpChain,
    Route,
    RouteBackend,
    RouteMatch,
    ServerTls,
    StringMatch,
)
from penstock.routing.rules import Services, hashes_of
from penstock.routing.services import EDGE, ServedPort
from penstock.world import Address, World, parse_address

HTTP, HTTPS = "ingress:80/TCP", "ingress:443/TCP"

Ranked = tuple[tuple[object, ...], Route]


@dataclass(slots=True)
class FrontDoor:
    """What Ingresses add to the edge."""

    listeners: list[EdgeListener] = field(default_factory=list)
    tables: list[tuple[HostTable, tuple[ServedPort, ...]]] = field(default_factory=list)
    statuses: dict[ObjectKey, ObjectStatus] = field(default_factory=dict)
    addresses: tuple[Address, ...] = ()


def listener_names(world: World) -> tuple[str, ...]:
    return (HTTP, HTTPS) if any(True for _ in ingress_classes.ingresses(world)) else ()


def compile_ingresses(world: World, services: Services, vault: Vault) -> FrontDoor:
    """The front door of one World; nothing if there is no Ingress of ours."""
    return _Compiler(world, services, vault).compile()


@dataclass(slots=True)
class _Host:
    """The routes of one host, in the order in which they are tried when sorted."""

    routes: list[Ranked] = field(default_factory=list)
    defaults: list[Ranked] = field(default_factory=list)


class _Compiler:
    def __init__(self, world: World, services: Services, vault: Vault) -> None:
        self._world, self._services, self._vault = world, services, vault
        self._hosts: dict[str, _Host] = {}
        self._everybody = _Host()
        self._clusters: dict[str, ServedPort] = {}
        self._certificates: dict[str, list[str]] = {}
        self._problems: dict[ObjectKey, list[str]] = {}

    def compile(self) -> FrontDoor:
        made = FrontDoor()
        found = ingress_classes.ingresses(self._world)
        mine = sorted(found, key=lambda i: (i[0].since, i[0].key.namespace, i[0].key.name))
        for document, ingress in mine:
            self._problems[document.key] = []
            self._rules(document, ingress)
            self._tls(document, ingress)
        text = self._world.allocations.gateways.get(ingress_classes.ADDRESS_KEY)
        made.addresses = (parse_address(text),) if mine and text else ()
        if made.addresses:
            self._listen(made)
        self._report(made, {d.key for d, _ in mine})
        return made

    # --- rules ----------------------------------------------------------------------------------------------

    def _rules(self, document: Document, ingress: Ingress) -> None:
        known = set()
        for i, rule in enumerate(ingress.spec.rules):
            host = rule.host.lower()
            known.add(host)
            place = self._everybody if host == hosts.ANY else self._hosts.setdefault(host, _Host())
            for j, path in enumerate(rule.http.paths if rule.http else ()):
                name = f"{document.key.namespace}/{document.key.name}/{i}/{j}"
                route = self._route(document, name, _match(path, host), path.backend)
                place.routes.append((precedence(document, route.match, (i, j)), route))
        backend = ingress.spec.default_backend
        if backend is None:
            return
        name = f"{document.key.namespace}/{document.key.name}/default"
        route = self._route(document, name, RouteMatch(StringMatch("prefix", "/")), backend)
        rank = precedence(document, route.match, (0, 0))
        self._everybody.defaults.append((rank, route))
        for host in known - {hosts.ANY}:
            self._hosts[host].defaults.append((rank, route))

    def _route(self, document: Document, name: str, match: RouteMatch, backend: IngressBackend) -> Route:
        target = self._target(document, backend)
        if target is not None:
            self._clusters[target.name] = target
        hashes = hashes_of([target] if target is not None else [], self._services)
        backends = (RouteBackend(target.name if target else None, 1),)
        return Route(name, match, backends, Actions(hashes=hashes))

    def _target(self, document: Document, backend: IngressBackend) -> ServedPort | None:
        service = backend.service
        assert service is not None
        namespace, wanted = document.key.namespace, service.port
        there = self._services.find(namespace, service.name, None, None)
        found = [
            s
            for s in there
            if s.port.protocol == "TCP"
            and (s.port.name == wanted.name if wanted.name else s.port.port == wanted.number)
        ]
        if not found:
            port = f" port {wanted.name or wanted.number}" if there else ""
            self._problems[document.key].append(f"no Service {namespace}/{service.name}{port}")
            return None
        return replace(min(found, key=lambda s: (s.empty, s.family)), edge=EDGE)

    # --- TLS ------------------------------------------------------------------------------------------------

    def _tls(self, document: Document, ingress: Ingress) -> None:
        for entry in ingress.spec.tls:
            if not entry.secret_name:
                self._problems[document.key].append("a TLS entry names no Secret")
                continue
            name, problem = self._vault.certificate(document, ObjectReference(name=entry.secret_name))
            if problem is not None:
                self._problems[document.key].append(problem.message)
                continue
            for host in entry.hosts or [hosts.ANY]:
                # The oldest Ingress that brings a certificate for a host is the one that is shown.
                self._certificates.setdefault(host.lower(), [name])

    # --- listeners ------------------------------------------------------------------------------------------

    def _listen(self, made: FrontDoor) -> None:
        clusters = tuple(self._clusters[name] for name in sorted(self._clusters))
        everything = tuple(self._table(host) for host in sorted({*self._hosts, hosts.ANY}))
        made.tables.append((HostTable(HTTP, everything), clusters))
        made.listeners.append(EdgeListener(HTTP, made.addresses, 80, (HttpChain(HTTP),)))
        chains = []
        for sni in sorted(self._certificates):
            name = f"{HTTPS}/{sni or '*'}"
            own = tuple(t for t in everything if hosts.owner(t.host, self._certificates) == sni)
            if sni not in {t.host for t in own}:
                own = (*own, self._table(sni))
            if sni != hosts.ANY:
                own = (*own, HostRoutes(hosts.ANY, misdirected=True))
            made.tables.append((HostTable(name, own), clusters))
            chains.append(HttpChain(name, sni, ServerTls(tuple(self._certificates[sni]))))
        if chains:
            made.listeners.append(EdgeListener(HTTPS, made.addresses, 443, tuple(chains)))

    def _table(self, host: str) -> HostRoutes:
        own = self._hosts.get(host, _Host()) if host != hosts.ANY else _Host()
        listed = [own.routes, self._everybody.routes, own.defaults, self._everybody.defaults]
        found = [route for part in listed for _, route in sorted(part, key=lambda r: r[0])]
        return HostRoutes(host, tuple(dict.fromkeys(found)))

    # --- status ---------------------------------------------------------------------------------------------

    def _report(self, made: FrontDoor, mine: set[ObjectKey]) -> None:
        for document, _ in self._world.of_kind(IngressClass):
            if document.key.name not in ingress_classes.ours(self._world):
                made.statuses[document.key] = ObjectStatus(pending="its controller is not Penstock's")
        serves = tuple(each.name for each in made.listeners)
        for document, ingress in self._world.of_kind(Ingress):
            if document.key not in mine:
                why = ingress_classes.stranger(self._world, ingress)
                made.statuses[document.key] = ObjectStatus(pending=why)
                continue
            problems = self._problems[document.key]
            if not made.addresses:
                problems.append("no address is left for Ingresses")
            pending = problems[0] if problems else ""
            condition = Condition("Valid", not pending, "Accepted" if not pending else "Pending", pending)
            extra: Mapping[str, object] = {"addresses": made.addresses, "serves": serves}
            made.statuses[document.key] = ObjectStatus((condition,), pending, extra=extra)


def _match(path: HTTPIngressPath, host: str) -> RouteMatch:
    kind = "exact" if path.path_type == "Exact" else "prefix"
    return RouteMatch(StringMatch(kind, path.path or "/"), headers=tuple(_one_label(host)))  # type: ignore[arg-type]


def _one_label(host: str) -> Iterator[tuple[str, StringMatch]]:
    if host.startswith("*."):
        yield ":authority", StringMatch("regex", rf"(?i)[^.]+{re.escape(host[1:])}(:[0-9]+)?")
