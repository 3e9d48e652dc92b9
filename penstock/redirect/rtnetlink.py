"""Reading links, addresses and default routes by rtnetlink(7): only the few fields that attaching needs.

All of a node's links are read whenever one of them changes, so it must be quick with hundreds of them: a
general library spends a millisecond on each. Everything is of the network namespace that the calling thread
is in.

Source: rtnetlink(7), netlink(7); include/uapi/linux/{rtnetlink,if_link,net_namespace}.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from penstock.world import Address

_HEADER = struct.Struct("=IHHII")
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_GETLINK, _GETADDR, _GETROUTE, _GETNSID = 18, 22, 26, 90
_MAIN_TABLE = 254
_NO_STATISTICS = 8
"""RTEXT_FILTER_SKIP_STATS."""
_UP = 1
_EXT_MASK, _ADDRESS, _NAME, _LINK, _MASTER, _INFO, _LINK_NETNSID = 29, 1, 3, 5, 10, 18, 37
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_DATA = 1, 2, 5
_BR_VLAN_FILTERING, _BR_NF4, _BR_NF6 = 7, 36, 37
_BRPORT_ISOLATED = 33


@dataclass(frozen=True, slots=True)
class HostLink:
    """A link as the kernel tells it. `peer` and `nsid` say which link of which namespace is a veth's other
    end.

    `filtered` are the IP versions for which the bridge itself asks netfilter to see its frames.
    """

    index: int
    name: str
    up: bool
    mac: bytes
    kind: str
    peer: int
    nsid: int
    master: int
    isolated: bool
    vlan_filtering: bool
    filtered: tuple[int, ...]


def _attributes(raw: bytes, start: int = 0) -> dict[int, bytes]:
    found = {}
    while start + 4 <= len(raw):
        length, kind = struct.unpack_from("=HH", raw, start)
        if length < 4:
            break
        found[kind & 0x3FFF] = raw[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw, "little", signed=len(raw) == 4) if raw else 0


def _text(raw: bytes | None) -> str:
    return raw.rstrip(b"\0").decode(errors="replace") if raw else ""


def _ask(kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """The bodies of the answers. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
        while True:
            data = sock.recv(1 << 18)
            while data:
                length, what, _, _, _ = _HEADER.unpack_from(data)
                if what == _DONE:
                    return
                if what == _ERROR:
                    number = -struct.unpack_from("=i", data, _HEADER.size)[0]
                    if number:
                        raise OSError(number, "rtnetlink")
                    return
                yield data[_HEADER.size : length]
                if not flags & _DUMP:
                    return
                data = data[(length + 3) & ~3 :]


def tell(kind: int, flags: int, body: bytes) -> None:
    """Have something done, and done. Raises OSError."""
    for _ in _ask(kind, flags | _ACK, body):
        pass


def links() -> dict[int, HostLink]:
    """Every link, by index."""
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + struct.pack("=HHI", 8, _EXT_MASK, _NO_STATISTICS)
    return {link.index: link for link in map(_link, _ask(_GETLINK, _DUMP, body))}


def _link(raw: bytes) -> HostLink:
    index, flags = struct.unpack_from("=iI", raw, 4)
    told = _attributes(raw, 16)
    info = _attributes(told.get(_INFO, b""))
    data = _attributes(info.get(_INFO_DATA, b""))
    slave = _attributes(info.get(_INFO_SLAVE_DATA, b""))
    kind = _text(info.get(_INFO_KIND))
    bridge = kind == "bridge"
    return HostLink(
        index=index,
        name=_text(told.get(_NAME)),
        up=bool(flags & _UP),
        mac=told.get(_ADDRESS, bytes(6)),
        kind=kind,
        peer=_number(told.get(_LINK)),
        nsid=_number(told[_LINK_NETNSID]) if _LINK_NETNSID in told else -1,
        master=_number(told.get(_MASTER)),
        isolated=bool(_number(slave.get(_BRPORT_ISOLATED))),
        vlan_filtering=bridge and bool(_number(data.get(_BR_VLAN_FILTERING))),
        filtered=tuple(v for v, key in ((4, _BR_NF4), (6, _BR_NF6)) if bridge and _number(data.get(key))),
    )


def addresses() -> dict[int, list[Address]]:
    """Index of a link → its addresses, link-local ones apart."""
    found: dict[int, list[Address]] = {}
    for raw in _ask(_GETADDR, _DUMP, struct.pack("=BBBBI", 0, 0, 0, 0, 0)):
        index = struct.unpack_from("=I", raw, 4)[0]
        told = _attributes(raw, 8)
        address = ip_address(told.get(2) or told[1])
        if not address.is_link_local:
            found.setdefault(index, []).append(address)
    return found


def default_link() -> int | None:
    """The link that the default route leads to, IPv4's first."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for raw in _ask(_GETROUTE, _DUMP, struct.pack("=BBBBBBBBI", family, *[0] * 7, 0)):
            told = _attributes(raw, 12)
            oif = _number(told.get(4))
            if raw[1] == 0 and raw[4] == _MAIN_TABLE and oif and raw[7] == 1:
                return oif
    return None


def namespace_id(fd: int) -> int:
    """By which number the present namespace knows the one behind `fd`; -1 if no link leads there."""
    body = struct.pack("=Bxxx", 0) + struct.pack("=HHI", 8, 3, fd)
    for raw in _ask(_GETNSID, 0, body):
        return _number(_attributes(raw, 4).get(1)) if 1 in _attributes(raw, 4) else -1
    return -1
