"""Frames as bytes, as small as a test needs them. Checksums are left 0: no program of ours looks at one.

Sources: RFC 791, 8200, 9293, 768, 792, 4443.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
_FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16}
MACS = bytes.fromhex("02000000000b02000000000a")


def tcp(sport: int, dport: int, flags: str = "S", data: bytes = b"") -> bytes:
    bits = sum(_FLAGS[f] for f in flags)
    return struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 5 << 4, bits, 65535, 0, 0) + data


def udp(sport: int, dport: int, data: bytes = b"data") -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data


def icmp(kind: int, code: int = 0, ident: int = 0, data: bytes = b"") -> bytes:
    """ICMP or ICMPv6: both begin alike."""
    return struct.pack("!BBHHH", kind, code, 0, ident, 1) + data


def extension(following: int, data: bytes = b"\1\4\0\0\0\0") -> bytes:
    """An IPv6 extension header of 8 or more bytes (hop-by-hop, routing, destination options)."""
    assert (len(data) + 2) % 8 == 0
    return struct.pack("!BB", following, (len(data) + 2) // 8 - 1) + data


def fragment_header(following: int, ident: int, offset: int, *, more: bool) -> bytes:
    """`offset` in units of 8 bytes."""
    return struct.pack("!BBHI", following, 0, offset << 3 | more, ident)


def ip(
    src: str,
    dst: str,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    ident: int = 0,
    offset: int = 0,
    more: bool = False,
    hop_limit: int = 64,
) -> bytes:
    """One IP packet. `offset` counts 8 bytes; options and fragments in the header are IPv4's."""
    a, b = ip_address(src), ip_address(dst)
    if a.version == 6:
        return (
            struct.pack("!IHBB", 6 << 28, len(payload), protocol, hop_limit) + a.packed + b.packed + payload
        )
    header = 20 + len(options)
    place = offset | (0x2000 if more else 0)
    start = struct.pack(
        "!BBHHHBBH", 0x40 | header // 4, 0, header + len(payload), ident, place, hop_limit, protocol, 0
    )
    return start + a.packed + b.packed + options + payload


def frame(packet: bytes) -> bytes:
    return MACS + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet


def tcp_frame(src: str, dst: str, sport: int, dport: int, flags: str = "S") -> bytes:
    return frame(ip(src, dst, TCP, tcp(sport, dport, flags)))


def udp_frame(src: str, dst: str, sport: int, dport: int) -> bytes:
    return frame(ip(src, dst, UDP, udp(sport, dport)))


def echo(src: str, dst: str, ident: int, *, reply: bool = False) -> bytes:
    if ":" in src:
        return frame(ip(src, dst, ICMPV6, icmp(129 if reply else 128, 0, ident)))
    return frame(ip(src, dst, ICMP, icmp(0 if reply else 8, 0, ident)))


def unreachable(src: str, dst: str, quoted: bytes) -> bytes:
    """Port unreachable about `quoted`, an IP packet."""
    if ":" in src:
        return frame(ip(src, dst, ICMPV6, icmp(1, 4, data=quoted)))
    return frame(ip(src, dst, ICMP, icmp(3, 3, data=quoted[:48])))
