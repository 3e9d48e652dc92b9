"""The bytes of the maps back into what they say: the other direction of `layout`.

tests/unit/test_redirect_decode.py sends tables there and back.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_network

from penstock.plan import (
    Direction,
    EndpointEntry,
    IpcacheEntry,
    ListenerKey,
    MeshMode,
    PolicyEntry,
    PolicyKey,
    PortEntry,
    ServiceKey,
    Verdict,
)
from penstock.redirect.layout import (
    ENDPOINT_ELSEWHERE,
    IPCACHE_LOCAL,
    IPCACHE_MESH,
    IPCACHE_NODE,
    MAPPED,
    POLICY_AUTHENTICATED,
    POLICY_DNS,
    POLICY_FIXED_BITS,
    PORT_DIRECT,
    SERVICE_EXTERNAL,
    SERVICE_HTTP,
    address_of,
)
from penstock.routing.model import ListenerKind
from penstock.world import Address, Network

_CT_KEY = struct.Struct("=16s16s2s2sB3x")
_CT_VALUE = struct.Struct("=QQIIIBB2s")


def port(raw: bytes) -> int:
    """The first two bytes, in network order."""
    return int.from_bytes(raw[:2], "big")


def endpoint(raw: bytes) -> EndpointEntry:
    ifindex, identity, subject, _, mode, flags, bits = struct.unpack_from("=IIIIBBB", raw)
    audit = frozenset(d for d in Direction if bits & 1 << d)
    return EndpointEntry(identity, subject, ifindex, MeshMode(mode), bool(flags & ENDPOINT_ELSEWHERE), audit)


def bridge_port(raw: bytes) -> PortEntry:
    home, bridge, subject, mac, bridge_mac, flags = struct.unpack_from("=III6s6sB", raw)
    direct = tuple(version for version, bit in PORT_DIRECT.items() if flags & bit)
    return PortEntry(home, subject, mac, bridge, bridge_mac, direct)


def ipcache_key(raw: bytes) -> Network:
    bits = struct.unpack_from("=I", raw)[0]
    if raw[4:].startswith(MAPPED) and bits >= 96:
        return ip_network((raw[16:20], bits - 96))
    return ip_network((raw[4:20], bits))


def ipcache_value(raw: bytes) -> IpcacheEntry:
    identity, source_class, flags, mode = struct.unpack_from("=IIBB", raw)
    return IpcacheEntry(
        identity,
        source_class,
        bool(flags & IPCACHE_MESH),
        MeshMode(mode),
        bool(flags & IPCACHE_LOCAL),
        bool(flags & IPCACHE_NODE),
    )


def policy_key(raw: bytes) -> PolicyKey:
    bits, subject, identity, direction, protocol = struct.unpack_from("=IIIBB", raw)
    port_bits = max(bits - POLICY_FIXED_BITS - 8, 0)
    return PolicyKey(subject, Direction(direction), identity, protocol, port(raw[14:]), port_bits)


def policy_value(raw: bytes) -> tuple[Verdict, int]:
    """The verdict, and the number of the rules behind it (`layout.rule_number`)."""
    verdict, _, rule, _ = struct.unpack_from("=BB2xII", raw)
    return Verdict(verdict), rule


def policy_entry(raw: bytes) -> PolicyEntry:
    """The entry without its origins and without its server names, of which only the number is there."""
    verdict, flags, _, _ = struct.unpack_from("=BB2xII", raw)
    return PolicyEntry(
        Verdict(verdict),
        authenticated=bool(flags & POLICY_AUTHENTICATED),
        dns=bool(flags & POLICY_DNS),
    )


def name_lists(raw: bytes) -> tuple[int, ...]:
    count, *lists = struct.unpack(f"={len(raw) // 4}I", raw)
    return tuple(lists[:count])


def listener_key(raw: bytes) -> ListenerKey:
    source_class, kind, *rest = struct.unpack_from("=IIIII", raw)
    return ListenerKey(source_class, ListenerKind(kind), *rest)


def service_key(raw: bytes) -> ServiceKey:
    return ServiceKey(address_of(raw[:16]), port(raw[16:]), raw[18])


@dataclass(frozen=True, slots=True)
class ServiceValue:
    """One place of a Service in the kernel; backends are told by (number of their set, how many)."""

    inside: tuple[int, int]
    flags: int
    affinity: int
    outside: tuple[int, int]
    alias: int
    beyond: tuple[int, int]

    @property
    def http(self) -> bool:
        return bool(self.flags & SERVICE_HTTP)

    @property
    def external(self) -> bool:
        return bool(self.flags & SERVICE_EXTERNAL)


def service_value(raw: bytes) -> ServiceValue:
    number, count, flags, affinity, *sets = struct.unpack_from("=IIIIIIIII", raw)
    outside, outside_count, alias, beyond, beyond_count = sets
    return ServiceValue(
        (number, count), flags, affinity, (outside, outside_count), alias, (beyond, beyond_count)
    )


def standing_key(raw: bytes) -> tuple[int, Address, int]:
    """(number of a set, address, port)."""
    return struct.unpack_from("=I", raw)[0], address_of(raw[4:20]), port(raw[20:])


def backend(raw: bytes) -> tuple[Address, int]:
    return address_of(raw[:16]), port(raw[16:])


@dataclass(frozen=True, slots=True)
class Connection:
    """One entry of the connection table, as who began it sees it. `seen` is CLOCK_MONOTONIC in ns."""

    source: Address
    source_port: int
    destination: Address
    destination_port: int
    protocol: int
    verdict: int
    proxy_port: int
    epoch: int
    seen: int
    born: int = 0
    """CLOCK_TAI in ns."""


def steered_to(value: bytes) -> int:
    """The proxy's port in an entry of the connection table."""
    return port(_CT_VALUE.unpack_from(value)[-1])


def connection(key: bytes, value: bytes) -> Connection:
    a, b, port_a, port_b, protocol = _CT_KEY.unpack(key)
    seen, born, epoch, _, _, bits, verdict, proxy_port = _CT_VALUE.unpack_from(value)
    initiator = bits & 1
    ends = [(address_of(a), port(port_a)), (address_of(b), port(port_b))]
    (source, source_port), (destination, destination_port) = ends if not initiator else reversed(ends)
    return Connection(
        source,
        source_port,
        destination,
        destination_port,
        protocol,
        verdict,
        port(proxy_port),
        epoch,
        seen,
        born,
    )
