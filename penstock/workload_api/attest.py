"""Who is at the other end of a Unix socket: the workload whose network namespace its process is in.

The kernel names the process (SO_PEERCRED, unix(7)), and that has its namespace in /proc. What it keeps true:
a number that was given to another process meanwhile is not believed (SO_PEERPIDFD, Linux 6.5: the descriptor
stands for the very process, and tells when it has ended).
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Mapping

_SO_PEERPIDFD = 77
"""include/uapi/asm-generic/socket.h"""

Namespace = tuple[int, int]
"""Device and inode of a network namespace's file, which tell one from every other."""


def namespace_of(path: str) -> Namespace:
    """Raises OSError."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def caller(connection: socket.socket) -> Namespace | None:
    """The network namespace of the process that connected; None if it cannot be told for certain."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if pid <= 0:
        return None
    try:
        pidfd = struct.unpack("i", connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]
    except OSError:
        return None
    try:
        found = namespace_of(f"/proc/{pid}/ns/net")
        # Readable means that it has ended: then the number may be another's.
        ended, _, _ = select.select([pidfd], [], [], 0)
        return None if ended else found
    except OSError:
        return None
    finally:
        os.close(pidfd)


def workload_in(namespace: Namespace, netns: Mapping[tuple[str, str], str]) -> tuple[str, str] | None:
    """The workload (namespace, name) whose file of those in `netns` is that namespace."""
    for name, path in netns.items():
        try:
            if namespace_of(path) == namespace:
                return name
        except OSError:
            continue
    return None
