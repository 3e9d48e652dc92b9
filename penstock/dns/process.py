"""The DNS proxy as the daemon has it: started when it is needed, adopted, told what the Plan says, asked
what it knows.

It runs from when a rule needs it, or somebody asks (penstock.dns.door), until nobody has asked for a while
and no rule needs it. It outlives the daemon, as Envoy does: names are answered and recorded while there is
none. If it dies or hangs, what the kernel steers to it waits, or is dropped, until the next one is there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from penstock.dns import place
from penstock.dns.door import Door
from penstock.dns.model import DnsPlan
from penstock.dns.place import Choice, Found
from penstock.dns.wire import line, plan_line
from penstock.errors import PenstockError

log = logging.getLogger(__name__)

_START_TIMEOUT = 10.0
_BACKOFF = (0.05, 5.0)
_ANSWER_TIMEOUT = 5.0
HEALTH = 2.0
"""Seconds between two questions after its health."""
HUNG_AFTER = 6.0
"""Seconds without an answer to one, after which it is replaced."""


class NoDnsError(PenstockError):
    """The DNS proxy does not answer."""


class DnsProxy:
    """One for one run directory. `tell` gets a record of each question that was answered.

    `idle`: seconds without a question after which one that no rule needs is ended.
    """

    def __init__(
        self,
        run_dir: Path,
        choice: Choice,
        *,
        idle: float = 600.0,
        tell: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._run_dir, self._choice, self._idle, self._tell = run_dir, choice, idle, tell
        self._plan = DnsPlan()
        self._revision = 0
        self._applied = -1
        self._changed = asyncio.Condition()
        self._wanted = asyncio.Event()
        self._stirred = asyncio.Event()
        self._door: Door | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._last = 0.0
        self.pid: int | None = None
        self.starts = 0
        self.hung = 0
        """How many were replaced since they did not answer."""
        self.trouble = ""
        """Why there is none though it is needed."""

    @property
    def needed(self) -> bool:
        return self._plan.port != 0

    @property
    def bound(self) -> bool:
        """Whether a policy names it, and not only its own address."""
        return bool(self._plan.rules)

    @property
    def at_rest(self) -> bool:
        """Whether none runs, since nobody has asked."""
        return self.needed and not self.bound and self._writer is None and self._door is not None

    @property
    def ready(self) -> bool:
        """Whether questions are answered by the plan of now: one that knows it runs, or will when asked."""
        return self.at_rest or (self._writer is not None and self._applied == self._revision)

    def shown(self) -> dict[str, Any]:
        """What `status` tells of it."""
        return {
            "pid": self.pid,
            "port": self._plan.port,
            "needed": self.needed,
            "bound": self.bound,
            "ready": self.ready,
            "at_rest": self.at_rest,
            "starts": self.starts,
            "hung": self.hung,
            "trouble": self.trouble,
        }

    # --- what the daemon says and asks -----------------------------------------------------------------

    async def publish(self, plan: DnsPlan, seconds: float) -> bool:
        """Tell it `plan`; whether it has taken it in time. One that is not needed any more is not told."""
        if plan != self._plan:
            self._plan = plan
            self._revision += 1
            self._send(plan_line(plan, self._revision))
            self._stirred.set()
        if not self.needed:
            return True
        self._wanted.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self.ready)
        return self.ready

    def release(self) -> None:
        """After the kernel points there no more: end it if nothing needs it."""
        if not self.needed and self._wanted.is_set():
            self._wanted.clear()
            self._stirred.set()
            self._send(line({"quit": True}))

    async def ask(self, what: str, seconds: float = _ANSWER_TIMEOUT) -> Any:
        """ "names" or "state". Raises NoDnsError."""
        if self._writer is None:
            raise NoDnsError("the DNS proxy does not run", hint="no policy names DNS, or see penstock status")
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._send(line({"ask": what, "id": number}))
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise NoDnsError("the DNS proxy did not answer in time") from None
        finally:
            self._asked.pop(number, None)

    def _send(self, raw: bytes) -> None:
        if self._writer is not None:
            self._writer.write(raw)

    # --- its life --------------------------------------------------------------------------------------

    async def keep(self, on_change: Callable[[], None]) -> None:
        """Keeps one running while it is needed, until cancelled, and leaves it running then."""
        pause = _BACKOFF[0]
        while True:
            await self._wanted.wait()
            since = time.monotonic()
            try:
                found = await self._adopted()
                if found is None and await self._called():
                    found = await self._started()
            except (OSError, NoDnsError) as error:
                self.trouble = str(error)
                log.error("the DNS proxy could not be started: %s; trying again in %.1f s", error, pause)
            else:
                if found is None or await self._live(found, on_change):
                    if not self._wanted.is_set():
                        self._shut()
                    continue
                log.error("the DNS proxy ended")
            on_change()
            if time.monotonic() - since > _BACKOFF[1]:
                pause = _BACKOFF[0]
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BACKOFF[1])

    async def _adopted(self) -> Found | None:
        """The one that is there, if it is like what is wanted; another one is ended. Raises OSError."""
        found = await place.connect(self._run_dir)
        if found is not None and found.options == self._choice.text(self._plan.port):
            return found
        if found is not None:
            found.writer.close()
        await asyncio.to_thread(place.stop, self._run_dir)
        return None

    async def _called(self) -> bool:
        """Wait at the door until a rule needs a proxy, or somebody asks; False if none is wanted any more.

        Raises OSError.
        """
        if self._door is not None and self._door.port != self._plan.port:
            self._shut()
        if self._door is None and self.needed:
            self._door = Door(self._plan.port)
        async with self._changed:
            self._changed.notify_all()
        while self._wanted.is_set() and self._door is not None:
            if self.bound or self._door.asked:
                return True
            self._stirred.clear()
            await self._door.watch(self._stirred)
        self._shut()
        return False

    def _shut(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None

    async def _started(self) -> Found:
        """Raises OSError, NoDnsError."""
        assert self._door is not None
        child = place.spawn(self._run_dir, self._door.port, self._choice, self._door.fds)
        self.starts += 1
        deadline = time.monotonic() + _START_TIMEOUT
        while (found := await place.connect(self._run_dir)) is None:
            if child.poll() not in (None, 0) or time.monotonic() > deadline:
                raise NoDnsError(f"it did not start: {place.last_words(self._run_dir)}")
            await asyncio.sleep(0.02)
        return found

    async def _live(self, found: Found, on_change: Callable[[], None]) -> bool:
        """Until it ends, is ended, or hangs; True if it was to end."""
        self.pid, self._writer, self._last, self.trouble = found.pid, found.writer, time.monotonic(), ""
        self._send(plan_line(self._plan, self._revision))
        log.info("the DNS proxy: pid %s", self.pid)
        on_change()
        hearing = asyncio.create_task(self._hear(found.reader))
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait({hearing, watching}, return_when=asyncio.FIRST_COMPLETED)
            answers = not watching.done() or watching.result()
            if not answers:
                self.hung += 1
                self.trouble = f"it did not answer for {HUNG_AFTER:.0f} s, and is replaced"
                log.error("the DNS proxy: %s", self.trouble)
                await asyncio.to_thread(place.stop, self._run_dir, at_once=True)
            idle = watching.done() and answers
            if idle:
                log.info("the DNS proxy: nobody has asked for %.0f s, it ends", self._idle)
                self._send(line({"quit": True}))
                await hearing
            return idle or not self._wanted.is_set()
        finally:
            hearing.cancel()
            watching.cancel()
            await asyncio.gather(hearing, watching, return_exceptions=True)
            self._lost()

    async def _watch(self) -> bool:
        """Ends with True when nobody needs it any more, with False when it hangs."""
        while True:
            await asyncio.sleep(min(HEALTH, self._idle))
            if not self.bound and time.monotonic() - self._last > self._idle:
                return True
            try:
                await self.ask("state", HUNG_AFTER)
            except NoDnsError:
                return False

    def _lost(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self.pid, self._applied = None, None, -1
        for future in self._asked.values():
            if not future.done():
                future.set_exception(NoDnsError("the DNS proxy ended"))

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError, ValueError):
            while raw := await reader.readline():
                said = msgspec.json.decode(raw)
                if "flow" in said:
                    self._last = time.monotonic()
                    self._tell(said["flow"])
                elif "applied" in said:
                    async with self._changed:
                        self._applied = said["applied"]
                        self._changed.notify_all()
                elif "answer" in said and (future := self._asked.get(said["id"])) and not future.done():
                    future.set_result(said["answer"])
