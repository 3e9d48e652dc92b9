"""bpf(2), for the numbers of what is pinned: whether a link, program or map lives on is asked by number."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_OBJ_GET, _OBJ_GET_INFO = 7, 15
_BY_ID = {"prog": 13, "map": 14, "link": 30}
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, 128)
    return int(_libc.syscall(_SYSCALL_BPF, command, ctypes.byref(buffer), 128))


def open_pin(pathname: Path) -> int:
    name = ctypes.create_string_buffer(os.fsencode(pathname))
    fd = _bpf(_OBJ_GET, struct.pack("=Q", ctypes.addressof(name)))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(pathname))
    return fd


def object_info(fd: int) -> tuple[str, tuple[int, ...]]:
    """What the descriptor is, and (type, id, program id for a link)."""
    kind = os.readlink(f"/proc/self/fd/{fd}").rpartition("bpf")[2].strip("-_]")
    buffer = ctypes.create_string_buffer(256)
    assert _bpf(_OBJ_GET_INFO, struct.pack("=IIQ", fd, 256, ctypes.addressof(buffer))) == 0
    return kind, struct.unpack_from("=III", buffer)


def lives(kind: str, number: int) -> bool:
    fd = _bpf(_BY_ID[kind], struct.pack("=I", number))
    if fd < 0:
        return False
    os.close(fd)
    return True
