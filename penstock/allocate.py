"""Numbers and addresses that must stay what they are: what was given out, plus what is newly wanted.

Pure: the same inputs give the same numbers. What it keeps true:

- what a name holds it keeps, for as long as it is wanted and the settings allow it;
- a number goes to another name as late as possible: first all that were never used, and only when
  those are gone the numbers of vanished names. The kernel's tables, live connections and a draining
  Envoy may still mean the old name by it;
- when there is not enough, AllocationError is raised and nothing has changed.

Virtual addresses need no such memory: they are looked for from a hash of the name, so a Service that
comes back finds its own again, also on a node that never saw it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

from penstock.errors import PenstockError
from penstock.world import Address, Allocations, Network, Settings, parse_address

IDENTITIES = (256, 65535)
"""Below 256 stand the reserved identities (design §2)."""
SERVICE_IDS = (1, 65535)
PREFIXES = (1 << 24, (1 << 24) + 65535)
"""Identities of networks that policies name: out of the way of every workload's (policy/prefixes.py)."""


class AllocationError(PenstockError):
    """A range is too small for what is wanted of it."""


def allocate(
    previous: Allocations,
    *,
    identities: Iterable[str],
    vips: Mapping[str, Address | None],
    listener_names: Iterable[str],
    service_names: Iterable[str],
    prefixes: Iterable[str],
    gateways: Iterable[str] = (),
    settings: Settings,
    balancers: Mapping[str, Address | None] | None = None,
    node_ports: Mapping[str, int | None] | None = None,
) -> Allocations:
    """The allocations for these names. The keys are those of `Allocations`.

    `vips` maps ``namespace/name/family``, where family ends in 4 or 6, to the address that the manifest
    fixes, or to None. A fixed address is taken as given, even outside the ranges, and even where two
    manifests fix the same (to refuse one is the compiler's part); an allocated one gives way to it. So it is
    with `balancers` and `node_ports`.
    Raises AllocationError.
    """
    low, high = settings.proxy_listen_ports
    return Allocations(
        identities=_numbers(previous.identities, identities, IDENTITIES, "identities"),
        vips=_addresses(previous.vips, vips, settings.service_ranges, taken=settings.dns_addresses),
        listener_ports=_numbers(
            previous.listener_ports, listener_names, (low, high), "listener ports (proxy_listen_ports)"
        ),
        service_ids=_numbers(previous.service_ids, service_names, SERVICE_IDS, "service numbers"),
        balancers=_addresses(previous.balancers, balancers or {}, settings.balancer_ranges),
        node_ports=_node_ports(previous.node_ports, node_ports or {}, settings.node_ports),
        prefixes=_numbers(previous.prefixes, prefixes, PREFIXES, "networks in policies"),
        gateways=_addresses(
            previous.gateways, dict.fromkeys(gateways), settings.gateway_ranges, "the Gateway", "gateway"
        ),
    )


def _numbers(
    previous: Mapping[str, int], wanted: Iterable[str], pool: tuple[int, int], what: str
) -> dict[str, int]:
    low, high = pool
    names = set(wanted)
    size = high - low + 1
    if len(names) > size:
        raise AllocationError(
            f"{len(names)} {what} are wanted, and there are only {size} ({low}-{high})",
            hint="widen the range, or have fewer of what needs them",
        )
    held = {name: number for name, number in previous.items() if low <= number <= high}
    new = sorted(names - held.keys())
    excess = len(held) + len(new) - size
    if excess > 0:
        vanished = sorted((number, name) for name, number in held.items() if name not in names)
        for _, name in vanished[:excess]:
            del held[name]
    used = set(held.values())
    free = (number for number in range(low, high + 1) if number not in used)
    held.update(zip(new, free, strict=False))
    return dict(sorted(held.items()))


def _addresses(
    previous: Mapping[str, str],
    wanted: Mapping[str, Address | None],
    ranges: tuple[Network, ...],
    whose: str = "the Service",
    what: str = "service",
    taken: Iterable[Address] = (),
) -> dict[str, str]:
    given = {name: str(address) for name, address in wanted.items() if address is not None}
    used = {*given.values(), *map(str, taken)}
    pools = {
        version: _Pool(tuple(r for r in ranges if r.version == version), whose, what) for version in (4, 6)
    }
    unplaced = []
    for name in sorted(wanted.keys() - given.keys()):
        before = parse_address(previous[name]) if name in previous else None
        if before is not None and str(before) not in used and before in pools[_family(name)]:
            given[name] = str(before)
            used.add(given[name])
        else:
            unplaced.append(name)
    for name in unplaced:
        given[name] = pools[_family(name)].first_free(name, used)
        used.add(given[name])
    return dict(sorted(given.items()))


def _node_ports(
    previous: Mapping[str, int], wanted: Mapping[str, int | None], pool: tuple[int, int]
) -> dict[str, int]:
    """As addresses, they are looked for from a hash of the name: every node comes to the same."""
    low, high = pool
    given = {name: port for name, port in wanted.items() if port is not None}
    used = {(_protocol(name), port) for name, port in given.items()}
    for name in sorted(wanted.keys() - given.keys()):
        size = high - low + 1
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()) % size
        before = previous.get(name)
        candidates = [before] if before is not None and low <= before <= high else []
        free = (
            port
            for port in (*candidates, *(low + i for i in _around(start, size)))
            if (_protocol(name), port) not in used
        )
        port = next(free, None)
        if port is None:
            raise AllocationError(
                f"no node port is left for the Service {name} ({low}-{high})", hint="widen node_ports"
            )
        given[name] = port
        used.add((_protocol(name), port))
    return dict(sorted(given.items()))


def _protocol(name: str) -> str:
    return name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class _Pool:
    """The usable addresses of some ranges of one family, numbered from 0 through all of them."""

    ranges: tuple[Network, ...]
    whose: str
    what: str

    def __contains__(self, address: Address) -> bool:
        for network in self.ranges:
            if address in network:
                first, count = _usable(network)
                return first <= int(address) < first + count
        return False

    def first_free(self, name: str, used: set[str]) -> str:
        size = sum(_usable(network)[1] for network in self.ranges)
        if size:
            start = int.from_bytes(hashlib.sha256(name.encode()).digest()) % size
            for index in _around(start, size):
                address = str(self._address(index))
                if address not in used:
                    return address
        where = ", ".join(map(str, self.ranges)) or "there is none"
        raise AllocationError(
            f"no address is left for {self.whose} {name} in the {self.what} ranges of its family ({where})",
            hint=f"widen the {self.what} ranges, or set "
            + ("spec.clusterIP" if self.what == "service" else "spec.addresses"),
        )

    def _address(self, index: int) -> Address:
        for network in self.ranges:
            first, count = _usable(network)
            if index < count:
                return network.network_address + (first - int(network.network_address) + index)
            index -= count
        raise IndexError(index)


def _usable(network: Network) -> tuple[int, int]:
    """First usable address and how many there are: not the network's own, nor IPv4's broadcast address.

    In IPv6 the first is the subnet-router anycast address (RFC 4291 §2.6.1). Of one or two addresses all are
    usable (RFC 3021, RFC 6164).
    """
    first = int(network.network_address)
    if network.num_addresses <= 2:
        return first, network.num_addresses
    return first + 1, network.num_addresses - (2 if isinstance(network, IPv4Network) else 1)


def _around(start: int, size: int) -> Iterator[int]:
    yield from range(start, size)
    yield from range(start)


def _family(name: str) -> int:
    return 6 if name.endswith("6") else 4
