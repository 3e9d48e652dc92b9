"""What the other commands ask the daemon, over its control socket; and what it serves as metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from prometheus_client.metrics_core import Metric

from penstock.control import ControlServer, socket_path
from penstock.dns.process import NoDnsError
from penstock.dns.shown import with_rules
from penstock.inspect import CALLS, Inspector
from penstock.manifests.document import Document, ObjectKey
from penstock.metrics import served
from penstock.node import Node, Options
from penstock.observe.certificate_metrics import of_certificates
from penstock.observe.flows import Flows
from penstock.observe.metrics import Metrics, of_status
from penstock.planner import Planner
from penstock.progress import Progress
from penstock.report import Report


class Answers:
    """`documents` are those of this moment, `read_again` makes sure of files that no event told of yet."""

    def __init__(
        self,
        options: Options,
        node: Node,
        *,
        report: Report,
        inspector: Inspector,
        flows: Flows,
        planner: Planner,
        progress: Progress,
        documents: Callable[[], Mapping[ObjectKey, Document]],
        read_again: Callable[[], None],
    ) -> None:
        self._options = options
        self._node = node
        self._report = report
        self._inspector = inspector
        self._flows = flows
        self._planner = planner
        self._progress = progress
        self._documents = documents
        self._read_again = read_again
        self._metrics = Metrics()
        self._metrics.add(self._of_status)

    def server(self) -> ControlServer:
        """Not started yet."""
        return ControlServer(
            socket_path(self._options.run_dir),
            {
                "status": self._status,
                "get": self._get,
                "wait": self._wait,
                "explain": self._explain,
                "diff": self._diff,
                **{call: partial(self._look, call) for call in CALLS},
                **self._node.certificates.commands.calls,
                "metrics": self._metrics_text,
                **self._node.blocks.calls,
                "fqdn": self._fqdn,
            },
            {"observe": self._observe},
        )

    async def serve_metrics(self) -> None:
        """For ever; over HTTP if that was asked for."""
        async with served(self._options.metrics, self._metrics.text):
            await asyncio.Event().wait()

    def _now(self) -> dict[str, Any]:
        return self._report.status(busy=self._progress.busy, documents=self._documents())

    async def _status(self, _: dict[str, Any]) -> Any:
        await self._look_at_dns()
        return self._now()

    async def _wait(self, request: dict[str, Any]) -> Any:
        """Read the folder again, and answer when all is settled or the time is over."""
        self._read_again()
        with suppress(TimeoutError):
            async with asyncio.timeout(request["seconds"]):
                await self._progress.until(lambda: self._report.settled)
        await self._look_at_dns()
        return self._now()

    async def _look_at_dns(self) -> None:
        with suppress(NoDnsError):
            self._report.dns = await self._node.dns.ask("state")
            return
        self._report.dns = None

    async def _fqdn(self, _: dict[str, Any]) -> Any:
        found = [] if self._node.dns.at_rest else await self._node.dns.ask("names")
        return with_rules(found, self._planner.facts)

    async def _metrics_text(self, _: dict[str, Any]) -> Any:
        # In an object: gRPC makes bytes of a bare text before our serialiser sees it.
        await self._look_at_dns()
        return {"text": self._metrics.text().decode()}

    def _of_status(self) -> Iterator[Metric]:
        found = self._now()
        yield from of_status(found)
        entries = self._node.certificates.commands.entries(time.time())
        yield from of_certificates(found["certificate_health"], entries)

    async def _get(self, request: dict[str, Any]) -> Any:
        return self._report.get(**request)

    async def _explain(self, request: dict[str, Any]) -> Any:
        # Here, not in a thread: it fills the same memory of rights as the next compilation reads.
        recorded: list[dict[str, Any]] = []
        if not self._node.dns.at_rest:
            with suppress(NoDnsError):
                recorded = await self._node.dns.ask("names")
        return self._inspector.explain(request, recorded)

    async def _diff(self, request: dict[str, Any]) -> Any:
        return await asyncio.to_thread(self._inspector.diff, request)

    async def _look(self, call: str, request: dict[str, Any]) -> Any:
        return await asyncio.to_thread(self._inspector.look, call, request)

    async def _observe(self, request: dict[str, Any]) -> AsyncIterator[Any]:
        async for record in self._flows.follow(request["last"], keep_on=request["follow"]):
            yield record
