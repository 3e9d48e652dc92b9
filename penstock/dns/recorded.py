"""What workloads learned from DNS: names, their addresses, and until when these count. Pure; times are given.

An address counts for the time that its answer said, then for a grace period, then for as long as the workload
has connections to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

Key = tuple[int, str]
"""The ifindex that stands for a workload, and an address."""

MOST_ADDRESSES = 8192
"""That one workload may have: it cannot fill the kernel's table for all."""


class FullError(Exception):
    """A workload has learned as many addresses as it may."""


@dataclass(slots=True)
class Known:
    """The names by which an address was told, each until when (seconds of the clock that is used)."""

    names: dict[str, float] = field(default_factory=dict)
    kept: bool = False
    """Its time is over, and a connection goes on."""

    @property
    def until(self) -> float:
        return max(self.names.values(), default=0.0)


class Recorded:
    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.entries: dict[Key, Known] = {}
        self._count: dict[int, int] = {}

    def learn(self, ifindex: int, name: str, addresses: Iterable[str], until: float) -> list[Key]:
        """The addresses of an answer. Raises FullError, and then has learned none of them."""
        keys = [(ifindex, address) for address in addresses]
        new = sum(key not in self.entries for key in keys)
        if self._count.get(ifindex, 0) + new > MOST_ADDRESSES:
            raise FullError
        for key in keys:
            if key not in self.entries:
                self.entries[key] = Known()
                self._count[ifindex] = self._count.get(ifindex, 0) + 1
            known = self.entries[key]
            known.names[name] = max(until, known.names.get(name, 0.0))
            known.kept = False
        return keys

    def over(self, now: float) -> list[Key]:
        """Addresses whose time and grace are over."""
        return [key for key, known in self.entries.items() if known.until + self.grace <= now]

    def faded(self, now: float) -> list[Key]:
        """Forget names whose time is over where the address has another; the addresses concerned."""
        found = []
        for key, known in self.entries.items():
            old = [name for name, until in known.names.items() if until + self.grace <= now]
            if old and len(old) < len(known.names):
                for name in old:
                    del known.names[name]
                found.append(key)
        return found

    def forget(self, keys: Collection[Key]) -> None:
        for key in keys:
            if self.entries.pop(key, None) is not None:
                self._count[key[0]] -= 1

    def strangers(self, here: Collection[int]) -> list[Key]:
        """Addresses of workloads that are not `here` any more."""
        return [key for key in self.entries if key[0] not in here]

    def next_end(self) -> float | None:
        ends = (
            known.until if known.kept else until
            for known in self.entries.values()
            for until in known.names.values()
        )
        end = min(ends, default=None)
        return None if end is None else end + self.grace

    def lines(self) -> Iterator[tuple[int, str, str, float]]:
        for (ifindex, address), known in self.entries.items():
            for name, until in known.names.items():
                yield ifindex, address, name, until

    def restore(self, lines: Iterable[tuple[int, str, str, float]]) -> None:
        """What a proxy before has written down; what is over may have connections."""
        for ifindex, address, name, until in lines:
            with suppress(FullError):
                self.learn(ifindex, name, [address], until)
