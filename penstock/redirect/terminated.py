"""Ending what still speaks to a backend that stands behind its Service no more.

A connected UDP socket was translated once, when it connected; no hook sees its datagrams again, and nobody
tells it that its peer is gone. So it is ended from outside (SOCK_DESTROY): the application is told
ECONNABORTED, connects anew, and gets a backend that is there. TCP is left to its two ends. Flows that are
translated packet by packet need none of this: the kernel looks for itself (bpf/nat_forward.h).

Source: sock_diag(7).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from penstock.plan import KernelTables, ServiceKey
from penstock.policy.rules import UDP
from penstock.redirect import decode, layout, sockdiag
from penstock.redirect.libbpf import BpfMap
from penstock.redirect.netns import entered

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
    with sockdiag.diag() as netlink:
        for family in sockdiag.FAMILIES:
            # Connected UDP sockets have the state of established TCP ones.
            for place in sockdiag.sockets(netlink, family, UDP, sockdiag.ESTABLISHED):
                told = int(struct.unpack_from("=Q", place, 40)[0])
                if told in cookies and sockdiag.destroy(netlink, family, UDP, sockdiag.ESTABLISHED, place):
                    ended += 1
    return ended
