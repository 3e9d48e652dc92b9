"""The process of `penstock ca serve`: a CA directory, the manifests that place workloads, and the server."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping
from pathlib import Path

from penstock.manifests.store import Store
from penstock.metrics import served
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.placement import Placement, placement
from penstock.mtls.serve import AuthorityServer
from penstock.observe.certificate_metrics import of_authority
from penstock.observe.metrics import Metrics
from penstock.sources.files import FileSource

log = logging.getLogger(__name__)


class _Manifests:
    """What the folder says now. Without a folder nobody is placed anywhere."""

    def __init__(self, config: Path | None) -> None:
        self._files = FileSource(str(config)) if config else None
        self._store = Store()
        self.placement = Placement()

    async def follow(self) -> None:
        if self._files is None:
            log.warning("no --config: nodes get only what their tokens allow")
            return
        self._take(self._files.scan())
        async for changes in self._files.changes():
            self._take(changes)

    def _take(self, changes: Mapping[str, str | None]) -> None:
        assert self._files is not None
        result = self._store.apply(changes, self._files.modified(changes))
        for problem in result.problems:
            log.warning("%s", problem)
        self.placement = placement(result.documents.values())


async def serve_forever(
    ca: CertificateAuthority, listen: str, config: Path | None, metrics_at: str = ""
) -> None:
    """Until SIGTERM or SIGINT; `metrics_at` is ADDRESS:PORT. Raises HostError, InputError."""
    manifests = _Manifests(config)
    server = AuthorityServer(ca, listen, lambda: manifests.placement)
    metrics = Metrics()
    metrics.add(lambda: of_authority(server.counted()))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    following = asyncio.create_task(manifests.follow())
    await server.start()
    log.info("serving the CA", extra={"directory": str(ca.directory), "port": server.port})

    async def show() -> None:
        async with served(metrics_at, metrics.text):
            await stop.wait()

    tasks = [following, *(asyncio.create_task(work) for work in (server.run(), stop.wait(), show()))]
    try:
        # `follow` ends at once where there is no folder.
        while not stop.is_set():
            done, _ = await asyncio.wait(
                [t for t in tasks if not t.done()], return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop()
