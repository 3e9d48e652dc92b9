"""`penstock bench streams`: 100 xDS streams of 1,000 resources each, and a change that goes to all.

The daemon's xDS server runs in this process, its clients in another one: each stream is a connection of its
own, takes all clusters, and acknowledges what comes. A change is one resource; the clock starts when it is
published and stops when the last client has read it. Memory is what this process has more with the streams
than without, in all states that they were in.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2

from penstock.bench.errors import BenchError
from penstock.bench.memory import resident
from penstock.bench.record import Bar, Result
from penstock.bench.site import alone, scratch
from penstock.bench.stats import summary
from penstock.bench.xds_client import MARKER
from penstock.xds.server import XdsServer
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl, resource

STREAMS, RESOURCES = 100, 1000
CHANGES, QUICK_CHANGES = 200, 30
CHANGE_BAR, MEMORY_BAR = 250.0, 1.0
_PATIENCE = 60.0

Tell = Callable[[str], None]


def _cluster(name: str, edition: int = 0) -> Resource:
    """About as large as ours are."""
    made = cluster_pb2.Cluster(name=name, alt_stat_name=f"{name}-{edition}-" + "x" * 400)
    made.connect_timeout.seconds = 5
    return resource(name, made)


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    with alone(), scratch() as directory:
        return asyncio.run(_run(tell, directory, QUICK_CHANGES if quick else CHANGES))


async def _run(tell: Tell, directory: Path, changes: int) -> Result:
    server = XdsServer(directory / "xds.sock")
    await server.start()
    resources = {f"c{n}": _cluster(f"c{n}") for n in range(RESOURCES - 1)}
    resources[MARKER] = _cluster(MARKER)
    server.publish(Snapshot({TypeUrl.CDS: resources}))
    gc.collect()
    before = resident(os.getpid())["rss_mb"]
    program = [sys.executable, "-m", "penstock.bench.xds_client", str(directory / "xds.sock"), str(STREAMS)]
    started = time.monotonic()
    clients = await asyncio.create_subprocess_exec(*program, stdout=PIPE)
    try:
        first = await _all_have(clients, resources[MARKER]) - started
        tell(f"{STREAMS} streams have everything after {first:.2f} s")
        found = []
        for number in range(changes):
            await asyncio.sleep(0.02)
            changed = _cluster(MARKER, number + 1)
            resources = {**resources, MARKER: changed}
            started = time.monotonic()
            server.publish(Snapshot({TypeUrl.CDS: resources}))
            found.append(round((await _all_have(clients, changed) - started) * 1000, 3))
        acked = await server.wait_acked([TypeUrl.CDS])
        if not acked.ok or server.connected != STREAMS:
            raise BenchError(f"{server.connected} streams, waiting for {acked.waiting}")
        gc.collect()
        after = resident(os.getpid())["rss_mb"]
    finally:
        clients.kill()
        await clients.wait()
        await server.stop()
    figures = summary(found)
    each = round((after - before) / STREAMS, 3)
    return Result(
        bench="streams",
        method=f"{STREAMS} incremental aggregated streams with {RESOURCES} clusters each: ms from publishing "
        "a change of one to the last client that has it, and the server's memory",
        settings={"streams": STREAMS, "resources": RESOURCES, "changes": changes},
        arms={
            "change": {**figures, "unit": "ms"},
            "start": {"all_s": round(first, 3)},
            "memory": {"without_mb": before, "with_mb": after, "each_mb": each},
        },
        bars=(
            Bar("a change reaches all, p99", figures["p99"], CHANGE_BAR, "ms"),
            Bar("memory of a stream", each, MEMORY_BAR, "MB"),
        ),
        raw={"change_ms": found},
    )


async def _all_have(clients: asyncio.subprocess.Process, item: Resource) -> float:
    assert clients.stdout is not None
    while True:
        line = await asyncio.wait_for(clients.stdout.readline(), _PATIENCE)
        if not line:
            raise BenchError("the clients have ended")
        told = json.loads(line)
        if told["version"] == item.version:
            return float(told["at"])


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    change, memory = data["arms"]["change"], data["arms"]["memory"]
    return [
        ("a change reaches all (ms): median, p99", change["median"], change["p99"]),
        ("memory of a stream (MB)", memory["each_mb"], ""),
        ("all streams have everything (s)", data["arms"]["start"]["all_s"], ""),
    ]


COLUMNS = ("STREAMS", "", "")
