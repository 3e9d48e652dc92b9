"""The configuration folder, read and watched.

What is kept true:

- A file counts when it was closed after writing or renamed into place, never half-written.
- A burst of changes is one change.
- A file that became empty or unreadable, or that an editor moved to its backup, keeps its last content for
  one second; a folder that vanished keeps all of it until it is back.
- Nothing is missed: new directories are read after they are watched, an overflowing queue or a swapped link
  (as Kubernetes and Compose mount configuration) leads to a full look.

The watch only says where to look; what is true is what is on disk then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType

from asyncinotify import Event, Inotify, Mask, Watch

from penstock.errors import InputError
from penstock.sources.reading import Absent, Content, find, is_manifest, read, untouched

log = logging.getLogger(__name__)

SETTLE = 0.002
"""Seconds without a new event after which a burst is over."""
SETTLE_LIMIT = 0.02
"""Seconds after which a burst that does not end is taken as it is."""
GRACE = 1.0
"""Seconds for which an empty or unreadable file keeps its last content."""
RETRY = 0.1
"""Seconds between two looks for a folder that vanished."""

_EVENTS = (
    Mask.CLOSE_WRITE
    | Mask.MOVED_TO
    | Mask.MOVED_FROM
    | Mask.CREATE
    | Mask.DELETE
    | Mask.DELETE_SELF
    | Mask.MOVE_SELF
    | Mask.ATTRIB
)


@dataclass(slots=True)
class _Watched:
    """A watched directory: its name in the folder ('' if it is outside), and what it is really called."""

    watch: Watch
    name: str
    real: str


class FileSource:
    """One folder. Files are named as the user would: the folder's path as given, then the path in it.

    Raises InputError if the folder is not there.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory.rstrip("/") or "/"
        if not os.path.isdir(self._directory):
            raise InputError(f"{directory}: there is no such directory", hint=f"mkdir -p {directory}")
        self._inotify = Inotify(cache_size=128)
        # asyncinotify 4.4 gives its NONBLOCK flag the value of CLOEXEC.
        os.set_blocking(self._inotify.fd, False)
        self._watched: dict[int, _Watched] = {}
        """By watch descriptor: the kernel has one for each directory, whatever it is called."""
        self._targets: dict[str, set[str]] = {}
        """Where a link stands and where it leads → the files or directories that are taken through it."""
        self._known: dict[str, Content] = {}
        self._deadlines: dict[str, float] = {}
        self._events: list[Event] = []
        self._arrived = asyncio.Event()
        self._lost = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stop_draining()
        self._inotify.close()

    def modified(self, files: Iterable[str]) -> Mapping[str, float]:
        """When each of these files was last modified, in seconds since the epoch."""
        return {file: self._known[file].modified for file in files if file in self._known}

    def scan(self) -> Mapping[str, str | None]:
        """Looks at the whole folder: the text of each file that differs from the last look, None if gone.

        The first time that is each file. May be called at any time, also while `changes` is awaited.
        """
        try:
            files = self._watch_all()
        except OSError as e:
            self._lost = True
            log.error("%s cannot be read (%s), its last content stays in force", self._directory, e.strerror)
            return {}
        self._lost = False
        return self._take(file for file in {*files, *self._known} if not self._untouched(file))

    async def changes(self) -> AsyncIterator[Mapping[str, str | None]]:
        """Every later change as it happens, in the form of `scan`. Runs until it is cancelled."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inotify.fd, self._drain)
        try:
            while True:
                await self._wait()
                if changes := self._look():
                    yield changes
        finally:
            self._stop_draining()

    # --- watching -----------------------------------------------------------------------------------------

    def _watch_all(self) -> tuple[str, ...]:
        """Watches every directory and every target of a link; returns the manifests that are there.

        Watches come before the listing that counts, so that what appears in between is seen by one of them.
        """
        known: set[str] = set()
        while not known.issuperset((folder := find(self._directory)).directories):
            for directory in folder.directories:
                self._watch(directory, directory)
            known.update(folder.directories)
        self._targets = {}
        wanted = set(folder.directories)
        for path in (*folder.files, *folder.directories):
            if os.path.islink(path):
                wanted |= self._follow(path)
        for descriptor, watched in list(self._watched.items()):
            if watched.name not in wanted and watched.real not in wanted:
                del self._watched[descriptor]
                with contextlib.suppress(OSError, ValueError, KeyError):
                    self._inotify.rm_watch(watched.watch)
        return folder.files

    def _watch(self, directory: str, name: str) -> None:
        try:
            watch = self._inotify.add_watch(directory, _EVENTS)
        except OSError as e:
            log.warning("%s cannot be watched: %s", directory, e.strerror)
            return
        before = self._watched.get(watch.wd)
        if name or before is None:
            self._watched[watch.wd] = _Watched(watch, name, os.path.realpath(directory))

    def _follow(self, link: str) -> set[str]:
        """Watches where a link stands and where it leads; returns these directories."""
        stands = os.path.join(os.path.realpath(os.path.dirname(link) or "."), os.path.basename(link))
        parents = set()
        for path in (stands, os.path.realpath(link)):
            self._targets.setdefault(path, set()).add(link)
            parents.add(os.path.dirname(path))
        for parent in parents:
            self._watch(parent, "")
        return parents

    def _stop_draining(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._inotify.fd)

    def _drain(self) -> None:
        while True:
            try:
                event = self._inotify.sync_get()
            except BlockingIOError:
                break
            if event is not None:
                self._events.append(event)
        self._arrived.set()

    async def _wait(self) -> None:
        """Until a burst of events is over, or the time of a file without content has come."""
        timeout = RETRY if self._lost else None
        if self._deadlines:
            left = max(0.0, min(self._deadlines.values()) - time.monotonic())
            timeout = min(left, timeout) if timeout is not None else left
        try:
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        except TimeoutError:
            return
        end = time.monotonic() + SETTLE_LIMIT
        while self._arrived.is_set() and time.monotonic() < end:
            self._arrived.clear()
            await asyncio.sleep(SETTLE)

    # --- looking ------------------------------------------------------------------------------------------

    def _look(self) -> Mapping[str, str | None]:
        events, self._events = self._events, []
        self._arrived.clear()
        self._note_backups(events)
        everything = self._lost
        files: set[str] = set()
        for event in events:
            watched = self._watched.get(event.watch.wd) if event.watch is not None else None
            if watched is None:
                # The queue ran over, or the directory has gone since.
                everything = True
            elif Mask.IGNORED in event.mask:
                del self._watched[watched.watch.wd]
                everything = True
            elif event.name is None:
                everything |= Mask.ATTRIB not in event.mask
            else:
                found = self._files_of(event, watched, str(event.name))
                everything |= found is None
                files.update(found or ())
        if everything:
            return self.scan()
        now = time.monotonic()
        files |= {file for file, deadline in self._deadlines.items() if deadline <= now}
        return self._take(files)

    def _files_of(self, event: Event, watched: _Watched, name: str) -> set[str] | None:
        """The files that may differ after `event`; None if that can be any."""
        real = os.path.join(watched.real, name)
        linked = self._targets.get(real, set())
        if any(os.path.isdir(link) for link in linked):
            return None
        if not watched.name:
            return linked
        if Mask.ISDIR in event.mask:
            return None if Mask.ATTRIB not in event.mask else linked
        if event.mask & (Mask.CREATE | Mask.MOVED_TO) and os.path.islink(real):
            return None
        # A file just created is still being written, unless it is another name of one that is done.
        if not is_manifest(name) or (Mask.CREATE in event.mask and not _has_other_names(real)):
            return linked
        return linked | {os.path.join(watched.name, name)}

    def _note_backups(self, events: Iterable[Event]) -> None:
        """Editors move a file to its backup before they write it anew: that is no deletion yet."""
        left: dict[int, str] = {}
        for event in events:
            watched = self._watched.get(event.watch.wd) if event.watch is not None else None
            if watched is None or event.name is None:
                continue
            name = str(event.name)
            if Mask.MOVED_FROM in event.mask:
                left[event.cookie] = os.path.join(watched.name, name)
            elif Mask.MOVED_TO in event.mask and event.cookie in left:
                is_backup = name.startswith(".") or name.endswith("~")
                if is_backup:
                    self._deadlines.setdefault(left[event.cookie], time.monotonic() + GRACE)

    def _untouched(self, file: str) -> bool:
        known = self._known.get(file)
        return known is not None and file not in self._deadlines and untouched(file, known)

    def _take(self, files: Iterable[str]) -> Mapping[str, str | None]:
        """Reads `files`; returns those that count as changed and remembers them."""
        changes: dict[str, str | None] = {}
        now = time.monotonic()
        for file in sorted(files):
            content, known = read(file), self._known.get(file)
            if content is Absent.BUSY:
                if known is None:
                    log.info("%s is open for writing, it is taken when it is closed", file)
                self._deadlines.pop(file, None)
                continue
            missing = content is Absent.MISSING and file not in self._deadlines
            empty = not isinstance(content, Content) or not content.text.strip()
            keeps = known is not None and known.text.strip() and empty and not missing
            if keeps and self._deadlines.setdefault(file, now + GRACE) > now:
                continue
            self._deadlines.pop(file, None)
            if isinstance(content, Content):
                self._known[file] = content
                if content != known:
                    changes[file] = content.text
            elif known is not None:
                del self._known[file]
                changes[file] = None
        return changes


def _has_other_names(path: str) -> bool:
    try:
        return os.lstat(path).st_nlink > 1
    except OSError:
        return False
