"""Who an address is: the kernel's ipcache, and the same question asked in Python. Pure.

Identity wins over address: a workload's, the host's and another node's own addresses are theirs, whatever
networks policies name; below those the longest network decides, and what is in none is the world.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from penstock.differing import Table
from penstock.manifests.kinds import Node
from penstock.plan import IpcacheEntry, MeshMode
from penstock.policy.identities import Member, Members
from penstock.policy.labels import DNS, HOST, INGRESS, REMOTE_NODE, WORLD
from penstock.policy.mesh_tls import TowardModes
from penstock.world import Address, Network, World, host_network, parse_address

EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


Entries = Table[Network, IpcacheEntry]


def ipcache(world: World, members: Members, modes: TowardModes, edge: tuple[Address, ...] = ()) -> Entries:
    """Network → who its addresses are, where no longer network says otherwise. `edge` are those of
    Gateways."""
    found = dict(strangers(world, members, edge))
    for member in members.all:
        for address in _held(member):
            found[host_network(address)] = _entry(member, modes)
    return Table(found)


def strangers(world: World, members: Members, edge: tuple[Address, ...] = ()) -> dict[Network, IpcacheEntry]:
    """Who is no workload."""
    found: dict[Network, IpcacheEntry] = dict.fromkeys(EVERYWHERE, IpcacheEntry(WORLD, WORLD))
    for network, identity in members.index.prefixes.identities.items():
        found[network] = IpcacheEntry(identity, identity)
    own = {name: number for number, name in members.index.nodes.items()}
    for document, node in world.of_kind(Node):
        if document.key.name == world.node:
            continue
        number = own.get(document.key.name, REMOTE_NODE)
        for item in node.status.addresses:
            if item.type == "InternalIP":
                found[host_network(parse_address(item.address))] = IpcacheEntry(
                    number, number, node=number != REMOTE_NODE
                )
    for member in members.ingress[1:]:
        for address in member.addresses:
            found[host_network(address)] = IpcacheEntry(INGRESS, INGRESS, mesh=member.mesh)
    for address in world.settings.dns_addresses:
        found[host_network(address)] = IpcacheEntry(DNS, DNS, local=True)
    for address in edge:
        found[host_network(address)] = IpcacheEntry(INGRESS, INGRESS, local=True)
    # A Gateway may stand at the node's own address, which stays the node's.
    for address in world.node_addresses:
        found[host_network(address)] = IpcacheEntry(HOST, HOST, local=True)
    return found


def distinct(world: World, entries: Entries, members: Members, edge: tuple[Address, ...]) -> bool:
    """Whether each entry is of one member alone, or of no member: of an address that several have, the last
    is shown."""
    return len(strangers(world, members, edge)) + sum(len(_held(m)) for m in members.all) == len(entries)


def followed(
    entries: Entries, gone: Iterable[Member], come: Iterable[Member], modes: TowardModes
) -> Entries | None:
    """`entries`, which are `distinct`, without the members `gone` and with those that have `come`.

    None if they are not distinct then.
    """
    changes: dict[Network, IpcacheEntry | None] = {}
    for member in gone:
        changes.update(dict.fromkeys(map(host_network, _held(member))))
    for member in come:
        for address in _held(member):
            network = host_network(address)
            if changes.get(network) is not None or (network in entries and network not in changes):
                return None
            changes[network] = _entry(member, modes)
    return entries.after(changes)


def _held(member: Member) -> tuple[Address, ...]:
    """The addresses by which `member` is known: none while it is to be here and is not."""
    return () if member.local and member.attachment is None else member.addresses


def _entry(member: Member, modes: TowardModes) -> IpcacheEntry:
    return IpcacheEntry(
        member.identity,
        member.identity,
        mesh=member.mesh,
        mode=modes.of(member) if member.mesh else MeshMode.OFF,
        local=member.local,
    )


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
