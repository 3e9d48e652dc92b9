"""How full the tables are that forget by themselves: connections, translations, session affinity.

The other tables refuse what does not fit; these (LRU) make room by forgetting who was idle longest, and
nobody is told. So they are counted when somebody asks, at most once in `AGE` seconds, and what being full
means is said in a sentence.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from penstock.redirect.libbpf import BpfMap
from penstock.redirect.shapes import FORGETFUL

AGE = 5.0
FULL = 0.95
"""A table that forgets is never filled to the last entry: each CPU keeps some for itself."""

MEANS = {
    "conntrack": "idle connections are forgotten, and judged anew when they go on (CONNECTION_RESUMED)",
    "nat": "idle connections to Services from outside are forgotten, and given a backend anew",
    "nat_back": "a backend that speaks first on an idle connection from outside is not understood any more",
    "affinity": "clients that were idle for long may be given another backend in spite of session affinity",
    "translated": "the oldest UDP sockets hear answers from the backend's address in place of the Service's",
    "fragments": "parts of fragmented datagrams are dropped (FRAGMENT_WITHOUT_FIRST)",
}


class Pressure:
    """Of the maps under `pins`."""

    def __init__(self, pins: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._maps = {
            name: (BpfMap(pins / name, shape.key, shape.value), shape.entries)
            for name, shape in FORGETFUL.items()
        }
        self._clock = clock
        self._counted = float("-inf")
        self._sizes: dict[str, tuple[int, int]] = {}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Map → (entries, capacity). Raises BpfError."""
        if self._clock() - self._counted > AGE:
            self._sizes = {name: (each.count(), most) for name, (each, most) in self._maps.items()}
            self._counted = self._clock()
        return self._sizes

    def warnings(self) -> list[str]:
        """A sentence for each table that is full."""
        return [
            f"the table {name} is full ({used} of {most}): {MEANS[name]}"
            for name, (used, most) in self.sizes().items()
            if used >= most * FULL
        ]

    def close(self) -> None:
        for each, _ in self._maps.values():
            each.close()
