"""KernelTables into the pinned maps, by difference.

Keeps true: a table that would not fit is refused before anything is written; within one write, what
takes rights away or makes an address another's comes before what gives; the epoch moves last, and
with it every cached verdict ends.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path

from penstock.collection import uncollected
from penstock.differing import differing
from penstock.plan import IpcacheEntry, KernelTables, ListenerKey, PolicyEntry, PolicyKey, ServiceKey
from penstock.policy.rules import TCP, UDP
from penstock.redirect import decode, layout
from penstock.redirect.encoder import TableEncoder
from penstock.redirect.layout import Table
from penstock.redirect.libbpf import BpfError, BpfMap, possible_cpus
from penstock.redirect.shapes import SHAPES
from penstock.world import Address, Network, Proxied

# Who vanishes goes first; who appears comes last, when all that judges it is there.
DELETE_FIRST = ("endpoints", "listeners", "netns", "services", "ports")
PUT = (
    "policy",
    "port_modes",
    "both_names",
    "ipcache",
    "standing",
    "backends",
    "maglev",
    "services",
    "listeners",
    "ports",
    "endpoints",
    "netns",
)
# An address is nobody in particular before what was said of its identity goes.
DELETE_LAST = ("ipcache", "port_modes", "policy", "both_names", "backends", "maglev")


class TableOverflowError(BpfError):
    """A table is larger than its map; nothing was written."""


class Tables:
    """The maps under `pins`. What stands there (from a daemon before) is read once and adopted."""

    def __init__(
        self, pins: Path, source_ports: tuple[int, int], *, host_access: bool, proxy_rate: int = 0
    ) -> None:
        self._config = partial(
            layout.config, source_ports=source_ports, host_access=host_access, proxy_rate=proxy_rate
        )
        self._maps = {
            name: BpfMap(pins / name, shape.key, shape.value)
            for name, shape in SHAPES.items()
            if name not in ("counters", "blocklist")
        }
        self._counters = BpfMap(pins / "counters", 4, 16 * possible_cpus())
        self._encoder = TableEncoder()
        # What was applied last, as it was said; None while only the bytes of a daemon before are known.
        self._said: KernelTables | None = None
        # The bytes of it, map by map, which tell what differs in the next ones.
        self._written: dict[str, Table] = {}
        self._now: dict[str, Table] = {name: self._maps[name].items() for name in PUT}
        self.lost_backends = False
        """Whether the last `apply` took a backend from a Service, where there are Services of datagrams."""
        self.overflow: Mapping[str, int] = {}
        """Maps that what was wanted last does not fit, and the entries that it needs."""
        # With the settings of a daemon before, perhaps.
        self._stood = self._maps["config"].get(b"\0\0\0\0") or bytes(SHAPES["config"].value)
        self._epoch = int(struct.unpack_from("=I", self._stood)[0])

    @uncollected
    def apply(self, wanted: KernelTables) -> int:
        """Write the difference; the number of entries changed. Raises TableOverflowError, BpfError."""
        tables = self._encoder.encode(wanted)
        self.overflow = {n: len(t) for n, t in tables.items() if len(t) > SHAPES[n].entries}
        for name, table in tables.items():
            if name in self.overflow:
                raise TableOverflowError(
                    f"{len(table)} entries do not fit the map {name}, which holds {SHAPES[name].entries}",
                    hint="nothing was written; the last good state stays in force",
                )
        self._said = None
        written, self._written = self._written, {}
        datagrams = any(raw[18] == UDP for table in (self._now, tables) for raw in table["services"])
        changed = sum(self._delete(name, tables[name], written.get(name)) for name in DELETE_FIRST)
        changed += sum(self._put(name, tables[name], written.get(name)) for name in PUT)
        lost = self._delete("standing", tables["standing"], written.get("standing"))
        self.lost_backends = lost > 0 and datagrams
        changed += lost
        changed += sum(self._delete(name, tables[name], written.get(name)) for name in DELETE_LAST)
        if changed or not self._epoch or self._config(self._epoch) != self._stood:
            self._epoch = self._epoch % 0xFFFFFFFF + 1
            self._stood = self._config(self._epoch)
            self._maps["config"].put(b"\0\0\0\0", self._stood)
        self._said = wanted
        self._written = tables
        return changed

    def _put(self, name: str, wanted: Table, known: Table | None) -> int:
        now, target = self._now[name], self._maps[name]
        keys = wanted if known is None else differing(known, wanted)
        changed = [(key, wanted[key]) for key in keys if key in wanted and now.get(key) != wanted[key]]
        for key, value in changed:
            target.put(key, value)
            now[key] = value
        return len(changed)

    def _delete(self, name: str, wanted: Table, known: Table | None) -> int:
        now, target = self._now[name], self._maps[name]
        keys = now if known is None else differing(known, wanted)
        gone = [key for key in keys if key not in wanted and key in now]
        for key in gone:
            target.delete(key)
            del now[key]
        return len(gone)

    # --- what is there ---------------------------------------------------------------------------------

    def read(self, name: str, key: bytes) -> bytes | None:
        """What the kernel finds for `key` now; in an LPM map, for the longest prefix of it."""
        return self._maps[name].get(key)

    def entries(self, name: str, limit: int | None = None) -> dict[bytes, bytes]:
        """What stands in a map of the kernel now, the first `limit` entries of it."""
        found = {}
        for key in islice(self._maps[name].keys(), limit):
            value = self._maps[name].get(key)
            if value is not None:
                found[key] = value
        return found

    @property
    def epoch(self) -> int:
        """Verdicts of another epoch are judged again."""
        return self._epoch

    @property
    def said(self) -> KernelTables | None:
        """What was applied last; None while only the bytes of a daemon before are known."""
        return self._said

    def policy(self) -> Mapping[PolicyKey, PolicyEntry]:
        if self._said is not None:
            return self._said.policy
        return {
            decode.policy_key(raw): decode.policy_entry(value) for raw, value in self._now["policy"].items()
        }

    def listeners(self) -> Mapping[ListenerKey, int]:
        return {decode.listener_key(k): decode.port(v) for k, v in self._now["listeners"].items()}

    def proxy_port(self, connection: Proxied) -> int:
        """The port of the listener to which the kernel steers a TCP connection; 0 where it knows of none."""
        ends = (connection.client, connection.client_port), (connection.address, connection.port)
        raw = self.read("conntrack", layout.conntrack_key(*ends, TCP))
        return decode.steered_to(raw) if raw is not None else 0

    def names(self, ifindex: int, address: Address) -> tuple[int, ...]:
        """The lists of names (toFQDNs) by which the workload behind `ifindex` has learned `address`."""
        raw = self.read("names", layout.name_key(ifindex, address))
        return decode.name_lists(raw) if raw is not None else ()

    def ipcache(self) -> Mapping[Network, IpcacheEntry]:
        """Networks and who they are."""
        if self._said is not None:
            return self._said.ipcache
        return {
            decode.ipcache_key(raw): decode.ipcache_value(value)
            for raw, value in self._now["ipcache"].items()
        }

    def http_services(self) -> frozenset[ServiceKey]:
        if self._said is not None:
            return frozenset(key for key, entry in self._said.services.items() if entry.http)
        return frozenset(
            decode.service_key(raw)
            for raw, value in self._now["services"].items()
            if decode.service_value(value).http
        )

    def counters(self) -> dict[int, tuple[int, int]]:
        """Reason → (packets, bytes) since the maps were made, summed over CPUs."""
        found = {}
        for reason in range(SHAPES["counters"].entries):
            raw = self._counters.get(struct.pack("=I", reason))
            if raw is None:
                continue
            values = struct.unpack(f"={len(raw) // 8}Q", raw)
            packets, size = sum(values[0::2]), sum(values[1::2])
            if packets:
                found[reason] = (packets, size)
        return found

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Map → (entries, capacity)."""
        return {name: (len(table), SHAPES[name].entries) for name, table in self._now.items()}

    def close(self) -> None:
        for each in (*self._maps.values(), self._counters):
            each.close()
