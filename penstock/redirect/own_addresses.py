"""Addresses that the node has or answers for besides its own: those of Gateways, and of Services for outside.

A Gateway's stands on the loopback device, since the proxy listens there. A Service's is nobody's: what is
sent to it is translated before any socket is asked.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import suppress
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from penstock.redirect import rtnetlink
from penstock.redirect.hostrecord import HostRecord, sysctl
from penstock.world import Address

_FOREVER = 0xFFFFFFFF
"""Seconds that an address holds (rtnetlink, IFA_CACHEINFO)."""
LOOPBACK = 1
"""The index of `lo` in every network namespace (include/net/flow.h)."""
RT_SCOPE_HOST = 254
RTN_LOCAL = 2
RESERVED = "net/ipv4/ip_local_reserved_ports"
LOCAL_TABLE = 255


class OwnAddresses:
    """By `ip`, in its network namespace; what is changed goes to `record`."""

    def __init__(self, ip: IPRoute, record: HostRecord) -> None:
        self._ip, self._record = ip, record

    def of_node(self) -> tuple[Address, ...]:
        """Global addresses of the node's own interfaces, without those that Gateways were given."""
        ours = {ip_address(text) for text in self._record.done.addresses}
        found = {a for a in chain.from_iterable(rtnetlink.addresses().values()) if not a.is_loopback}
        return tuple(sorted(found - ours, key=lambda a: (a.version, a)))

    def give(self, wanted: Collection[Address]) -> list[str]:
        """Give the node these addresses, on its loopback device, and take back others that it was given.

        One that it has anyway is left alone, also by `down`; problems are returned.
        """
        problems = []
        texts = [str(a) for a in wanted]
        gone = [text for text in self._record.done.addresses if text not in texts]
        there = {str(a) for a in self.of_node()} | set(self._record.done.addresses)
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
        kept = [text for text in self._record.done.addresses if text not in gone]
        failed = {problem.split()[1].rstrip(":") for problem in problems}
        self._record.done.addresses = kept + [text for text in missing if text not in failed]
        self._record.save()
        return problems

    def _address(self, what: str, text: str) -> None:
        version = ip_address(text).version
        # Nobody is to send from it unasked: the node's own connections would be taken for a Gateway's.
        unasked = {"scope": RT_SCOPE_HOST} if version == 4 else {"preferred_lft": 0, "valid_lft": _FOREVER}
        try:
            self._ip.addr(
                what,
                index=LOOPBACK,
                address=text,
                prefixlen=32 if version == 4 else 128,
                family=family_of(version),
                **(unasked if what == "add" else {}),
            )
        except NetlinkError as e:
            if e.code != (17 if what == "add" else 99):
                raise

    def answer(self, addresses: Collection[Address], ports: Collection[int]) -> list[str]:
        """Take what is sent to these addresses of Services as our own, and keep sockets off these ports.

        A local route makes the stack answer for an address that no device has, ARP too. For IPv6 neighbours
        there is no such thing: there the address must be routed here. Problems are returned.
        """
        problems = []
        wanted = [str(a) for a in addresses]
        before = list(self._record.done.answered)
        for text in [a for a in wanted if a not in before]:
            try:
                self._ip.route("replace", **_own(text), oif=LOOPBACK)
            except NetlinkError as e:
                problems.append(f"local route for {text}: {e}")
                continue
            self._record.done.answered.append(text)
        for text in [a for a in before if a not in wanted]:
            self._drop_address(text)
        given = self._record.done.sysctls.get(RESERVED, sysctl(RESERVED))
        reserved = ",".join(filter(None, (given, *map(str, ports))))
        changed = self._record.done.answered != before
        if reserved != given or RESERVED in self._record.done.sysctls:
            changed = RESERVED not in self._record.done.sysctls or changed
            self._record.done.sysctls.setdefault(RESERVED, given)
            Path("/proc/sys", RESERVED).write_text(reserved + "\n")
        if changed:
            self._record.save()
        return problems

    def _drop_address(self, text: str) -> None:
        self._record.done.answered.remove(text)
        with suppress(NetlinkError):
            self._ip.route("del", **_own(text))

    def take_back(self) -> None:
        for text in list(self._record.done.answered):
            self._drop_address(text)
        for text in self._record.done.addresses:
            with suppress(NetlinkError):
                self._address("del", text)


def _own(text: str) -> dict[str, Any]:
    """The local route of an address of a Service."""
    v6 = ":" in text
    scope = 0 if v6 else RT_SCOPE_HOST
    family = socket.AF_INET6 if v6 else socket.AF_INET
    dst = f"{text}/{128 if v6 else 32}"
    return {"family": family, "dst": dst, "table": LOCAL_TABLE, "type": RTN_LOCAL, "scope": scope}


def family_of(version: int) -> int:
    """AF_INET for 4, AF_INET6 for 6."""
    return socket.AF_INET if version == 4 else socket.AF_INET6
