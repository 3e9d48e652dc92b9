"""The node's own network settings that steering needs: rules, routes, addresses, sysctls.

Each is set only where it is not so already, and what was set is written down, so that `down` takes
back exactly that. Table and mark are in bpf/penstock.h and ARCHITECTURE.md.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from penstock.errors import HostError
from penstock.redirect import nftables
from penstock.redirect.hostrecord import HostRecord, sysctl
from penstock.redirect.netns import cookie
from penstock.redirect.own_addresses import LOOPBACK, RT_SCOPE_HOST, RTN_LOCAL, OwnAddresses, family_of
from penstock.redirect.tunnel import Tunnel
from penstock.world import Address, Between, Network

log = logging.getLogger(__name__)

TABLE = 2004
MARKS, MARK_MASK = (0x200, 0x700), 0xF00
PRIORITY = 9
_FAMILIES = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}

SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # A client's address comes in from a backend's veth where the proxy borrowed it.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
RANGE = "net/ipv4/ip_local_port_range"


Ways = Mapping[Network, Address]
"""Ranges of other nodes → the node's address."""


class HostSettings:
    """Settings of the network namespace that the daemon runs in. `record` is the file that `down` reads.

    Not for the thread of an event loop: pyroute2's synchronous sockets run a loop of their own.
    """

    def __init__(self, record: Path, between: Between = "auto") -> None:
        """`between` says how other nodes are reached (world.Settings)."""
        self._record, self._between = HostRecord(record), between
        self._relaxed: frozenset[int] = frozenset()
        self.ip = IPRoute()
        self.own = OwnAddresses(self.ip, self._record)
        self._tunnel = Tunnel(self.ip)

    def close(self) -> None:
        self.ip.close()

    def cookie(self) -> int:
        return cookie()

    def up(self, source_ports: tuple[int, int]) -> None:
        """Rules, the local table, forwarding, a port range for the proxy's, no NAT of them."""
        for name, value in SYSCTLS.items():
            self._record.sysctl(name, value)
        low, high = (int(x) for x in sysctl(RANGE).split())
        if low > source_ports[0] or high < source_ports[1]:
            # Outside the namespace's range the kernel ignores IP_LOCAL_PORT_RANGE without a word.
            self._record.sysctl(RANGE, f"{min(low, source_ports[0])} {max(high, source_ports[1])}")
        self.ip.link("set", index=LOOPBACK, state="up")
        for family, everything in _FAMILIES.items():
            for mark in MARKS:
                self._once("rule", **_rule(family, mark))
            self._once("route", **_local_route(family, everything), oif=LOOPBACK)
        try:
            nftables.put_up()
        except HostError as e:
            log.warning("%s", e, extra={"hint": e.hint})
        self._record.save()

    def settle(
        self,
        workloads: Collection[int],
        bridges: Collection[int],
        links: Mapping[int, str],
        far: Mapping[Network, Address],
        own: Collection[Address],
    ) -> tuple[tuple[int, ...], list[str]]:
        """Make way for these workloads; the node's own devices, and what went wrong.

        `bridges` have workloads as ports, `links` are those that are up, by index. `far` are the ranges of
        other nodes that take a tunnel (`ways`), `own` this node's addresses as those know them.
        """
        for index in workloads:
            if index in links and index not in self._relaxed:
                # The proxy borrows a client's address: answers to it come in from the backend's veth.
                with suppress(FileNotFoundError):
                    Path(f"/proc/sys/net/ipv4/conf/{links[index]}/rp_filter").write_text("0")
        for index in bridges:
            if index in links and index not in self._relaxed:
                # Once translated, a published port's packets bear the ends of the proxy's socket: found too
                # early, it stops them on their way to the container's port, where they are judged.
                self._record.sysctl("net/ipv4/tcp_early_demux", "0")
                # What docker-proxy sends to a container is taken back up there, with an address of the node.
                with suppress(FileNotFoundError):
                    self._record.sysctl(f"net/ipv4/conf/{links[index]}/accept_local", "1")
                self._record.save()
        self._relaxed = frozenset((*workloads, *bridges)) & links.keys()
        tunnels: tuple[int, ...] = ()
        problems: list[str] = []
        if far or self._record.done.tunnels:
            # Noted before it is made: what a daemon that dies here leaves is found by `down`.
            for text in self._record.done.tunnels.keys() - set(map(str, far)):
                self._tunnel.forget(ip_network(text), ip_address(self._record.done.tunnels[text]))
            self._record.done.tunnels = {str(network): str(node) for network, node in far.items()}
            self._record.save()
            tunnels, problems = self._tunnel.prepare(own, frozenset(far.values()))
        devices = [index for index in links if index not in workloads and index not in tunnels]
        return (*devices, *tunnels), problems

    def ways(self, wanted: Mapping[Network, Address]) -> tuple[Ways, Ways, list[str]]:
        """Which of these ranges lie behind a neighbour, which take a tunnel, and to which there is no way.

        A route that somebody else has set, as we would, is enough.
        """
        near: dict[Network, Address] = {}
        far: dict[Network, Address] = {}
        problems = []
        for network, via in wanted.items():
            text = str(network)
            if self._record.done.routes.get(text) == str(via) and self._between != "vxlan":
                near[network] = via
            elif self._record.done.tunnels.get(text) == str(via) and self._between != "direct":
                far[network] = via
            elif self._between == "direct" or self._stands(network, via):
                near[network] = via
            else:
                try:
                    away = self._between == "vxlan" or not self._tunnel.neighbour(via)
                    (far if away else near)[network] = via
                except NetlinkError as e:
                    problems.append(f"route to {text} via {via}: {e}")
        return near, far, problems

    def routes(self, near: Ways, far: Ways) -> list[str]:
        """Routes to other nodes' ranges. One that is there and right is left alone; problems are returned.

        Before it, the devices of tunnels have their programs.
        """
        problems = self._tunnel.lead(far) if far else []
        wanted = near
        before = msgspec.structs.replace(self._record.done, routes=dict(self._record.done.routes))
        for network, via in wanted.items():
            text = str(network)
            if self._record.done.routes.get(text) == str(via) or self._stands(network, via):
                continue
            try:
                self.ip.route("replace", dst=text, gateway=str(via), family=family_of(network.version))
            except NetlinkError as e:
                problems.append(f"route to {text} via {via}: {e}")
                continue
            self._record.done.routes[text] = str(via)
        keep = {str(n) for n in wanted}
        for text in [t for t in self._record.done.routes if t not in keep]:
            if ip_network(text) in far:
                # The new one has taken its place.
                del self._record.done.routes[text]
            else:
                self._drop_route(text)
        if self._record.done != before:
            self._record.save()
        return problems

    def _stands(self, network: Network, via: Address) -> bool:
        for route in self.ip.get_routes(family=family_of(network.version), table=254):
            destination = f"{route.get('RTA_DST')}/{route['dst_len']}"
            if destination == str(network) and route.get("RTA_GATEWAY") == str(via):
                return True
        return False

    def _drop_route(self, text: str) -> None:
        via = self._record.done.routes.pop(text)
        with suppress(NetlinkError):
            self.ip.route("del", dst=text, gateway=via, family=family_of(6 if ":" in text else 4))

    def _once(self, what: str, **spec: object) -> None:
        try:
            getattr(self.ip, what)("add", **spec)
        except NetlinkError as e:
            if e.code != 17:
                raise

    def down(self) -> None:
        """Take back what `up` and `routes` did; twice is fine."""
        with suppress(HostError):
            nftables.take_down()
        for text in list(self._record.done.routes):
            self._drop_route(text)
        self._tunnel.down()
        self.own.take_back()
        for family, everything in _FAMILIES.items():
            for mark in MARKS:
                with suppress(NetlinkError):
                    self.ip.rule("del", **_rule(family, mark))
            with suppress(NetlinkError):
                self.ip.route("del", **_local_route(family, everything))
        self._record.take_back()


def _rule(family: int, mark: int) -> dict[str, Any]:
    return {"family": family, "table": TABLE, "fwmark": mark, "fwmask": MARK_MASK, "priority": PRIORITY}


def _local_route(family: int, everything: str) -> dict[str, Any]:
    """Said the same way when it is made and when it goes: the kernel compares the scope too."""
    scope = RT_SCOPE_HOST if family == socket.AF_INET else 0
    return {"family": family, "dst": everything, "table": TABLE, "type": RTN_LOCAL, "scope": scope}
