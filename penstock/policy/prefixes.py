"""Addresses that are nobody's, as policies tell them apart.

Each prefix that a policy writes (what it excepts included) has an identity of its own, and the longest
prefix of an address is who the address is. So a CIDR peer means the identities of all prefixes inside it,
less those inside an exception; and one that no policy names is the world.

The numbers stand above all others (as Cilium's, which are local to a node too), and never are a workload's.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network

from penstock.world import Network

FIRST = 1 << 24
"""The least identity of a prefix."""


def is_prefix(identity: int) -> bool:
    return identity >= FIRST


@lru_cache(maxsize=65536)
def parse_prefix(text: str) -> Network:
    """What a policy writes; bits behind the length do not count. Raises ValueError."""
    return ip_network(text, strict=False)


@dataclass(frozen=True, slots=True)
class Block:
    """The addresses of `network` that are in none of `excepted`."""

    network: Network
    excepted: tuple[Network, ...] = ()


def block(cidr: str, excepted: tuple[str, ...] | list[str] = ()) -> Block:
    return Block(parse_prefix(cidr), tuple(parse_prefix(e) for e in excepted))


class PrefixIndex:
    """Prefixes and their identities, so that a block touches only those inside it."""

    def __init__(self, identities: Mapping[Network, int]) -> None:
        self.identities = identities
        self._sorted = sorted(identities, key=_place)
        self._places = [_place(network) for network in self._sorted]

    def meant(self, wanted: Block) -> frozenset[int]:
        """The identities of the addresses of `wanted` (those that have no workload or node)."""
        found = self._inside(wanted.network)
        for excepted in wanted.excepted:
            found -= self._inside(excepted)
        return frozenset(found)

    def _inside(self, network: Network) -> set[int]:
        # In this order a prefix comes right before all that is inside it.
        low = bisect_left(self._places, _place(network))
        last = (network.version, int(network.broadcast_address), network.max_prefixlen)
        high = bisect_right(self._places, last)
        return {self.identities[inner] for inner in self._sorted[low:high]}


def _place(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen
