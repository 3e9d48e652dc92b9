"""The kernel's pinned maps as `penstock explain` asks them, one look-up at a time.

The verdict is the map's. Which policy stands behind it is told by the entry's number, which the last
Plan knows; where the kernel holds something else than that Plan, the kernel's word counts, and the policy
is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.dns.patterns import canonical
from penstock.explain.kernel import Judged
from penstock.plan import (
    BackendSet,
    Direction,
    EndpointEntry,
    IpcacheEntry,
    ListenerKey,
    Plan,
    PolicyKey,
    ServiceEntry,
    ServiceKey,
    Verdict,
)
from penstock.policy.labels import WORLD
from penstock.policy.lookup import longest
from penstock.redirect import decode, layout
from penstock.redirect.tables import Tables
from penstock.world import Address, host_network, parse_address


class LiveKernel:
    """`serving` is False while no Envoy is there: then no listener is ready, whatever the map says."""

    live = True

    def __init__(
        self, tables: Tables, plan: Plan, *, serving: bool, recorded: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """`recorded` is what the DNS proxy remembers."""
        self._tables, self._plan, self._serving = tables, plan, serving
        self._recorded = recorded

    def endpoint(self, address: Address) -> EndpointEntry | None:
        raw = self._tables.read("endpoints", layout.address_bytes(address))
        return decode.endpoint(raw) if raw is not None else None

    def who(self, address: Address) -> IpcacheEntry:
        raw = self._tables.read("ipcache", layout.ipcache_key(host_network(address)))
        return decode.ipcache_value(raw) if raw is not None else IpcacheEntry(WORLD, WORLD)

    def service(self, key: ServiceKey) -> ServiceEntry | None:
        raw = self._tables.read("services", layout.service_key(key))
        if raw is None:
            return None
        value = decode.service_value(raw)
        planned = self._plan.kernel.services.get(key)
        number = value.inside[0]
        name = planned.name if planned is not None else f"number {number}:{key.port}/{key.address.version}"
        return ServiceEntry(
            number,
            name,
            self._backends(value.inside),
            value.http,
            gateway=planned is not None and planned.gateway,
            external=value.external,
            outside=self._set(value.outside),
            alias=self._set((value.alias, 1)),
            beyond=self._set(value.beyond),
            affinity=value.affinity,
            maglev=planned.maglev if planned is not None else int(bool(value.flags & layout.SERVICE_MAGLEV)),
        )

    def _set(self, told: tuple[int, int]) -> BackendSet | None:
        return BackendSet(told[0], self._backends(told)) if told[0] else None

    def _backends(self, told: tuple[int, int]) -> tuple[tuple[Address, int], ...]:
        number, count = told
        found = (self._tables.read("backends", layout.backend_key((number, slot))) for slot in range(count))
        return tuple(decode.backend(b) for b in found if b is not None)

    def listener(self, key: ListenerKey) -> int | None:
        raw = self._tables.read("listeners", layout.listener_key(key)) if self._serving else None
        return decode.port(raw) if raw is not None else None

    def names(self, ifindex: int, address: Address) -> tuple[int, ...]:
        return self._tables.names(ifindex, address)

    def learned(self, ifindex: int, name: str) -> tuple[Address, ...]:
        mine = (e for e in self._recorded if e["ifindex"] == ifindex and canonical(e["name"]) == name)
        return tuple(dict.fromkeys(parse_address(e["address"]) for e in mine))

    def policy(self, subject: int, direction: Direction, identity: int, protocol: int, port: int) -> Judged:
        found = []
        proof = dns = False
        for peer in (identity, 0):
            asked = PolicyKey(subject, direction, peer, protocol, port, 16)
            raw = self._tables.read("policy", layout.policy_key(asked))
            if raw is not None:
                found.append((*decode.policy_value(raw), asked))
                proof = proof or decode.policy_entry(raw).authenticated
                dns = dns or decode.policy_entry(raw).dns
        if not found:
            return Judged(Verdict.DENY)
        verdict, rule, asked = max(found, key=lambda each: each[0].strength)
        hit = longest(self._plan.kernel.policy, subject, direction, asked.identity, protocol, port)
        if hit is not None and (hit[1].verdict, layout.rule_number(hit[1])) == (verdict, rule):
            return Judged(verdict, hit[0], hit[1].origins, authenticated=proof, dns=dns, names=hit[1].names)
        return Judged(verdict, asked, known=False, authenticated=proof, dns=dns)
