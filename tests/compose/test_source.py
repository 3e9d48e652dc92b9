"""The Docker source at a real engine: what happens to a container is in the documents within 100 ms."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from conftest import TINY

from penstock.lab.engine import Engine
from penstock.manifests.document import ObjectKey
from penstock.sources.docker import DockerSource

FOLLOWED = 0.1
"""Seconds from an event, by the engine's own clock, to the documents."""
PATIENCE = 20.0


class Following:
    """A source that is followed, and beside it the engine's events with their times."""

    def __init__(self, source: DockerSource) -> None:
        self.source = source
        self.events: list[dict[str, Any]] = []
        self.changed = asyncio.Condition()

    async def follow(self) -> None:
        async for _ in self.source.changes():
            async with self.changed:
                self.changed.notify_all()

    async def listen(self, socket: Path) -> None:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
            session.get("http://docker/events", timeout=aiohttp.ClientTimeout(total=None)) as stream,
        ):
            # It ends with the engine.
            with suppress(aiohttp.ClientError):
                async for line in stream.content:
                    async with self.changed:
                        self.events.append(json.loads(line))
                        self.changed.notify_all()

    def workload(self, name: str) -> Any:
        """Its spec, None if there is none."""
        found = self.source.documents.get(ObjectKey("Workload", "default", name))
        return found.value.spec if found is not None else None

    async def until(self, what: str, condition: Callable[[], bool]) -> float:
        """The moment when `condition` was true, in seconds since the epoch."""
        try:
            async with asyncio.timeout(PATIENCE), self.changed:
                await self.changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"not in {PATIENCE} s: {what}; {self.source.documents.keys()}") from None
        return time.time()

    async def of(self, action: str, container: str) -> float:
        """When the engine did this last to a container, in seconds since the epoch."""

        def times() -> list[float]:
            return [
                event["timeNano"] / 1e9
                for event in self.events
                if event["Action"] == action and event["Actor"]["Attributes"].get("name") == container
            ]

        # The other stream may be a moment behind.
        await self.until(f"{action} of {container}", lambda: bool(times()))
        return float(times()[-1])


@asynccontextmanager
async def following(docker: Engine) -> AsyncIterator[Following]:
    made = Following(DockerSource(str(docker.socket)))
    tasks = [asyncio.create_task(made.follow()), asyncio.create_task(made.listen(docker.socket))]
    try:
        await made.until("the engine is known", lambda: made.source.known)
        yield made
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)


async def test_the_life_of_a_container(docker: Engine) -> None:
    docker.docker("network", "create", "--internal", "--label", "penstock.dev/mesh=true", "life")
    # Traps its stop signal and ends half a second later, as a server that drains does.
    script = "trap 'sleep 0.5; exit 0' TERM; while :; do sleep 0.05; done"
    try:
        async with following(docker) as seen:

            async def do(action: str, *command: str, name: str = "one") -> float:
                """Runs a command, returns when the engine says that it did `action`."""
                await asyncio.to_thread(docker.docker, *command)
                return await seen.of(action, name)

            took = {}
            there = asyncio.create_task(
                seen.until("it is a workload", lambda: seen.workload("one") is not None)
            )
            did = await do(
                "start", "run", "-d", "--name", "one", "--network", "life", TINY, "sh", "-c", script
            )
            took["start"] = await there - did
            assert seen.source.pid("one") == docker.pid("one")

            ready = asyncio.create_task(seen.until("not ready", lambda: not seen.workload("one").ready))
            did = await do("pause", "pause", "one")
            took["pause"] = await ready - did
            ready = asyncio.create_task(seen.until("ready", lambda: seen.workload("one").ready))
            did = await do("unpause", "unpause", "one")
            took["unpause"] = await ready - did

            renamed = asyncio.create_task(
                seen.until("renamed", lambda: bool(seen.workload("two")) and not seen.workload("one"))
            )
            did = await do("rename", "rename", "one", "two", name="two")
            took["rename"] = await renamed - did

            left = asyncio.create_task(seen.until("leaves", lambda: not seen.workload("two").ready))
            gone = asyncio.create_task(seen.until("is gone", lambda: seen.workload("two") is None))
            did = await do("die", "stop", "two", name="two")
            took["kill"] = await left - await seen.of("kill", "two")
            took["die"] = await gone - did
            assert await left < did - 0.2, "it leaves the backends before its process ends"

            there = asyncio.create_task(seen.until("there again", lambda: bool(seen.workload("two"))))
            did = await do("start", "start", "two", name="two")
            took["again"] = await there - did
            assert seen.workload("two").ready
    finally:
        docker.docker("rm", "-f", *docker.docker("ps", "-aq", "--filter", "network=life").split())
        docker.docker("network", "rm", "life")
    assert max(took.values()) < FOLLOWED, took


async def test_a_label_of_the_network_or_of_the_container_decides(docker: Engine) -> None:
    docker.docker("network", "create", "--internal", "plain")
    docker.docker("network", "create", "--internal", "--label", "penstock.dev/mesh=true", "late")
    try:
        async with following(docker) as seen:
            docker.docker("run", "-d", "--name", "joins", "--network", "plain", TINY, "sleep", "1000")
            docker.docker(
                "run", "-d", "--name", "chosen", "--network", "plain", "--label", "penstock.dev/mesh=true",
                TINY, "sleep", "1000",
            )  # fmt: skip
            await seen.until("the labelled one", lambda: bool(seen.workload("chosen")))
            assert seen.workload("joins") is None
            docker.docker("network", "connect", "late", "joins")
            await seen.until("it joined the mesh", lambda: bool(seen.workload("joins")))
            docker.docker("network", "disconnect", "late", "joins")
            await seen.until("it left the mesh", lambda: not seen.workload("joins"))
    finally:
        docker.docker("rm", "-f", "joins", "chosen")
        docker.docker("network", "rm", "plain", "late")


async def test_a_failing_health_check_takes_it_out_of_service(docker: Engine) -> None:
    docker.docker("network", "create", "--internal", "--label", "penstock.dev/mesh=true", "health")
    try:
        async with following(docker) as seen:
            docker.docker(
                "run", "-d", "--name", "sick", "--network", "health", "--health-cmd", "test -e /tmp/well",
                "--health-interval", "0.2s", "--health-timeout", "3s", "--health-retries", "1",
                TINY, "sleep", "1000",
            )  # fmt: skip
            await seen.until("it is there", lambda: bool(seen.workload("sick")))
            assert not seen.workload("sick").ready
            docker.exec("sick", "sh", "-c", ": > /tmp/well")
            await seen.until("it is well", lambda: seen.workload("sick").ready)
    finally:
        docker.docker("rm", "-f", "sick")
        docker.docker("network", "rm", "health")


async def test_nothing_is_missed_while_the_engine_is_away(docker: Engine) -> None:
    docker.docker("network", "create", "--internal", "--label", "penstock.dev/mesh=true", "away")
    try:
        async with following(docker) as seen:
            docker.docker(
                "run",
                "-d",
                "--stop-timeout",
                "1",
                "--name",
                "ends",
                "--network",
                "away",
                TINY,
                "sleep",
                "1000",
            )
            await seen.until("it is there", lambda: bool(seen.workload("ends")))
            docker.end()
            await seen.until("the engine is away", lambda: not seen.source.connected)
            assert seen.workload("ends") is not None, "what was last known stays"
            assert "does not answer" in str(seen.source.problems[-1])
            docker.start()
            await seen.until("it is read anew", lambda: seen.source.connected and not seen.workload("ends"))
            assert not seen.source.problems
            docker.docker("run", "-d", "--name", "comes", "--network", "away", TINY, "sleep", "1000")
            await seen.until("the next is there", lambda: bool(seen.workload("comes")))
    finally:
        docker.docker("rm", "-f", "ends", "comes")
        docker.docker("network", "rm", "away")
