"""The kernel's tables of two Plans, and in words what differs. Pure.

What a policy entry came from is compared by object and field, not by line: a comment more in a file
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from penstock.explain.kernel import Planned
from penstock.explain.model import PROTOCOLS
from penstock.explain.parties import Parties, name_of
from penstock.explain.sides import Sides
from penstock.facts import Facts
from penstock.plan import (
    EndpointEntry,
    IpcacheEntry,
    ListenerKey,
    MeshMode,
    Plan,
    PolicyEntry,
    PolicyKey,
    ServiceEntry,
    ServiceKey,
)
from penstock.policy.entries import ANY
from penstock.policy.labels import RESERVED
from penstock.policy.server_names import words

_NAMES = {number: name for name, number in PROTOCOLS.items()}


class _Words:
    """Names for the numbers of one side's tables."""

    def __init__(self, facts: Facts, plan: Plan) -> None:
        self._facts = facts
        self._parties = Parties(facts)
        self._sides = Sides(facts, Planned(plan.kernel))

    def peer(self, identity: int) -> str:
        members = self._facts.by_identity.get(identity)
        if members:
            names = sorted({name_of(m) for m in members})
            return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        return f"reserved:{RESERVED[identity]}" if identity in RESERVED else self._sides.peer(identity)

    def subject(self, subject: int) -> str:
        return self.peer(subject // 256)

    def policy(self, key: PolicyKey) -> str:
        peer = "anyone" if key.identity == ANY else self.peer(key.identity)
        way = f"{'from' if key.direction == 0 else 'to'} {peer}"
        if not key.protocol:
            return f"{self.subject(key.subject)} {key.direction.name.lower()} {way}"
        last = key.port + (1 << (16 - key.port_bits)) - 1
        ports = (
            "any port" if not key.port_bits else f"{key.port}" if last == key.port else f"{key.port}-{last}"
        )
        named = _NAMES.get(key.protocol, str(key.protocol))
        return f"{self.subject(key.subject)} {key.direction.name.lower()} {way} {named} {ports}"

    @staticmethod
    def verdict(entry: PolicyEntry) -> str:
        by = ", ".join(f"{key} {origin.rule}".strip() for key, origin in entry.origins)
        names = f" {words(entry.names)}" if entry.names else ""
        return entry.verdict.name + names + (f" by {by}" if by else "")

    @staticmethod
    def service(key: ServiceKey) -> str:
        return f"{key.address}:{key.port}/{_NAMES.get(key.protocol, key.protocol)}"

    def backends(self, entry: ServiceEntry) -> str:
        if entry.gateway:
            return f"{entry.name} is Envoy's own address and port"
        where = ", ".join(f"{self._parties.named(a) or a}:{p}" for a, p in entry.backends) or "nobody"
        return f"{entry.name} {'steered to Envoy' if entry.http else 'translated'}, backends {where}"

    def listener(self, key: ListenerKey) -> str:
        to = f" to {self.peer(key.destination)}" if key.destination else ""
        return f"{key.kind.name} for {self.peer(key.source_class)}{to}"

    def endpoint(self, entry: EndpointEntry) -> str:
        return f"{self.peer(entry.identity)} (identity {entry.identity}), mesh TLS {entry.mode.name.lower()}"

    def identity(self, entry: IpcacheEntry) -> str:
        mode = f", mesh TLS {entry.mode.name.lower()}" if entry.mode is not MeshMode.OFF else ""
        return f"{self.peer(entry.identity)} (identity {entry.identity}){mode}"


def kernel_changes(
    before_facts: Facts, before: Plan, after_facts: Facts, after: Plan
) -> list[dict[str, Any]]:
    """Each entry that would come, go or change: its table, and what it says before and after."""
    old, new = _Words(before_facts, before), _Words(after_facts, after)
    a, b = before.kernel, after.kernel
    found: list[dict[str, Any]] = []

    def compare(
        table: str,
        first: Mapping[Any, Any],
        second: Mapping[Any, Any],
        key: Callable[[_Words, Any], str],
        value: Callable[[_Words, Any], str],
        same: Callable[[Any], Hashable] = lambda entry: entry,
    ) -> None:
        for each, was, is_ in _changed(first, second, same):
            found.append(
                {
                    "change": "added" if was is None else "removed" if is_ is None else "changed",
                    "table": table,
                    "entry": key(old if is_ is None else new, each),
                    "before": None if was is None else value(old, was),
                    "after": None if is_ is None else value(new, is_),
                }
            )

    compare("endpoints", a.endpoints, b.endpoints, lambda _, k: str(k), _Words.endpoint)
    compare("ipcache", a.ipcache, b.ipcache, lambda _, k: str(k), _Words.identity)
    compare("policy", a.policy, b.policy, _Words.policy, lambda _, e: _Words.verdict(e), _judgement)
    compare("services", a.services, b.services, lambda _, k: _Words.service(k), _Words.backends)
    compare("listeners", a.listeners, b.listeners, _Words.listener, lambda _, port: f"port {port}")
    own, theirs = (dict.fromkeys(tables.addresses, "on the node's lo") for tables in (a, b))
    compare("addresses", own, theirs, lambda _, k: str(k), lambda _, text: text)
    compare("routes", a.routes, b.routes, lambda _, k: str(k), lambda _, via: f"via {via}")
    return found


def _judgement(entry: PolicyEntry) -> Hashable:
    return entry.verdict, entry.names, tuple((key, origin.rule) for key, origin in entry.origins)


def _changed(
    first: Mapping[Any, Any], second: Mapping[Any, Any], same: Callable[[Any], Hashable]
) -> Iterator[tuple[Any, Any, Any]]:
    for key in (*first, *(k for k in second if k not in first)):
        was, is_ = first.get(key), second.get(key)
        if was is None or is_ is None or same(was) != same(is_):
            yield key, was, is_
