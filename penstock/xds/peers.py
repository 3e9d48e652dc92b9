"""Who is at the other end of our Unix socket: only root and the users that are named may speak.

gRPC does not tell, so we look at the connections ourselves: they are among our own file descriptors, and the
kernel knows who made each (SO_PEERCRED, unix(7)). A connection of anybody else is shut down before a byte of
an answer is written to it. The file's owner and mode say the same; this holds also where somebody has opened
the directory.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_UCRED = struct.Struct("3i")


def _sockets() -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                yield socket.socket(fileno=os.dup(int(name)))


def turn_away(path: Path, allowed: frozenset[int]) -> int:
    """Shut down every connection to the socket `path` whose maker's user id is not allowed; how many."""
    away = 0
    for sock in _sockets():
        with sock, suppress(OSError):
            if sock.family != socket.AF_UNIX or sock.getsockname() != str(path):
                continue
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
            pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if uid not in allowed:
                sock.shutdown(socket.SHUT_RDWR)
                away += 1
                log.warning("turned away process %s of user %s at %s", pid, uid, path)
    return away
