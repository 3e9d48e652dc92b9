"""What the DNS proxy is to know, as plain data that goes over a socket. Part of the Plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.dns.patterns import Names

OWN_ADDRESSES = ("10.96.0.10", "fd00:10:96::a")
"""Where workloads reach the node's own DNS, if nothing else is said."""
SOCKET_NAME = "dns"
"""What the port of the DNS proxy is allocated for."""


@dataclass(frozen=True, slots=True)
class Client:
    """A local workload: `ifindex` stands for it in the kernel, `subject` names what policies say of it."""

    ifindex: int
    subject: int
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Grant:
    """Servers that may be asked: identities (none: any) at ports; `names` None: for any name."""

    peers: tuple[int, ...]
    protocol: int
    first: int
    last: int
    names: Names | None


@dataclass(frozen=True, slots=True)
class ServicePort:
    name: str
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class ServiceName:
    """What the names of one Service stand for.

    `hosts` are its endpoints, if it is headless: host name → addresses.
    """

    addresses: tuple[str, ...]
    ports: tuple[ServicePort, ...] = ()
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DnsPlan:
    """`port` 0: nothing needs DNS, and none is served."""

    port: int = 0
    addresses: tuple[str, ...] = ()
    """The node's own DNS."""
    clients: Mapping[str, Client] = field(default_factory=dict)
    """Address → the local workload that has it."""
    rules: Mapping[int, tuple[Grant, ...]] = field(default_factory=dict)
    """Subject → whom it may ask for what; a subject that is not here may ask what the kernel lets through."""
    lists: Mapping[int, Names] = field(default_factory=dict)
    """Number → list of names (toFQDNs)."""
    learns: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Subject → lists by which it may be allowed an address."""
    services: Mapping[str, ServiceName] = field(default_factory=dict)
    """``namespace/name`` of a Service → what it stands for."""
