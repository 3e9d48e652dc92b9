"""Finding and reading the files of a configuration folder.

What is kept true: a file that somebody has open for writing is not read. The kernel tells by a read lease,
which it grants only while there is no writer and which makes a new writer wait until it is given back; so
what is read is never half of what is written. Where leases are not to be had (some file systems, files of
other users) the file is read as it is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from dataclasses import dataclass, field
from enum import Enum, auto

from penstock.manifests.tree import MAX_TEXT

SUFFIXES = (".yaml", ".yml", ".json")


class Absent(Enum):
    """Why there is no content to take."""

    MISSING = auto()
    UNREADABLE = auto()
    BUSY = auto()
    """Open for writing: its writer is not done."""


Stamp = tuple[int, int, int, int, int]
"""Device, inode, size, and when content and inode were changed last (ns)."""

_TICK = 1_000_000_000
"""ns: more than a step of any file system's clock, and than two machines' clocks should be apart."""


@dataclass(frozen=True, slots=True)
class Content:
    """`modified` is in seconds since the epoch. Bytes that are not UTF-8 become lone surrogates.

    `stamp` is what the file system says of a file as long as it is not touched; None if it had been touched
    so shortly before that the next time could look the same.
    """

    text: str
    modified: float
    stamp: Stamp | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Folder:
    """What was found: manifests and directories, as paths that begin with the folder's own."""

    files: tuple[str, ...]
    directories: tuple[str, ...]


def is_manifest(name: str) -> bool:
    """By its name; hidden files and editors' temporary files are none."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


def find(directory: str) -> Folder:
    """All manifests below `directory`, symbolic links followed, hidden directories left out.

    Raises OSError if the directory itself cannot be listed; a subdirectory that cannot is left out.
    """
    files: list[str] = []
    directories: list[str] = []
    seen: set[tuple[int, int]] = set()
    pending = [directory]
    while pending:
        here = pending.pop()
        try:
            about = os.stat(here)
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(here) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            if here == directory:
                raise
            continue
        directories.append(here)
        for entry in found:
            path = os.path.join(here, entry.name)
            try:
                is_directory = entry.is_dir()
            except OSError:
                continue
            if is_directory:
                if not entry.name.startswith("."):
                    pending.append(path)
            elif is_manifest(entry.name):
                files.append(path)
    return Folder(tuple(sorted(files)), tuple(directories))


def read(path: str) -> Content | Absent:
    """The content of one file, never half of it."""
    try:
        # Without O_NONBLOCK a named pipe would wait for its writer for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return Absent.MISSING
    except OSError:
        return Absent.UNREADABLE
    with open(fd, "rb") as file:
        about = os.fstat(fd)
        if not os.path.isfile(path):
            return Absent.UNREADABLE
        try:
            # A writer that comes while the lease is held would end us with SIGIO; SIGURG is ignored.
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as e:
            if e.errno == errno.EAGAIN:
                return Absent.BUSY
        try:
            # One byte more than is loaded, so that the loader says that the file is too large.
            raw = file.read(4 * MAX_TEXT + 1)
        except OSError:
            return Absent.UNREADABLE
    at_rest = about.st_ctime_ns < time.time_ns() - _TICK
    stamp = _stamp(about) if at_rest else None
    return Content(raw.decode("utf-8-sig", errors="surrogateescape"), about.st_mtime, stamp)


def untouched(path: str, known: Content) -> bool:
    """Whether nobody has touched a file since `known` was read."""
    try:
        return known.stamp is not None and _stamp(os.stat(path)) == known.stamp
    except OSError:
        return False


def _stamp(about: os.stat_result) -> Stamp:
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
