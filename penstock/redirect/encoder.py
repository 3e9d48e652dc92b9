"""KernelTables → the bytes of every map, followed from one state to the next.

What has not changed is not written anew: a table knows in what it differs from the one before (differing.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from penstock.differing import Table as Following
from penstock.plan import KernelTables
from penstock.redirect import maglev
from penstock.redirect.layout import (
    PROXY_SOURCES,
    Encoder,
    Services,
    Table,
    address_bytes,
    backend_key,
    backend_value,
    backends,
    endpoint,
    ipcache_key,
    ipcache_value,
    listener_key,
    maglev_sets,
    netns_value,
    policy_key,
    policy_value,
    port,
    port_bytes,
    port_mode_key,
    port_mode_value,
    service_key,
    service_value,
    standing,
    standing_key,
)
from penstock.world import Address


def _sources(tables: KernelTables) -> dict[tuple[int, int], tuple[Address, int]]:
    return {(PROXY_SOURCES, address.version): (address, 0) for address in tables.datagram_sources}


_OF_SERVICES: Mapping[str, Callable[[Services], Mapping[Any, Any]]] = {
    "backends": backends,
    "standing": standing,
    "maglev": maglev_sets,
}


class _OfServices:
    """A table that follows from Services: where only some of them differ, only what is told of those is made
    anew. An entry that comes or goes may share its sets with others, so then all is."""

    def __init__(self, make: Callable[[Services], Mapping[Any, Any]]) -> None:
        self._make = make
        self._services: Services | None = None
        self._more: Mapping[Any, Any] = {}
        self._made: Following[Any, Any] = Following()

    def table(self, services: Services, more: Mapping[Any, Any]) -> Following[Any, Any]:
        before, now = self._services, services
        self._services = services
        if before is now and more == self._more:
            return self._made
        if (
            isinstance(before, Following)
            and isinstance(now, Following)
            and now.base is before.token
            and more == self._more
            and all(key in before and key in now for key in now.changed)
        ):
            old, new = (self._make({key: each[key] for key in now.changed}) for each in (before, now))
            changes = {key: new.get(key) for key in (*old, *new) if old.get(key) != new.get(key)}
            self._made = self._made.after(changes) if changes else self._made
        else:
            self._more = more
            self._made = Following({**self._make(services), **more})
        return self._made


_CODECS: Mapping[str, tuple[Callable[[KernelTables], Mapping[Any, Any]], Encoder, Encoder]] = {
    "endpoints": (lambda t: t.endpoints, address_bytes, endpoint),
    "ipcache": (lambda t: t.ipcache, ipcache_key, ipcache_value),
    "policy": (lambda t: t.policy, policy_key, policy_value),
    "both_names": (lambda t: t.both_names, lambda two: struct.pack("=II", *two), struct.Struct("=I").pack),
    "listeners": (lambda t: t.listeners, listener_key, lambda port: port_bytes(port) + b"\0\0"),
    "port_modes": (lambda t: t.port_modes, port_mode_key, port_mode_value),
    "services": (lambda t: t.services, service_key, service_value),
    "backends": (_sources, backend_key, backend_value),
    "ports": (lambda t: t.ports, struct.Struct("=I").pack, port),
    "standing": (lambda t: {}, standing_key, struct.Struct("=I").pack),
    "maglev": (lambda t: {}, struct.Struct("=I").pack, lambda value: maglev.encode(*value)),
    "netns": (lambda t: t.netns, struct.Struct("=Q").pack, netns_value),
}


class TableEncoder:
    """Encodes tables one after the other; an entry that is as before keeps its bytes."""

    def __init__(self) -> None:
        self._last: dict[str, dict[Any, tuple[Any, bytes, bytes]]] = {}
        self._content: dict[str, tuple[Following[Any, Any], Following[bytes, bytes]]] = {}
        self._of_services = {name: _OfServices(make) for name, make in _OF_SERVICES.items()}

    def encode(self, tables: KernelTables) -> dict[str, Table]:
        """Map name → keys and values, for every map that `tables` fills."""
        return {name: self._one(name, tables) for name in _CODECS}

    def _one(self, name: str, tables: KernelTables) -> Table:
        source, key_bytes, value_bytes = _CODECS[name]
        content = source(tables)
        if name in self._of_services:
            content = self._of_services[name].table(tables.services, content)
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
