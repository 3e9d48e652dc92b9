"""What the Docker Engine's API says, in our words: answers, its stream of events, its times and signals.

Source: Docker Engine API v1.41.
"""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp


async def read_events(content: aiohttp.StreamReader, events: asyncio.Queue[Any]) -> None:
    """Each event as it comes; None when there are no more."""
    try:
        async for line in content:
            if line.strip():
                events.put_nowait(json.loads(line))
    finally:
        events.put_nowait(None)


async def get(session: aiohttp.ClientSession, url: str) -> Any:
    """Raises aiohttp.ClientError."""
    async with session.get(url) as answer:
        answer.raise_for_status()
        return await answer.json()


def is_of(pid: int, container: str) -> bool:
    """Whether this process is in the control group of the container."""
    try:
        return container in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def ends(sent: str, stop_signal: str) -> bool:
    """Whether a signal is the one that asks this container to end, or SIGKILL. Both are names or numbers."""
    return _number(sent) in (_number(stop_signal), int(signal.SIGKILL))


def _number(text: str) -> int:
    if text.isdigit():
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    with suppress(KeyError):
        return int(signal.Signals[name])
    return -1


def seconds(moment: str) -> float:
    """RFC 3339 with nanoseconds, as the engine writes it; 0 if it is none."""
    with suppress(ValueError):
        return datetime.fromisoformat(moment[:19] + "+00:00").timestamp()
    return 0.0
