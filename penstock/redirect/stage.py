"""Which part of the tables may be written before the proxy is ready. Pure.

Waiting is closed, not open (design §1): what an L7 rule names and was not allowed until now is steered at
once, to a listener that is not there yet, and so dropped as PROXY_NOT_READY. What *was* allowed stays
allowed until the listener is active. A Service's new route, which protects nothing, waits as the plain
Service. Everything else (denials above all) is written at once.

An address changes hands in this order: the old workload's entry goes, its proxied connections are reset
and Envoy learns of the new certificate, then the new workload is let in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from penstock.differing import differing
from penstock.plan import (
    AUDIT_VIEW,
    Direction,
    EndpointEntry,
    IpcacheEntry,
    KernelTables,
    ListenerKey,
    MeshMode,
    PolicyEntry,
    PolicyKey,
    PortMode,
    ServiceEntry,
    ServiceKey,
    Verdict,
)
from penstock.policy.addresses import Whois
from penstock.policy.identities import INGRESS_SUBJECT
from penstock.policy.labels import HOST, INGRESS, WORLD
from penstock.policy.lookup import both_sides, demands_proof, look_up, with_names
from penstock.policy.rules import TCP
from penstock.redirect.by_names import Named, asked_mode, outside
from penstock.world import Address, Network, Proxied, is_host

Policy = Mapping[PolicyKey, PolicyEntry]
_STEERED = (Verdict.REDIRECT, Verdict.NAMES)


@dataclass(frozen=True, slots=True)
class InKernel:
    """What stands in the kernel now, as far as the order of a change depends on it."""

    policy: Mapping[PolicyKey, PolicyEntry]
    listeners: Mapping[ListenerKey, int]
    http_services: Collection[ServiceKey]
    ipcache: Mapping[Network, IpcacheEntry]


def changing_hands(wanted: KernelTables, now: InKernel) -> frozenset[Address]:
    """Addresses that were somebody's and are to be somebody else's, or nobody's."""
    found = set()
    for network in differing(now.ipcache, wanted.ipcache):
        before, after = now.ipcache.get(network), wanted.ipcache.get(network)
        if before is not None and is_host(network) and (after is None or after.identity != before.identity):
            found.add(network.network_address)
    return frozenset(found)


def before_proxy(wanted: KernelTables, now: InKernel) -> KernelTables:
    """`wanted`, held back where the proxy must come first."""
    leaving = changing_hands(wanted, now)
    policy = dict(wanted.policy)
    held = [
        key
        for key, entry in wanted.policy.items()
        if entry.verdict in _STEERED and _verdict(now.policy, key, key.identity) is Verdict.ALLOW
    ]
    beside = _neighbours((*now.policy, *wanted.policy)) if held else {}
    for key in held:
        policy[key] = replace(wanted.policy[key], verdict=Verdict.ALLOW, names=())
        if _opens(key, beside[key.subject, key.direction], policy, wanted.policy, now.policy):
            policy[key] = wanted.policy[key]
    return replace(
        wanted,
        endpoints={a: e for a, e in wanted.endpoints.items() if a not in leaving},
        policy=policy,
        listeners={k: port for k, port in wanted.listeners.items() if now.listeners.get(k) == port},
        services=_closed(
            wanted.services, [k for k, s in wanted.services.items() if s.http and k not in now.http_services]
        ),
    )


def _closed(
    services: Mapping[ServiceKey, ServiceEntry], unrouted: Iterable[ServiceKey]
) -> Mapping[ServiceKey, ServiceEntry]:
    """`services` with these as plain ones; the very same table where there are none, which knows in what it
    differs from the last."""
    plain = {key: replace(services[key], http=False) for key in unrouted}
    return {**services, **plain} if plain else services


def _neighbours(keys: Iterable[PolicyKey]) -> Mapping[tuple[int, Direction], list[PolicyKey]]:
    found: dict[tuple[int, Direction], list[PolicyKey]] = {}
    for key in keys:
        found.setdefault((key.subject, key.direction), []).append(key)
    return found


def _verdict(table: Policy, key: PolicyKey, peer: int, port: int | None = None) -> Verdict:
    return look_up(table, key.subject, key.direction, peer, key.protocol, key.port if port is None else port)


def _opens(key: PolicyKey, beside: list[PolicyKey], held: Policy, wanted: Policy, now: Policy) -> bool:
    """Whether `held` lets past the proxy at `key` what may not pass now: it then stays closed instead.

    A key may stand for many ports and for every peer, of which only some were allowed.
    """
    peers = {key.identity} if key.identity else {k.identity for k in beside}
    end = key.port + (1 << (16 - key.port_bits))
    # Verdicts change only where a prefix begins or ends.
    edges = {edge for k in beside for edge in (k.port, k.port + (1 << (16 - k.port_bits)))}
    ports = {key.port, *(port for port in edges if key.port < port < end)}
    return any(
        _verdict(held, key, peer, port) is Verdict.ALLOW
        and _verdict(wanted, key, peer, port) in _STEERED
        and _verdict(now, key, peer, port) is not Verdict.ALLOW
        for peer in peers
        for port in ports
    )


class Steering(Enum):
    """What the kernel would do with a connection that the proxy carries, if it began now."""

    TO_PROXY = "steered to the proxy"
    PAST_PROXY = "let through without the proxy"
    FORBIDDEN = "denied"


def no_names(_: int, __: Address) -> Iterable[int]:
    return ()


def steering(
    tables: KernelTables,
    source_ports: tuple[int, int],
    connections: Iterable[Proxied],
    named: Named = no_names,
) -> dict[Proxied, Steering]:
    """Judge the proxy's connections by `tables`.

    One that is forbidden now must be reset before Envoy learns of the change; one that would go past the
    proxy goes on through it to its end.
    """
    whois = Whois(tables.ipcache)
    return {c: _steering(tables, whois, source_ports, c, named) for c in connections}


def _steering(
    tables: KernelTables,
    whois: Whois,
    source_ports: tuple[int, int],
    connection: Proxied,
    named: Named,
) -> Steering:
    """judge() of bpf/judge.h, for a TCP connection."""
    source, target = tables.endpoints.get(connection.client), tables.endpoints.get(connection.address)
    if target is None:
        service = tables.services.get(ServiceKey(connection.address, connection.port, TCP))
        if service is not None and not service.gateway:
            return Steering.TO_PROXY if service.http else Steering.PAST_PROXY
        if service is not None:
            return _to_gateway(tables, whois, source, connection)
    from_, to = whois(connection.client), whois(connection.address)
    verdict = Verdict.ALLOW
    proof = watched = False
    for side, other, direction, peer in (
        (source, target, Direction.EGRESS, to),
        (target, source, Direction.INGRESS, from_),
    ):
        if side is None:
            continue
        identity = other.identity if other else peer.identity if peer else WORLD
        packet = (direction, identity, TCP, connection.port)
        said = look_up(tables.policy, side.subject, *packet)
        if side is source and target is None and outside(peer):
            lists = named(side.ifindex, connection.address)
            said = with_names(tables.policy, side.subject, packet, lists)
        word = both_sides(verdict, said)
        verdict = Verdict.DENY if word is None else word
        proof = proof or demands_proof(tables.policy, side.subject, *packet)
        if direction in side.audit:
            view = look_up(tables.policy, side.subject | AUDIT_VIEW, *packet)
            watched = watched or view in _STEERED
    if verdict is Verdict.DENY:
        return Steering.FORBIDDEN
    between = (source is None) is not (target is None)
    asked = asked_mode(tables, connection, target, to)
    if proof and between and not _provable(source_ports, connection, from_, to, target, asked):
        return Steering.FORBIDDEN
    if verdict in _STEERED or watched:
        return Steering.TO_PROXY
    if source is None:
        if target is None:
            return Steering.FORBIDDEN
        first, last = source_ports
        between_nodes = from_ is not None and from_.mesh and first <= connection.client_port <= last
        if between_nodes and asked.here is not MeshMode.OFF:
            return Steering.TO_PROXY
        return Steering.FORBIDDEN if asked.here is MeshMode.STRICT else Steering.PAST_PROXY
    tls = to is not None and to.mesh and (asked.toward is MeshMode.STRICT or proof)
    return Steering.TO_PROXY if tls else Steering.PAST_PROXY


def past_admission(tables: KernelTables, connections: Iterable[Proxied]) -> list[Proxied]:
    """Of connections that began at a Gateway's own address those that an L7 rule names now.

    They were never judged as requests, and their segments would go on to the socket that they have.
    """
    whois = Whois(tables.ipcache)
    return [
        c
        for c in connections
        if _gateway_verdict(tables, whois, tables.endpoints.get(c.client), c) is Verdict.REDIRECT
    ]


def _provable(
    source_ports: tuple[int, int],
    connection: Proxied,
    from_: IpcacheEntry | None,
    to: IpcacheEntry | None,
    target: EndpointEntry | None,
    asked: PortMode,
) -> bool:
    """Whether mesh TLS proves who sends, or it is this node itself."""
    if HOST in (from_.identity if from_ else WORLD, to.identity if to else WORLD):
        return True
    if target is None:
        return to is not None and to.mesh and asked.toward is not MeshMode.OFF
    first, last = source_ports
    return (
        from_ is not None
        and from_.mesh
        and first <= connection.client_port <= last
        and asked.here is not MeshMode.OFF
    )


def _to_gateway(
    tables: KernelTables, whois: Whois, source: EndpointEntry | None, connection: Proxied
) -> Steering:
    """A connection to a Gateway's own address, which the proxy takes also without being steered."""
    verdict = _gateway_verdict(tables, whois, source, connection)
    if verdict is Verdict.DENY:
        return Steering.FORBIDDEN
    past = verdict is Verdict.ALLOW and connection.steered and not _watched(tables, whois, source, connection)
    return Steering.PAST_PROXY if past else Steering.TO_PROXY


def _watched(tables: KernelTables, whois: Whois, source: EndpointEntry | None, connection: Proxied) -> bool:
    """Whether a policy in audit looks at requests of a connection to a Gateway."""
    who = whois(connection.client)
    identity = source.identity if source else who.identity if who else WORLD
    packet = (TCP, connection.port)
    view = look_up(tables.policy, INGRESS_SUBJECT | AUDIT_VIEW, Direction.INGRESS, identity, *packet)
    if view is Verdict.REDIRECT:
        return True
    if source is None or Direction.EGRESS not in source.audit:
        return False
    sent = look_up(tables.policy, source.subject | AUDIT_VIEW, Direction.EGRESS, INGRESS, *packet)
    return sent is Verdict.REDIRECT


def _gateway_verdict(
    tables: KernelTables, whois: Whois, source: EndpointEntry | None, connection: Proxied
) -> Verdict:
    who = whois(connection.client)
    identity = source.identity if source else who.identity if who else WORLD
    if source is None and identity in (HOST, INGRESS):
        return Verdict.ALLOW  # within the node: no hook sees it
    port = connection.port
    verdict = look_up(tables.policy, INGRESS_SUBJECT, Direction.INGRESS, identity, TCP, port)
    if source is not None:
        sent = look_up(tables.policy, source.subject, Direction.EGRESS, INGRESS, TCP, port)
        word = both_sides(sent, verdict)
        # A Gateway looks at no server names for anybody.
        verdict = Verdict.DENY if word in (None, Verdict.NAMES) else word
    return verdict


def after_proxy(
    wanted: KernelTables, active: Collection[ListenerKey], routed: Collection[str]
) -> KernelTables:
    """`wanted` with the listeners that are active, and the routes of Services (by name) that are in force."""
    return replace(
        wanted,
        listeners={k: port for k, port in wanted.listeners.items() if k in active},
        services=_closed(
            wanted.services, [k for k, s in wanted.services.items() if s.http and s.name not in routed]
        ),
    )
