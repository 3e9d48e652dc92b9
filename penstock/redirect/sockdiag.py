"""Sockets of the network namespace that the calling thread is in: finding some of them, and ending them.

In process, by netlink: this is asked at every change, and a program of its own (`ss`) costs ten
milliseconds a question.

Source: sock_diag(7), include/uapi/linux/inet_diag.h; net/ipv4/inet_diag.c for how a filter runs.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
FAMILIES = (socket.AF_INET, socket.AF_INET6)
ESTABLISHED, SYN_RECEIVED, TIME_WAIT, CLOSE, LISTEN = (1 << state for state in (1, 3, 6, 7, 10))
EVERY_STATE = 0xFFF
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ABOUT = struct.Struct("=BBBBI48s")
_FILTER = struct.Struct("=HHBBHII")
_MARK_CONDITION = 10

Place = bytes
"""struct inet_diag_sockid: both ends of a socket, and its cookie."""


@contextmanager
def diag() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(5.0)
        yield netlink


def sockets(
    netlink: socket.socket, family: int, protocol: int, states: int, mark: tuple[int, int] | None = None
) -> list[Place]:
    """All in one of `states`; with `mark` (value, mask) only those that bear it. Raises OSError."""
    condition = b""
    if mark is not None:
        # One operation of 12 bytes: past the end, to just there if it holds, and further if not.
        condition = _FILTER.pack(4 + 12, 1, _MARK_CONDITION, 12, 16, *mark)
    _ask(netlink, SOCK_DIAG_BY_FAMILY, _DUMP, family, protocol, states, bytes(48), condition)
    found: list[Place] = []
    while True:
        for kind, body in _messages(netlink):
            if kind == _DONE:
                return found
            if kind == _ERROR:
                code = -int(struct.unpack_from("=i", body)[0])
                raise OSError(code, "sock_diag")
            found.append(body[4:52])


def destroy(netlink: socket.socket, family: int, protocol: int, states: int, place: Place) -> bool:
    """Whether it was there. Raises OSError if the kernel cannot do it."""
    _ask(netlink, SOCK_DESTROY, _ACK, family, protocol, states, place)
    for kind, body in _messages(netlink):
        if kind == _ERROR:
            code = -int(struct.unpack_from("=i", body)[0])
            if code not in (0, errno.ENOENT):
                raise OSError(code, "SOCK_DESTROY")
            return code == 0
    return False


def _ask(
    netlink: socket.socket,
    kind: int,
    flags: int,
    family: int,
    protocol: int,
    states: int,
    place: Place,
    condition: bytes = b"",
) -> None:
    body = _ABOUT.pack(family, protocol, 0, 0, states, place) + condition
    netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)


def _messages(netlink: socket.socket) -> Iterator[tuple[int, bytes]]:
    data = netlink.recv(1 << 17)
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]
