"""What happened, one record a line: flows and drops from the kernel, requests from Envoy.

The last ones are kept in memory, for `observe --last`; followers get each new one. Names are put in when
a record comes, since an address may change hands later.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from penstock.envoy.accesslog import AUDIT, NO_NAME
from penstock.observe.als import Budget, RequestRecord
from penstock.observe.causes import REFUSALS, Cause, cause
from penstock.observe.handshakes import Refusal, refused
from penstock.observe.origins import Origins
from penstock.observe.reasons import BY_NUMBER, Reason
from penstock.redirect.layout import KernelEvent

KEPT = 4096
QUEUE = 10_000
REQUESTS_PER_SECOND = 2000
PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


@dataclass(frozen=True, slots=True)
class Directory:
    """Who is who, as of the last change. `rules` is by the number that kernel events carry."""

    workloads: Mapping[str, str] = field(default_factory=dict)
    identities: Mapping[int, str] = field(default_factory=dict)
    rules: Mapping[int, str] = field(default_factory=dict)
    services: Mapping[tuple[str, int], str] = field(default_factory=dict)
    origins: Origins | None = None

    def party(self, address: str, port: int, identity: int | None = None) -> dict[str, Any]:
        name = self.workloads.get(address) or self.services.get((address, port), "")
        if not name and identity:
            name = self.identities.get(identity, "")
        found: dict[str, Any] = {"address": address, "port": port, "name": name}
        if identity is not None:
            found["identity"] = identity
        return found


class Flows:
    """The store and its followers. `lost` counts records that a slow follower did not take."""

    def __init__(self) -> None:
        self.budget = Budget(REQUESTS_PER_SECOND)
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._followers: set[asyncio.Queue[dict[str, Any]]] = set()
        self._directory: Directory | None = Directory()
        self._make_directory: Callable[[], Directory] = Directory
        self.lost = 0
        self.connection: Callable[[RequestRecord, str], None] = lambda record, listener: None
        """Gets each connection that goes to its end (`begun`) or is there, and its listener."""
        self.refused: Counter[Refusal] = Counter()
        """Connections that were refused for what they proved, or did not."""
        # Kernel events carry CLOCK_MONOTONIC; records carry the time of day.
        self._boot = time.time() - time.monotonic()

    def look_up(self, make: Callable[[], Directory]) -> None:
        """Who is who has changed. `make` is called when the next record comes, not now."""
        self._directory, self._make_directory = None, make

    @property
    def directory(self) -> Directory:
        if self._directory is None:
            self._directory = self._make_directory()
        return self._directory

    def _add(self, record: dict[str, Any]) -> None:
        self._kept.append(record)
        for queue in self._followers:
            try:
                queue.put_nowait(record)
            except asyncio.QueueFull:
                self.lost += 1

    def kernel(self, event: KernelEvent) -> None:
        names = self.directory
        reason = BY_NUMBER.get(event.reason, Reason.REASON_NONE)
        verdict = (
            "AUDIT"
            if reason.is_audit
            else "DROPPED"
            if reason.is_drop
            else "REDIRECTED"
            if event.verdict == 2
            else "FORWARDED"
        )
        self._add(
            {
                "type": "flow",
                "time": self._boot + event.time / 1e9,
                "verdict": verdict,
                "reason": reason.name,
                "protocol": PROTOCOLS.get(event.protocol, str(event.protocol)),
                "source": names.party(str(event.source), event.source_port, event.source_identity),
                "destination": names.party(
                    str(event.destination), event.destination_port, event.destination_identity
                ),
                "rule": names.rules.get(event.rule, ""),
                "proxy_port": event.proxy_port,
            }
        )

    def request(self, record: RequestRecord) -> None:
        audit = record.log_name.startswith(AUDIT)
        if record.protocol == "TCP":
            self.connection(record, record.log_name.removeprefix(AUDIT))
        if record.begun:
            return
        names = self.directory
        refusal, why = refused(record), cause(record)
        if refusal is not None:
            self.refused[refusal] += 1
        details = record.tls_failure if refusal else record.details or record.tls_failure
        if refusal is Refusal.SERVER_NAME:
            said = (
                f'server name "{record.server_name}"' if record.server_name else "no TLS with a server name"
            )
            details = f"{said}, and no rule allows it"
        entry: dict[str, Any] = {
            "type": "request",
            "time": record.time + record.duration_us / 1e6,
            "verdict": "AUDIT" if audit else "DENIED" if refusal or why in REFUSALS else "SERVED",
            "reason": refusal or why or "",
            "rule": self._origin(why, record),
            "protocol": record.protocol,
            "source": names.party(*record.source),
            "destination": names.party(*record.destination),
            "upstream": names.party(*record.upstream),
            "listener": record.log_name.removeprefix(AUDIT).removeprefix(NO_NAME),
            "route": record.route_name,
            "code": record.code,
            "latency_us": record.duration_us,
            "flags": list(record.flags),
            "details": details,
            "peer_ids": list(record.peer_ids),
            "local_ids": list(record.local_ids),
            "upstream_peer_ids": list(record.upstream_peer_ids),
            "upstream_local_ids": list(record.upstream_local_ids),
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
        }
        if record.server_name:
            entry["server_name"] = record.server_name
        if record.method:
            entry.update(method=record.method, path=record.path, authority=record.authority)
        self._add(entry)

    def _origin(self, why: Cause | None, record: RequestRecord) -> str:
        names = self.directory
        if why is None or names.origins is None:
            return ""
        address, port = record.destination
        return names.origins.of(why, record, names.services.get((address, port), ""))

    def question(self, record: dict[str, Any]) -> None:
        """What the DNS proxy answered, or refused."""
        names = self.directory
        source, destination = record["source"], record["destination"]
        self._add(
            {
                **record,
                "reason": "",
                "source": names.party(*source),
                "destination": names.party(*destination),
            }
        )

    async def follow(self, last: int, *, keep_on: bool) -> AsyncIterator[dict[str, Any]]:
        """The last `last` records, oldest first, and then, if `keep_on`, every new one."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE)
        kept = list(self._kept)[-last:] if last else []
        if keep_on:
            self._followers.add(queue)
        try:
            for record in kept:
                yield record
            while keep_on:
                yield await queue.get()
        finally:
            with suppress(KeyError):
                self._followers.remove(queue)
