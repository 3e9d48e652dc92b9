"""The kernel's side of a change: what is closed before the proxy learns of it, where programs hang, and whose
connections end.

Tables are written by `Tables`, programs attached by `Datapath`, routes and addresses set by `HostSettings`;
here is in which order, and what becomes of connections that are open meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from penstock.plan import KernelTables
from penstock.redirect.by_names import ways_by_names
from penstock.redirect.datapath import Datapath
from penstock.redirect.host import HostSettings
from penstock.redirect.looked_at import LookedAtTable, Sorted
from penstock.redirect.sockets import proxied, reset, reset_proxied, unsteered
from penstock.redirect.stage import InKernel, before_proxy, changing_hands
from penstock.redirect.steering import TUNNELS, Steering, past_admission, steering
from penstock.redirect.tables import Tables
from penstock.redirect.terminated import end_datagrams, lost_sockets
from penstock.routing.model import ListenerKind
from penstock.routing.names_listeners import KINDS
from penstock.world import Carried, Proxied

log = logging.getLogger(__name__)


def _reset(connections: Sequence[Proxied]) -> None:
    log.info("connections were reset", extra={"reason": "POLICY_CHANGED", "connections": len(connections)})
    reset(connections)


class Kernel:
    """The kernel of one node. `blocking` runs a call on the thread that owns netlink."""

    def __init__(
        self,
        datapath: Datapath,
        tables: Tables,
        host: HostSettings,
        *,
        looked_at: LookedAtTable,
        source_ports: tuple[int, int],
        blocking: Callable[..., Awaitable[Any]],
    ) -> None:
        self._datapath, self.tables, self._host = datapath, tables, host
        self.looked_at = looked_at
        self._source_ports = source_ports
        self._blocking = blocking
        self._place: object = None
        self.links: Mapping[int, str] = {}
        """The node's links that are up, by index, without its loopback device."""
        self.carried: frozenset[Carried] = frozenset()
        """What the proxy goes on to carry without being steered any more."""
        self._looked = False
        self._kinds: dict[int, ListenerKind] = {}
        """What listens on a port of the proxy, or did before this change."""

    async def close(self, wanted: KernelTables, errors: list[str]) -> tuple[int, frozenset[Carried]]:
        """What needs no proxy: (entries changed, `carried`). Raises HostError, OSError."""
        now = InKernel(
            self.tables.policy(),
            self.tables.listeners(),
            self.tables.http_services(),
            self.tables.ipcache(),
        )
        judged = await self._by_names(wanted, now)
        changed = self.tables.apply(before_proxy(wanted, now))
        forbidden = (*judged.gone, *judged.unknown)
        if forbidden:
            await self._blocking(_reset, forbidden)
        if self.tables.lost_backends:
            await self._blocking(self._end_datagrams, wanted)
        # Before the proxy's connections are looked at, which takes its time.
        errors += await self._attach(wanted)
        if leaving := changing_hands(wanted, now):
            await self._blocking(reset_proxied, leaving)
        # What the proxy carries is looked at when it may have lost its way there, and while something has.
        if now.listeners and (changed or self.carried or not self._looked):
            self._looked = True
            self._kinds = {port: key.kind for key, port in now.listeners.items()}
            self.carried = await self._blocking(self._sort_out, wanted)
            self.carried |= {(c.client, c.address, c.port) for c in judged.kept}
        return changed, self.carried

    async def _by_names(self, wanted: KernelTables, now: InKernel) -> Sorted:
        """Before lists of server names change: who may go on, and who may not (redirect/looked_at.py).

        `unknown` are only those whose list is another one now.
        """
        if not any(key.kind in KINDS for key in now.listeners):
            return Sorted()
        known = self.looked_at.records()
        connections = await self._blocking(proxied)
        self.looked_at.keep(connections, known)
        before = self.tables.said
        find = ways_by_names(wanted, self._source_ports, self.tables.names)
        found = ways_by_names(before or wanted, self._source_ports, self.tables.names)
        ways = [(c, way) for c in connections if (way := find(c)) is not None]
        edited = {c for c, way in ways if found(c) != way}
        await self.looked_at.settle(edited)
        judged = self.looked_at.sort(ways)
        return replace(judged, unknown=tuple(c for c in judged.unknown if c in edited))

    def _end_datagrams(self, tables: KernelTables) -> None:
        cookies = lost_sockets(self._datapath.pins, tables)
        if cookies:
            ended = end_datagrams(cookies, tuple(tables.namespaces.values()))
            log.info("datagram sockets lost their backend", extra={"sockets": ended})

    def _sort_out(self, tables: KernelTables) -> frozenset[Carried]:
        """Reset the proxy's connections that are forbidden now; return what goes on without being steered.

        This comes before Envoy learns of the change: later it would answer for what it does not know, or a
        listener would be gone without a word.
        """
        found = steering(tables, self._source_ports, proxied(), self.tables.names)
        gone = [c for c, ruling in found.items() if ruling.how is Steering.FORBIDDEN]
        if gone:
            _reset(gone)
        return frozenset(
            (c.client, c.address, c.port) for c, ruling in found.items() if ruling.keeps(self._came_by(c))
        )

    async def end_unjudged(self, tables: KernelTables) -> None:
        """After redirects stand: reset what rules name now that Envoy has where it judges no requests: at a
        Gateway's own address, or in a tunnel.
        """
        await self._blocking(self._end_unjudged, tables)

    def _end_unjudged(self, tables: KernelTables) -> None:
        gone = []
        if any(key.kind is ListenerKind.GATEWAY for key in tables.listeners):
            gone += past_admission(tables, unsteered())
        if TUNNELS.intersection(self._kinds.values()):
            found = steering(tables, self._source_ports, proxied(), self.tables.names)
            gone += [c for c, ruling in found.items() if ruling.begins_anew(self._came_by(c))]
        if gone:
            _reset(gone)

    def _came_by(self, connection: Proxied) -> ListenerKind | None:
        """The kind of listener that took it, which the kernel remembers of a connection that was steered."""
        return self._kinds.get(self.tables.proxy_port(connection))

    async def _attach(self, wanted: KernelTables) -> list[str]:
        """Programs on the interfaces, routes to other nodes; only when either or the host has changed."""
        place = (
            wanted.attach,
            wanted.ports,
            wanted.routes,
            wanted.underlay,
            wanted.addresses,
            wanted.served_addresses,
            wanted.reserved_ports,
            self.links,
        )
        if place == self._place:
            return []
        workloads = frozenset(wanted.attach)
        bridges = frozenset(port.bridge for port in wanted.ports.values() if port.bridge)
        near, far, problems = await self._blocking(self._host.ways, wanted.routes)
        netdevs, more = await self._blocking(
            self._host.settle, workloads, bridges, self.links, far, wanted.underlay
        )
        problems += more
        problems += await self._blocking(self._host.own.give, wanted.addresses)
        problems += await self._blocking(
            self._host.own.answer, wanted.served_addresses, wanted.reserved_ports
        )
        self._datapath.attach(wanted.attach, netdevs, wanted.ports)
        problems += await self._blocking(self._host.routes, near, far)
        self._place = place if not problems else None
        return list(problems)
