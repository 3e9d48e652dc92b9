"""What the daemon and the DNS proxy say to each other over a Unix socket: one JSON object a line.

proxy  → {"hello": {"pid", "options"}}            at once, so that the daemon knows whom it has found
daemon → {"plan": DnsPlan, "revision": n}         proxy → {"applied": n}
daemon → {"ask": "names" | "state", "id": n}      proxy → {"answer": …, "id": n}
daemon → {"quit": true}
proxy  → {"flow": {…}}                            one for each question that was answered
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from penstock.dns.model import DnsPlan

LARGEST = 64 << 20
"""Bytes of one line: a plan of many Services is long."""
_BACKLOG = 1 << 20
"""Bytes that may wait for a daemon that does not read; then records are let go."""


def line(message: dict[str, Any]) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def plan_line(plan: DnsPlan, revision: int) -> bytes:
    return line({"plan": plan, "revision": revision})


class Told(msgspec.Struct):
    """What a daemon says."""

    plan: DnsPlan | None = None
    revision: int = 0
    ask: str = ""
    id: int = 0
    quit: bool = False


_told = msgspec.json.Decoder(Told)


class Ear:
    """The proxy's side. One daemon at a time has its attention, but any may ask."""

    def __init__(
        self,
        path: Path,
        options: str,
        *,
        use: Callable[[DnsPlan], None],
        answers: dict[str, Callable[[], Any]],
        stop: Callable[[], None],
    ) -> None:
        self._path, self._options = path, options
        self._use, self._answers, self._stop = use, answers, stop
        self._writers: set[asyncio.StreamWriter] = set()
        self.lost = 0
        self.revision = -1

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        await asyncio.start_unix_server(self._daemon, self._path, limit=LARGEST)
        self._path.chmod(0o600)

    def tell(self, record: dict[str, Any]) -> None:
        for writer in self._writers:
            if writer.transport.get_write_buffer_size() > _BACKLOG:
                self.lost += 1
            else:
                writer.write(line({"flow": record}))

    async def _daemon(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line({"hello": {"pid": os.getpid(), "options": self._options}}))
        self._writers.add(writer)
        try:
            while raw := await reader.readline():
                told = _told.decode(raw)
                if told.plan is not None:
                    self._use(told.plan)
                    self.revision = told.revision
                    writer.write(line({"applied": told.revision}))
                if told.ask:
                    answer = self._answers[told.ask]()
                    writer.write(line({"answer": answer, "id": told.id}))
                if told.quit:
                    self._stop()
                with suppress(ConnectionError):
                    await writer.drain()
        except (ConnectionError, ValueError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
