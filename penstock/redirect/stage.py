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

from penstock.differing import differing
from penstock.plan import (
    Direction,
    IpcacheEntry,
    KernelTables,
    ListenerKey,
    PolicyEntry,
    PolicyKey,
    ServiceEntry,
    ServiceKey,
    Verdict,
)
from penstock.policy.lookup import look_up
from penstock.world import Address, Network, is_host

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
