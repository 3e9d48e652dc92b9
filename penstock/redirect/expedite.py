"""Attaching without waiting for the slowest CPU.

Each program that comes to an interface or leaves it makes the kernel wait until every CPU has passed through
a quiet state, under the lock of all network configuration: 12 ms each on two CPUs, and a workload that is
being made waits with it. For that moment the kernel is asked to hurry (tens of microseconds, at the cost of
an interrupt on each CPU).

What it keeps true: the setting is the machine's, so it is put back, one daemon at a time changes it, and an
operator's own 1 is left alone. Where it cannot be written, all goes on, slower.

Source: Documentation/admin-guide/kernel-parameters (rcupdate.rcu_expedited), /sys/kernel/rcu_expedited.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SETTING = Path("/sys/kernel/rcu_expedited")


@contextmanager
def expedited(setting: Path = SETTING) -> Iterator[None]:
    """Inside the block the kernel's grace periods are short, if it can be had."""
    try:
        fd = os.open(setting, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        ours = _take(fd)
        try:
            yield
        finally:
            if ours:
                with suppress(OSError):
                    os.pwrite(fd, b"0", 0)
    finally:
        os.close(fd)


def _take(fd: int) -> bool:
    """Whether it is ours to put back. The lock goes with the descriptor."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.pread(fd, 8, 0).strip() == b"0":
            return os.pwrite(fd, b"1", 0) > 0
    return False
