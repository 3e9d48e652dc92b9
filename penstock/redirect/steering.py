"""What the kernel would do with the connections that the proxy carries, if they began now. Pure.

A change leaves such a connection where it is, or
    forbidden   it is reset before Envoy learns of the change
    past it     no rule names it, or a lesser listener would do: it goes on to its end where it is, with all
                that serves it
    in a tunnel although its requests are to be read: it is reset once their listener is active

The kernel does the same with the next segment of each (ingress_hook() of bpf/flow.h). Here nobody waits for
that segment, which may be somebody's next request.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from penstock.plan import (
    AUDIT_VIEW,
    Direction,
    EndpointEntry,
    IpcacheEntry,
    KernelTables,
    MeshMode,
    PortMode,
    ServiceKey,
    Verdict,
)
from penstock.policy.addresses import Whois
from penstock.policy.identities import INGRESS_SUBJECT
from penstock.policy.labels import HOST, INGRESS, WORLD
from penstock.policy.lookup import both_sides, demands_proof, look_up, with_names
from penstock.policy.rules import TCP
from penstock.redirect.by_names import Named, asked_mode, outside
from penstock.routing.model import ListenerKind
from penstock.world import Address, Proxied

_STEERED = (Verdict.REDIRECT, Verdict.NAMES)
TUNNELS = frozenset({ListenerKind.TLS_TCP, ListenerKind.TCP_MTLS})
"""Listeners that look at nothing of what they carry."""


class Steering(Enum):
    """What becomes of a connection that the proxy carries."""

    TO_PROXY = "steered to the proxy"
    PAST_PROXY = "let through without the proxy"
    FORBIDDEN = "denied"


class Ruling(NamedTuple):
    """Of TO_PROXY also the kind of listener; `watched`: only because a policy in audit looks on."""

    how: Steering
    kind: ListenerKind | None = None
    watched: bool = False

    def keeps(self, at: ListenerKind | None) -> bool:
        """Whether a connection stays at a listener that is not the one which it would be given now."""
        return self.how is Steering.PAST_PROXY or (
            at is not None and at is not self.kind and (self.watched or self.kind in TUNNELS)
        )

    def begins_anew(self, at: ListenerKind | None) -> bool:
        """Whether a connection has to leave a tunnel for a listener that looks at what it carries."""
        return (
            self.how is Steering.TO_PROXY and at in TUNNELS and not self.watched and self.kind not in TUNNELS
        )


FORBIDDEN, PAST_PROXY = Ruling(Steering.FORBIDDEN), Ruling(Steering.PAST_PROXY)


def no_names(_: int, __: Address) -> Iterable[int]:
    return ()


def steering(
    tables: KernelTables,
    source_ports: tuple[int, int],
    connections: Iterable[Proxied],
    named: Named = no_names,
) -> dict[Proxied, Ruling]:
    """Judge the proxy's connections by `tables`."""
    whois = Whois(tables.ipcache)
    return {c: _steering(tables, whois, source_ports, c, named) for c in connections}


def _steering(
    tables: KernelTables,
    whois: Whois,
    source_ports: tuple[int, int],
    connection: Proxied,
    named: Named,
) -> Ruling:
    """judge() of bpf/judge.h, for a TCP connection."""
    source, target = tables.endpoints.get(connection.client), tables.endpoints.get(connection.address)
    if target is None:
        service = tables.services.get(ServiceKey(connection.address, connection.port, TCP))
        if service is not None and not service.gateway:
            return Ruling(Steering.TO_PROXY, ListenerKind.HTTP_SERVICE) if service.http else PAST_PROXY
        if service is not None:
            return _to_gateway(tables, whois, source, connection)
    from_, to = whois(connection.client), whois(connection.address)
    verdict = Verdict.ALLOW
    proof = False
    views = set()
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
            views.add(look_up(tables.policy, side.subject | AUDIT_VIEW, *packet))
    if verdict is Verdict.DENY:
        return FORBIDDEN
    asked = asked_mode(tables, connection, target, to)
    within = _in_range(source_ports, connection)
    between = (source is None) is not (target is None)
    if proof and between and not _provable(within, from_, to, target, asked):
        return FORBIDDEN
    seen = verdict in _STEERED or bool(views.intersection(_STEERED))
    kind = {Verdict.REDIRECT: ListenerKind.HTTP_WORKLOAD, Verdict.NAMES: ListenerKind.NAMES}.get(verdict)
    if source is None:
        if target is None:
            return FORBIDDEN
        if from_ is not None and from_.mesh and within and asked.here is not MeshMode.OFF:
            if verdict is Verdict.NAMES:
                return Ruling(Steering.TO_PROXY, ListenerKind.TLS_NAMES)
            watched = verdict is not Verdict.REDIRECT and Verdict.REDIRECT in views
            read = watched or verdict is Verdict.REDIRECT
            return Ruling(
                Steering.TO_PROXY, ListenerKind.TLS_HTTP if read else ListenerKind.TLS_TCP, watched=watched
            )
        if asked.here is MeshMode.STRICT and not seen:
            return FORBIDDEN
    if kind is not None:
        return Ruling(Steering.TO_PROXY, kind)
    if source is not None and to is not None and to.mesh and (asked.toward is MeshMode.STRICT or proof):
        return Ruling(Steering.TO_PROXY, ListenerKind.TCP_MTLS)
    if seen:
        kind = ListenerKind.HTTP_WORKLOAD if Verdict.REDIRECT in views else ListenerKind.NAMES_AUDIT
        return Ruling(Steering.TO_PROXY, kind, watched=True)
    return PAST_PROXY


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


def _in_range(source_ports: tuple[int, int], connection: Proxied) -> bool:
    first, last = source_ports
    return first <= connection.client_port <= last


def _provable(
    within: bool,
    from_: IpcacheEntry | None,
    to: IpcacheEntry | None,
    target: EndpointEntry | None,
    asked: PortMode,
) -> bool:
    """Whether mesh TLS proves who sends, or it is this node itself. `within`: from a port of the proxy's."""
    if HOST in (from_.identity if from_ else WORLD, to.identity if to else WORLD):
        return True
    if target is None:
        return to is not None and to.mesh and asked.toward is not MeshMode.OFF
    return from_ is not None and from_.mesh and within and asked.here is not MeshMode.OFF


def _to_gateway(
    tables: KernelTables, whois: Whois, source: EndpointEntry | None, connection: Proxied
) -> Ruling:
    """A connection to a Gateway's own address, which the proxy takes also without being steered."""
    verdict = _gateway_verdict(tables, whois, source, connection)
    if verdict is Verdict.DENY:
        return FORBIDDEN
    watched = _watched(tables, whois, source, connection)
    if verdict is Verdict.ALLOW and connection.steered and not watched:
        return PAST_PROXY
    return Ruling(Steering.TO_PROXY, ListenerKind.GATEWAY, watched=verdict is Verdict.ALLOW and watched)


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
