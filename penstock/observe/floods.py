"""Floods: whether packets of one kind that nobody is served by come in masses, told while it lasts and after.

Policy drops them and nothing ends by them, so nobody would notice but by the processor's time. The counters
are looked at every PERIOD seconds; what went on in the last MEMORY seconds is told in a sentence each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from penstock.observe.reasons import BY_NUMBER, Reason

PERIOD = 2.0
MEMORY = 60.0
MANY = 1000.0
"""Packets a second, over one period."""


class Floods:
    """Counts are those since the maps were made (reason → packets). Times are given."""

    def __init__(self) -> None:
        self._last: tuple[float, dict[int, int]] | None = None
        self._seen: deque[tuple[float, int, float]] = deque()
        """When, which reason, packets a second."""

    def look(self, now: float, counts: Mapping[int, int]) -> None:
        if self._last is not None and now > self._last[0]:
            for number, packets in counts.items():
                rate = (packets - self._last[1].get(number, 0)) / (now - self._last[0])
                if rate >= MANY and _serves_nobody(number):
                    self._seen.append((now, number, rate))
        self._last = now, dict(counts)
        while self._seen and self._seen[0][0] < now - MEMORY:
            self._seen.popleft()

    def warnings(self) -> list[str]:
        """A sentence for each reason."""
        most: dict[int, float] = {}
        for _, number, rate in self._seen:
            most[number] = max(rate, most.get(number, 0.0))
        return [
            f"a flood within the last minute: {rate:.0f} packets a second, {BY_NUMBER[number].name} "
            f"({BY_NUMBER[number].explanation})"
            for number, rate in sorted(most.items())
        ]


def _serves_nobody(number: int) -> bool:
    reason = BY_NUMBER.get(number)
    return reason is not None and (reason.is_drop or reason is Reason.ANSWERED_RESET)
