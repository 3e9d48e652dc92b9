"""What stands at the edge of one World, as values: what `gateways` and `ingresses` find out, and what the
proxy model, the kernel's tables and `explain` read.

One Gateway while it is put together is here too, for the stages hand it on: its listeners (attach), the
routes on them (edge_routes), what is served (edge_tables), what is told of it (edge_status).

Source: Gateway API v1.6, Gateway, GatewayStatus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import ConfigMap, Gateway, GatewayClass, ListenerSet, Secret
from penstock.manifests.ingress_kinds import Ingress, IngressClass
from penstock.manifests.l4_kinds import BackendTLSPolicy
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute
from penstock.plan import Condition, ObjectStatus
from penstock.policy import ingress
from penstock.routing import hosts
from penstock.routing.attach import Attached, Entry
from penstock.routing.backend_tls import BackendTls
from penstock.routing.edge_hosts import ListenerHosts
from penstock.routing.l4routes import L4_KINDS
from penstock.routing.l4routes import Routed as L4Routed
from penstock.routing.model import Authorities, Certificate, EdgeListener, HostTable, UpstreamTls
from penstock.routing.rules import Compiled, Services
from penstock.routing.services import EDGE, ServedPort
from penstock.world import Address

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


Hosts = tuple[tuple[str, str], ...]
"""Hosts in which a route meets a listener, and the route's own name that gave each."""

Places = tuple[tuple[ObjectKey, int, Hosts], ...]
"""Where a route is attached: (Gateway, position of the listener, hosts)."""

Standing = dict[ObjectKey, tuple[Document, Hosts]]
"""The routes on one listener, in their order. Never changed once made, and the same one while they are."""

ROUTE_KINDS = (HTTPRoute, GRPCRoute, *L4_KINDS)
"""In the order in which routes are looked at."""


@dataclass(slots=True)
class Memo:
    """What the last World gave, for routes and tables whose inputs are the very same. `services` and
    `frame` (all that decides about attachments but the routes) are those it was made with."""

    services: Services | None = None
    frame: tuple[Document, ...] = ()
    routes: tuple[tuple[Document, ...], ...] = ()
    """The documents of each of ROUTE_KINDS."""
    attached: dict[ObjectKey, Places] = field(default_factory=dict)
    standing: dict[tuple[ObjectKey, int], Standing] = field(default_factory=dict)
    statuses: dict[ObjectKey, ObjectStatus] = field(default_factory=dict)
    rules: dict[tuple[ObjectKey, int, bool, str], tuple[Document, Compiled]] = field(default_factory=dict)
    tables: dict[str, tuple[object, EdgeTable]] = field(default_factory=dict)
    hosts: dict[tuple[str, str], ListenerHosts] = field(default_factory=dict)
    """By table and host name of the listener."""


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


def sections(gateway: Gateway, port: int, host: str) -> list[str]:
    """The names of a Gateway's own listeners that requests for `host` at `port` belong to."""
    here = [
        (each.name, (each.hostname or "").lower()) for each in gateway.spec.listeners if each.port == port
    ]
    owner = hosts.owner(host.lower(), [hostname for _, hostname in here])
    return [name for name, hostname in here if hostname == owner]


def listener_name(gateway: Document, port: int, protocol: str) -> str:
    return f"gateway/{gateway.key.namespace}/{gateway.key.name}:{port}/{protocol}"


@dataclass(slots=True)
class OneGateway:
    """One Gateway while it is put together."""

    document: Document
    gateway: Gateway
    placed: ingress.Placed
    entries: list[Entry]
    sets: list[Document]
    refused: list[Document]
    routes: dict[int, Standing] = field(default_factory=dict)
    """By the position of their listener in `entries`."""

    def at(self, entry: Entry) -> Standing:
        """The routes on one of `entries`."""
        return self.routes.get(next(i for i, e in enumerate(self.entries) if e is entry), {})

    def streams(self, entry: Entry) -> list[L4Routed]:
        """Those of them that know no HTTP."""
        return [
            (Attached(entry, pairs), document, document.value)
            for document, pairs in self.at(entry).values()
            if isinstance(document.value, L4_KINDS)
        ]

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
