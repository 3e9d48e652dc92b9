"""IPv4 packets as bytes, for raw sockets; the kernel fills in the header's length and checksum (raw(7))."""

from __future__ import annotations

import struct
from ipaddress import ip_address


def udp_packet(src: str, dst: str, sport: int, dport: int, data: bytes) -> bytes:
    """Without a checksum, which IPv4 allows (RFC 768)."""
    body = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0)
    return head + ip_address(src).packed + ip_address(dst).packed + body
