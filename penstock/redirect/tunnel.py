"""Ways to the ranges of nodes that are no neighbours: vxlan (RFC 7348), one device for each family of nodes.

    route   RANGE via NODE dev penstock4 onlink     (of IPv6 the link-local address that follows from the MAC)
    neigh   that is at the MAC which follows from the node's address
    fdb     that MAC is behind NODE

Nobody asks and nobody learns: the address of a node, which its `Node` manifest tells, is all. Netfilter lets
only those nodes through to the devices, since who can send such a datagram can say to be any workload; it is
there before a device is up. What comes from a device is judged by from_netdev, as from a neighbour.

Source: rtnetlink(7), ip-link(8) vxlan; include/uapi/linux/neighbour.h.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from collections.abc import Collection, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from penstock.errors import HostError
from penstock.redirect import nftables, rtnetlink
from penstock.world import Address, Network

PORT = 7444
"""UDP. Not vxlan's own, which an overlay of somebody else's may have."""
NUMBER = 2004
"""The network identifier (VNI)."""
DEVICES = {4: "penstock4", 6: "penstock6"}
OVERHEAD = {4: 50, 6: 70}
"""Bytes of outer headers: Ethernet 14, IP 20 or 40, UDP 8, vxlan 8."""
_NEW_NEIGHBOUR = 28
_ACK, _CREATE, _REPLACE = 0x4, 0x400, 0x100
_PERMANENT, _SELF = 0x80, 0x02
_DESTINATION, _LINK_ADDRESS = 1, 2
_ONLINK = 4


def link_address(node: Address) -> bytes:
    """The MAC of the device of the node that has this address: locally administered, the same for all."""
    if node.version == 4:
        return b"\x02\x50" + node.packed
    return b"\x02" + hashlib.sha256(node.packed).digest()[:5]


def _gateway(node: Address) -> Address:
    """Who the node is on the device. IPv6 takes no gateway that is routed elsewhere: RFC 4291, appendix A."""
    if node.version == 4:
        return node
    mac = link_address(node)
    return ip_address(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:])


class Tunnel:
    """Of the network namespace that the calling thread is in. `ip` is a socket there."""

    def __init__(self, ip: IPRoute) -> None:
        self._ip = ip
        self._guarded: frozenset[Address] | None = None

    def prepare(
        self, own: Collection[Address], far: Collection[Address]
    ) -> tuple[tuple[int, ...], list[str]]:
        """Devices for the nodes `far`, closed to all others: their indexes, and what went wrong.

        `own` are this node's addresses as the other nodes know them. A device that is new is not up yet.
        """
        nodes = frozenset(far)
        problems: list[str] = []
        if not nodes:
            self.down()
        elif nodes != self._guarded:
            try:
                nftables.guard(PORT, nodes)
            except HostError as e:
                return (), [f"no way to {node}: not a neighbour, and {e}" for node in sorted(map(str, nodes))]
            self._guarded = nodes
        devices = []
        for version, name in DEVICES.items():
            here = next((a for a in own if a.version == version), None)
            there = sorted(str(node) for node in nodes if node.version == version)
            if not there:
                self._remove(name)
            elif here is None:
                problems += [
                    f"no way to {node}: not a neighbour, and this node has no Node object with an InternalIP "
                    "of that family"
                    for node in there
                ]
            else:
                devices.append(self._device(name, here))
        return tuple(devices), problems

    def lead(self, ways: Mapping[Network, Address]) -> list[str]:
        """Routes by these nodes, for which `prepare` was called; what went wrong is returned."""
        problems = []
        for version, name in DEVICES.items():
            mine = {network: node for network, node in ways.items() if node.version == version}
            index = self._index(name)
            if not mine or index is None:
                continue
            self._ip.link("set", index=index, state="up")
            for network, node in mine.items():
                try:
                    self._ip.link("set", index=index, mtu=self._room(node, index))
                    self._behind(index, node)
                    self._ip.route(
                        "replace", dst=str(network), gateway=str(_gateway(node)), oif=index, flags=_ONLINK,
                        family=_family(version),
                    )  # fmt: skip
                except (NetlinkError, OSError) as e:
                    problems.append(f"route to {network} via {node} (vxlan): {e}")
        return problems

    def forget(self, network: Network, node: Address) -> None:
        """Take such a route away; fine if it is not there."""
        with suppress(NetlinkError):
            self._ip.route(
                "del", dst=str(network), gateway=str(_gateway(node)), family=_family(network.version)
            )

    def neighbour(self, node: Address) -> bool:
        """Whether a node is on a link of this one. Raises NetlinkError if there is no way to it at all."""
        return not any(route.get("RTA_GATEWAY") for route in self._way(node))

    def down(self) -> None:
        """Routes go with the devices; twice is fine."""
        for name in DEVICES.values():
            self._remove(name)
        self._guarded = None
        with suppress(HostError):
            nftables.unguard()

    def _way(self, node: Address) -> list[Any]:
        return list(self._ip.route("get", dst=str(node), family=_family(node.version)))

    def _room(self, node: Address, index: int) -> int:
        """The largest packet that fits into one to `node`, and into those to the others."""
        known = self._mtu(index)
        under = min((self._mtu(route.get("RTA_OIF")) for route in self._way(node)), default=1500)
        return min(known, under - OVERHEAD[node.version])

    def _mtu(self, index: int) -> int:
        return int(self._ip.get_links(index)[0].get("IFLA_MTU"))

    def _device(self, name: str, own: Address) -> int:
        index = self._index(name)
        if index is not None and self._ip.get_links(index)[0].get("IFLA_ADDRESS") == _text(link_address(own)):
            return index
        self._remove(name)
        local = {"vxlan_local": str(own)} if own.version == 4 else {"vxlan_local6": str(own)}
        self._ip.link(
            "add", ifname=name, kind="vxlan", address=_text(link_address(own)),
            vxlan_id=NUMBER, vxlan_port=PORT, vxlan_learning=0, **local,
        )  # fmt: skip
        index = self._index(name)
        assert index is not None
        return index

    def _behind(self, index: int, node: Address) -> None:
        """Who has the address of `node` on the device, and where that is."""
        for family, flags, where in (
            (_family(node.version), 0, _gateway(node)),
            (socket.AF_BRIDGE, _SELF, node),
        ):
            head = struct.pack("=BxxxiHBB", family, index, _PERMANENT, flags, 0)
            address = _attribute(_LINK_ADDRESS, link_address(node)) + _attribute(_DESTINATION, where.packed)
            rtnetlink.tell(_NEW_NEIGHBOUR, _CREATE | _REPLACE, head + address)

    def _index(self, name: str) -> int | None:
        found = self._ip.link_lookup(ifname=name)
        return int(found[0]) if found else None

    def _remove(self, name: str) -> None:
        index = self._index(name)
        if index is not None:
            with suppress(NetlinkError):
                self._ip.link("del", index=index)


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _text(address: bytes) -> str:
    return address.hex(":")


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6
