"""Which part of the tables may be written before the proxy is ready. Pure.

Waiting is closed, not open (design §1): what an L7 rule names and was not allowed until now is steered at
once, to a listener that is not there yet, and so dropped as PROXY_NOT_READY. What *was* allowed stays
allowed until the listener is active. A Service's new route, which protects nothing, waits as the plain
Service. Everything else (denials above all) is written at once.

An address changes hands in this order: the old workload's entry goes, its proxied connections are reset
and Envoy learns of the new certificate, then the new workload is let in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from penstock.plan import KernelTables, ListenerKey, PolicyEntry, PolicyKey, ServiceKey, Verdict
from penstock.policy.lookup import look_up
from penstock.world import Address, is_host


@dataclass(frozen=True, slots=True)
class InKernel:
    """What stands in the kernel now, as far as the order of a change depends on it."""

    policy: Mapping[PolicyKey, PolicyEntry]
    listeners: Mapping[ListenerKey, int]
    http_services: Collection[ServiceKey]
    identities: Mapping[Address, int]


def changing_hands(wanted: KernelTables, now: InKernel) -> frozenset[Address]:
    """Addresses that were somebody's and are to be somebody else's, or nobody's."""
    after = {n.network_address: e.identity for n, e in wanted.ipcache.items() if is_host(n)}
    return frozenset(a for a, identity in now.identities.items() if after.get(a) != identity)


def before_proxy(wanted: KernelTables, now: InKernel) -> KernelTables:
    """`wanted`, held back where the proxy must come first."""
    leaving = changing_hands(wanted, now)
    policy = dict(wanted.policy)
    for key, entry in wanted.policy.items():
        if entry.verdict is not Verdict.REDIRECT:
            continue
        was = look_up(now.policy, key.subject, key.direction, key.identity, key.protocol, key.port)
        if was is Verdict.ALLOW:
            policy[key] = replace(entry, verdict=Verdict.ALLOW)
    return replace(
        wanted,
        endpoints={a: e for a, e in wanted.endpoints.items() if a not in leaving},
        policy=policy,
        listeners={k: port for k, port in wanted.listeners.items() if now.listeners.get(k) == port},
        services={k: replace(s, http=s.http and k in now.http_services) for k, s in wanted.services.items()},
    )


def after_proxy(
    wanted: KernelTables, active: Collection[ListenerKey], routed: Collection[str]
) -> KernelTables:
    """`wanted` with the listeners that are active, and the routes of Services (by name) that are in force."""
    return replace(
        wanted,
        listeners={k: port for k, port in wanted.listeners.items() if k in active},
        services={k: replace(s, http=s.http and s.name in routed) for k, s in wanted.services.items()},
    )
