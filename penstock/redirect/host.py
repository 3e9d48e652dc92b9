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
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from penstock.errors import HostError
from penstock.files import write_atomically
from penstock.redirect import nftables, rtnetlink
from penstock.redirect.netns import cookie
from penstock.redirect.tunnel import Tunnel
from penstock.world import Address, Between, Network

log = logging.getLogger(__name__)

TABLE = 2004
MARKS, MARK_MASK = (0x200, 0x700), 0xF00
PRIORITY = 9
_FOREVER = 0xFFFFFFFF
"""Seconds that an address holds (rtnetlink, IFA_CACHEINFO)."""

LOOPBACK = 1
"""The index of `lo` in every network namespace (include/net/flow.h)."""
RT_SCOPE_HOST = 254
RTN_LOCAL = 2
_FAMILIES = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}

SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # A client's address comes in from a backend's veth where the proxy borrowed it.
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
RANGE = "net/ipv4/ip_local_port_range"
RESERVED = "net/ipv4/ip_local_reserved_ports"
LOCAL_TABLE = 255


Ways = Mapping[Network, Address]
"""Ranges of other nodes → the node's address."""


class _Done(msgspec.Struct):
    """What was changed, for `down`: sysctl → value before, routes to other nodes (direct, and by a tunnel),
    addresses of Gateways, and addresses of Services that are answered for."""

    sysctls: dict[str, str] = {}
    routes: dict[str, str] = {}
    tunnels: dict[str, str] = {}
    addresses: list[str] = []
    answered: list[str] = []


class HostSettings:
    """Settings of the network namespace that the daemon runs in. `record` is the file that `down` reads.

    Not for the thread of an event loop: pyroute2's synchronous sockets run a loop of their own.
    """

    def __init__(self, record: Path, between: Between = "auto") -> None:
        """`between` says how other nodes are reached (world.Settings)."""
        self._record, self._between = record, between
        self._done = _Done()
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            self._done = msgspec.json.decode(record.read_bytes(), type=_Done)
        self._relaxed: frozenset[int] = frozenset()
        self.ip = IPRoute()
        self._tunnel = Tunnel(self.ip)

    def close(self) -> None:
        self.ip.close()

    def cookie(self) -> int:
        return cookie()

    def up(self, source_ports: tuple[int, int]) -> None:
        """Rules, the local table, forwarding, a port range for the proxy's, no NAT of them."""
        for name, value in SYSCTLS.items():
            self._set(name, value)
        low, high = (int(x) for x in _read(RANGE).split())
        if low > source_ports[0] or high < source_ports[1]:
            # Outside the namespace's range the kernel ignores IP_LOCAL_PORT_RANGE without a word.
            self._set(RANGE, f"{min(low, source_ports[0])} {max(high, source_ports[1])}")
        self.ip.link("set", index=LOOPBACK, state="up")
        for family, everything in _FAMILIES.items():
            for mark in MARKS:
                self._once("rule", **_rule(family, mark))
            self._once("route", **_local_route(family, everything), oif=LOOPBACK)
        try:
            nftables.put_up()
        except HostError as e:
            log.warning("%s", e, extra={"hint": e.hint})
        self._save()

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
                self._set("net/ipv4/tcp_early_demux", "0")
                # What docker-proxy sends to a container is taken back up there, with an address of the node.
                with suppress(FileNotFoundError):
                    self._set(f"net/ipv4/conf/{links[index]}/accept_local", "1")
                self._save()
        self._relaxed = frozenset((*workloads, *bridges)) & links.keys()
        tunnels: tuple[int, ...] = ()
        problems: list[str] = []
        if far or self._done.tunnels:
            # Noted before it is made: what a daemon that dies here leaves is found by `down`.
            for text in self._done.tunnels.keys() - set(map(str, far)):
                self._tunnel.forget(ip_network(text), ip_address(self._done.tunnels[text]))
            self._done.tunnels = {str(network): str(node) for network, node in far.items()}
            self._save()
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
            if self._done.routes.get(text) == str(via) and self._between != "vxlan":
                near[network] = via
            elif self._done.tunnels.get(text) == str(via) and self._between != "direct":
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

    def node_addresses(self) -> tuple[Address, ...]:
        """Global addresses of the node's own interfaces, without those that Gateways were given."""
        found = []
        ours = {ip_address(text) for text in self._done.addresses}
        for address in chain.from_iterable(rtnetlink.addresses().values()):
            if address not in ours and not address.is_loopback:
                found.append(address)
        return tuple(sorted(set(found), key=lambda a: (a.version, a)))

    def addresses(self, wanted: Collection[Address]) -> list[str]:
        """Give the node these addresses, on its loopback device, and take back others that it was given.

        One that it has anyway is left alone, also by `down`; problems are returned.
        """
        problems = []
        texts = [str(a) for a in wanted]
        gone = [text for text in self._done.addresses if text not in texts]
        there = {str(a) for a in self.node_addresses()} | set(self._done.addresses)
        missing = [text for text in texts if text not in there]
        if not gone and not missing:
            return []
        for text in gone:
            self._address("del", text)
        for text in missing:
            try:
                self._address("add", text)
            except NetlinkError as e:
                problems.append(f"address {text}: {e}")
        kept = [text for text in self._done.addresses if text not in gone]
        failed = {problem.split()[1].rstrip(":") for problem in problems}
        self._done.addresses = kept + [text for text in missing if text not in failed]
        self._save()
        return problems

    def _address(self, what: str, text: str) -> None:
        version = ip_address(text).version
        # Nobody is to send from it unasked: the node's own connections would be taken for a Gateway's.
        unasked = {"scope": RT_SCOPE_HOST} if version == 4 else {"preferred_lft": 0, "valid_lft": _FOREVER}
        try:
            self.ip.addr(
                what,
                index=LOOPBACK,
                address=text,
                prefixlen=32 if version == 4 else 128,
                family=_family(version),
                **(unasked if what == "add" else {}),
            )
        except NetlinkError as e:
            if e.code != (17 if what == "add" else 99):
                raise

    def routes(self, near: Ways, far: Ways) -> list[str]:
        """Routes to other nodes' ranges. One that is there and right is left alone; problems are returned.

        Before it, the devices of tunnels have their programs.
        """
        problems = self._tunnel.lead(far) if far else []
        wanted = near
        before = msgspec.structs.replace(self._done, routes=dict(self._done.routes))
        for network, via in wanted.items():
            text = str(network)
            if self._done.routes.get(text) == str(via) or self._stands(network, via):
                continue
            try:
                self.ip.route("replace", dst=text, gateway=str(via), family=_family(network.version))
            except NetlinkError as e:
                problems.append(f"route to {text} via {via}: {e}")
                continue
            self._done.routes[text] = str(via)
        keep = {str(n) for n in wanted}
        for text in [t for t in self._done.routes if t not in keep]:
            if ip_network(text) in far:
                # The new one has taken its place.
                del self._done.routes[text]
            else:
                self._drop_route(text)
        if self._done != before:
            self._save()
        return problems

    def answer(self, addresses: Collection[Address], ports: Collection[int]) -> list[str]:
        """Take what is sent to these addresses of Services as our own, and keep sockets off these ports.

        A local route makes the stack answer for an address that no device has, ARP too. For IPv6 neighbours
        there is no such thing: there the address must be routed here. Problems are returned.
        """
        problems = []
        wanted = [str(a) for a in addresses]
        before = list(self._done.answered)
        for text in [a for a in wanted if a not in before]:
            try:
                self.ip.route("replace", **_own(text), oif=LOOPBACK)
            except NetlinkError as e:
                problems.append(f"local route for {text}: {e}")
                continue
            self._done.answered.append(text)
        for text in [a for a in before if a not in wanted]:
            self._drop_address(text)
        given = self._done.sysctls.get(RESERVED, _read(RESERVED))
        reserved = ",".join(filter(None, (given, *map(str, ports))))
        changed = self._done.answered != before
        if reserved != given or RESERVED in self._done.sysctls:
            changed = RESERVED not in self._done.sysctls or changed
            self._done.sysctls.setdefault(RESERVED, given)
            Path("/proc/sys", RESERVED).write_text(reserved + "\n")
        if changed:
            self._save()
        return problems

    def _drop_address(self, text: str) -> None:
        self._done.answered.remove(text)
        with suppress(NetlinkError):
            self.ip.route("del", **_own(text))

    def _stands(self, network: Network, via: Address) -> bool:
        for route in self.ip.get_routes(family=_family(network.version), table=254):
            destination = f"{route.get('RTA_DST')}/{route['dst_len']}"
            if destination == str(network) and route.get("RTA_GATEWAY") == str(via):
                return True
        return False

    def _drop_route(self, text: str) -> None:
        via = self._done.routes.pop(text)
        with suppress(NetlinkError):
            self.ip.route("del", dst=text, gateway=via, family=_family(6 if ":" in text else 4))

    def _once(self, what: str, **spec: object) -> None:
        try:
            getattr(self.ip, what)("add", **spec)
        except NetlinkError as e:
            if e.code != 17:
                raise

    def _set(self, name: str, value: str) -> None:
        before = _read(name)
        if before == value:
            return
        Path("/proc/sys", name).write_text(value)
        self._done.sysctls.setdefault(name, before)

    def _save(self) -> None:
        write_atomically(self._record, msgspec.json.encode(self._done), durable=False)

    def down(self) -> None:
        """Take back what `up` and `routes` did; twice is fine."""
        with suppress(HostError):
            nftables.take_down()
        for text in list(self._done.routes):
            self._drop_route(text)
        self._tunnel.down()
        for text in list(self._done.answered):
            self._drop_address(text)
        for text in self._done.addresses:
            with suppress(NetlinkError):
                self._address("del", text)
        for family, everything in _FAMILIES.items():
            for mark in MARKS:
                with suppress(NetlinkError):
                    self.ip.rule("del", **_rule(family, mark))
            with suppress(NetlinkError):
                self.ip.route("del", **_local_route(family, everything))
        for name, before in self._done.sysctls.items():
            with suppress(OSError):
                Path("/proc/sys", name).write_text(before + "\n")
        self._done = _Done()
        self._record.unlink(missing_ok=True)


def _rule(family: int, mark: int) -> dict[str, Any]:
    return {"family": family, "table": TABLE, "fwmark": mark, "fwmask": MARK_MASK, "priority": PRIORITY}


def _local_route(family: int, everything: str) -> dict[str, Any]:
    """Said the same way when it is made and when it goes: the kernel compares the scope too."""
    scope = RT_SCOPE_HOST if family == socket.AF_INET else 0
    return {"family": family, "dst": everything, "table": TABLE, "type": RTN_LOCAL, "scope": scope}


def _own(text: str) -> dict[str, Any]:
    """The local route of an address of a Service."""
    v6 = ":" in text
    scope = 0 if v6 else RT_SCOPE_HOST
    family = socket.AF_INET6 if v6 else socket.AF_INET
    dst = f"{text}/{128 if v6 else 32}"
    return {"family": family, "dst": dst, "table": LOCAL_TABLE, "type": RTN_LOCAL, "scope": scope}


def _read(name: str) -> str:
    return " ".join(Path("/proc/sys", name).read_text().split())


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6
