"""The Docker Engine, followed over its socket: which containers there are, told again when that changes.

What is kept true:

- Events only say which container to look at; what is true is what the engine then says of it. Two things are
  taken from the event itself, since they hold at once: that a container was told to stop, and that it ended.
- Nothing is missed: the stream of events is open before the list is read, and after each interruption all is
  read anew. While the engine is away, what was last known stays.
- Nobody waits for another: the engine answers about a container that it is taking apart only when that is
  done, so each is asked about by itself, and not at all where its end has been told.

Source: Docker Engine API v1.41 (GET /events, /containers/json, /containers/{id}/json, /networks, /version).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.loader import LoadResult, load_object
from penstock.manifests.problem import Problem
from penstock.sources.containers import (
    Container,
    Made,
    Network,
    objects,
    read_container,
    read_network,
    refused,
)
from penstock.sources.engine_api import ends, get, is_of, read_events, seconds

log = logging.getLogger(__name__)

DEFAULT_SOCKET = "/var/run/docker.sock"
NEWEST_API = (1, 47)
"""The newest version of the API whose answers we know; engines refuse only versions that are too old."""
BACKOFF = (0.1, 5.0)
"""Seconds between two attempts to reach the engine: the first, and the most."""
SETTLE = 0.002
"""Seconds without a new event after which a burst is over, and the most that is waited for its end."""
SETTLE_LIMIT = 0.02
LOOKS = 64
"""How many questions the engine is asked at once: one about a container that ends may wait for its end."""
STOP_MARGIN = 5.0
"""Seconds after its own grace until a container that was told to stop and goes on counts again."""

_CONTAINER_EVENTS = ("create", "start", "restart", "die", "kill", "pause", "unpause", "rename", "destroy")
_NETWORK_EVENTS = ("create", "connect", "disconnect", "destroy", "remove")
_FILTERS = {"type": ["container", "network"]}


@dataclass(frozen=True, slots=True)
class _Seen:
    """The answer about a container to the question `asked`; None: it is not there. "": the networks."""

    number: str
    asked: int
    found: Container | None


_Told = Mapping[str, Any] | _Seen | Exception | None
"""An event of the engine's, an answer of it, what went wrong in asking; None: the stream of events ended."""


class DockerSource:
    """One engine. `documents`, `problems` and `pids` are what is known now; `changes` says when to look."""

    def __init__(self, socket: str = DEFAULT_SOCKET) -> None:
        self._socket = socket
        self._base = "http://docker"
        self._containers: dict[str, Container] = {}
        self._networks: dict[str, Network] = {}
        self._leaving: dict[str, float] = {}
        """Told to stop → when it counts again if it still runs, in the loop's time."""
        self._asked: dict[str, int] = {}
        """Container → how often it was asked about; only the last answer counts."""
        self._loaded: dict[tuple[str, str], tuple[Made, LoadResult]] = {}
        """By what it was made of and its kind: what was made before, and what became of it."""
        self._by_name: dict[str, Container] = {}
        self._running: frozenset[tuple[str, int, frozenset[str]]] = frozenset()
        self._documents: dict[ObjectKey, Document] = {}
        self._problems: tuple[Problem, ...] = ()
        self.connected = False
        self.known = False
        """Whether all was read at least once."""

    @property
    def documents(self) -> Mapping[ObjectKey, Document]:
        return self._documents

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What cannot be taken as it is, by container; and that the engine is away."""
        if self.connected:
            return self._problems
        away = Problem(
            f"docker:{self._socket}",
            1,
            "the engine does not answer: its containers are as it last said",
            hint="start it, or mount its socket",
            severity="warning",
            code="object",
        )
        return (*self._problems, away)

    def pid(self, name: str) -> int:
        """The first process of the container of this name; 0 if none runs."""
        return self._by_name[name].pid if name in self._by_name else 0

    def has_hosts_file(self, name: str) -> bool:
        """Whether the /etc/hosts of the container of this name is the engine's own making."""
        return name in self._by_name and not self._by_name[name].own_hosts

    # --- following -----------------------------------------------------------------------------------------

    async def changes(self) -> AsyncIterator[None]:
        """Whenever something is not as before. Runs until it is cancelled."""
        pause, told = BACKOFF[0], False
        while True:
            try:
                async with aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(self._socket, limit=LOOKS),
                    timeout=aiohttp.ClientTimeout(total=30),
                ) as session:
                    async for _ in self._follow(session):
                        pause = BACKOFF[0]
                        yield
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError) as e:
                if self.connected or not told:
                    log.warning("the Docker Engine at %s does not answer: %s", self._socket, e)
                told = True
            if self.connected:
                self.connected = False
                yield
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])

    async def _follow(self, session: aiohttp.ClientSession) -> AsyncIterator[None]:
        await self._agree(session)
        forever = aiohttp.ClientTimeout(total=None, sock_read=None)
        query = {"filters": json.dumps(_FILTERS)}
        async with session.get(f"{self._base}/events", params=query, timeout=forever) as stream:
            stream.raise_for_status()
            events: asyncio.Queue[_Told] = asyncio.Queue()
            reader = asyncio.create_task(read_events(stream.content, events))
            looks: set[asyncio.Task[None]] = set()
            try:
                await self._read_all(session)
                self.connected = self.known = True
                log.info("following the Docker Engine at %s", self._socket)
                self._make()
                yield
                while True:
                    dirty = await self._gather(events)
                    if dirty is None:
                        return
                    if self._make():
                        yield
                    for number in dirty:
                        self._asked[number] = self._asked.get(number, 0) + 1
                        look = asyncio.create_task(self._look(session, number, self._asked[number], events))
                        looks.add(look)
                        look.add_done_callback(looks.discard)
            finally:
                for task in (reader, *looks):
                    task.cancel()
                await asyncio.gather(reader, *looks, return_exceptions=True)

    async def _agree(self, session: aiohttp.ClientSession) -> None:
        """On the newest version of the API that both know."""
        about = await get(session, "http://docker/version")
        newest = tuple(int(part) for part in about["ApiVersion"].split("."))
        oldest = tuple(int(part) for part in about.get("MinAPIVersion", "1.24").split("."))
        major, minor = max(min(newest, NEWEST_API), oldest)
        self._base = f"http://docker/v{major}.{minor}"

    async def _read_all(self, session: aiohttp.ClientSession) -> None:
        await self._read_networks(session)
        listed = {each["Id"] for each in await get(session, f"{self._base}/containers/json?all=1")}
        found = await asyncio.gather(*(self._inspect(session, number) for number in listed))
        # Only now: until here somebody may have asked for what was known.
        self._containers = {container.id: container for container in found if container is not None}
        self._leaving = {i: t for i, t in self._leaving.items() if i in self._containers}

    async def _read_networks(self, session: aiohttp.ClientSession) -> None:
        found = [read_network(n) for n in await get(session, f"{self._base}/networks")]
        self._networks = {n.id: n for n in found}

    async def _inspect(self, session: aiohttp.ClientSession, number: str) -> Container | None:
        """None if there is no such container."""
        async with session.get(f"{self._base}/containers/{number}/json") as answer:
            if answer.status == 404:
                return None
            answer.raise_for_status()
            found = read_container(await answer.json())
        # A number of another process namespace than ours would name some other process of this one.
        if found.pid and not is_of(found.pid, found.id):
            log.warning(
                "process %d of container %s is not to be seen here", found.pid, found.name,
                extra={"hint": "give the daemon the machine's process namespace (pid: host)"},
            )  # fmt: skip
            found = replace(found, pid=0)
        return found

    async def _gather(self, events: asyncio.Queue[_Told]) -> set[str] | None:
        """What to look at after a burst of events: ids of containers, "" for the networks. None: their stream
        ended. Raises what a look has raised."""
        loop = asyncio.get_running_loop()
        dirty: set[str] = set()
        deadline = min(self._leaving.values(), default=None)
        wait = None if deadline is None else max(deadline - loop.time(), 0.0)
        end: float | None = None
        while end is None or loop.time() < end:
            try:
                async with asyncio.timeout(wait):
                    event = await events.get()
            except TimeoutError:
                break
            if event is None:
                return None
            if isinstance(event, Exception):
                raise event
            dirty |= self._keep(event) if isinstance(event, _Seen) else self._note(event, loop.time())
            wait = SETTLE
            end = end or loop.time() + SETTLE_LIMIT
        for container in [i for i, until in self._leaving.items() if until <= loop.time()]:
            del self._leaving[container]
        return dirty

    def _note(self, event: Mapping[str, Any], now: float) -> set[str]:
        """What to look at after an event; what holds at once is noted."""
        action = str(event.get("Action", "")).partition(":")[0]
        actor = event.get("Actor") or {}
        number = str(actor.get("ID", ""))
        attributes = actor.get("Attributes") or {}
        if event.get("Type") == "network":
            if action not in _NETWORK_EVENTS:
                return set()
            return {attributes["container"]} if "container" in attributes else {""}
        known = self._containers.get(number)
        if action == "kill" and known is not None and ends(attributes.get("signal", ""), known.stop_signal):
            self._leaving[number] = now + known.stop_timeout + STOP_MARGIN
            return set()
        elif action == "die" and known is not None:
            # What is on its way about it was true before.
            self._asked[number] = self._asked.get(number, 0) + 1
            self._leaving.pop(number, None)
            self._containers[number] = replace(known, pid=0)
            return set()
        elif action == "destroy":
            self._asked.pop(number, None)
            self._leaving.pop(number, None)
            self._containers.pop(number, None)
            return set()
        elif action == "start":
            self._leaving.pop(number, None)
        elif action not in _CONTAINER_EVENTS and action != "health_status":
            return set()
        return {number}

    async def _look(
        self, session: aiohttp.ClientSession, number: str, asked: int, events: asyncio.Queue[_Told]
    ) -> None:
        """At one container, or the networks (""); what was found comes as an event of its own."""
        try:
            if number:
                events.put_nowait(_Seen(number, asked, await self._inspect(session, number)))
            else:
                await self._read_networks(session)
                events.put_nowait(_Seen("", asked, None))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError) as error:
            events.put_nowait(error)

    def _keep(self, seen: _Seen) -> set[str]:
        """What to look at then: the networks, if one is new."""
        if not seen.number or self._asked.get(seen.number) != seen.asked:
            return set()
        if seen.found is None:
            self._containers.pop(seen.number, None)
            return set()
        self._containers[seen.number] = seen.found
        return set() if all(n in self._networks for n in seen.found.networks) else {""}

    # --- documents -----------------------------------------------------------------------------------------

    def _make(self) -> bool:
        """Make the documents anew, the very same ones where nothing changed; whether anything differs."""
        documents: dict[ObjectKey, Document] = {}
        problems = refused(self._containers.values(), self._networks)
        loaded = {}
        for made in objects(self._containers.values(), self._networks, frozenset(self._leaving)):
            place = (made.source, made.value["kind"])
            before = self._loaded.get(place)
            if before is None or before[0] != made:
                before = (
                    made,
                    self._counted(load_object(made.value, made.source, since=seconds(made.created))),
                )
            loaded[place] = before
            problems += before[1].problems
            documents.update({d.key: d for d in before[1].documents})
        self._by_name = {c.name: c for c in self._containers.values()}
        running = frozenset((c.name, c.pid, c.networks) for c in self._containers.values())
        same = (documents, tuple(problems), running) == (self._documents, self._problems, self._running)
        for problem in problems:
            if problem not in self._problems:
                log.warning("%s", problem, extra={"code": problem.code})
        self._loaded, self._documents, self._problems, self._running = (
            loaded, documents, tuple(problems), running,
        )  # fmt: skip
        return not same

    def _counted(self, loaded: LoadResult) -> LoadResult:
        """Each document with its generation."""
        counted = []
        for document in loaded.documents:
            known = self._documents.get(document.key)
            if known is not None:
                changed = known.value != document.value
                document = replace(document, generation=known.generation + changed)  # noqa: PLW2901
            counted.append(document)
        return replace(loaded, documents=tuple(counted))
