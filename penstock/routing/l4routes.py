"""TLSRoutes, TCPRoutes and UDPRoutes of Gateways → streams by weight.

One listener serves each host name (of TCP and UDP: everything) by one route, the oldest that is attached: a
connection has nothing else to choose by. What a reference that cannot be used would get is closed.

Source: Gateway API v1.6, TLSRoute, TCPRoute, UDPRoute, BackendObjectReference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from penstock.manifests.document import Document
from penstock.manifests.l4_kinds import BackendRef, TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.route_kinds import HTTPBackendRef
from penstock.plan import Condition
from penstock.routing import hosts
from penstock.routing.attach import Attached, Entry
from penstock.routing.model import RouteBackend, ServerTls, TcpChain
from penstock.routing.rules import Services, backend
from penstock.routing.services import EDGE, ServedPort

L4Route = TLSRoute | TCPRoute | UDPRoute
L4_KINDS = (TLSRoute, TCPRoute, UDPRoute)

Routed = tuple[Attached, Document, L4Route]


@dataclass(frozen=True, slots=True)
class Shares:
    """What one route sends where, and what is wrong with its references."""

    backends: tuple[RouteBackend, ...]
    clusters: tuple[ServedPort, ...]
    problems: tuple[Condition, ...]


def hostnames(route: L4Route) -> list[str]:
    return route.spec.hostnames if isinstance(route, TLSRoute) else []


def shares(document: Document, route: L4Route, services: Services, edge: str = EDGE) -> Shares:
    """The backends of a route's only rule, reached through `edge`."""
    protocol = "UDP" if isinstance(route, UDPRoute) else "TCP"
    found: list[RouteBackend] = []
    clusters: dict[str, ServedPort] = {}
    problems: list[Condition] = []
    for rule in route.spec.rules:
        for ref in rule.backend_refs:
            target, problem = _target(document, ref, services, protocol)
            target = target and replace(target, edge=edge)
            if problem is not None:
                problems.append(problem)
            if target is not None:
                clusters[target.name] = target
            found.append(RouteBackend(target.name if target else None, ref.weight))
    return Shares(tuple(found), tuple(clusters.values()), tuple(problems))


def _target(
    document: Document, ref: BackendRef, services: Services, protocol: str
) -> tuple[ServedPort | None, Condition | None]:
    same = HTTPBackendRef(
        name=ref.name, group=ref.group, kind=ref.kind, namespace=ref.namespace, port=ref.port
    )
    target, problem = backend(document, same, None, services)
    if target is None or problem is not None:
        return None, problem
    namespace = ref.namespace or document.key.namespace
    fitting = [s for s in services.find(namespace, ref.name, ref.port, None) if s.port.protocol == protocol]
    if not fitting:
        why = f"port {ref.port} of Service {namespace}/{ref.name} is not {protocol}"
        return None, Condition("ResolvedRefs", False, "UnsupportedProtocol", why)
    chosen = min(fitting, key=lambda s: (s.empty, s.family))
    return replace(chosen, stream=True), None


def _age(routed: Routed) -> tuple[object, ...]:
    document = routed[1]
    return document.since, document.key.namespace, document.key.name, document.key.kind


@dataclass(slots=True)
class Streams:
    """What the L4 routes of one port become. `clusters` are those that the chains name."""

    services: Services
    edge: str = EDGE
    chains: list[TcpChain] = field(default_factory=list)
    clusters: dict[str, ServedPort] = field(default_factory=dict)

    def _chain(self, name: str, routed: Routed, sni: str | None, tls: ServerTls | None) -> None:
        _, document, route = routed
        found = shares(document, route, self.services, self.edge)
        self.clusters.update({c.name: c for c in found.clusters})
        self.chains.append(TcpChain(name, found.backends, sni, tls, document.key))

    def add_tls(
        self,
        name: str,
        entry: Entry,
        routes: Iterable[Routed],
        names: Iterable[str],
        tls: ServerTls | None,
    ) -> None:
        """A TLS listener: a chain for each host name that is its own among `names`, those of its port.

        With `tls` TLS ends here; else it is passed on as it is.
        """
        attached = [r for r in routes if r[0].entry is entry]
        names = list(names)
        for host in sorted({host for r in attached for host, _ in r[0].hosts}):
            best = min(
                (r for r in attached if _own(r[0], host)), key=lambda r: (*_rank(r[0], host), *_age(r))
            )
            if hosts.owner(host, names) == entry.hostname:
                self._chain(f"{name}/{host or '*'}", best, host, tls)

    def add_all(self, name: str, entry: Entry, routes: Iterable[Routed]) -> None:
        """A TCP or UDP listener: everything goes one way."""
        attached = [r for r in routes if r[0].entry is entry]
        if attached:
            self._chain(name, min(attached, key=_age), None, None)


def _own(attached: Attached, host: str) -> list[str]:
    """The names of a route that mean `host`."""
    return [name for _, name in attached.hosts if hosts.covers(name, host)]


def _rank(attached: Attached, host: str) -> tuple[bool, int]:
    exact, length = hosts.specific(max(_own(attached, host), key=hosts.specific))
    return not exact, -length


def losers(routes: Mapping[Entry, list[Routed]]) -> Iterable[tuple[Routed, Routed]]:
    """Routes of TCP and UDP listeners that stand behind an older one, with that."""
    for attached in routes.values():
        first, *others = sorted(attached, key=_age)
        yield from ((other, first) for other in others)
