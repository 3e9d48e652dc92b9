"""Entering network namespaces: setns(2) on the calling thread and back, mounts untouched.

(`ip netns exec` remounts /sys and so hides bpffs and cgroups.) A socket keeps the namespace that it
was made in, which is what the callers need.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71

_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def entered(netns: str | Path) -> Iterator[None]:
    """The calling thread is in `netns` inside the block; nothing may be awaited in it.

    Raises OSError: the path is not there, or is no network namespace.
    """
    with open("/proc/thread-self/ns/net", "rb") as home, open(netns, "rb") as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def cookie() -> int:
    """The cookie of the namespace that the calling thread is in (include/uapi/asm-generic/socket.h)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return int(struct.unpack("=Q", s.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])
