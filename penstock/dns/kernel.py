"""The proxy's side of the kernel's maps: who an address is, which connections live, and the map of names.

The maps are opened with the rights of root; to use what is open needs none.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from penstock.dns.recorded import Key
from penstock.redirect.libbpf import BpfMap

MOST_LISTS = 15
"""That one address may be in (bpf/penstock.h, MAX_NAME_LISTS)."""
WORLD = 2

_MAPPED = b"\0" * 10 + b"\xff\xff"
_VALUE = struct.Struct(f"=I{MOST_LISTS}I")
_CT_KEY = struct.Struct("=16s16s2s2sB3x")
_CT_VALUE = struct.Struct("=QQIIIBB2s")
_TCP, _UDP = 6, 17
_UDP_IDLE, _OTHER_IDLE, _TCP_IDLE, _ENDING_IDLE = 180.0, 60.0, 8000.0, 10.0
"""Seconds after which a flow counts as over (bpf/conntrack.h); of TCP before an end was seen, and after."""


def packed(address: str) -> bytes:
    found = ip_address(address)
    return found.packed if found.version == 6 else _MAPPED + found.packed


def unpacked(raw: bytes) -> str:
    return str(ip_address(raw[12:])) if raw.startswith(_MAPPED) else str(IPv6Address(raw))


class Kernel:
    """Of the daemon whose maps are pinned at `pins`."""

    def __init__(self, pins: Path) -> None:
        self._names = BpfMap(pins / "names", 20, _VALUE.size)
        self._ipcache = BpfMap(pins / "ipcache", 20, 12)
        self._conntrack = BpfMap(pins / "conntrack", 40, 32)

    def identity(self, address: str) -> int:
        raw = self._ipcache.get(struct.pack("=I", 128) + packed(address))
        return int(struct.unpack_from("=I", raw)[0]) if raw is not None else WORLD

    def put(self, key: Key, lists: tuple[int, ...]) -> None:
        """What is beyond MOST_LISTS is left out: closed, not open. Raises BpfError (the map is full)."""
        shown = lists[:MOST_LISTS]
        padding = (0,) * (MOST_LISTS - len(shown))
        self._names.put(self._key(key), _VALUE.pack(len(shown), *shown, *padding))

    def delete(self, key: Key) -> None:
        self._names.delete(self._key(key))

    def keys(self) -> list[Key]:
        found = self._names.keys()
        return [(struct.unpack_from("=I", raw)[0], unpacked(raw[4:])) for raw in found]

    def alive(self, keys: Collection[Key]) -> set[Key]:
        """Those to whose address the workload has a connection that goes on."""
        wanted = {self._key(key): key for key in keys}
        now = time.monotonic_ns()
        found: set[Key] = set()
        flows = self._conntrack.keys()
        for raw in flows:
            a, b, _, _, protocol = _CT_KEY.unpack(raw)
            value = self._conntrack.get(raw)
            if value is None:
                continue
            seen, _, _, of_a, of_b, bits, _, _ = _CT_VALUE.unpack(value)
            began = of_b if bits & 1 else of_a
            other = a if bits & 1 else b
            key = wanted.get(struct.pack("=I", began) + other)
            if key is not None and (now - seen) / 1e9 < _idle(protocol, ending=bool(bits & 16)):
                found.add(key)
        return found

    @staticmethod
    def _key(key: Key) -> bytes:
        return struct.pack("=I", key[0]) + packed(key[1])


def _idle(protocol: int, *, ending: bool) -> float:
    if protocol == _TCP:
        return _ENDING_IDLE if ending else _TCP_IDLE
    return _UDP_IDLE if protocol == _UDP else _OTHER_IDLE
