"""The Plan: what the kernel, Envoy and the CA must hold. Made by `compiler`, made real by the appliers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from operator import is_
from typing import NamedTuple

from penstock.dns.model import DnsPlan
from penstock.dns.patterns import Names
from penstock.manifests.document import ObjectKey, Origin
from penstock.routing.model import ListenerKind, ProxyModel
from penstock.world import Address, Network, WorkloadName


class Direction(IntEnum):
    INGRESS = 0
    EGRESS = 1


class Verdict(IntEnum):
    """What a policy entry says. At equal precedence the stronger wins."""

    ALLOW = 1
    REDIRECT = 2
    DENY = 3
    NAMES = 4
    """Allowed is TLS with certain server names, and nothing else."""

    @property
    def strength(self) -> int:
        """Whoever else allows a connection, or its requests, voids a rule about server names."""
        return 0 if self is Verdict.NAMES else int(self)


class MeshMode(IntEnum):
    """How a workload wants TCP from other nodes (PeerAuthentication)."""

    OFF = 0
    PERMISSIVE = 1
    STRICT = 2


class PortMode(NamedTuple):
    """How one TCP port wants to be spoken to: what its own node asks for, and how senders must speak."""

    here: MeshMode
    toward: MeshMode


PortOf = tuple[int, int]
"""(identity, port)"""


@dataclass(frozen=True, slots=True)
class EndpointEntry:
    """A local workload's address. `subject` names its set of policy entries.

    `ifindex` stands for the workload; `elsewhere` is set for an address on another of its links.
    """

    identity: int
    subject: int
    ifindex: int
    mode: MeshMode
    elsewhere: bool = False
    audit: frozenset[Direction] = frozenset()
    """Where its subject has entries of AUDIT_VIEW too."""


@dataclass(frozen=True, slots=True)
class PortEntry:
    """A port of a bridge, or one of several links of a workload. `home` is the workload's ifindex; 0:
    nobody's.
    """

    home: int
    subject: int = 0
    mac: bytes = bytes(6)
    bridge: int = 0
    bridge_mac: bytes = bytes(6)
    direct: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class IpcacheEntry:
    """Who an address is. `mesh` is true for workloads of other mesh nodes, whose TLS we can verify."""

    identity: int
    source_class: int
    mesh: bool = False
    mode: MeshMode = MeshMode.OFF
    local: bool = False
    node: bool = False
    """Another node, with a number of its own: not the world, whatever its number looks like."""


class PolicyKey(NamedTuple):
    """`identity` 0 is any peer, `protocol` 0 any protocol; the port counts in its first `port_bits` bits."""

    subject: int
    direction: Direction
    identity: int
    protocol: int = 0
    port: int = 0
    port_bits: int = 0


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """`authenticated`: between nodes it holds only for connections over mesh TLS.

    `dns`: what it steers is DNS. `names`: of NAMES the server names.
    """

    verdict: Verdict
    origins: tuple[tuple[ObjectKey, Origin], ...] = ()
    authenticated: bool = False
    dns: bool = False
    names: Names = ()


AUDIT_VIEW = 1 << 31
"""In a subject: its entries as they would be if the policies in audit were enforced."""


class ServiceKey(NamedTuple):
    address: Address
    port: int
    protocol: int


@dataclass(frozen=True, slots=True)
class BackendSet:
    """Backends by number. New connections get one of `backends`; who has one of `ending` already keeps it."""

    number: int
    backends: tuple[tuple[Address, int], ...]
    ending: tuple[tuple[Address, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """One address and port at which a Service is served.

    `http` is set when a route applies: the packets keep the virtual address and go to a listener. `external`
    is set where the address is not the Service's own: then clients from outside get one of `outside` (None:
    it is not served to them), and workloads are sent to `alias`, the Service's own address, while a route
    applies. `affinity` counts seconds (0: none), `maglev` is the size of the table (0: a backend at random).
    """

    service_id: int
    name: str
    backends: tuple[tuple[Address, int], ...]
    http: bool = False
    ending: tuple[tuple[Address, int], ...] = ()
    external: bool = False
    outside: BackendSet | None = None
    alias: BackendSet | None = None
    beyond: BackendSet | None = None
    """Those of other mesh nodes: clients from outside are sent on to theirs where `outside` has none."""
    affinity: int = 0
    maglev: int = 0
    gateway: bool = False
    """The proxy itself listens there for a Gateway: judged as ingress, neither translated nor steered."""
    audit: bool = False
    """Policies in audit have a view of their own of who comes to the Gateway."""

    @property
    def sets(self) -> tuple[BackendSet, ...]:
        own = BackendSet(self.service_id, self.backends, self.ending)
        return (own, *(s for s in (self.outside, self.alias, self.beyond) if s is not None))


class ListenerKey(NamedTuple):
    """`outward` and `inward`: numbers of lists of server names, by the sender's and the receiver's rules."""

    source_class: int
    kind: ListenerKind
    destination: int = 0
    outward: int = 0
    inward: int = 0


DNS_LISTENER = ListenerKey(0, ListenerKind.DNS)


@dataclass(frozen=True, slots=True)
class KernelTables:
    endpoints: Mapping[Address, EndpointEntry] = field(default_factory=dict)
    ipcache: Mapping[Network, IpcacheEntry] = field(default_factory=dict)
    policy: Mapping[PolicyKey, PolicyEntry] = field(default_factory=dict)
    services: Mapping[ServiceKey, ServiceEntry] = field(default_factory=dict)
    port_modes: Mapping[PortOf, PortMode] = field(default_factory=dict)
    """Where a port's mode is not that of its workload."""
    both_names: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """What two lists of server names make together (policy/server_names.py)."""
    listeners: Mapping[ListenerKey, int] = field(default_factory=dict)
    """Port of the listener that stands for (source class, kind, destination)."""
    netns: Mapping[int, int] = field(default_factory=dict)
    """Network namespace cookie → identity, for the connect hooks."""
    datagram_sources: tuple[Address, ...] = ()
    """Where the proxy's datagrams leave from, one of each family."""
    ports: Mapping[int, PortEntry] = field(default_factory=dict)
    """By interface index."""
    attach: Mapping[int, WorkloadName] = field(default_factory=dict)
    """Host-side interface index → workload."""
    routes: Mapping[Network, Address] = field(default_factory=dict)
    """Ranges of other nodes → the node's address."""
    underlay: tuple[Address, ...] = ()
    """This node's own addresses as the others know them, one of each family."""
    addresses: tuple[Address, ...] = ()
    """What this node must have for its Gateways, besides its own."""
    namespaces: Mapping[int, str] = field(default_factory=dict)
    """Network namespace cookie of a local workload → its path."""
    served_addresses: tuple[Address, ...] = ()
    """Addresses of Services for clients from outside that are nobody's: this node answers for them."""
    reserved_ports: tuple[int, ...] = ()
    """Ports of Services on the node's own addresses: no socket is to pick one by itself."""


@dataclass(frozen=True, slots=True)
class SecretWanted:
    """The certificate of a local workload, named by its address (design §6)."""

    name: str
    spiffe_id: str
    workload: WorkloadName


@dataclass(frozen=True, slots=True)
class Condition:
    """A Kubernetes status condition without its times."""

    type: str
    status: bool
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """What compile has to say about one document.

    `conditions` fill the kind's own status; `pending` names what it waits for outside Penstock
    (empty when nothing); `warnings` do not stop it.
    """

    conditions: tuple[Condition, ...] = ()
    pending: str = ""
    warnings: tuple[tuple[Origin, str], ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    kernel: KernelTables = field(default_factory=KernelTables)
    proxy: ProxyModel = field(default_factory=ProxyModel)
    secrets: tuple[SecretWanted, ...] = ()
    statuses: Mapping[ObjectKey, ObjectStatus] = field(default_factory=dict)
    listener_names: tuple[str, ...] = ()
    """Every listener wanted, with a port or not."""
    dns: DnsPlan = field(default_factory=DnsPlan)
    unallocated: tuple[str, ...] = ()
    """Listeners that have no port yet: give them one and compile again."""
    policies: tuple[object, ...] = field(default=(), compare=False, repr=False)
    """The policies that it was made by, as they were read: the very same ones while they do not change."""

    def same_policies(self, other: Plan) -> bool:
        mine, others = self.policies, other.policies
        return len(mine) == len(others) and all(map(is_, mine, others))
