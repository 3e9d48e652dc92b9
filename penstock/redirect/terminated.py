"""Ending what still speaks to a backend that stands behind its Service no more.

A connected UDP socket was translated once, when it connected; no hook sees its datagrams again, and nobody
tells it that its peer is gone. So it is ended from outside (SOCK_DESTROY): the application is told
ECONNABORTED, connects anew, and gets a backend that is there. TCP is left to its two ends. Flows that are
translated packet by packet need none of this: the kernel looks for itself (bpf/nat_forward.h).

Source: sock_diag(7), include/uapi/linux/inet_diag.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.plan import KernelTables, ServiceKey
from penstock.policy.rules import UDP
from penstock.redirect import decode, layout
from penstock.redirect.libbpf import BpfMap
from penstock.redirect.netns import entered

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
_CONNECTED = 1 << 1
"""TCP_ESTABLISHED, which connected UDP sockets have too."""
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48s")
_KEY, _VALUE = struct.Struct("=Q16s2s6x"), 20


def lost_sockets(pins: Path, tables: KernelTables) -> frozenset[int]:
    """Cookies of sockets that speak to a backend which their Service does not have any more.

    Of any protocol: the map does not tell. Raises BpfError.
    """
    stand = {
        key: {end for each in entry.sets for end in (*each.backends, *each.ending)}
        for key, entry in tables.services.items()
        if key.protocol == UDP
    }
    translated = BpfMap(pins / "translated", _KEY.size, _VALUE)
    try:
        return frozenset(_lost(translated.items(), stand))
    finally:
        translated.close()


def _lost(translated: Mapping[bytes, bytes], stand: Mapping[ServiceKey, Collection[object]]) -> Iterator[int]:
    for raw, value in translated.items():
        cookie, address, port = _KEY.unpack(raw)
        service = ServiceKey(*decode.backend(value), UDP)
        if (layout.address_of(address), decode.port(port)) not in stand.get(service, ()):
            yield cookie


def end_datagrams(cookies: Collection[int], namespaces: Collection[str]) -> int:
    """End the connected UDP sockets of these cookies, in this namespace and in those at these paths.

    How many there were. A namespace that is gone by now is passed over.
    """
    ended = _end_here(cookies)
    for path in namespaces:
        with suppress(FileNotFoundError), entered(path):
            ended += _end_here(cookies)
    return ended


def _end_here(cookies: Collection[int]) -> int:
    ended = 0
    with _diag() as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for told, place in list(_connected(netlink, family)):
                if told in cookies and _destroy(netlink, family, place):
                    ended += 1
    return ended


@contextmanager
def _diag() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(5.0)
        yield netlink


def _ask(netlink: socket.socket, kind: int, flags: int, family: int, place: bytes) -> None:
    body = _REQUEST.pack(family, UDP, 0, 0, _CONNECTED, place)
    netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 1, 0) + body)


def _messages(netlink: socket.socket) -> Iterator[tuple[int, bytes]]:
    data = netlink.recv(1 << 17)
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _connected(netlink: socket.socket, family: int) -> Iterator[tuple[int, bytes]]:
    """(cookie, struct inet_diag_sockid) of every connected UDP socket."""
    _ask(netlink, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, bytes(48))
    while True:
        for kind, body in _messages(netlink):
            if kind in (NLMSG_DONE, NLMSG_ERROR):
                return
            place = body[4:52]
            yield int(struct.unpack_from("=Q", place, 40)[0]), place


def _destroy(netlink: socket.socket, family: int, place: bytes) -> bool:
    """Whether it was there. Raises OSError if the kernel cannot do it."""
    _ask(netlink, SOCK_DESTROY, NLM_F_ACK, family, place)
    for kind, body in _messages(netlink):
        if kind == NLMSG_ERROR:
            code = -int(struct.unpack_from("=i", body)[0])
            if code not in (0, errno.ENOENT):
                raise OSError(code, "SOCK_DESTROY")
            return code == 0
    return False
