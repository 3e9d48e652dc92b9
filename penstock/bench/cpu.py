"""Processor time: of the whole machine, with what the kernel does in interrupts, and of single processes.

The machine's is what a user pays for; a proxy's own time leaves out the packets that it causes. What the
machine spends when nothing is measured is taken off.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of processor time, of all processors together (proc_stat(5))."""

    user: float
    system: float
    softirq: float

    @property
    def total(self) -> float:
        return self.user + self.system + self.softirq

    def since(self, before: Spent) -> Spent:
        return Spent(self.user - before.user, self.system - before.system, self.softirq - before.softirq)

    def without(self, idle: Spent, seconds: float) -> Spent:
        """Less what the idle machine spends in this time (`idle` is for one second)."""
        parts = (
            max(own - rate * seconds, 0.0)
            for own, rate in (
                (self.user, idle.user), (self.system, idle.system), (self.softirq, idle.softirq),
            )
        )  # fmt: skip
        return Spent(*parts)


def machine() -> Spent:
    """user holds nice, softirq holds hard interrupts. What a hypervisor took (steal) is not counted."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:8]
    user, nice, system, _, _, irq, softirq = (int(field) / _HZ for field in fields)
    return Spent(user + nice, system, irq + softirq)


def processes(pids: Iterable[int]) -> float:
    """Seconds of user and system time of these processes, all their threads; 0 for one that is gone."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _HZ


def costed(measure: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What `measure` finds in `seconds`, and as `per_cpu` its requests or Gbit by second of processor time.

    On a machine that others share, a rate falls with what they take; this does not.
    """
    before = machine()
    found = measure()
    work = float(found["rps"] if "rps" in found else found["gbps"]) * seconds
    return {**found, "per_cpu": round(work / machine().since(before).total, 3)}


_WINDOWS = 5


def idle(seconds: float) -> Spent:
    """What the machine spends in one second at its quietest, of some windows in `seconds`.

    What others do now and then must not be taken off what is measured while they do not.
    """
    return min((_spending(seconds / _WINDOWS) for _ in range(_WINDOWS)), key=lambda spent: spent.total)


def _spending(seconds: float) -> Spent:
    before, started = machine(), time.monotonic()
    time.sleep(seconds)
    spent, took = machine().since(before), time.monotonic() - started
    return Spent(spent.user / took, spent.system / took, spent.softirq / took)


def workers(pid: int) -> dict[str, float]:
    """Seconds of processor time of each of an Envoy's workers."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            if (name := (task / "comm").read_text().strip()).startswith("wrk:worker_"):
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                found[name] = (int(fields[11]) + int(fields[12])) / _HZ
    return found
