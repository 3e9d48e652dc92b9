"""The bytes of the maps: KernelTables ↔ what bpf/penstock.h lays out.

tests/bpf/test_layout.py compares the sizes with the BTF of the objects. IPv4 addresses are kept as
IPv4-mapped IPv6 (RFC 4291, 2.5.5.2).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from penstock.plan import (
    EndpointEntry,
    IpcacheEntry,
    ListenerKey,
    PolicyEntry,
    PolicyKey,
    PortEntry,
    PortMode,
    PortOf,
    ServiceEntry,
    ServiceKey,
)
from penstock.policy.labels import HOST
from penstock.policy.server_names import number
from penstock.world import Address, Network

IPCACHE_MESH, IPCACHE_LOCAL, IPCACHE_NODE = 1, 2, 4
SERVICE_HTTP, SERVICE_GATEWAY, SERVICE_EXTERNAL, SERVICE_MAGLEV, SERVICE_AUDIT = 1, 2, 4, 8, 16
POLICY_AUTHENTICATED, POLICY_DNS = 1, 2
STANDING_READY, STANDING_ENDING = 1, 2
NETNS_HOST = 1
ENDPOINT_ELSEWHERE = 1
PORT_DIRECT = {4: 1, 6: 2}
CONFIG_HOST_ACCESS = 1
POLICY_FIXED_BITS = 32 + 32 + 8
MAPPED = b"\0" * 10 + b"\xff\xff"


Table = dict[bytes, bytes]
Encoder = Callable[[Any], bytes]
EVENT = struct.Struct("=Q16s16s2s2sBBBBIIII2sB5x")


def address_bytes(address: Address) -> bytes:
    return address.packed if address.version == 6 else MAPPED + address.packed


def address_of(raw: bytes) -> Address:
    if raw.startswith(MAPPED):
        return IPv4Address(raw[12:16])
    return IPv6Address(raw)


def port_bytes(port: int) -> bytes:
    return port.to_bytes(2, "big")


def endpoint(entry: EndpointEntry) -> bytes:
    flags = ENDPOINT_ELSEWHERE if entry.elsewhere else 0
    audit = sum(1 << direction for direction in entry.audit)
    who = (entry.identity, entry.subject, entry.identity)
    return struct.pack("=IIIIBBB1x", entry.ifindex, *who, entry.mode, flags, audit)


def port(entry: PortEntry) -> bytes:
    flags = sum(PORT_DIRECT[version] for version in entry.direct)
    return struct.pack(
        "=III6s6sB3x", entry.home, entry.bridge, entry.subject, entry.mac, entry.bridge_mac, flags
    )


def ipcache_key(network: Network) -> bytes:
    bits = network.prefixlen + (96 if network.version == 4 else 0)
    return struct.pack("=I", bits) + address_bytes(network.network_address)


def ipcache_value(entry: IpcacheEntry) -> bytes:
    flags = (IPCACHE_MESH if entry.mesh else 0) | (IPCACHE_LOCAL if entry.local else 0)
    flags |= IPCACHE_NODE if entry.node else 0
    return struct.pack("=IIBB2x", entry.identity, entry.source_class, flags, entry.mode)


def policy_key(key: PolicyKey) -> bytes:
    bits = POLICY_FIXED_BITS + (8 + key.port_bits if key.protocol else 0)
    return struct.pack("=IIIBB", bits, key.subject, key.identity, key.direction, key.protocol) + port_bytes(
        key.port
    )


def rule_number(entry: PolicyEntry) -> int:
    """The number by which an event names the rules behind an entry; 0 for none."""
    if not entry.origins:
        return 0
    return zlib.crc32("\n".join(f"{k} {o}" for k, o in entry.origins).encode()) or 1


def policy_value(entry: PolicyEntry) -> bytes:
    flags = (POLICY_AUTHENTICATED if entry.authenticated else 0) | (POLICY_DNS if entry.dns else 0)
    return struct.pack("=BB2xII", entry.verdict, flags, rule_number(entry), number(entry.names))


def name_key(ifindex: int, address: Address) -> bytes:
    return struct.pack("=I", ifindex) + address_bytes(address)


def port_mode_key(place: PortOf) -> bytes:
    return struct.pack("=I", place[0]) + port_bytes(place[1]) + b"\0\0"


def port_mode_value(modes: PortMode) -> bytes:
    return struct.pack("=BB2x", *modes)


def conntrack_key(one: tuple[Address, int], other: tuple[Address, int], protocol: int) -> bytes:
    """Of a connection between two (address, port), whoever began it: ct_make_key() of bpf/conntrack.h."""
    (a, port_a), (b, port_b) = sorted(
        ((address_bytes(address), port_bytes(port)) for address, port in (one, other)), key=_as_kernel_orders
    )
    return struct.pack("=16s16s2s2sB3x", a, b, port_a, port_b, protocol)


def _as_kernel_orders(end: tuple[bytes, bytes]) -> tuple[int, ...]:
    """By numbers in the machine's byte order, as it compares an address, in halves, and a port."""
    address, port = end
    return (*struct.unpack("=QQ", address), *struct.unpack("=H", port))


def listener_key(key: ListenerKey) -> bytes:
    return struct.pack("=IIIII", *key)


def service_key(key: ServiceKey) -> bytes:
    return address_bytes(key.address) + port_bytes(key.port) + struct.pack("=Bx", key.protocol)


def service_value(entry: ServiceEntry) -> bytes:
    flags = (SERVICE_HTTP if entry.http else 0) | (SERVICE_GATEWAY if entry.gateway else 0)
    flags |= (SERVICE_EXTERNAL if entry.external else 0) | (SERVICE_MAGLEV if entry.maglev else 0)
    flags |= SERVICE_AUDIT if entry.audit else 0
    outside, alias, beyond = entry.outside, entry.alias, entry.beyond
    return struct.pack(
        "=IIIIIIIII",
        entry.service_id,
        len(entry.backends),
        flags,
        entry.affinity,
        outside.number if outside else 0,
        len(outside.backends) if outside else 0,
        alias.number if alias else 0,
        beyond.number if beyond else 0,
        len(beyond.backends) if beyond else 0,
    )


def config(epoch: int, source_ports: tuple[int, int], *, host_access: bool, proxy_rate: int = 0) -> bytes:
    """`proxy_rate` in packets a second, 0 for no limit."""
    gap = 1_000_000_000 // proxy_rate if proxy_rate else 0
    return struct.pack("=IHHII", epoch, *source_ports, CONFIG_HOST_ACCESS if host_access else 0, gap)


def backend_key(place: tuple[int, int]) -> bytes:
    return struct.pack("=II", *place)


def backend_value(backend: tuple[Address, int]) -> bytes:
    return address_bytes(backend[0]) + port_bytes(backend[1]) + b"\0\0"


def netns_value(identity: int) -> bytes:
    return struct.pack("=II", identity, NETNS_HOST if identity == HOST else 0)


Services = Mapping[ServiceKey, ServiceEntry]


def backends(services: Services) -> dict[tuple[int, int], tuple[Address, int]]:
    """(number of a set, slot) → address and port."""
    return {
        (each.number, slot): backend
        for s in services.values()
        for each in s.sets
        for slot, backend in enumerate(each.backends)
    }


def standing(services: Services) -> dict[tuple[int, Address, int], int]:
    """(number of a set, address, port) → how far its connections may count on it."""
    found: dict[tuple[int, Address, int], int] = {}
    for service in services.values():
        for each in service.sets:
            found.update(dict.fromkeys(((each.number, *end) for end in each.ending), STANDING_ENDING))
            found.update(dict.fromkeys(((each.number, *end) for end in each.backends), STANDING_READY))
    return found


def standing_key(place: tuple[int, Address, int]) -> bytes:
    number, address, number_of_port = place
    return struct.pack("=I", number) + address_bytes(address) + port_bytes(number_of_port) + b"\0\0"


def maglev_sets(services: Services) -> dict[int, tuple[tuple[tuple[Address, int], ...], int]]:
    """Number of a set → its backends and the size of its table."""
    return {
        each.number: (each.backends, service.maglev)
        for service in services.values()
        if service.maglev
        for each in service.sets
        if each is not service.alias and each.backends
    }


PROXY_SOURCES = 0xFFFFFFFF
"""The number under which `backends` tells where the proxy's datagrams leave from; the slot is the family."""


@dataclass(frozen=True, slots=True)
class KernelEvent:
    """One sample of the ring buffer (struct event). `time` is CLOCK_MONOTONIC in nanoseconds."""

    time: int
    source: Address
    destination: Address
    source_port: int
    destination_port: int
    protocol: int
    verdict: int
    reason: int
    tcp_flags: int
    source_identity: int
    destination_identity: int
    rule: int
    length: int
    proxy_port: int
    hook: int


def decode_event(raw: bytes) -> KernelEvent:
    fields = EVENT.unpack_from(raw)
    time, src, dst, sport, dport, protocol, verdict, reason, flags, si, di, rule, length, proxy, hook = fields
    return KernelEvent(
        time,
        address_of(src),
        address_of(dst),
        int.from_bytes(sport, "big"),
        int.from_bytes(dport, "big"),
        protocol,
        verdict,
        reason,
        flags,
        si,
        di,
        rule,
        length,
        int.from_bytes(proxy, "big"),
        hook,
    )
