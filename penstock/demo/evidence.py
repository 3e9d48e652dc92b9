"""What counts as proof: judgements about bytes, counts and counters. Pure.

TLS records: RFC 8446 §5.1 (type, legacy version 0x0301 or 0x0303, length up to 2^14 + 256).
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

RECORD_NAMES = {20: "change cipher spec", 21: "alert", 22: "handshake", 23: "application data"}
LARGEST_RECORD = (1 << 14) + 256
ETH_P_IP = 0x0800
TCP = 6
WRAP = 1 << 32


def binomial_bounds(trials: int, probability: float, sigmas: float = 5.0) -> tuple[int, int]:
    """The counts that lie within `sigmas` standard deviations of the mean, both included.

    Five sigmas: a right split fails once in 1.7 million runs (normal approximation, both sides).
    """
    mean = trials * probability
    spread = sigmas * math.sqrt(trials * probability * (1 - probability))
    return max(0, math.ceil(mean - spread)), min(trials, math.floor(mean + spread))


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment over IPv4 that carries data."""

    source: tuple[str, int]
    destination: tuple[str, int]
    sequence: int
    data: bytes


def segment(frame: bytes) -> Segment | None:
    """What an Ethernet frame carries, if that is a TCP segment with data over IPv4."""
    if len(frame) < 34 or struct.unpack_from("!H", frame, 12)[0] != ETH_P_IP:
        return None
    header = 14 + (frame[14] & 0xF) * 4
    total = struct.unpack_from("!H", frame, 16)[0]
    if frame[23] != TCP or len(frame) < header + 20:
        return None
    sport, dport, sequence = struct.unpack_from("!HHI", frame, header)
    begin = header + (frame[header + 12] >> 4) * 4
    data = frame[begin : 14 + total]
    if not data:
        return None
    source, destination = (str(IPv4Address(frame[at : at + 4])) for at in (26, 30))
    return Segment((source, sport), (destination, dport), sequence, data)


Stream = tuple[tuple[str, int], tuple[str, int]]


def streams(segments: Iterable[Segment]) -> dict[Stream, bytes]:
    """The bytes of each direction of each connection, in order, each byte once.

    A hole (a segment that was not captured) ends a stream: nothing is claimed about what follows it.
    """
    found: defaultdict[Stream, list[Segment]] = defaultdict(list)
    for one in segments:
        found[(one.source, one.destination)].append(one)
    joined = {}
    for key, parts in found.items():
        first = parts[0].sequence
        data = bytearray()
        for part in sorted(parts, key=lambda p: (p.sequence - first + WRAP // 2) % WRAP):
            if not data:
                first = part.sequence
            offset = (part.sequence - first) % WRAP
            if offset > len(data):
                break
            data[offset : offset + len(part.data)] = part.data
        joined[key] = bytes(data)
    return joined


def tls_records(stream: bytes) -> list[str] | None:
    """The names of the TLS records that a stream consists of, from its first byte to its last; None if it
    is anything else. The last record may still be on its way."""
    names: list[str] = []
    at = 0
    while at < len(stream):
        if len(stream) - at < 5:
            return names or None
        kind, version, length = struct.unpack_from("!BHH", stream, at)
        if kind not in RECORD_NAMES or version not in (0x0301, 0x0303) or not 0 < length <= LARGEST_RECORD:
            return None
        names.append(RECORD_NAMES[kind])
        at += 5 + length
    return names or None


Counters = Mapping[str, int]


def counters(status: Mapping[str, object]) -> Counters:
    """Reason → packets, from what `penstock status -o json` prints."""
    table = status["counters"]
    assert isinstance(table, Mapping)
    return {name: int(entry["packets"]) for name, entry in table.items()}


def rise(before: Counters, after: Counters) -> dict[str, int]:
    """By how much each counter that moved went up."""
    moved = {name: value - before.get(name, 0) for name, value in after.items()}
    return {name: value for name, value in moved.items() if value}
