"""Who an address is: the kernel's ipcache, and the same question asked in Python. Pure.

Identity wins over address: a workload's, the host's and another node's own addresses are theirs, whatever
networks policies name; below those the longest network decides, and what is in none is the world.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network

from penstock.manifests.kinds import Node
from penstock.plan import IpcacheEntry, MeshMode
from penstock.policy.identities import Members
from penstock.policy.labels import HOST, REMOTE_NODE, WORLD
from penstock.policy.mesh_tls import MeshModes
from penstock.world import Address, Network, World, host_network, parse_address

EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def ipcache(world: World, members: Members, modes: MeshModes) -> dict[Network, IpcacheEntry]:
    """Network → who its addresses are, where no longer network says otherwise."""
    found: dict[Network, IpcacheEntry] = dict.fromkeys(EVERYWHERE, IpcacheEntry(WORLD, WORLD))
    for network, identity in members.index.prefixes.identities.items():
        found[network] = IpcacheEntry(identity, identity)
    for document, node in world.of_kind(Node):
        if document.key.name == world.node:
            continue
        for item in node.status.addresses:
            if item.type == "InternalIP":
                found[host_network(parse_address(item.address))] = IpcacheEntry(REMOTE_NODE, REMOTE_NODE)
    for address in world.node_addresses:
        found[host_network(address)] = IpcacheEntry(HOST, HOST, local=True)
    for member in members.all:
        if member.local and member.attachment is None:
            continue
        for address in member.addresses:
            found[host_network(address)] = IpcacheEntry(
                member.identity,
                member.identity,
                mesh=member.mesh,
                mode=modes.of(member) if member.mesh else MeshMode.OFF,
                local=member.local,
            )
    return found


class Whois:
    """The longest-prefix look-up of an ipcache."""

    def __init__(self, entries: Mapping[Network, IpcacheEntry]) -> None:
        self._entries = entries
        lengths = {(n.version, n.prefixlen) for n in entries}
        self._lengths = {v: sorted((b for w, b in lengths if w == v), reverse=True) for v in (4, 6)}

    def __call__(self, address: Address) -> IpcacheEntry | None:
        """Who `address` is; None if not even the world's entry is there."""
        for bits in self._lengths[address.version]:
            found = self._entries.get(ip_network((address, bits), strict=False))
            if found is not None:
                return found
        return None
