"""The sockets that the kernel steers DNS to, and those that answer in the asked server's name.

What is steered keeps its destination: of a datagram the kernel tells it beside the data, of a connection it
is the socket's own address. A datagram's answer leaves by a raw socket: no port need be bound for it.

Source: ip(7), raw(7), ipv6(7); include/uapi/linux/in.h, in6.h.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address

MARK = 0xA00
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
IP_RECVORIGDSTADDR, IPV6_RECVORIGDSTADDR = 20, 74
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asked, and whom."""

    client: str
    client_port: int
    server: str
    server_port: int


def datagrams(family: socket.AddressFamily, port: int) -> socket.socket:
    made = _bound(family, socket.SOCK_DGRAM, port)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, IP_RECVORIGDSTADDR, 1)
    return made


def connections(family: socket.AddressFamily, port: int) -> socket.socket:
    made = _bound(family, socket.SOCK_STREAM, port)
    made.listen(256)
    return made


def _bound(family: socket.AddressFamily, kind: int, port: int) -> socket.socket:
    made = socket.socket(family, kind)
    made.setblocking(False)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    if kind == socket.SOCK_STREAM:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    made.bind((_LOOPBACK[family], port))
    return made


def answering(family: socket.AddressFamily) -> socket.socket:
    """A raw socket for `send`."""
    made = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    return made


def asked(ancillary: list[tuple[int, int, bytes]], client: tuple[str, int]) -> Asked | None:
    """Whom a datagram was for, by what came beside it."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_RECVORIGDSTADDR):
            server, at = str(ip_address(data[4:8])), data[2:4]
        elif (level, kind) == (socket.IPPROTO_IPV6, IPV6_RECVORIGDSTADDR):
            server, at = str(ip_address(data[8:24])), data[2:4]
        else:
            continue
        return Asked(client[0], client[1], server, int.from_bytes(at, "big"))
    return None


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = int(sum(struct.unpack(f"!{len(data) // 2}H", data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(asked: Asked, payload: bytes) -> bytes:
    """The answer as it is on the wire, from the server that was asked."""
    source, target = ip_address(asked.server), ip_address(asked.client)
    length = 8 + len(payload)
    head = struct.pack("!HHHH", asked.server_port, asked.client_port, length, 0)
    if source.version == 6:
        pseudo = source.packed + target.packed + struct.pack("!II", length, socket.IPPROTO_UDP)
    else:
        pseudo = source.packed + target.packed + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length)
    checksum = _checksum(pseudo + head + payload) or 0xFFFF
    datagram = head[:6] + checksum.to_bytes(2, "big") + payload
    if source.version == 6:
        return (
            struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64)
            + source.packed
            + target.packed
            + datagram
        )
    # The kernel fills in the header's checksum and identification.
    return (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0)
        + source.packed
        + target.packed
        + datagram
    )
