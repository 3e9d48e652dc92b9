"""How workloads hang on this node: asked of the kernel, told again when it changes.

A workload's namespace is entered for its interfaces, addresses and cookie; the host side of each veth is
the peer that the kernel names (IFLA_LINK), and its bridge the host side's master. Changes come as events,
never by polling: netlink tells of interfaces on the node, inotify of namespaces that appear or go. A
namespace is entered again only when the set of links that lead to it has changed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from asyncinotify import Inotify, Mask
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK

from penstock.redirect import rtnetlink
from penstock.redirect.leads import Place
from penstock.redirect.netns import cookie, entered
from penstock.redirect.rtnetlink import HostLink
from penstock.world import Address, Attachment, Link, WorkloadName

_APPEARS = Mask.CREATE | Mask.MOVED_TO | Mask.DELETE | Mask.MOVED_FROM
_BRIDGE_NETFILTER = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A local workload to look for; without `interface`, the one with the default route comes first."""

    name: WorkloadName
    netns: str
    interface: str | None


@dataclass(frozen=True, slots=True)
class Inside:
    """One end of a veth, as seen in its own namespace."""

    index: int
    peer: int
    name: str
    mac: bytes
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """An attachment, and what tells that it is still the same.

    `inode` is the namespace's, `sides` are the links here that lead there. `inside` are those of there, the
    first one first; not `settled` while one of them has no address yet (nobody
    outside sees it come).
    """

    attachment: Attachment
    inode: int
    nsid: int
    sides: frozenset[int]
    inside: tuple[Inside, ...]

    @property
    def settled(self) -> bool:
        return all(each.addresses for each in self.inside)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was found of the workloads, and what of this node's links is none of theirs, or not yet.

    `coming` are the host sides of routed veths that lead to a workload which has no address yet, `up` the
    node's links that are up, by index, without its loopback device.
    """

    found: Mapping[Wanted, Found]
    other_ports: tuple[Link, ...] = ()
    coming: Mapping[int, WorkloadName] = field(default_factory=dict)
    up: Mapping[int, str] = field(default_factory=dict)


def on_bridges(surroundings: Surroundings) -> tuple[Place, ...]:
    """The workloads whose first link is a bridge's port."""
    found = []
    for wanted, one in surroundings.found.items():
        first = one.attachment.links[0]
        device = next((each.index for each in one.inside if each.peer == first.ifindex), 0)
        if first.bridge and device:
            found.append(Place(wanted.netns, one.attachment.cookie, device, first.bridge))
    return tuple(found)


def _look_inside(wanted: Wanted) -> tuple[int, tuple[Inside, ...]]:
    """(cookie, veths with the most important one first) of the workload's namespace."""
    with entered(wanted.netns):
        number = cookie()
        links = rtnetlink.links()
        addresses = rtnetlink.addresses()
        default = rtnetlink.default_link()
    veths = [link for link in links.values() if link.kind == "veth"]
    veths.sort(key=lambda link: (link.name != wanted.interface, link.index != default, link.index))
    return number, tuple(
        Inside(
            link.index,
            link.peer,
            link.name,
            link.mac,
            tuple(sorted(addresses.get(link.index, ()), key=lambda a: (a.version, a))),
        )
        for link in veths
    )


class _Node:
    """The node's links as they are now."""

    def __init__(self) -> None:
        self.links = rtnetlink.links()
        self.leading: dict[int, set[int]] = {}
        for link in self.links.values():
            if link.kind == "veth" and link.nsid >= 0:
                self.leading.setdefault(link.nsid, set()).add(link.index)
        self._filtered = {version for version, name in _BRIDGE_NETFILTER.items() if _is_set(name)}

    def leading_to(self, netns: str) -> Iterable[int]:
        return self.leading.get(_nsid(netns), ())

    def bridge_of(self, link: HostLink) -> HostLink | None:
        master = self.links.get(link.master)
        return master if master is not None and master.kind == "bridge" else None

    def link(self, host: HostLink, inside: Inside | None = None) -> Link:
        bridge = self.bridge_of(host)
        direct: tuple[int, ...] = ()
        if bridge is not None and not host.isolated:
            seen = self._filtered | set(bridge.filtered)
            direct = tuple(version for version in (4, 6) if version not in seen)
        return Link(
            ifindex=host.index,
            interface=host.name,
            mac=inside.mac if inside else bytes(6),
            addresses=inside.addresses if inside else (),
            bridge=bridge.index if bridge else 0,
            bridge_mac=bridge.mac if bridge else bytes(6),
            direct=direct,
        )

    def attachment(self, number: int, inside: Iterable[Inside], sides: Iterable[int]) -> Attachment | None:
        found = []
        for each in inside:
            host = self.links.get(each.peer)
            if host is not None and host.index in sides and host.peer == each.index and each.addresses:
                found.append(self.link(host, each))
        return Attachment(number, tuple(found)) if found else None


def _is_set(name: str) -> bool:
    with suppress(OSError):
        return Path("/proc/sys/net/bridge", name).read_text().strip() != "0"
    return False


def attachments(wanted: Iterable[Wanted], known: Mapping[Wanted, Found]) -> Surroundings:
    """All that are attached now. Blocks; enters namespaces on the calling thread."""
    node = _Node()
    found = {}
    coming: dict[int, WorkloadName] = {}
    for each in wanted:
        with suppress(OSError):
            one = _find(each, known.get(each), node)
            if one is not None:
                found[each] = one
            else:
                coming.update(dict.fromkeys(node.leading_to(each.netns), each.name))
    own = {link.ifindex for one in found.values() for link in one.attachment.links}
    others = tuple(
        node.link(link)
        for link in node.links.values()
        if link.index not in own and node.bridge_of(link) is not None
    )
    routed = {index: name for index, name in coming.items() if node.bridge_of(node.links[index]) is None}
    up = {link.index: link.name for link in node.links.values() if link.up and link.name != "lo"}
    return Surroundings(found, others, routed, up)


def _nsid(netns: str) -> int:
    with open(netns, "rb") as there:
        return rtnetlink.namespace_id(there.fileno())


def _find(wanted: Wanted, before: Found | None, node: _Node) -> Found | None:
    inode = Path(wanted.netns).stat().st_ino
    if before is not None and before.inode == inode and before.settled:
        sides = frozenset(node.leading.get(before.nsid, ()))
        if sides == before.sides:
            attachment = node.attachment(before.attachment.cookie, before.inside, sides)
            if attachment is not None:
                return Found(attachment, inode, before.nsid, sides, before.inside)
    nsid = _nsid(wanted.netns)
    sides = frozenset(node.leading.get(nsid, ()))
    if not sides:
        return None
    number, inside = _look_inside(wanted)
    inside = tuple(each for each in inside if each.peer in sides)
    attachment = node.attachment(number, inside, sides)
    return Found(attachment, inode, nsid, sides, inside) if attachment else None


class NamespaceEvents:
    """Tells whenever attachments may have changed: links and addresses here, files in watched folders.

    With `settle` (seconds) what follows soon after is told with it: a container runtime changes a link ten
    times before it says that the container is there, and each telling costs a look at all of them.
    """

    def __init__(self, settle: float = 0.0) -> None:
        self._settle = settle
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
                if self._settle:
                    await asyncio.sleep(self._settle)
                happened.clear()
                yield
        finally:
            follower.cancel()
            loop.remove_reader(self._netlink.fileno())

    def close(self) -> None:
        self._inotify.close()
        self._netlink.close()
