"""How workloads hang on this node: asked of the kernel, told again when it changes.

A workload's namespace is entered for its interface, addresses and cookie; the host side of its veth is
the peer that the kernel names (IFLA_LINK). Changes come as events, never by polling: netlink tells of
interfaces on the node, inotify of namespaces that appear or go.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from asyncinotify import Inotify, Mask
from pyroute2 import IPRoute
from pyroute2.netlink.rtnl import RTMGRP_LINK

from penstock.redirect.netns import cookie, entered
from penstock.world import Attachment, WorkloadName

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
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in ip.get_default_routes(family=family):
            index = route.get("RTA_OIF")
            if index:
                return int(index)
    return None


def attachment(wanted: Wanted, node: Mapping[int, Any]) -> Attachment | None:
    """What the kernel says of one workload; None if it is not (or not yet) attached to this node.

    `node` holds the links of this node's namespace by their index.
    """
    try:
        with entered(wanted.netns):
            number = cookie()
            with IPRoute() as inside:
                found = inside.link_lookup(ifname=wanted.interface) if wanted.interface else []
                index = found[0] if found else _default_index(inside)
                if index is None:
                    return None
                link = inside.get_links(index)[0]
                addresses = [
                    ip_address(a.get("IFA_LOCAL") or a.get("IFA_ADDRESS"))
                    for a in inside.get_addr(index=index)
                ]
    except OSError:
        return None
    peer = link.get("IFLA_LINK")
    if not peer:
        return None
    host = node.get(peer)
    if host is None or host.get("IFLA_LINK") != index:
        return None
    return Attachment(
        ifindex=peer,
        host_mac=_mac(host.get("IFLA_ADDRESS")),
        mac=_mac(link.get("IFLA_ADDRESS")),
        cookie=number,
        addresses=tuple(sorted((a for a in addresses if not a.is_link_local), key=lambda a: (a.version, a))),
        interface=host.get("IFLA_IFNAME") or "",
    )


def attachments(wanted: Iterable[Wanted]) -> dict[WorkloadName, Attachment]:
    """All that are attached now. Blocks; enters namespaces on the calling thread."""
    with IPRoute() as node:
        # Read once: to read each link of the node for each workload took seconds with 50 of them.
        links = {link["index"]: link for link in node.get_links()}
    found = {w.name: attachment(w, links) for w in wanted}
    return {name: a for name, a in found.items() if a is not None}


class NamespaceEvents:
    """Yields whenever attachments may have changed: on links of this namespace, and in watched folders."""

    def __init__(self) -> None:
        self._folders: set[Path] = set()
        self._inotify = Inotify()
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._netlink.setblocking(False)
        self._netlink.bind((0, RTMGRP_LINK))

    def watch(self, paths: Iterable[str]) -> None:
        """Follow the folders that hold these namespaces."""
        for folder in {Path(p).parent for p in paths} - self._folders:
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
            async for _ in self._inotify:
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
