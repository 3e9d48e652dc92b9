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

from penstock.differing import Table as Following
from penstock.plan import (
    EndpointEntry,
    IpcacheEntry,
    KernelTables,
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
from penstock.redirect import maglev
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


def _port(port: int) -> bytes:
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
    return struct.pack("=IIIBB", bits, key.subject, key.identity, key.direction, key.protocol) + _port(
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
    return struct.pack("=I", place[0]) + _port(place[1]) + b"\0\0"


def port_mode_value(modes: PortMode) -> bytes:
    return struct.pack("=BB2x", *modes)


def listener_key(key: ListenerKey) -> bytes:
    return struct.pack("=IIIII", *key)


def service_key(key: ServiceKey) -> bytes:
    return address_bytes(key.address) + _port(key.port) + struct.pack("=Bx", key.protocol)


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


def _backend_value(backend: tuple[Address, int]) -> bytes:
    return address_bytes(backend[0]) + _port(backend[1]) + b"\0\0"


def _netns_value(identity: int) -> bytes:
    return struct.pack("=II", identity, NETNS_HOST if identity == HOST else 0)


def backends(tables: KernelTables) -> dict[tuple[int, int], tuple[Address, int]]:
    """(number of a set, slot) → address and port."""
    return {
        (each.number, slot): backend
        for s in tables.services.values()
        for each in s.sets
        for slot, backend in enumerate(each.backends)
    }


def _standing(tables: KernelTables) -> dict[tuple[int, Address, int], int]:
    """(number of a set, address, port) → how far its connections may count on it."""
    found: dict[tuple[int, Address, int], int] = {}
    for service in tables.services.values():
        for each in service.sets:
            found.update(dict.fromkeys(((each.number, *end) for end in each.ending), STANDING_ENDING))
            found.update(dict.fromkeys(((each.number, *end) for end in each.backends), STANDING_READY))
    return found


def standing_key(place: tuple[int, Address, int]) -> bytes:
    number, address, number_of_port = place
    return struct.pack("=I", number) + address_bytes(address) + _port(number_of_port) + b"\0\0"


def _maglev(tables: KernelTables) -> dict[int, tuple[tuple[tuple[Address, int], ...], int]]:
    """Number of a set → its backends and the size of its table."""
    return {
        each.number: (each.backends, service.maglev)
        for service in tables.services.values()
        if service.maglev
        for each in service.sets
        if each is not service.alias and each.backends
    }


PROXY_SOURCES = 0xFFFFFFFF
"""The number under which `backends` tells where the proxy's datagrams leave from; the slot is the family."""


def _with_sources(tables: KernelTables) -> dict[tuple[int, int], tuple[Address, int]]:
    found = backends(tables)
    for address in tables.datagram_sources:
        found[PROXY_SOURCES, address.version] = address, 0
    return found


_CODECS: Mapping[str, tuple[Callable[[KernelTables], Mapping[Any, Any]], Encoder, Encoder]] = {
    "endpoints": (lambda t: t.endpoints, address_bytes, endpoint),
    "ipcache": (lambda t: t.ipcache, ipcache_key, ipcache_value),
    "policy": (lambda t: t.policy, policy_key, policy_value),
    "both_names": (lambda t: t.both_names, lambda two: struct.pack("=II", *two), struct.Struct("=I").pack),
    "listeners": (lambda t: t.listeners, listener_key, lambda port: _port(port) + b"\0\0"),
    "port_modes": (lambda t: t.port_modes, port_mode_key, port_mode_value),
    "services": (lambda t: t.services, service_key, service_value),
    "backends": (_with_sources, backend_key, _backend_value),
    "ports": (lambda t: t.ports, struct.Struct("=I").pack, port),
    "standing": (_standing, standing_key, struct.Struct("=I").pack),
    "maglev": (_maglev, struct.Struct("=I").pack, lambda value: maglev.encode(*value)),
    "netns": (lambda t: t.netns, struct.Struct("=Q").pack, _netns_value),
}


class TableEncoder:
    """Encodes tables one after the other; an entry that is as before keeps its bytes."""

    def __init__(self) -> None:
        self._last: dict[str, dict[Any, tuple[Any, bytes, bytes]]] = {}
        self._content: dict[str, tuple[Following[Any, Any], Following[bytes, bytes]]] = {}

    def encode(self, tables: KernelTables) -> dict[str, Table]:
        """Map name → keys and values, for every map that `tables` fills."""
        return {name: self._one(name, tables) for name in _CODECS}

    def _one(self, name: str, tables: KernelTables) -> Table:
        source, key_bytes, value_bytes = _CODECS[name]
        content = source(tables)
        before = self._content.get(name)
        if before is not None and before[0] is content:
            return before[1]
        if before is not None and isinstance(content, Following) and content.base is before[0].token:
            return self._follow(name, content, before[1])
        last, now = self._last.get(name, {}), {}
        for key, value in content.items():
            known = last.get(key)
            if known is None:
                known = (value, key_bytes(key), value_bytes(value))
            elif known[0] is not value and known[0] != value:
                known = (value, known[1], value_bytes(value))
            now[key] = known
        self._last[name] = now
        made: Table = {key: value for _, key, value in now.values()}
        if isinstance(content, Following):
            made = Following(made)
            self._content[name] = (content, made)
        return made

    def _follow(self, name: str, content: Following[Any, Any], made: Following[bytes, bytes]) -> Table:
        """The bytes of what has changed since."""
        _, key_bytes, value_bytes = _CODECS[name]
        last = self._last[name]
        changes: dict[bytes, bytes | None] = {}
        for key in content.changed:
            raw = key_bytes(key)
            value = content.get(key)
            if value is None:
                changes[raw] = None
                last.pop(key, None)
            else:
                changes[raw] = packed = value_bytes(value)
                last[key] = (value, raw, packed)
        after = made.after(changes)
        self._content[name] = (content, after)
        return after


def encode(tables: KernelTables) -> dict[str, Table]:
    """One set of tables by itself."""
    return TableEncoder().encode(tables)


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
