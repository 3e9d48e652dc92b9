"""Which part of the tables may be written before the proxy is ready. Pure.

Waiting is closed, not open (design §1): what an L7 rule names and was not allowed until now is steered at
once, to a listener that is not there yet, and so dropped as PROXY_NOT_READY. What *was* allowed stays
allowed until the listener is active. A Service's new route, which protects nothing, waits as the plain
Service. Everything else (denials above all) is written at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from penstock.plan import Direction, KernelTables, ListenerKey, PolicyEntry, PolicyKey, ServiceKey, Verdict
from penstock.policy.lookup import look_up

Policy = Mapping[PolicyKey, PolicyEntry]


def before_proxy(
    wanted: KernelTables,
    policy_now: Policy,
    listeners_now: Mapping[ListenerKey, int],
    http_now: Collection[ServiceKey],
) -> KernelTables:
    """`wanted`, held back where the proxy must come first. The other arguments are what is in the kernel."""
    policy = dict(wanted.policy)
    beside = _neighbours((*policy_now, *wanted.policy))
    for key, entry in wanted.policy.items():
        if (
            entry.verdict is not Verdict.REDIRECT
            or _verdict(policy_now, key, key.identity) is not Verdict.ALLOW
        ):
            continue
        policy[key] = replace(entry, verdict=Verdict.ALLOW)
        if _opens(key, beside[key.subject, key.direction], policy, wanted.policy, policy_now):
            policy[key] = entry
    return replace(
        wanted,
        policy=policy,
        listeners={k: port for k, port in wanted.listeners.items() if listeners_now.get(k) == port},
        services={k: replace(s, http=s.http and k in http_now) for k, s in wanted.services.items()},
    )


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
        and _verdict(wanted, key, peer, port) is Verdict.REDIRECT
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
        services={k: replace(s, http=s.http and s.name in routed) for k, s in wanted.services.items()},
    )
