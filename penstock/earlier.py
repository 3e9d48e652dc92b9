"""What ran before policies were in force: said once, when a node's first daemon has put them in force.

Before that nobody guards anything. Who starts containers beside the daemon, or before it, is to know what was
open meanwhile, and for how long.
"""

from __future__ import annotations

from collections.abc import Mapping

SHOWN = 5
LATE = 1.0
"""Seconds: an engine's times are whole ones here. Who starts beside the daemon is not told of."""


def ran_earlier(started: Mapping[str, float], now: float) -> str:
    """A warning about workloads (name → when they began, seconds since the epoch); "" if there is none.

    `now` is when policies were in force first.
    """
    open_ = sorted((when, name) for name, when in started.items() if 0 < when < now - LATE)
    if not open_:
        return ""
    names = ", ".join(name for _, name in open_[:SHOWN]) + (", \u2026" if len(open_) > SHOWN else "")
    return (
        f"{len(open_)} workloads ran for up to {now - open_[0][0]:.1f} s before policies were in force, open "
        f"to everybody: {names}; what they opened then is judged by the policies of now"
    )
