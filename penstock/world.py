"""The facts: what the manifests say and what this machine looks like now, as one immutable value.

`compile` is a pure function of a World. What must be remembered between two Worlds (numbers that
were given out) is in `Allocations`, which is part of the World, so that compile needs no memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal, TypeVar

from penstock.differing import replaced
from penstock.manifests.document import Document, ObjectKey, place

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
WorkloadName = tuple[str, str]
"""(namespace, name) of a workload."""

Enforcement = Literal["default", "always", "never"]
Between = Literal["auto", "direct", "vxlan"]

K = TypeVar("K")


@lru_cache(maxsize=65536)
def host_network(address: Address) -> Network:
    """The network of just this address."""
    # Of a number: of an address it would be made by way of its text.
    return IPv4Network(int(address)) if address.version == 4 else IPv6Network(int(address))


def is_host(network: Network) -> bool:
    """Whether a network is a single address."""
    return network.prefixlen == network.max_prefixlen


@lru_cache(maxsize=65536)
def parse_address(text: str) -> Address:
    """The address that `text` spells. The same few are read at every change. Raises ValueError."""
    return ip_address(text)


@dataclass(frozen=True, slots=True)
class Link:
    """One veth, seen from the node.

    `ifindex` and `interface` are its host side's, `mac` and `addresses` the workload's own. `bridge` is the
    index of the bridge that the host side is a port of (0: routed), `bridge_mac` that bridge's address.
    `direct` are the IP versions whose frames need not pass the bridge from port to port: nobody asked
    netfilter to see them.
    """

    ifindex: int
    interface: str = ""
    mac: bytes = bytes(6)
    addresses: tuple[Address, ...] = ()
    bridge: int = 0
    bridge_mac: bytes = bytes(6)
    direct: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Attachment:
    """How a local workload hangs on this node, as the kernel tells it.

    `cookie` is the network namespace's cookie (SO_NETNS_COOKIE), which the connect hooks see. The first of
    `links` is the one with the default route: its index stands for the workload.
    """

    cookie: int
    links: tuple[Link, ...]

    @property
    def ifindex(self) -> int:
        return self.links[0].ifindex

    @property
    def interface(self) -> str:
        return self.links[0].interface

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(address for link in self.links for address in link.addresses)


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may choose for a node."""

    trust_domain: str = "penstock.local"
    host_access: bool = True
    """The node's own processes may reach local workloads whatever the policy (health checks)."""
    policy_enforcement: Enforcement = "default"
    """Who is closed to what no rule allows: whom a policy selects, everyone (always), or nobody (never, and
    then no rule of a policy holds either)."""
    service_ranges: tuple[Network, ...] = (
        IPv4Network("10.96.0.0/16"),
        IPv6Network("fd00:10:96::/112"),
    )
    gateway_ranges: tuple[Network, ...] = (
        IPv4Network("10.97.0.0/16"),
        IPv6Network("fd00:10:97::/112"),
    )
    """Addresses of Gateways that name none; the daemon adds them to the node."""
    balancer_ranges: tuple[Network, ...] = (
        IPv4Network("10.98.0.0/16"),
        IPv6Network("fd00:10:98::/112"),
    )
    """Where Services of type LoadBalancer get their addresses from, if the manifest gives none."""
    node_ports: tuple[int, int] = (30000, 32767)
    """Where node ports come from, and must be."""
    dns_addresses: tuple[Address, ...] = ()
    """Where workloads reach the node's own DNS; nothing else is to have them."""
    proxy_listen_ports: tuple[int, int] = (15001, 19999)
    """Listeners of Envoy. Disjoint from every range that sockets pick from by themselves."""
    proxy_source_ports: tuple[int, int] = (20000, 31999)
    """Source ports of Envoy's upstream connections; the same on every node (mesh TLS is told by it)."""
    between_nodes: Between = "auto"
    """How the ranges of other nodes are reached: by a route where the node is a neighbour and a tunnel where
    it is not, or always the one."""
    proxy_rate: int = 0
    """Packets a second by which one workload may ask something of the proxy; 0: as many as it likes."""


@dataclass(frozen=True, slots=True)
class Allocations:
    """Numbers given out, kept in the state directory, never reused for something else while in use."""

    identities: Mapping[str, int] = field(default_factory=dict)
    """Canonical text of (namespace, service account, labels) → number ≥ 256."""
    vips: Mapping[str, str] = field(default_factory=dict)
    """``namespace/name/family`` of a Service → address."""
    listener_ports: Mapping[str, int] = field(default_factory=dict)
    """Name of an Envoy listener → its port."""
    service_ids: Mapping[str, int] = field(default_factory=dict)
    """``namespace/name:port/family/protocol`` → number in the kernel's service table."""
    balancers: Mapping[str, str] = field(default_factory=dict)
    """``namespace/name/family`` of a Service of type LoadBalancer → its address for clients from outside."""
    node_ports: Mapping[str, int] = field(default_factory=dict)
    """``namespace/name:port/protocol`` of a Service port → its port on every node."""
    prefixes: Mapping[str, int] = field(default_factory=dict)
    """A network that a policy names → its identity, above all others."""
    gateways: Mapping[str, str] = field(default_factory=dict)
    """``namespace/name/index/family`` of a Gateway, or ``ingress/family`` → address (policy/ingress.py)."""


@dataclass(frozen=True, slots=True)
class Proxied:
    """A connection that the proxy took: who dialled, and the address and port that were dialled.

    `steered` is false for one that came to a Gateway's own address by itself.
    """

    client: Address
    client_port: int
    address: Address
    port: int
    steered: bool = True


Carried = tuple[Address, Address, int]
"""The client of a connection, and the address and port that it dialled."""


@dataclass(frozen=True)
class World:
    node: str
    documents: Mapping[ObjectKey, Document]
    attachments: Mapping[WorkloadName, Attachment] = field(default_factory=dict)
    other_ports: tuple[Link, ...] = ()
    """Ports of this node's bridges that are no workload's: other containers, or a device of the node."""
    coming: Mapping[int, WorkloadName] = field(default_factory=dict)
    """Links by index that lead to a workload which has no address yet: nobody speaks there."""
    node_addresses: tuple[Address, ...] = ()
    node_cookie: int = 0
    """The node's own network namespace, for the connect hooks; 0 if unknown."""
    allocations: Allocations = field(default_factory=Allocations)
    settings: Settings = field(default_factory=Settings)
    carried: frozenset[Carried] = frozenset()
    """Connections that the proxy carries and that nothing steers to it any more. They go on through it to
    their end, so it keeps what they need."""

    @cached_property
    def _by_kind(self) -> Mapping[str, tuple[Document, ...]]:
        found: dict[str, list[Document]] = {}
        for key in sorted(self.documents, key=place):
            found.setdefault(key.kind, []).append(self.documents[key])
        return {kind: tuple(documents) for kind, documents in found.items()}

    def changed_since(self, before: World) -> tuple[ObjectKey, ...]:
        """The objects that are other documents than `before`, that came, or that went."""
        old, new = before.documents, self.documents
        if old is new:
            return ()
        known = self.__dict__.get("_since")
        if known is not None and known[0] is old:
            return tuple(known[1])
        found = replaced(old, new)
        self.__dict__["_since"] = (old, tuple(found))
        return tuple(found)

    @property
    def sorted(self) -> bool:
        """Whether it has its documents by kind already."""
        return "_by_kind" in self.__dict__

    def follow(self, before: World, changed: Collection[ObjectKey]) -> None:
        """Take over what `before` knows of its documents, of which `changed` are others here."""
        by_kind = dict(before._by_kind)
        for kind in {key.kind for key in changed}:
            by_kind[kind] = self._followed(by_kind.get(kind, ()), [k for k in changed if k.kind == kind])
        self.__dict__["_by_kind"] = by_kind
        if not changed and "_since" in before.__dict__:
            self.__dict__["_since"] = before.__dict__["_since"]

    def _followed(
        self, documents: tuple[Document, ...], changed: Collection[ObjectKey]
    ) -> tuple[Document, ...]:
        found = list(documents)
        for key in changed:
            at = bisect_left(found, place(key), key=lambda d: place(d.key))
            here = at < len(found) and found[at].key == key
            found[at : at + here] = [self.documents[key]] if key in self.documents else []
        return tuple(found)

    def same_of_kind(self, other: World, kind: type) -> bool:
        """Whether both hold the very same documents of a kind (not only equal ones)."""
        mine = self._by_kind.get(kind.__name__, ())
        theirs = other._by_kind.get(kind.__name__, ())
        if mine is theirs:
            return True
        return len(mine) == len(theirs) and all(a is b for a, b in zip(mine, theirs, strict=True))

    def documents_of(self, kind: type) -> tuple[Document, ...]:
        """Every document of a kind, by namespace and name; the same tuple where none has changed."""
        return self._by_kind.get(kind.__name__, ())

    def of_kind(self, kind: type[K]) -> Iterator[tuple[Document, K]]:
        """Every document of one kind with its value, ordered by namespace and name."""
        for document in self._by_kind.get(kind.__name__, ()):
            assert isinstance(document.value, kind)
            yield document, document.value

    def of_kinds(self, *kinds: type) -> Iterator[Document]:
        """Every document of these kinds, kind by kind."""
        for kind in kinds:
            yield from self._by_kind.get(kind.__name__, ())
