"""Connections whose server name the proxy has looked at: an edit of a list resets only what it forbids.

The kernel sees no SNI. When a list is edited a connection meets another listener, where it would have to
begin anew, since nobody knows whether it may go on. Envoy tells each connection that it has let pass, with
its server name; that is kept here, in a map that outlives the daemon, and before a list changes the kernel
is told which listener a connection counts for from then on.

Keeps true: what is told to the kernel is that a name is in the lists of a listener, and a listener never
changes its lists, so it cannot become wrong. A record counts only for the connection that it is about: one
that the kernel saw begin no later than the proxy took it. Who is not known begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from penstock.plan import ListenerKey
from penstock.policy.rules import TCP
from penstock.policy.server_names import number
from penstock.redirect import decode, layout
from penstock.redirect.by_names import Way, same_way
from penstock.redirect.libbpf import BpfError, BpfMap
from penstock.redirect.shapes import SHAPES
from penstock.routing.names_listeners import named
from penstock.world import Address, Proxied, parse_address

log = logging.getLogger(__name__)

PATIENCE = 0.3
"""Seconds that a change waits for what Envoy has to tell of connections that have just begun."""

_VALUE = struct.Struct("=Q20s20s256s")
_LONGEST_NAME = 255


class Told(Protocol):
    """What of an entry of Envoy's access log counts here (observe/als.py). `time` is the time of day in s."""

    @property
    def time(self) -> float: ...
    @property
    def source(self) -> tuple[str, int]: ...
    @property
    def destination(self) -> tuple[str, int]: ...
    @property
    def server_name(self) -> str: ...
    @property
    def begun(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class LookedAt:
    """`since` is the time of day in ns. `came_by` is the listener that let it pass, `goes_on` the one that it
    counts for now."""

    since: int
    came_by: ListenerKey
    goes_on: ListenerKey
    server_name: str


@dataclass(frozen=True, slots=True)
class Sorted:
    """What becomes of connections at a change: `gone` are forbidden, `kept` count for another listener than
    they came by, `unknown` nobody has told of."""

    gone: tuple[Proxied, ...] = ()
    kept: tuple[Proxied, ...] = ()
    unknown: tuple[Proxied, ...] = ()


class LookedAtTable:
    """The map under `pins`, and the connection table by which a record is told from an earlier one's."""

    def __init__(self, pins: Path) -> None:
        self._map, self._conntrack = (
            BpfMap(pins / name, SHAPES[name].key, SHAPES[name].value) for name in ("looked_at", "conntrack")
        )
        self._known = {raw: _decoded(value) for raw, value in self._map.items().items()}
        self._news = asyncio.Event()
        self._given_up: frozenset[Proxied] = frozenset()

    def told(self, record: Told, listener: str) -> None:
        """Envoy tells of a connection that `listener` has let pass, or that is over."""
        wanted = named(listener)
        if wanted is None:
            return
        raw = _key(Proxied(*_end(record.source), *_end(record.destination)))
        since, known = round(record.time * 1e9), self._known.get(raw)
        if not record.begun:
            if known is not None and known.since == since:
                self._forget(raw)
            return
        name = record.server_name
        if len(name) <= _LONGEST_NAME and name.isascii() and (known is None or known.since < since):
            lists = (number(wanted.outward), number(wanted.inward))
            key = ListenerKey(wanted.source_class, wanted.kind, wanted.destination, *lists)
            self._put(raw, LookedAt(since, key, key, name))
        self._news.set()

    def of(self, connection: Proxied) -> LookedAt | None:
        """What is known of just this connection."""
        raw = _key(connection)
        known = self._known.get(raw)
        value = self._conntrack.get(raw) if known is not None else None
        if known is None or value is None:
            return None
        born = decode.connection(raw, value).born - _tai_ahead()
        return known if born <= known.since else None

    async def settle(self, connections: Iterable[Proxied]) -> None:
        """Wait until these are known, no longer than PATIENCE, and of each only once."""
        waiting = [c for c in connections if c not in self._given_up]
        deadline = time.monotonic() + PATIENCE
        while waiting := [c for c in waiting if self.of(c) is None]:
            self._news.clear()
            try:
                async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                    await self._news.wait()
            except TimeoutError:
                break
        self._given_up = frozenset(waiting)

    def keep(self, connections: Iterable[Proxied], since: frozenset[bytes]) -> None:
        """Forget those of `since` (`records` of a moment ago) that are not among `connections`."""
        for raw in since - frozenset(map(_key, connections)):
            if raw in self._known:
                self._forget(raw)

    def records(self) -> frozenset[bytes]:
        """The connections that are known now."""
        return frozenset(self._known)

    def sort(self, ways: Iterable[tuple[Proxied, Way]]) -> Sorted:
        """What becomes of connections by their ways from now on; tells the kernel who may go on."""
        gone, kept, unknown = [], [], []
        for connection, way in ways:
            known = self.of(connection)
            if known is None and not way.lists:
                kept.append(connection)
            elif known is None:
                unknown.append(connection)
            elif not way.lets_pass(known.server_name):
                gone.append(connection)
            elif same_way(known.came_by, way.listener):
                if known.goes_on != way.listener:
                    self._put(_key(connection), replace(known, goes_on=way.listener))
                if known.came_by != way.listener:
                    kept.append(connection)
        return Sorted(tuple(gone), tuple(kept), tuple(unknown))

    def _put(self, raw: bytes, record: LookedAt) -> None:
        value = _VALUE.pack(
            record.since,
            layout.listener_key(record.came_by),
            layout.listener_key(record.goes_on),
            record.server_name.encode(),
        )
        try:
            self._map.put(raw, value)
        except BpfError as e:
            # It begins anew at the next edit.
            log.debug("a connection was not recorded", extra={"why": str(e)})
            return
        self._known[raw] = record

    def _forget(self, raw: bytes) -> None:
        self._map.delete(raw)
        del self._known[raw]

    def close(self) -> None:
        self._map.close()
        self._conntrack.close()


def _end(end: tuple[str, int]) -> tuple[Address, int]:
    return parse_address(end[0]), end[1]


def _key(c: Proxied) -> bytes:
    return layout.conntrack_key((c.client, c.client_port), (c.address, c.port), TCP)


def _decoded(raw: bytes) -> LookedAt:
    since, came_by, goes_on, name = _VALUE.unpack(raw)
    return LookedAt(
        since, decode.listener_key(came_by), decode.listener_key(goes_on), name.rstrip(b"\0").decode()
    )


def _tai_ahead() -> int:
    """What CLOCK_TAI is ahead of the time of day, in ns: whole seconds."""
    ahead = time.clock_gettime_ns(time.CLOCK_TAI) - time.time_ns()
    return round(ahead / 1e9) * 1_000_000_000
