"""The kernel's tables as judge() of bpf/flow.h asks them, one look-up at a time.

Offline they are those of a Plan; live they are the pinned maps (penstock.inspect). Who explains does not
know which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from penstock.dns.patterns import Names
from penstock.manifests.document import ObjectKey, Origin
from penstock.plan import (
    Direction,
    EndpointEntry,
    IpcacheEntry,
    KernelTables,
    ListenerKey,
    PolicyEntry,
    PolicyKey,
    ServiceEntry,
    ServiceKey,
    Verdict,
)
from penstock.policy.labels import WORLD
from penstock.policy.lookup import demands_proof, find
from penstock.world import Address


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict of one side. `key` is None where no entry was found: default deny.

    `known` is False for an entry of the kernel that is not in the Plan (a change is just being applied).
    """

    verdict: Verdict
    key: PolicyKey | None = None
    origins: tuple[tuple[ObjectKey, Origin], ...] = ()
    known: bool = True
    authenticated: bool = False
    """Between nodes only over mesh TLS."""
    dns: bool = False
    """What it steers is DNS."""
    names: Names = ()
    """Of NAMES the server names."""


def judged(
    table: Mapping[PolicyKey, PolicyEntry],
    subject: int,
    direction: Direction,
    identity: int,
    protocol: int,
    port: int,
) -> Judged:
    """What a table of entries says."""
    packet = (subject, direction, identity, protocol, port)
    hit = find(table, *packet)
    if hit is None:
        return Judged(Verdict.DENY)
    proof = demands_proof(table, *packet)
    entry = hit[1]
    return Judged(entry.verdict, hit[0], entry.origins, authenticated=proof, dns=entry.dns, names=entry.names)


class Kernel(Protocol):
    """What can be asked."""

    live: bool

    def endpoint(self, address: Address) -> EndpointEntry | None: ...

    def who(self, address: Address) -> IpcacheEntry: ...

    def service(self, key: ServiceKey) -> ServiceEntry | None: ...

    def listener(self, key: ListenerKey) -> int | None:
        """The port of the listener that stands for it, if it is ready."""
        ...

    def names(self, ifindex: int, address: Address) -> tuple[int, ...]:
        """The lists of names (toFQDNs) by which the workload behind `ifindex` has learned `address`."""
        ...

    def learned(self, ifindex: int, name: str) -> tuple[Address, ...]:
        """The addresses that are recorded now for a name that the workload behind `ifindex` asked for."""
        ...

    def policy(
        self, subject: int, direction: Direction, identity: int, protocol: int, port: int
    ) -> Judged: ...


class Planned:
    """The tables of a Plan."""

    live = False

    def __init__(self, tables: KernelTables) -> None:
        self._tables = tables

    def endpoint(self, address: Address) -> EndpointEntry | None:
        return self._tables.endpoints.get(address)

    def who(self, address: Address) -> IpcacheEntry:
        covering = [n for n in self._tables.ipcache if n.version == address.version and address in n]
        if not covering:
            return IpcacheEntry(WORLD, WORLD)
        return self._tables.ipcache[max(covering, key=lambda network: network.prefixlen)]

    def service(self, key: ServiceKey) -> ServiceEntry | None:
        return self._tables.services.get(key)

    def listener(self, key: ListenerKey) -> int | None:
        return self._tables.listeners.get(key)

    def names(self, ifindex: int, address: Address) -> tuple[int, ...]:
        return ()

    def learned(self, ifindex: int, name: str) -> tuple[Address, ...]:
        return ()

    def policy(self, subject: int, direction: Direction, identity: int, protocol: int, port: int) -> Judged:
        return judged(self._tables.policy, subject, direction, identity, protocol, port)
