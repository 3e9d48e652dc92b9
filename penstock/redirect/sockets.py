"""Resetting the proxy's connections from outside (SOCK_DESTROY, sock_diag(7)).

Neither a new certificate nor its removal closes a connection that is open, and Envoy keys its upstream
pools by the client's address: what an address had open must end before it is another's. And a connection
that was steered to the proxy and would not be any more cannot be told so by its own packets alone: once its
listener is gone there is no socket left to answer them with a reset.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address

from penstock.errors import HostError
from penstock.policy.rules import TCP
from penstock.redirect import sockdiag
from penstock.world import Address, Proxied

# Marks of Envoy's sockets (bpf/penstock.h; towards backends 0xb00): nobody else's connections are touched.
_DOWNSTREAM, _EDGE = 0xA00, 0x900
_MASK = 0xF00
_ANY = 0x800
"""What those marks have in common under _ANY_MASK, and no other has."""
_ANY_MASK = 0xC00
# What is over but for the kernel's memory of it carries nothing any more.
_CONNECTED = sockdiag.EVERY_STATE & ~(sockdiag.CLOSE | sockdiag.LISTEN | sockdiag.TIME_WAIT)
_OPEN = _CONNECTED & ~sockdiag.SYN_RECEIVED
_PLACE = struct.Struct("!HH16s16s")

End = tuple[Address, int]


def reset_proxied(addresses: Collection[Address]) -> None:
    """Reset every connection of the proxy from or to one of `addresses`, in this network namespace.

    Raises HostError if the kernel cannot do it.
    """
    wanted = frozenset(addresses)
    _reset(lambda local, peer: local[0] in wanted or peer[0] in wanted)


def proxied() -> list[Proxied]:
    """Every connection that the proxy has taken, in this network namespace. Raises HostError."""
    return [*_taken(_DOWNSTREAM), *unsteered()]


def unsteered() -> list[Proxied]:
    """Those that it took at a Gateway's own address, without being steered. Raises HostError."""
    return list(_taken(_EDGE))


def reset(connections: Sequence[Proxied]) -> None:
    """Reset exactly these: both the client and the proxy are told. Raises HostError."""
    wanted = {((c.address, c.port), (c.client, c.client_port)) for c in connections}
    _reset(lambda local, peer: (local, peer) in wanted)


def _taken(mark: int) -> Iterator[Proxied]:
    try:
        with sockdiag.diag() as netlink:
            for family in sockdiag.FAMILIES:
                for place in sockdiag.sockets(netlink, family, TCP, _CONNECTED, (mark, _MASK)):
                    local, peer = _ends(family, place)
                    yield Proxied(*peer, *local, steered=mark != _EDGE)
    except OSError as e:
        raise HostError(f"connections of the proxy could not be looked at: {e}") from e


def _reset(meant: Callable[[End, End], bool]) -> None:
    try:
        with sockdiag.diag() as netlink:
            for family in sockdiag.FAMILIES:
                for place in sockdiag.sockets(netlink, family, TCP, _OPEN, (_ANY, _ANY_MASK)):
                    if meant(*_ends(family, place)):
                        sockdiag.destroy(netlink, family, TCP, _OPEN, place)
    except OSError as e:
        raise HostError(f"connections of the proxy could not be reset: {e}") from e


def _ends(family: int, place: sockdiag.Place) -> tuple[End, End]:
    """The socket's own end, and its peer's."""
    sport, dport, source, destination = _PLACE.unpack_from(place)
    return (_address(family, source), sport), (_address(family, destination), dport)


def _address(family: int, raw: bytes) -> Address:
    if family == socket.AF_INET:
        return IPv4Address(raw[:4])
    address = IPv6Address(raw)
    return address.ipv4_mapped or address
