"""Resetting the proxy's connections from outside (SOCK_DESTROY, sock_diag(7), through `ss -K`).

Neither a new certificate nor its removal closes a connection that is open, and Envoy keys its upstream
pools by the client's address: what an address had open must end before it is another's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection

from penstock.errors import HostError
from penstock.world import Address

# Downstream and upstream marks of Envoy's sockets (bpf/penstock.h): nobody else's connections are touched.
_MARKS = ("0xa00/0xf00", "0xb00/0xf00")


def reset_proxied(addresses: Collection[Address]) -> None:
    """Reset every connection of the proxy from or to one of `addresses`, in this network namespace.

    Raises HostError if `ss` cannot do it.
    """
    for address in addresses:
        shown = f"[{address}]" if address.version == 6 else str(address)
        for mark in _MARKS:
            where = f"( src {shown} or dst {shown} ) and fwmark = {mark}"
            done = subprocess.run(
                ["ss", "-K", "-t", "-n", "-H", where],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise HostError(f"connections of {address} could not be reset: {done.stderr.strip()}")
