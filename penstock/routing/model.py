"""The neutral route model: what a proxy must do, said without a word of Envoy.

Inputs (mesh routes today, Gateway and Ingress later) compile to these values; `penstock.envoy`
turns them into Envoy resources. Names stand for what a thing is, never for its position or
content, so that an edit changes a resource in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from penstock.dns.patterns import Names
from penstock.manifests.document import ObjectKey
from penstock.routing.actions import NO_ACTIONS, NO_CHANGES, Actions, HeaderChanges
from penstock.routing.traffic import Traffic
from penstock.routing.treatment import Treatment
from penstock.world import Address


class ListenerKind(IntEnum):
    """What a listener does with the connections that the kernel steers to it.

    The numbers are shared with the kernel (bpf/penstock.h) and never change meaning.
    """

    HTTP_SERVICE = 1
    """HTTP to a Service's virtual address: routed by that Service's routes."""
    HTTP_WORKLOAD = 2
    """HTTP to a workload's own address: goes to just that workload."""
    TLS_HTTP = 3
    """Mesh TLS from another node to a local workload; inside is HTTP that an L7 rule judges."""
    TLS_TCP = 4
    """Mesh TLS from another node to a local workload; inside is anything, judged at L4 by the kernel."""
    TCP_MTLS = 5
    """Plain TCP of a local workload to a workload of another node that requires mesh TLS."""
    DNS = 7
    """DNS, that a policy names or that is for the node's own address of it: the DNS proxy's, not Envoy's."""
    NAMES = 8
    """TLS by its server name, the rest unseen: to the address that was dialled, to some `destination` over
    mesh TLS."""
    TLS_NAMES = 9
    """Mesh TLS from another node, in which is TLS that is looked at by its server name."""
    NAMES_AUDIT = 10
    """As NAMES, but everything passes, and is told."""
    GATEWAY = 6
    """What an L7 rule about Gateways names: served as by the Gateway's own listener, once it is admitted."""


@dataclass(frozen=True, slots=True)
class ProxyListener:
    """One listener: (kind, source class) and, for TCP_MTLS, the destination's identity.

    `peer_id` is the SPIFFE id of the source class' members; TLS kinds accept no other client.
    `server_id` is the SPIFFE id that a TCP_MTLS listener demands of the server.
    """

    name: str
    kind: ListenerKind
    source_class: int
    port: int
    peer_id: str | None = None
    destination: int = 0
    server_id: str | None = None
    namespace: str = ""
    """Of the class' members, which HTTP_SERVICE listeners state for consumer routes."""
    edge: str = ""
    """The EdgeListener that a GATEWAY listener stands before; `destination` is its number."""
    outward: Names = ()
    inward: Names = ()
    """The server names that the sender's and the receiver's rules let pass; empty where they say nothing."""
    borrows: bool = True
    """It speaks upstream with the client's own address; else with the node's."""


@dataclass(frozen=True, slots=True)
class StringMatch:
    """`prefix` is Gateway API's PathPrefix: whole path segments, a trailing slash ignored."""

    kind: Literal["exact", "prefix", "regex"]
    value: str


@dataclass(frozen=True, slots=True)
class RouteMatch:
    path: StringMatch
    method: str | None = None
    headers: tuple[tuple[str, StringMatch], ...] = ()
    query: tuple[tuple[str, StringMatch], ...] = ()
    namespace: str | None = None
    """Of the clients that it is for; None is all."""
    below: int | None = None
    """Of the requests that get as far, those whose draw from a million is below it; None is all."""


@dataclass(frozen=True, slots=True)
class RouteBackend:
    """A share of a rule's requests. `cluster` None answers 500 (the reference cannot be used).

    The changes and the hostname are for just this share, on top of the rule's own.
    """

    cluster: str | None
    weight: int
    request: HeaderChanges = NO_CHANGES
    response: HeaderChanges = NO_CHANGES
    hostname: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One match of one rule. `name` is namespace/route/rule/match and only labels logs."""

    name: str
    match: RouteMatch
    backends: tuple[RouteBackend, ...]
    actions: Actions = NO_ACTIONS
    grpc: bool = False
    """Requests are gRPC calls: one whose backend cannot be used ends as UNAVAILABLE."""


@dataclass(frozen=True, slots=True)
class RequestMatch:
    """One entry of a policy's rules.http: regular expressions (RE2, full match); None matches all.

    `headers` are (name, value); value None demands presence only.
    """

    method: str | None = None
    path: str | None = None
    host: str | None = None
    headers: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Rights:
    """Members of `sources` may send `requests` to endpoints of `destinations`. Absent rights deny.

    `sources` None is every source class. A request must match at least one of the alternatives in
    *each* group of `requests` (the sender's egress and the receiver's ingress are two groups); no groups
    allow every request. `destinations` are policy classes of endpoints.
    """

    sources: tuple[int, ...] | None
    destinations: tuple[str, ...]
    requests: tuple[tuple[RequestMatch, ...], ...] = ()
    _hash: int = field(default=0, init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        # Hundreds of tables have the same rights, and all are asked at every change.
        if not self._hash:
            object.__setattr__(self, "_hash", hash((self.sources, self.destinations, self.requests)) or 1)
        return self._hash


@dataclass(frozen=True, slots=True)
class ServiceTable:
    """The routes of one virtual address and port. `routes` stand in the order in which they are tried."""

    name: str
    address: Address
    port: int
    routes: tuple[Route, ...]
    rights: tuple[Rights, ...]
    audit: tuple[Rights, ...] | None = None
    """What `rights` would be with the policies in audit enforced; None is no difference."""
    treatment: Treatment | None = None
    """What is done with requests where their route says nothing of it."""
    _hash: int = field(default=0, init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        if not self._hash:
            inputs = (
                self.name,
                self.address,
                self.port,
                self.routes,
                self.rights,
                self.audit,
                self.treatment,
            )
            object.__setattr__(self, "_hash", hash(inputs) or 1)
        return self._hash


@dataclass(frozen=True, slots=True)
class Certificate:
    """A chain and its key (PEM) that a manifest brings; `name` is what others ask SDS for."""

    name: str
    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authorities:
    """Certificates (PEM) that others' certificates are checked against."""

    name: str
    pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How a Gateway's listener speaks TLS: with which certificates, and what it asks of clients.

    Of several certificates the one is shown that fits the client's SNI. With `authorities` a client must show
    a certificate that they vouch for; with `lenient` it may as well show none, or another one.
    """

    certificates: tuple[str, ...]
    authorities: str | None = None
    lenient: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """TLS to a backend: the SNI; whose word counts (None: the system's authorities); the names of which the
    backend's certificate must have one (none: the SNI); and the certificate that is shown."""

    sni: str
    authorities: str | None = None
    names: tuple[tuple[Literal["dns", "uri"], str], ...] = ()
    certificate: str | None = None


@dataclass(frozen=True, slots=True)
class HostRoutes:
    """The routes of one host name ('' every host, ``*.x`` one or more labels before x), in their order.

    `misdirected` answers 421: the name belongs to another listener than the connection's.
    """

    host: str
    routes: tuple[Route, ...] = ()
    misdirected: bool = False
    treatment: Treatment | None = None
    _hash: int = field(default=0, init=False, repr=False, compare=False)
    _mirrors: frozenset[str] | None = field(default=None, init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        # Thousands of hosts stay the same when one changes, and all are asked.
        if not self._hash:
            found = hash((self.host, self.routes, self.misdirected, self.treatment))
            object.__setattr__(self, "_hash", found or 1)
        return self._hash

    @property
    def mirrors(self) -> frozenset[str]:
        """The clusters that copies of its requests go to."""
        if self._mirrors is None:
            found = frozenset(mirror.cluster for route in self.routes for mirror in route.actions.mirrors)
            object.__setattr__(self, "_mirrors", found)
            return found
        return self._mirrors


@dataclass(frozen=True, slots=True)
class HostTable:
    """What a Gateway's listener serves, by host name. Other hosts, and requests that no route matches:
    404."""

    name: str
    hosts: tuple[HostRoutes, ...]
    rights: tuple[Rights, ...] = ()
    admission: tuple[Rights, ...] | None = None
    """Who may send what to the Gateway itself, as its client sends it; None where no L7 rule names it."""
    audit: tuple[Rights, ...] | None = None
    admission_audit: tuple[Rights, ...] | None = None
    """What both would be with the policies in audit enforced; None is no difference."""
    _hash: int = field(default=0, init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        # There may be thousands of routes inside, and it is asked for at every change.
        if not self._hash:
            judged = (self.rights, self.admission, self.audit, self.admission_audit)
            found = hash((self.name, self.hosts, judged))
            object.__setattr__(self, "_hash", found or 1)
        return self._hash


@dataclass(frozen=True, slots=True)
class HttpChain:
    """HTTP by the table of that name; over TLS only for clients whose SNI is `sni` ('' any, ``*.x``)."""

    table: str
    sni: str = ""
    tls: ServerTls | None = None


@dataclass(frozen=True, slots=True)
class TcpChain:
    """A stream to one of `backends`, by weight. Of TLS connections those with `sni`, which are ended here if
    there is `tls` and else passed on as they are; `name` is what its log is called after."""

    name: str
    backends: tuple[RouteBackend, ...]
    sni: str | None = None
    tls: ServerTls | None = None
    route: ObjectKey | None = None
    """The route that it is made of, for whoever explains it."""


@dataclass(frozen=True, slots=True)
class EdgeListener:
    """One port of a Gateway or Ingress at its addresses. Envoy itself listens there: nothing is steered."""

    name: str
    addresses: tuple[Address, ...]
    port: int
    chains: tuple[HttpChain | TcpChain, ...]
    protocol: Literal["TCP", "UDP"] = "TCP"


@dataclass(frozen=True, slots=True)
class ProxyEndpoint:
    """A backend. `server_id` is the SPIFFE id to demand over mesh TLS; None is plain text."""

    address: Address
    port: int
    policy_class: str
    server_id: str | None = None
    weight: int = 1
    priority: int = 0
    """Those of a higher number get requests only where too few of the lower ones are healthy."""


@dataclass(frozen=True, slots=True)
class ProxyCluster:
    """Endpoints of one address family that serve the same thing, spread by weighted least request."""

    name: str
    family: Literal[4, 6]
    endpoints: tuple[ProxyEndpoint, ...]
    http2: bool = False
    source: Address | None = None
    """Where connections leave from; None keeps the client's address."""
    tls: UpstreamTls | None = None
    stream: bool = False
    """Bytes that nobody can judge here: the kernel judges what leaves from `source`, packet by packet."""
    traffic: Traffic | None = None
    helper: bool = False
    """The proxy itself asks there, in the name of the node: the kernel judges it."""


@dataclass(frozen=True, slots=True)
class ProxyModel:
    """All that the node's proxy must hold.

    `workloads` are what HTTP_WORKLOAD and TLS_HTTP listeners may reach at its own address (each
    request goes to exactly the address that was dialled, or nowhere), judged by `workload_rights`.
    """

    listeners: tuple[ProxyListener, ...] = ()
    services: tuple[ServiceTable, ...] = ()
    clusters: tuple[ProxyCluster, ...] = ()
    workloads: tuple[ProxyEndpoint, ...] = ()
    workload_rights: tuple[Rights, ...] = ()
    workload_audit: tuple[Rights, ...] | None = None
    edge: tuple[EdgeListener, ...] = ()
    tables: tuple[HostTable, ...] = ()
    edge_secrets: tuple[str, ...] = ()
    """The certificates with which Gateways speak mesh TLS to other nodes: their addresses, one per family."""
    certificates: tuple[Certificate, ...] = ()
    authorities: tuple[Authorities, ...] = ()
    mirrored: tuple[str, ...] = ()
    mirror_rights: tuple[Rights, ...] = ()
    """The clusters that copies of requests go to, and who may send what to their endpoints."""
    mirror_audit: tuple[Rights, ...] | None = None
