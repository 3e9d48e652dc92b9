"""Told when files of a folder are renamed into place or removed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path

from asyncinotify import Inotify, Mask


async def changes(folder: Path, names: Collection[str] = ()) -> AsyncIterator[None]:
    """Once at first (for what happened before), then at every change of one of `names` (of any, if none)."""
    with Inotify() as inotify:
        inotify.add_watch(folder, Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE)
        yield
        async for event in inotify:
            # Without a name: the queue overran, and anything may have happened.
            if event.name is None or not names or str(event.name) in names:
                yield
