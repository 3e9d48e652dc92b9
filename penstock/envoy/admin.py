"""Envoy's admin interface over its Unix socket.

A minimal HTTP client of its own: the daemon asks a few small questions, for which an HTTP library would
cost more memory than the rest of this package.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from penstock.envoy.errors import EnvoyAdminError


@dataclass(frozen=True, slots=True)
class ListenerState:
    """xDS versions: of what serves, of what still waits; and why the last one was refused."""

    active: str | None = None
    warming: str | None = None
    error: str = ""


def _dechunked(body: bytes) -> bytes:
    """RFC 9112 §7.1, without trailers."""
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if not length:
            break
        parts.append(body[:length])
        body = body[length + 2 :]
    return b"".join(parts)


class Admin:
    """Each call opens a connection, asks once, and raises EnvoyAdminError when no good answer comes."""

    def __init__(self, socket: Path, *, timeout: float = 5.0) -> None:
        self._socket = socket
        self._timeout = timeout

    async def _exchange(self, method: str, path: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        try:
            request = (
                f"{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            writer.write(request.encode())
            return await reader.read()
        finally:
            writer.close()

    async def request(self, path: str, *, method: str = "GET") -> bytes:
        """The body of the answer at `path`."""
        try:
            answer = await asyncio.wait_for(self._exchange(method, path), self._timeout)
            head, _, body = answer.partition(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if b"transfer-encoding: chunked" in head.lower():
                body = _dechunked(body)
        except (OSError, TimeoutError, ValueError, IndexError) as error:
            raise EnvoyAdminError(f"Envoy's admin interface at {self._socket}: {error!r}") from error
        if status != 200:
            raise EnvoyAdminError(f"Envoy's admin interface: {path}: {status} {body[:200]!r}")
        return body

    async def json(self, path: str) -> Any:
        try:
            return json.loads(await self.request(path))
        except ValueError as error:
            raise EnvoyAdminError(f"Envoy's admin interface: {path}: not JSON") from error

    async def server_info(self) -> Mapping[str, Any]:
        """`state` is LIVE once the first configuration is in; `command_line_options` tell whose it is."""
        return dict(await self.json("/server_info"))

    async def listeners(self) -> Mapping[str, ListenerState]:
        """Every dynamic listener by name. One that is only warming serves nothing."""
        mask = "name,active_state.version_info,warming_state.version_info,error_state.details"
        dump = await self.json(f"/config_dump?resource=dynamic_listeners&mask={mask}")
        states = {}
        for item in dump.get("configs", ()):
            active, warming = (
                item[state].get("version_info", "") if state in item else None
                for state in ("active_state", "warming_state")
            )
            states[item["name"]] = ListenerState(
                active, warming, item.get("error_state", {}).get("details", "")
            )
        return states

    async def stats(self, prefix: str) -> Mapping[str, int]:
        """Counters and gauges whose names begin with `prefix`."""
        text = await self.request(f"/stats?filter=^{quote(re.escape(prefix))}")
        pairs = (line.rpartition(": ") for line in text.decode().splitlines())
        return {name: int(value) for name, _, value in pairs if value.isdigit()}

    async def clusters(self) -> Mapping[str, Any]:
        """Cluster name → its hosts' state, as Envoy prints it."""
        answer = await self.json("/clusters?format=json")
        return {item["name"]: item for item in answer.get("cluster_statuses", ())}
