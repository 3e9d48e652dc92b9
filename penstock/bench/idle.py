"""What the machine itself takes: how late a process wakes that does nothing but sleep.

On a virtual machine whose processors others use too, everything stands still now and then, for milliseconds.
A tail that is measured meanwhile is the machine's, and the same moments show in a process that has nothing to
do: `python -m penstock.bench.idle` sleeps a millisecond at a time, and prints when it woke late.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from penstock.bench.errors import BenchError

NAP = 0.001
LATE = 0.001
"""Seconds of a nap, and beyond it from which on it is held up."""

Span = tuple[float, float]
"""From and until, in seconds since the epoch."""


class Idle:
    """In a `with` block: a process that sleeps. Afterwards `held_up` is when it could not wake."""

    def __init__(self) -> None:
        self.held_up: list[Span] = []

    def __enter__(self) -> Idle:
        argv = [sys.executable, "-m", "penstock.bench.idle"]
        # A pipe would fill up, and hold it up.
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self._said)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        with self._said as said:
            said.seek(0)
            lines = [line.split() for line in said]
        if not lines:
            raise BenchError("the idle process did not start")
        self.held_up = [(float(since), float(until)) for since, until in lines[1:]]

    def undisturbed(self, spans: Sequence[Span]) -> list[int]:
        """Which of `spans`, by number, no moment falls in at which it was held up."""
        return [n for n, span in enumerate(spans) if not any(_meet(span, held) for held in self.held_up)]


def _meet(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def lateness(held_up: Iterable[Span]) -> list[float]:
    """How long each lasted, in milliseconds."""
    return [round((until - since) * 1000, 3) for since, until in held_up]


def _sleep_for_ever() -> None:
    print("ready", "now", flush=True)
    while True:
        before = time.time()
        time.sleep(NAP)
        now = time.time()
        if now - before > NAP + LATE:
            print(f"{before + NAP:.6f} {now:.6f}", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        _sleep_for_ever()
