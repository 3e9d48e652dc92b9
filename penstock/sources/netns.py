"""How workloads hang on this node: asked of the kernel, told again when it changes.

A workload's namespace is entered for its interface, addresses and cookie; the host side of its veth is
the peer that the kernel names (IFLA_LINK). Changes come as events, never by polling: netlink tells of
interfaces on the node, inotify of namespaces that appear or go.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from asyncinotify import Inotify, Mask
from pyroute2 import IPRoute
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK

from penstock.redirect.netns import cookie, entered
from penstock.world import Address, Attachment, WorkloadName

_APPEARS = Mask.CREATE | Mask.MOVED_TO | Mask.DELETE | Mask.MOVED_FROM


@dataclass(frozen=True, slots=True)
class Wanted:
    """A local workload to look for; without `interface`, the one with the default route is meant."""

    name: WorkloadName
    netns: str
    interface: str | None


def _mac(text: str | None) -> bytes:
    return bytes.fromhex(text.replace(":", "")) if text else bytes(6)


def _default_index(ip: IPRoute) -> int | None:
    """The interface with the default route, or the only one there is beside lo."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in ip.get_default_routes(family=family):
            index = route.get("RTA_OIF")
            if index:
                return int(index)
    others = [link["index"] for link in ip.get_links() if link.get("IFLA_IFNAME") != "lo"]
    return int(others[0]) if len(others) == 1 else None


@dataclass(frozen=True, slots=True)
class Found:
    """An attachment, and what tells that it is still the same: the namespace's inode."""

    attachment: Attachment
    inode: int


def _inside(wanted: Wanted) -> tuple[int, Any, list[Address]] | None:
    """(cookie, link, addresses) of the workload's interface, as seen in its own namespace."""
    with entered(wanted.netns):
        number = cookie()
        with IPRoute() as ip:
            named = ip.link_lookup(ifname=wanted.interface) if wanted.interface else []
            index = named[0] if named else _default_index(ip)
            if index is None:
                return None
            link = ip.get_links(index)[0]
            found = [ip_address(a.get("IFA_LOCAL") or a.get("IFA_ADDRESS")) for a in ip.get_addr(index=index)]
    addresses = sorted((a for a in found if not a.is_link_local), key=lambda a: (a.version, a))
    return number, link, addresses


def _attachment(wanted: Wanted, hosts: Mapping[int, Any]) -> Attachment | None:
    """What the kernel says of one workload; None if it is not (or not yet) attached to this node."""
    inside = _inside(wanted)
    if inside is None:
        return None
    number, link, addresses = inside
    host = hosts.get(link.get("IFLA_LINK"))
    if host is None or host.get("IFLA_LINK") != link["index"]:
        return None
    return Attachment(
        ifindex=host["index"],
        host_mac=_mac(host.get("IFLA_ADDRESS")),
        mac=_mac(link.get("IFLA_ADDRESS")),
        cookie=number,
        addresses=tuple(addresses),
        interface=host.get("IFLA_IFNAME") or "",
    )


def attachments(wanted: Iterable[Wanted], known: Mapping[Wanted, Found]) -> dict[Wanted, Found]:
    """All that are attached now. Blocks; enters namespaces on the calling thread.

    A namespace is entered only if it is new: a known one whose inode and host side are still there is kept.
    """
    with IPRoute() as node:
        hosts = {link["index"]: link for link in node.get_links()}
    result = {}
    for each in wanted:
        with suppress(OSError):
            inode = Path(each.netns).stat().st_ino
            before = known.get(each)
            if before is not None and before.inode == inode and before.attachment.ifindex in hosts:
                result[each] = before
                continue
            found = _attachment(each, hosts)
            if found is not None:
                result[each] = Found(found, inode)
    return result


class NamespaceEvents:
    """Tells whenever attachments may have changed: links and addresses here, files in watched folders."""

    def __init__(self) -> None:
        self._folders: set[Path] = set()
        self._paths: frozenset[Path] = frozenset()
        self._inotify = Inotify()
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._netlink.setblocking(False)
        self._netlink.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))

    def watch(self, paths: Iterable[str]) -> None:
        """Follow these namespaces, by the folders that hold them; others in there are not our concern."""
        self._paths = frozenset(Path(p) for p in paths)
        for folder in {p.parent for p in self._paths} - self._folders:
            if folder.is_dir() and not str(folder).startswith("/proc"):
                self._inotify.add_watch(folder, _APPEARS)
                self._folders.add(folder)

    async def changes(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        happened = asyncio.Event()

        def drain() -> None:
            try:
                while self._netlink.recv(65536):
                    happened.set()
            except BlockingIOError:
                pass
            except OSError:
                # Overrun (ENOBUFS): something happened, and everything is read anew anyway.
                happened.set()

        async def follow() -> None:
            async for event in self._inotify:
                # No path: the queue overran, and anything may have happened.
                if event.path is None or event.path in self._paths:
                    happened.set()

        loop.add_reader(self._netlink.fileno(), drain)
        follower = asyncio.create_task(follow())
        try:
            while True:
                await happened.wait()
                happened.clear()
                yield
        finally:
            follower.cancel()
            loop.remove_reader(self._netlink.fileno())

    def close(self) -> None:
        self._inotify.close()
        self._netlink.close()
