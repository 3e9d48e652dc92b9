"""Takes a rotation through its stages: waits for the proof of every node, never for time.

It holds no state: who stops it and starts it again, or starts it twice, goes on from the stage on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from asyncinotify import Inotify, Mask

from penstock.mtls import reports, rotation
from penstock.mtls.errors import AuthorityError, ProofError
from penstock.mtls.reports import NodeState
from penstock.mtls.rotation import Rotation

LOOK = 1.0
"""Seconds between two looks at whether a daemon lives: its end writes no file."""

Tell = Callable[[Rotation, tuple[NodeState, ...]], None]
"""Called with the stage and how far each node is, at first and whenever something may have changed."""


async def drive(directory: Path, begun: Rotation, *, within: float, tell: Tell) -> None:
    """Go on with a rotation to its end, at most `within` seconds.

    Raises ProofError, which names the nodes that hold the stage up, and AuthorityError if somebody turned it
    round meanwhile. Either leaves the stage as it is.
    """
    now: Rotation | None = begun
    try:
        async with asyncio.timeout(within):
            while now is not None:
                if now.going_back != begun.going_back or now.id != begun.id:
                    raise AuthorityError(
                        "somebody else has turned this rotation round", hint="penstock ca status"
                    )
                await _proven(directory, now, tell)
                now = rotation.advance(directory, now)
    except TimeoutError:
        assert now is not None
        raise ProofError(_why(directory, now, within), hint=_HINT) from None


_HINT = (
    "the stage stays as it is: the same command goes on from here, `penstock ca rotate --abort` rolls back, "
    "--without NODE leaves out a node that is gone for good"
)


def _why(directory: Path, now: Rotation, within: float) -> str:
    lacking = reports.holding(reports.read(directory), now)
    named = "; ".join(f"{node}: {why}" for node, why in lacking.items())
    return f"stage {now.stage} is not proven within {within:g} s: {named or 'too little time'}"


async def _proven(directory: Path, stage: Rotation, tell: Tell) -> None:
    folder = directory / reports.FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    async for _ in changes(folder):
        states = reports.read(directory)
        tell(stage, states)
        if not reports.holding(states, stage) or rotation.current(directory) != stage:
            return


async def changes(folder: Path) -> AsyncIterator[None]:
    """Once at first, then when a report was written, and at least every LOOK seconds."""
    with Inotify() as inotify:
        inotify.add_watch(folder, Mask.MOVED_TO | Mask.DELETE)
        while True:
            yield
            try:
                await asyncio.wait_for(inotify.get(), LOOK)
            except TimeoutError:
                continue
