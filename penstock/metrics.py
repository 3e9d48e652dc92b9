"""Serves the metrics over HTTP, for `penstock run --metrics ADDRESS:PORT`: GET /metrics and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from penstock.errors import HostError, UsageError
from penstock.observe.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from aiohttp import web


@asynccontextmanager
async def served(where: str, text: Callable[[], bytes]) -> AsyncIterator[None]:
    """While the block lasts; nothing for an empty `where`. Raises HostError, UsageError."""
    if not where:
        yield
        return
    host, _, port = where.rpartition(":")
    if not port.isdigit():
        raise UsageError(f"{where!r} is not ADDRESS:PORT")
    # Not before it is needed: see penstock/daemon.py on the Docker Engine's client.
    from aiohttp import web

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=text(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    except OSError as error:
        await runner.cleanup()
        raise HostError(f"metrics cannot be served at {where}: {error.strerror or error}") from error
    try:
        yield
    finally:
        await runner.cleanup()
