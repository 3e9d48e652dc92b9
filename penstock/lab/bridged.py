"""Workloads on a bridge, as Docker's `bridge` driver makes them, without its firewall rules.

A bridge has the first address of each of its ranges; a workload has an address with the range's prefix, and
the first bridge's own address is its gateway.
"""

from __future__ import annotations

from pyroute2 import IPRoute

from penstock.lab.links import add_address, index, inside, veth
from penstock.lab.spec import LabBridge, LabLink, LabWorkload


def bridge(ip: IPRoute, spec: LabBridge) -> None:
    """`ip` is in the node's namespace."""
    ip.link("add", ifname=spec.device, kind="bridge", br_stp_state=0)
    device = index(ip, spec.device)
    for own, network in zip(spec.addresses, spec.ranges, strict=True):
        add_address(ip, device, str(own), network.prefixlen)
    ip.link("set", index=device, state="up")


def workload(ip: IPRoute, spec: LabWorkload) -> None:
    """`ip` is in the node's namespace."""
    for number, each in enumerate(spec.links):
        link(ip, spec, each, gateway=not number)


def link(ip: IPRoute, spec: LabWorkload, each: LabLink, *, gateway: bool) -> None:
    """One more veth of a workload, into a bridge; its default route too where this is its `gateway`."""
    veth(ip, each.device, spec.netns, each.interface)
    ip.link("set", index=index(ip, each.device), master=index(ip, each.bridge.device), state="up")
    with inside(spec.netns) as inner:
        device = index(inner, each.interface)
        inner.link("set", index=device, state="up")
        for own, network in zip(each.addresses, each.bridge.ranges, strict=True):
            add_address(inner, device, str(own), network.prefixlen)
        for via in each.bridge.addresses if gateway else ():
            inner.route("add", dst="0.0.0.0/0" if via.version == 4 else "::/0", gateway=str(via), oif=device)
