"""Who needs which listener: the classes of sources that this node's proxy serves.

A source class is an identity today (a class of its own for each): a rule that changes never moves a
source to another listener. The kernel finds the listener by (class, kind, destination).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from penstock.plan import AUDIT_VIEW, Direction, MeshMode, PolicyEntry, PolicyKey, Verdict
from penstock.policy.entries import ANY
from penstock.policy.identities import INGRESS_SUBJECT, Member, Members
from penstock.policy.labels import DNS, HOST, INGRESS, REMOTE_NODE, WORLD
from penstock.policy.mesh_tls import MeshModes, TowardModes
from penstock.routing.model import EdgeListener, HttpChain, ListenerKind, ProxyListener
from penstock.routing.names_listeners import Wanted, members_borrow, named, names_listeners
from penstock.world import World

Entries = Mapping[tuple[int, Direction], Mapping[PolicyKey, PolicyEntry]]


@dataclass(frozen=True, slots=True)
class Demand:
    """The listeners that have a port, and the names of those that have none yet."""

    listeners: tuple[ProxyListener, ...]
    unallocated: tuple[str, ...]
    names: tuple[str, ...]


def _redirected_peers(entries: Mapping[PolicyKey, PolicyEntry], members: Members) -> set[int]:
    """Who is steered to the proxy on the way to a subject with these ingress entries."""
    peers: set[int] = set()
    for key, entry in entries.items():
        if entry.verdict is Verdict.REDIRECT and not entry.dns:
            peers |= set(members.labels) if key.identity == ANY else {key.identity}
    # Nothing steers what the node's own processes send: no tc hook sees it leave.
    return peers - {HOST, DNS}


def _proven_peers(entries: Mapping[PolicyKey, PolicyEntry]) -> set[int]:
    """To whom a rule of the sender lets it speak over mesh TLS only."""
    return {
        key.identity
        for key, entry in entries.items()
        if entry.authenticated and not key.subject & AUDIT_VIEW and entry.verdict is Verdict.ALLOW
    }


def _wanted(
    members: Members, entries: Entries, modes: MeshModes, toward: TowardModes, *, routed: bool
) -> set[tuple[ListenerKind, int, int]]:
    wanted: set[tuple[ListenerKind, int, int]] = set()
    local = members.local()
    # What a workload's mode is follows from its identity.
    remote = {*members.meshed(), *(m.identity for m in members.ingress if m.mesh)}
    speaking = {identity for identity, m in members.meshed().items() if modes.somewhere(m) - {MeshMode.OFF}}
    for member in local:
        if routed:
            wanted.add((ListenerKind.HTTP_SERVICE, member.identity, 0))
        egress = entries[(member.subject, Direction.EGRESS)]
        if any(e.verdict is Verdict.REDIRECT and not e.dns for e in egress.values()):
            wanted.add((ListenerKind.HTTP_WORKLOAD, member.identity, 0))
        peers = _redirected_peers(entries[(member.subject, Direction.INGRESS)], members)
        wanted |= {(ListenerKind.HTTP_WORKLOAD, peer, 0) for peer in peers}
        if modes.somewhere(member) - {MeshMode.OFF}:
            wanted |= {(ListenerKind.TLS_TCP, peer, 0) for peer in remote}
            wanted |= {(ListenerKind.TLS_HTTP, peer, 0) for peer in peers & remote}
        proven = _proven_peers(egress)
        wanted |= {
            (ListenerKind.TCP_MTLS, member.identity, peer)
            for peer in (speaking if ANY in proven else proven & speaking)
        }
    strict = {identity for identity, m in members.meshed().items() if MeshMode.STRICT in toward.somewhere(m)}
    wanted |= {(ListenerKind.TCP_MTLS, m.identity, peer) for m in local for peer in strict}
    return wanted


def _covers(key: PolicyKey, port: int) -> bool:
    return key.port <= port < key.port + (1 << (16 - key.port_bits))


def _numbered(world: World, edge: Iterable[EdgeListener]) -> Mapping[int, EdgeListener]:
    """Listeners of Gateways whose requests can be judged, by their number in the kernel."""
    return {
        world.allocations.service_ids[each.name]: each
        for each in edge
        if each.name in world.allocations.service_ids
        and all(isinstance(chain, HttpChain) for chain in each.chains)
    }


def _to_gateways(
    members: Members, entries: Entries, gateways: Mapping[int, EdgeListener]
) -> set[tuple[ListenerKind, int, int]]:
    """For whom L7 rules stand before a Gateway: rules about Gateways, and about what clients may send."""
    inward = entries.get((INGRESS_SUBJECT, Direction.INGRESS), {})
    wanted: set[tuple[ListenerKind, int, int]] = set()
    for number, listener in gateways.items():
        here = {k: e for k, e in inward.items() if _covers(k, listener.port)}
        peers = _redirected_peers(here, members) - {INGRESS}
        for member in members.local():
            egress = entries[(member.subject, Direction.EGRESS)]
            if any(
                e.verdict is Verdict.REDIRECT
                and not e.dns
                and k.identity in (ANY, INGRESS)
                and _covers(k, listener.port)
                for k, e in egress.items()
            ):
                peers.add(member.identity)
        wanted |= {(ListenerKind.GATEWAY, peer, number) for peer in peers}
    return wanted


def _carried(world: World, members: Members, gateways: Mapping[int, EdgeListener]) -> set[Wanted]:
    """Listeners that a connection which nothing steers here any more may have come by: they outlive it."""
    if not world.carried:
        return set()
    by_address = {a: m for m in members.all for a in m.addresses}
    candidates: set[Wanted] = set()
    by_names = [w for w in map(named, world.allocations.listener_ports) if w is not None]
    for client, address, port in world.carried:
        source, target = by_address.get(client), by_address.get(address)
        strangers = (WORLD, REMOTE_NODE, *members.index.prefixes.identities.values())
        for identity in (source.identity,) if source else strangers:
            candidates.add(Wanted(ListenerKind.HTTP_WORKLOAD, identity))
            candidates |= {w for w in by_names if w.source_class == identity}
            candidates |= {
                Wanted(ListenerKind.GATEWAY, identity, number)
                for number, each in gateways.items()
                if address in each.addresses and port == each.port
            }
            if source is not None:
                tls = (ListenerKind.TLS_HTTP, ListenerKind.TLS_TCP)
                candidates |= {Wanted(kind, identity) for kind in tls}
            if target is not None:
                candidates.add(Wanted(ListenerKind.TCP_MTLS, identity, target.identity))
    return {c for c in candidates if c.name in world.allocations.listener_ports}


def listeners(
    world: World,
    members: Members,
    entries: Entries,
    modes: MeshModes,
    toward: TowardModes,
    *,
    routed: bool,
    spiffe_id: Callable[[Member], str],
    edge: Iterable[EdgeListener] = (),
) -> Demand:
    """Every listener that this node's proxy must have; `routed` if any Service has a route."""
    who = members.representatives()
    by_identity = members.by_identity
    namespaces = {m.identity: m.namespace for m in who.values()}
    ids = {m.identity: spiffe_id(m) for m in who.values()}
    found, names, unallocated = [], [], []
    gateways = _numbered(world, edge)
    several = _wanted(members, entries, modes, toward, routed=routed)
    several |= _to_gateways(members, entries, gateways)
    wanted = {Wanted(*each) for each in several} | _carried(world, members, gateways)
    wanted |= names_listeners(members, entries, modes)
    for each in sorted(wanted):
        kind, source_class, destination = each[:3]
        name = each.name
        names.append(name)
        port = world.allocations.listener_ports.get(name)
        if port is None:
            unallocated.append(name)
            continue
        tls = kind in (ListenerKind.TLS_HTTP, ListenerKind.TLS_TCP, ListenerKind.TLS_NAMES)
        over_mesh = kind is ListenerKind.TCP_MTLS or (kind is ListenerKind.NAMES and destination in ids)
        found.append(
            ProxyListener(
                name,
                kind,
                source_class,
                port,
                peer_id=ids[source_class] if tls else None,
                destination=destination,
                server_id=ids[destination] if over_mesh else None,
                namespace=namespaces[source_class] if kind is ListenerKind.HTTP_SERVICE else "",
                edge=gateways[destination].name if kind is ListenerKind.GATEWAY else "",
                outward=each.outward,
                inward=each.inward,
                borrows=destination != WORLD or members_borrow(by_identity.get(source_class, ())),
            )
        )
    return Demand(tuple(found), tuple(unallocated), tuple(names))
