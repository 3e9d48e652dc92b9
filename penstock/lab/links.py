"""Making links and addresses: what `build` and `bridged` have in common. Needs no more than netlink."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from penstock.lab import netns
from penstock.lab.errors import LabError

IFA_F_NODAD = 0x02


@contextmanager
def inside(path: Path, sysctls: Iterable[tuple[str, str]] = ()) -> Iterator[IPRoute]:
    """Netlink in a namespace that was just made, with its loopback up."""
    with netns.entered(path):
        netns.write_sysctls(sysctls)
        with IPRoute() as ip:
            ip.link("set", index=1, state="up")
            yield ip


def veth(ip: IPRoute, name: str, peer_netns: Path, peer_name: str = "eth0") -> None:
    """A pair whose other end is in `peer_netns`."""
    with open(peer_netns, "rb") as peer:
        ip.link("add", ifname=name, kind="veth", peer={"ifname": peer_name, "net_ns_fd": peer.fileno()})


def add_address(ip: IPRoute, device: int, text: str, prefix: int) -> None:
    flags: dict[str, Any] = {"flags": IFA_F_NODAD} if ":" in text else {}
    ip.addr("add", index=device, address=text, prefixlen=prefix, **flags)


def index(ip: IPRoute, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise LabError(f"the kernel made no link {name}")
    return int(found[0])
