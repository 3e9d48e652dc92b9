"""Routes to virtual addresses in workloads that have no default route: Docker's internal networks, since 25.

A connection to a Service that a route names must set out with the Service's own address, and without a
route the kernel refuses it before anything of ours sees it. So such a workload gets a route to the service
ranges by its bridge's own address, and no other: what leaves it is judged as ever.

What is written down is which namespaces have them; they bear a protocol number of ours, by which `forget`
tells them.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from penstock.files import write_atomically
from penstock.redirect import rtnetlink
from penstock.redirect.netns import entered
from penstock.world import Address, Network

log = logging.getLogger(__name__)

PROTOCOL = 84
"""Of routes of ours (rtnetlink(7), rtm_protocol)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A workload on a bridge: its namespace, that one's cookie, its device, and the index of the bridge."""

    netns: str
    cookie: int
    device: int
    bridge: int


class Leads:
    """Not for the thread of an event loop. `record` is what `forget` reads."""

    def __init__(self, record: Path, ranges: Iterable[Network] = ()) -> None:
        self._record = record
        self._ranges = tuple(ranges)
        self._seen: frozenset[int] = frozenset()
        self._led: set[str] = set()
        with suppress(OSError, ValueError):
            self._led = set(json.loads(record.read_text()))

    def settle(self, places: Iterable[Place]) -> None:
        """See to those that are new. One that ends meanwhile is not our concern."""
        here = tuple(places)
        new = [place for place in here if place.cookie not in self._seen]
        self._seen = frozenset(place.cookie for place in here)
        if not new:
            return
        bridges = rtnetlink.addresses()
        led = self._led & {place.netns for place in here}
        for place in new:
            try:
                with entered(place.netns), IPRoute() as ip:
                    if self._lead(ip, place, bridges):
                        led.add(place.netns)
            except (OSError, NetlinkError) as e:
                log.warning("no route to Services in %s: %s", place.netns, e)
        if led != self._led:
            self._led = led
            write_atomically(self._record, json.dumps(sorted(led)).encode(), durable=False)

    def _lead(self, ip: IPRoute, place: Place, bridges: Mapping[int, list[Address]]) -> bool:
        led = False
        for network in self._ranges:
            family = socket.AF_INET if network.version == 4 else socket.AF_INET6
            via = next((a for a in bridges.get(place.bridge, ()) if a.version == network.version), None)
            own = ip.get_addr(family=family, index=place.device, scope=0)
            if via is None or not own or ip.get_default_routes(family=family):
                continue
            ip.route(
                "replace", dst=str(network), gateway=str(via), oif=place.device, family=family, proto=PROTOCOL
            )
            led = True
        return led

    def forget(self) -> None:
        """Take them all away again; twice is fine."""
        for netns in self._led:
            with suppress(OSError, NetlinkError), entered(netns), IPRoute() as ip:
                for family in (socket.AF_INET, socket.AF_INET6):
                    ip.flush_routes(family=family, proto=PROTOCOL)
        self._led = set()
        self._record.unlink(missing_ok=True)
