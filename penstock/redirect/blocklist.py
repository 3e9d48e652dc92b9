"""The blocklist: networks whose packets are dropped at XDP on the node's own devices.

It stands in a file in the state directory, which survives everything, and in a pinned map, which the programs
read. What it keeps true: the file is written before the map; an entry that is over blocks nothing from that
moment, since the kernel compares the time itself; and where nothing is blocked no XDP program is attached,
so that nobody pays for it.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import msgspec

from penstock.errors import HostError, UsageError
from penstock.files import write_atomically
from penstock.redirect import decode, layout
from penstock.redirect.libbpf import BpfMap
from penstock.redirect.shapes import SHAPES
from penstock.world import Network

log = logging.getLogger(__name__)

FILE = "blocklist.json"
FORMAT = 1
_VALUE = struct.Struct("=QQQII")


class _Entry(msgspec.Struct, frozen=True):
    cidr: str
    since: float
    until: float | None = None


class _File(msgspec.Struct, frozen=True):
    format: int
    blocked: list[_Entry]


@dataclass(frozen=True, slots=True)
class Blocked:
    """One entry, with what it has dropped. Times are seconds since 1970; `until` None is for good."""

    network: Network
    since: float
    until: float | None
    packets: int = 0
    bytes: int = 0


class Blocklist:
    """The file and the map of one node. `clock` tells seconds since 1970, `boot` CLOCK_BOOTTIME in ns."""

    def __init__(
        self,
        directory: Path,
        pins: Path,
        *,
        clock: Callable[[], float] = time.time,
        boot: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    ) -> None:
        self._path = directory / FILE
        self._clock, self._boot = clock, boot
        shape = SHAPES["blocklist"]
        self._map = BpfMap(pins / "blocklist", shape.key, shape.value)
        self._entries = self._load()
        self.expire()
        self._settle()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, network: Network, seconds: float | None) -> None:
        """Block it, for so long or for good; or give it a new time. Raises HostError, UsageError."""
        if network not in self._entries and len(self._entries) >= SHAPES["blocklist"].entries:
            raise UsageError(f"the blocklist is full: {len(self._entries)} entries", hint="delete some first")
        now, before = self._clock(), dict(self._entries)
        self._entries[network] = _Entry(str(network), now, now + seconds if seconds is not None else None)
        try:
            self._save()
        except HostError:
            self._entries = before
            raise
        self._put(network)

    def delete(self, network: Network) -> bool:
        """Whether it was there. Raises HostError."""
        if self._entries.pop(network, None) is None:
            return False
        self._save()
        self._map.delete(layout.ipcache_key(network))
        return True

    def expire(self) -> int:
        """Remove what is over, and say how many that were."""
        now = self._clock()
        over = [n for n, e in self._entries.items() if e.until is not None and e.until <= now]
        for network in over:
            del self._entries[network]
            self._map.delete(layout.ipcache_key(network))
        if over:
            self._save()
        return len(over)

    def next_end(self) -> float | None:
        """Seconds until the next entry is over."""
        ends = [e.until for e in self._entries.values() if e.until is not None]
        return max(min(ends) - self._clock(), 0.0) if ends else None

    def entries(self) -> list[Blocked]:
        """All of them with their counters, in the order of their addresses."""
        found = []
        for network, entry in self._entries.items():
            raw = self._map.get(layout.ipcache_key(network))
            _, packets, size, _, _ = _VALUE.unpack(raw) if raw is not None else (0, 0, 0, 0, 0)
            found.append(Blocked(network, entry.since, entry.until, packets, size))
        return sorted(found, key=lambda b: (b.network.version, b.network))

    def close(self) -> None:
        self._map.close()

    # --- the map and the file ------------------------------------------------------------------------

    def _put(self, network: Network) -> None:
        entry, key = self._entries[network], layout.ipcache_key(network)
        until = 0
        if entry.until is not None:
            until = max(self._boot() + int((entry.until - self._clock()) * 1e9), 1)
        raw = self._map.get(key)
        # A look-up finds a shorter network too: its counters are not this one's.
        packets = size = 0
        if raw is not None and _VALUE.unpack(raw)[3] == struct.unpack_from("=I", key)[0]:
            _, packets, size, _, _ = _VALUE.unpack(raw)
        self._map.put(key, _VALUE.pack(until, packets, size, struct.unpack_from("=I", key)[0], 0))

    def _settle(self) -> None:
        """Make the map what the file says; counters of what stays are kept."""
        for key in list(self._map.keys()):
            if decode.ipcache_key(key) not in self._entries:
                self._map.delete(key)
        for network in self._entries:
            self._put(network)

    def _load(self) -> dict[Network, _Entry]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise HostError(f"cannot read {self._path}: {error.strerror}") from error
        try:
            file = msgspec.json.decode(data, type=_File)
            if file.format != FORMAT:
                raise ValueError(f"format {file.format}, not {FORMAT}")
            return {ip_network(e.cidr): e for e in file.blocked}
        except ValueError as error:
            # What is blocked stays so in the map while it stands; it is shown to whoever wants to look.
            aside = self._path.with_name(FILE + ".corrupt")
            log.warning("%s is damaged (%s): moved to %s", self._path, error, aside.name)
            with suppress(OSError):
                self._path.replace(aside)
            return {}

    def _save(self) -> None:
        data = msgspec.json.encode(_File(FORMAT, list(self._entries.values())))
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, msgspec.json.format(data, indent=1) + b"\n")
        except OSError as error:
            raise HostError(f"cannot write {self._path}: {error.strerror}") from error
