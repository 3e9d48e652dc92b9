"""Resetting the proxy's connections from outside (SOCK_DESTROY, sock_diag(7), through `ss -K`).

Neither a new certificate nor its removal closes a connection that is open, and Envoy keys its upstream
pools by the client's address: what an address had open must end before it is another's. And a connection
that was steered to the proxy and would not be any more cannot be told so by its own packets alone: once its
listener is gone there is no socket left to answer them with a reset.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterator, Sequence
from ipaddress import ip_address

from penstock.errors import HostError
from penstock.world import Address, Proxied

# Downstream and upstream marks of Envoy's sockets (bpf/penstock.h): nobody else's connections are touched.
_DOWNSTREAM, _UPSTREAM, _EDGE = "0xa00/0xf00", "0xb00/0xf00", "0x900/0xf00"
_AT_ONCE = 100
"""Connections that one filter names."""


def reset_proxied(addresses: Collection[Address]) -> None:
    """Reset every connection of the proxy from or to one of `addresses`, in this network namespace.

    Raises HostError if `ss` cannot do it.
    """
    for address in addresses:
        shown = _shown(address)
        for mark in (_DOWNSTREAM, _UPSTREAM, _EDGE):
            _ss("-K", f"( src {shown} or dst {shown} ) and fwmark = {mark}")


def proxied() -> list[Proxied]:
    """Every connection that the proxy has taken, in this network namespace. Raises HostError."""
    return [*_taken(_DOWNSTREAM), *unsteered()]


def unsteered() -> list[Proxied]:
    """Those that it took at a Gateway's own address, without being steered. Raises HostError."""
    return list(_taken(_EDGE))


def _taken(mark: str) -> Iterator[Proxied]:
    for line in _ss("state", "connected", f"fwmark = {mark}").splitlines():
        *_, local, peer = line.split()[:5]
        address, port = _end(local)
        client, client_port = _end(peer)
        yield Proxied(client, client_port, address, port, steered=mark != _EDGE)


def reset(connections: Sequence[Proxied]) -> None:
    """Reset exactly these: both the client and the proxy are told. Raises HostError."""
    for first in range(0, len(connections), _AT_ONCE):
        ends = [
            f"( src {_shown(c.address)}:{c.port} and dst {_shown(c.client)}:{c.client_port} )"
            for c in connections[first : first + _AT_ONCE]
        ]
        for mark in (_DOWNSTREAM, _EDGE):
            _ss("-K", f"( {' or '.join(ends)} ) and fwmark = {mark}")


def _ss(*arguments: str) -> str:
    done = subprocess.run(["ss", "-t", "-n", "-H", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"connections of the proxy could not be looked at or reset: {done.stderr.strip()}")
    return done.stdout


def _shown(address: Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def _end(text: str) -> tuple[Address, int]:
    address, _, port = text.rpartition(":")
    return ip_address(address.strip("[]").partition("%")[0]), int(port)
