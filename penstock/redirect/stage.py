"""Which part of the tables may be written before the proxy is ready. Pure.

Waiting is closed, not open (design §1): what an L7 rule names and was not allowed until now is steered at
once, to a listener that is not there yet, and so dropped as PROXY_NOT_READY. What *was* allowed stays
allowed until the listener is active. A Service's new route, which protects nothing, waits as the plain
Service. Everything else (denials above all) is written at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from penstock.plan import KernelTables, ListenerKey, PolicyEntry, PolicyKey, ServiceKey, Verdict
from penstock.policy.lookup import look_up


def before_proxy(
    wanted: KernelTables,
    policy_now: Mapping[PolicyKey, PolicyEntry],
    listeners_now: Mapping[ListenerKey, int],
    http_now: Collection[ServiceKey],
) -> KernelTables:
    """`wanted`, held back where the proxy must come first. The other arguments are what is in the kernel."""
    policy = dict(wanted.policy)
    for key, entry in wanted.policy.items():
        if entry.verdict is not Verdict.REDIRECT:
            continue
        was = look_up(policy_now, key.subject, key.direction, key.identity, key.protocol, key.port)
        if was is Verdict.ALLOW:
            policy[key] = replace(entry, verdict=Verdict.ALLOW)
    return replace(
        wanted,
        policy=policy,
        listeners={k: port for k, port in wanted.listeners.items() if listeners_now.get(k) == port},
        services={k: replace(s, http=s.http and k in http_now) for k, s in wanted.services.items()},
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
