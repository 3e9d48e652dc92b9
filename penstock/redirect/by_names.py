"""Which listener the kernel would give a connection to for its server name, and what it asks there. Pure.

judge() of bpf/judge.h once more, for a connection of which it is known already that it is not denied
(stage.py): so that one whose name is still allowed need not begin anew where a list was edited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from penstock.dns.patterns import Names
from penstock.plan import (
    AUDIT_VIEW,
    Direction,
    EndpointEntry,
    IpcacheEntry,
    KernelTables,
    ListenerKey,
    MeshMode,
    PortMode,
    Verdict,
)
from penstock.policy.addresses import Whois
from penstock.policy.labels import WORLD
from penstock.policy.lookup import demands_proof, server_names, with_names
from penstock.policy.prefixes import is_prefix
from penstock.policy.rules import TCP
from penstock.policy.server_names import lets_pass, number
from penstock.routing.model import ListenerKind
from penstock.world import Address, Proxied

Named = Callable[[int, Address], Iterable[int]]
"""The lists of names by which the workload behind an index has learned an address."""


class Way(NamedTuple):
    """A listener, and the lists of which each must have the name; none in audit."""

    listener: ListenerKey
    lists: tuple[Names, ...]

    def lets_pass(self, server_name: str) -> bool:
        return all(lets_pass(each, server_name) for each in self.lists)


def same_way(a: ListenerKey, b: ListenerKey) -> bool:
    """Whether they differ in nothing but what they ask: then a connection may change its listener."""
    plain = (ListenerKind.NAMES, ListenerKind.NAMES_AUDIT)
    kinds = a.kind == b.kind or (a.kind in plain and b.kind in plain)
    return kinds and (a.source_class, a.destination) == (b.source_class, b.destination)


def outside(who: IpcacheEntry | None) -> bool:
    """Whether an address is nobody's of the mesh: only those may a name open."""
    return who is None or who.identity == WORLD or (is_prefix(who.identity) and not who.node)


def asked_mode(
    tables: KernelTables, connection: Proxied, target: EndpointEntry | None, to: IpcacheEntry | None
) -> PortMode:
    """How the port that was dialled wants to be spoken to."""
    identity = target.identity if target else to.identity if to else WORLD
    others = PortMode(target.mode if target else MeshMode.OFF, to.mode if to else MeshMode.OFF)
    return tables.port_modes.get((identity, connection.port), others)


def ways_by_names(
    tables: KernelTables, source_ports: tuple[int, int], named: Named
) -> Callable[[Proxied], Way | None]:
    """`way_by_names` for many connections: those of the same two parties at a port have the same."""
    whois, (first, last) = Whois(tables.ipcache), source_ports
    known: dict[tuple[Address, Address, int, bool], Way | None] = {}

    def find(connection: Proxied) -> Way | None:
        between_nodes = first <= connection.client_port <= last
        key = (connection.client, connection.address, connection.port, between_nodes)
        if key not in known:
            known[key] = way_by_names(tables, whois, source_ports, connection, named)
        return known[key]

    return find


def way_by_names(
    tables: KernelTables, whois: Whois, source_ports: tuple[int, int], connection: Proxied, named: Named
) -> Way | None:
    """None where nothing looks at its server name."""
    source, target = tables.endpoints.get(connection.client), tables.endpoints.get(connection.address)
    from_, to = whois(connection.client), whois(connection.address)
    asked: dict[Direction, Names] = {}
    viewed: dict[Direction, Names] = {}
    proof = False
    to_world = target is None and outside(to)
    for side, other, direction, peer in (
        (source, target, Direction.EGRESS, to),
        (target, source, Direction.INGRESS, from_),
    ):
        if side is None:
            continue
        identity = other.identity if other else peer.identity if peer else WORLD
        packet = (direction, identity, TCP, connection.port)
        learned = tuple(named(side.ifindex, connection.address)) if side is source and to_world else ()
        for found, subject in ((asked, side.subject), (viewed, side.subject | AUDIT_VIEW)):
            if subject != side.subject and direction not in side.audit:
                continue
            if with_names(tables.policy, subject, packet, learned) is Verdict.NAMES:
                found[direction] = server_names(tables.policy, subject, packet, learned)
        proof = proof or demands_proof(tables.policy, side.subject, *packet)
    lists = asked or viewed
    if not lists:
        return None
    kind, destination = ListenerKind.NAMES if asked else ListenerKind.NAMES_AUDIT, 0
    mode = asked_mode(tables, connection, target, to)
    if asked and source is None and from_ is not None and from_.mesh and mode.here is not MeshMode.OFF:
        first, last = source_ports
        if first <= connection.client_port <= last:
            kind = ListenerKind.TLS_NAMES
    if to_world and source is not None:
        destination = WORLD
    elif asked and source is not None and target is None and to is not None and to.mesh:
        destination = to.identity if proof or mode.toward is not MeshMode.OFF else 0
    source_class = source.identity if source else from_.source_class if from_ else WORLD
    outward, inward = lists.get(Direction.EGRESS, ()), lists.get(Direction.INGRESS, ())
    key = ListenerKey(source_class, kind, destination, number(outward), number(inward))
    return Way(key, tuple(each for each in (outward, inward) if each and asked))
