"""Giving up the rights of root once sockets and maps are open; CAP_NET_RAW is left, for marked sockets.

Source: capabilities(7), prctl(2); since Linux 5.17 CAP_NET_RAW suffices for SO_MARK.
"""

from __future__ import annotations

import ctypes
import os

UID = 64056
"""User and group without a name, beside Envoy's (penstock/envoy/process.py)."""

_PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 8, 38, 24
_VERSION_3 = 0x20080522
_CAP_NET_RAW, _LAST_CAP = 13, 40

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def give_up() -> None:
    """Raises OSError."""
    for capability in range(_LAST_CAP + 1):
        if capability != _CAP_NET_RAW:
            _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "drop a capability")
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    os.setresuid(UID, UID, UID)
    kept = 1 << _CAP_NET_RAW
    header, data = _Header(_VERSION_3, 0), (_Data * 2)(_Data(kept, kept, 0), _Data(0, 0, 0))
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "set capabilities")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbid new privileges")
