"""The record of names, made real: in the kernel before anybody is told, in a journal for the next proxy."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from penstock.dns.kernel import MOST_LISTS, Kernel
from penstock.dns.model import Client, DnsPlan
from penstock.dns.question import Resolver
from penstock.dns.recorded import Key, Known, Recorded

SWEEP = (0.05, 5.0)
"""Seconds between looks for what is over: the connection table is read for it."""
_COMPACT = 1 << 20


class Learned:
    def __init__(self, kernel: Kernel, journal: Path, grace: float) -> None:
        self.kernel = kernel
        self.recorded = Recorded(grace)
        self._journal = journal
        self._file: Any = None
        self._plan = DnsPlan()
        self._resolver = Resolver(self._plan)
        self._by_ifindex: dict[int, Client] = {}
        self._written: dict[Key, tuple[int, ...]] = {}
        self._known = False
        self.too_many: set[Key] = set()
        """Addresses that are in more lists than the kernel has room for."""

    def open(self) -> None:
        """Take over what the proxy before has left, in the journal and in the kernel."""
        with suppress(FileNotFoundError):
            self.recorded.restore(_lines(self._journal))
        self._rewrite()
        self._written = dict.fromkeys(self.kernel.keys(), ())

    def use(self, plan: DnsPlan, resolver: Resolver) -> None:
        """Bring the kernel's entries in line with a plan: lists come and go, and so do workloads."""
        self._plan, self._resolver = plan, resolver
        self._by_ifindex = {client.ifindex: client for client in plan.clients.values()}
        self.recorded.forget(self.recorded.strangers(self._by_ifindex.keys()))
        self._known = True
        for key in self._written.keys() - self.recorded.entries.keys():
            self.kernel.delete(key)
            del self._written[key]
        self._write(self.recorded.entries.keys())

    def learn(self, client: Client, name: str, addresses: Collection[str], ttl: int) -> None:
        """Returns when the kernel has them. Raises FullError, BpfError."""
        until = time.time() + ttl
        keys = self.recorded.learn(client.ifindex, name, addresses, until)
        try:
            self._write(keys)
        finally:
            self._note((client.ifindex, address, name, until) for address in addresses)

    def _write(self, keys: Collection[Key]) -> None:
        for key in list(keys):
            lists = self._lists(key, self.recorded.entries[key])
            if self._written.get(key) == lists:
                continue
            if len(lists) > MOST_LISTS:
                self.too_many.add(key)
            else:
                self.too_many.discard(key)
            if lists:
                self.kernel.put(key, lists)
                self._written[key] = lists
            elif key in self._written:
                self.kernel.delete(key)
                del self._written[key]

    def _lists(self, key: Key, known: Known) -> tuple[int, ...]:
        client = self._by_ifindex.get(key[0])
        if client is None:
            return ()
        return tuple(sorted({n for name in known.names for n in self._resolver.lists(client, name)}))

    # --- the end of what was learned -------------------------------------------------------------------

    async def sweep(self) -> None:
        """For ever: take away what is over and has no connection."""
        while True:
            end = self.recorded.next_end()
            pause = SWEEP[1] if end is None else end - time.time()
            await asyncio.sleep(min(max(pause, SWEEP[0]), SWEEP[1]))
            if not self._known:
                continue
            now = time.time()
            self._write(self.recorded.faded(now))
            over = self.recorded.over(now)
            if not over:
                continue
            alive = await asyncio.to_thread(self.kernel.alive, over)
            # Meanwhile it may have been told anew.
            gone = [key for key in self.recorded.over(time.time()) if key in over and key not in alive]
            self.recorded.forget(gone)
            for key in gone:
                self.kernel.delete(key)
                self._written.pop(key, None)
                self.too_many.discard(key)
            for key in alive & self.recorded.entries.keys():
                self.recorded.entries[key].kept = True
            if alive:
                await asyncio.sleep(min(SWEEP[1], 1.0))

    # --- what is shown, and kept -----------------------------------------------------------------------

    def shown(self) -> Iterator[dict[str, Any]]:
        now = time.time()
        for (ifindex, address), known in sorted(self.recorded.entries.items()):
            client = self._by_ifindex.get(ifindex)
            for name, until in sorted(known.names.items()):
                yield {
                    "name": name,
                    "address": address,
                    "ttl_left": round(max(until - now, 0.0), 1),
                    "state": "connected" if known.kept else "valid" if until > now else "grace",
                    "workload": f"{client.namespace}/{client.name}" if client else "",
                    "lists": list(self._written.get((ifindex, address), ())),
                    "ifindex": ifindex,
                }

    def _note(self, lines: Iterator[tuple[int, str, str, float]]) -> None:
        self._file.write("".join(f"{json.dumps(line)}\n" for line in lines))
        self._file.flush()
        if self._file.tell() > _COMPACT:
            self._rewrite()

    def _rewrite(self) -> None:
        part = self._journal.with_suffix(".part")
        made = part.open("w")
        made.write("".join(f"{json.dumps(line)}\n" for line in self.recorded.lines()))
        made.flush()
        os.replace(part, self._journal)
        if self._file is not None:
            self._file.close()
        self._file = made


def _lines(journal: Path) -> Iterator[tuple[int, str, str, float]]:
    for line in journal.read_text().splitlines():
        # The last one may have been cut off.
        with suppress(ValueError):
            ifindex, address, name, until = json.loads(line)
            yield int(ifindex), str(address), str(name), float(until)
