"""How far the daemon's loop is behind what happened: each event counts up, each round catches up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Progress:
    """`wake` from any callback, `next` and `done` from the loop, `until` from whoever waits for it."""

    def __init__(self) -> None:
        self._told = asyncio.Event()
        self._happened = 0
        self._caught_up = -1
        self._changed = asyncio.Condition()
        self._only_looking = False

    def wake(self, *, only_look: bool = False) -> None:
        """Something happened. `only_look`: nothing is different unless the namespaces are."""
        self._only_looking = only_look and (self._only_looking or not self._told.is_set())
        self._happened += 1
        self._told.set()

    async def next(self) -> tuple[int, bool]:
        """Waits for the next event: (what to say `done` of, whether `only_look` holds of all of them)."""
        await self._told.wait()
        self._told.clear()
        only_looking, self._only_looking = self._only_looking, False
        return self._happened, only_looking

    async def done(self, happened: int) -> None:
        async with self._changed:
            self._caught_up = happened
            self._changed.notify_all()

    @property
    def busy(self) -> bool:
        return self._caught_up < self._happened

    async def until(self, settled: Callable[[], bool]) -> None:
        """Returns when everything that happened was looked at and `settled` says so of the outcome."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.busy and settled())
