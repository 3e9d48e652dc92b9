"""What is in the kernel and behind it, in words, as plain data for the command line.

Endpoints, Services, connections and entries are read from the maps; names, rules and labels come from the
last compilation. A number that it does not know is shown as it is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from penstock.explain.model import PROTOCOLS
from penstock.explain.parties import Parties, name_of
from penstock.explain.requests import shown
from penstock.explain.sides import Origins, Sides
from penstock.facts import Facts
from penstock.inspect.live import LiveKernel
from penstock.plan import AUDIT_VIEW, Direction, Plan, Verdict
from penstock.policy.entries import ANY
from penstock.policy.identities import Member
from penstock.policy.rules import Port, Rule
from penstock.redirect import decode, layout
from penstock.redirect.shapes import SHAPES
from penstock.redirect.tables import Tables
from penstock.world import is_host

Json = dict[str, Any]
_PROTOCOLS = {number: name for name, number in PROTOCOLS.items()}


def protocol(number: int) -> str:
    return _PROTOCOLS.get(number, str(number)) if number else "any"


def _rules(origins: Origins) -> list[Json]:
    return [{"policy": str(key), "file": o.file, "line": o.line, "field": o.rule} for key, o in origins]


def _ports(first: int, last: int) -> str:
    return "any" if (first, last) == (0, 65535) else str(first) if first == last else f"{first}-{last}"


class Views:
    """Of one moment: the maps as they are when a method is called, and one Plan with its Facts."""

    def __init__(self, tables: Tables, facts: Facts, plan: Plan) -> None:
        self._tables, self._facts, self._plan = tables, facts, plan
        self._parties = Parties(facts)
        self._sides = Sides(facts, LiveKernel(tables, plan, serving=True))

    # --- endpoints ------------------------------------------------------------------------------------

    def endpoints(self) -> list[Json]:
        """Local workloads that the kernel knows, one for each address."""
        counts: Counter[tuple[int, Direction]] = Counter()
        for raw in self._tables.entries("policy"):
            key = decode.policy_key(raw)
            counts[key.subject, key.direction] += 1
        found = []
        for raw, value in self._tables.entries("endpoints").items():
            entry, address = decode.endpoint(value), layout.address_of(raw)
            member = self._parties.at(address)
            found.append(
                {
                    "name": name_of(member) if member else "",
                    "address": str(address),
                    "identity": entry.identity,
                    "subject": entry.subject,
                    "interface": self._interface(member),
                    "ifindex": entry.ifindex,
                    "meshMode": entry.mode.name,
                    **{
                        d.name.lower(): {
                            "defaultDeny": self._closed(member, d),
                            "entries": counts[entry.subject, d],
                        }
                        for d in Direction
                    },
                }
            )
        return sorted(found, key=lambda e: (e["name"], e["address"]))

    @staticmethod
    def _interface(member: Member | None) -> str:
        return member.attachment.interface if member and member.attachment else ""

    def _closed(self, member: Member | None, direction: Direction) -> bool:
        return member is not None and self._facts.stances.of(direction)[member.subject].default_deny

    def endpoint(self, workload: str) -> Json:
        """One workload, with what selects it. Raises UnknownPartyError."""
        member = self._parties.workload(workload)
        own = [e for e in self.endpoints() if e["name"] == name_of(member)]
        return {
            "name": name_of(member),
            "addresses": [e["address"] for e in own] or list(map(str, member.addresses)),
            "inKernel": bool(own),
            "identity": member.identity,
            "serviceAccount": member.service_account,
            "spiffeId": self._facts.spiffe_id(member),
            "labels": dict(member.labels),
            "ports": [{"name": n, "port": p, "protocol": t} for n, p, t in member.ports],
            "node": self._sides.node_of(member),
            "meshMode": self._facts.modes.of(member).name,
            "policies": [
                {"policy": str(document.key), "file": document.file, "line": document.line}
                for document, specs in self._facts.specs()
                if any(spec.selects(member.labels) for spec in specs)
            ],
            "kernel": own,
        }

    # --- identities -----------------------------------------------------------------------------------

    def identities(self) -> list[Json]:
        """Every identity, with the addresses for which the kernel knows it."""
        addresses: dict[int, list[str]] = {}
        for raw, value in self._tables.entries("ipcache").items():
            network = decode.ipcache_key(raw)
            text = str(network.network_address if is_host(network) else network)
            addresses.setdefault(decode.ipcache_value(value).identity, []).append(text)
        return [
            {
                "identity": number,
                "name": "" if number in self._facts.by_identity else self._sides.peer(number),
                "workloads": sorted(name_of(m) for m in self._facts.by_identity.get(number, ())),
                "labels": dict(labels),
                "addresses": sorted(addresses.get(number, ())),
            }
            for number, labels in sorted(self._facts.members.labels.items())
        ]

    # --- Services -------------------------------------------------------------------------------------

    def services(self) -> list[Json]:
        """Every Service port that the kernel translates or steers."""
        kernel = LiveKernel(self._tables, self._plan, serving=True)
        found = []
        for raw in self._tables.entries("services"):
            key = decode.service_key(raw)
            entry = kernel.service(key)
            if entry is None:
                continue
            found.append(
                {
                    "name": entry.name.rpartition(":")[0],
                    "address": str(key.address),
                    "port": key.port,
                    "protocol": protocol(key.protocol),
                    "number": entry.service_id,
                    "routed": entry.http,
                    "external": entry.external,
                    "algorithm": "maglev" if entry.maglev else "random",
                    "affinitySeconds": entry.affinity,
                    "outside": [
                        {"address": str(a), "port": p, "name": self._parties.named(a)}
                        for a, p in (entry.outside.backends if entry.outside else ())
                    ],
                    "beyond": [
                        {"address": str(a), "port": p, "name": self._parties.named(a)}
                        for a, p in (entry.beyond.backends if entry.beyond else ())
                    ],
                    "backends": [
                        {"address": str(a), "port": p, "name": self._parties.named(a)}
                        for a, p in entry.backends
                    ],
                }
            )
        return sorted(found, key=lambda s: (s["name"], s["address"], s["port"]))

    # --- policies -------------------------------------------------------------------------------------

    def policies(self) -> list[Json]:
        """Every policy, whom it selects, and how many entries of this node's kernel come from it."""
        entries: Counter[str] = Counter()
        for each in self._kernel_entries():
            for rule in {rule["policy"] for rule in each["rules"]}:
                entries[rule] += 1
        found = []
        for document, specs in self._facts.specs():
            index = self._facts.members.index
            chosen = frozenset().union(*(spec.selects.identities(index) for spec in specs))
            selected = [m for identity in chosen for m in self._facts.by_identity.get(identity, ())]
            closes = {d.name.lower() for spec in specs for d in spec.default_deny}
            found.append(
                {
                    "policy": str(document.key),
                    "namespace": document.key.namespace,
                    "name": document.key.name,
                    "file": document.file,
                    "line": document.line,
                    "selects": sorted(map(name_of, selected)),
                    "defaultDeny": sorted(closes),
                    "rules": sum(len(spec.rules) for spec in specs),
                    "audit": any(spec.audit for spec in specs),
                    "entries": entries[str(document.key)],
                }
            )
        return found

    def policy(self, workload: str) -> Json:
        """What the policies say about one workload. Raises UnknownPartyError."""
        member = self._parties.workload(workload)
        found: Json = {"endpoint": name_of(member), "identity": member.identity}
        for direction in Direction:
            stance = self._facts.stances.of(direction)[member.subject]
            found[direction.name.lower()] = {
                "defaultDeny": stance.default_deny,
                "closedBy": _rules(self._sides.closers(member, direction)),
                "rules": [self._rule(rule) for rule in stance.rules],
                "audit": self._in_audit(member, direction),
            }
        return found

    def _in_audit(self, member: Member, direction: Direction) -> list[Json]:
        """The rules of policies in audit, which only tell."""
        return [
            self._rule(rule)
            for _, specs in self._facts.specs()
            for spec in specs
            if spec.audit and spec.selects(member.labels)
            for rule in spec.rules
            if rule.direction is direction
        ]

    def _rule(self, rule: Rule) -> Json:
        peers = None if rule.peers is None else sorted(self._facts.members.meant(rule.peers))
        return {
            "action": "deny" if rule.deny else "allow",
            "peers": None if peers is None else [self._sides.peer(p) for p in peers],
            "ports": None if rule.ports is None else [_port(p) for p in rule.ports],
            "http": None if rule.http is None else [shown(m) for m in rule.http],
            "serverNames": None if rule.server_names is None else list(rule.server_names),
            "authenticated": rule.authenticated,
            **_rules(((rule.policy, rule.origin),))[0],
        }

    def kernel_policy(self, workload: str) -> list[Json]:
        """The kernel's entries of one local workload. Raises UnknownPartyError."""
        member = self._parties.workload(workload)
        subjects = {
            decode.endpoint(value).subject
            for raw, value in self._tables.entries("endpoints").items()
            if layout.address_of(raw) in member.addresses
        }
        return self._kernel_entries(subjects)

    def _kernel_entries(self, subjects: Iterable[int] | None = None) -> list[Json]:
        """What stands in the map, or of these subjects."""
        planned = self._plan.kernel.policy
        entries = {decode.policy_key(raw): value for raw, value in self._tables.entries("policy").items()}
        found = []
        for key in sorted(entries):
            audit = bool(key.subject & AUDIT_VIEW)
            if subjects is not None and key.subject & ~AUDIT_VIEW not in subjects:
                continue
            verdict, number = decode.policy_value(entries[key])
            entry = planned.get(key)
            known = entry is not None and layout.rule_number(entry) == number
            last = key.port + (1 << (16 - key.port_bits)) - 1
            found.append(
                {
                    "subject": key.subject & ~AUDIT_VIEW,
                    "audit": audit,
                    "direction": key.direction.name.lower(),
                    "peer": "any peer" if key.identity == ANY else self._sides.peer(key.identity),
                    "identity": key.identity,
                    "protocol": protocol(key.protocol),
                    "ports": _ports(key.port, last),
                    "verdict": Verdict(verdict).name,
                    "authenticated": decode.policy_entry(entries[key]).authenticated,
                    "rules": _rules(entry.origins) if entry is not None and known else [],
                }
            )
        return found

    # --- the maps themselves --------------------------------------------------------------------------

    def maps(self) -> list[Json]:
        """How full each map is."""
        return [
            {
                "map": name,
                "entries": len(self._tables.entries(name)),
                "capacity": shape.entries,
                "keyBytes": shape.key,
                "valueBytes": shape.value,
            }
            for name, shape in SHAPES.items()
            if name not in ("counters", "config", "blocklist")
        ]

    def conntrack(self, limit: int) -> list[Json]:
        """Up to `limit` connections that the kernel remembers, the latest first."""
        now = time.monotonic_ns()
        found = []
        for key, value in self._tables.entries("conntrack", limit).items():
            c = decode.connection(key, value)
            source, destination = self._parties.at(c.source), self._parties.at(c.destination)
            verdict = Verdict(c.verdict).name if c.verdict else "NONE"
            found.append(
                {
                    "protocol": protocol(c.protocol),
                    "source": {
                        "address": str(c.source),
                        "port": c.source_port,
                        "name": name_of(source) if source else "",
                    },
                    "destination": {
                        "address": str(c.destination),
                        "port": c.destination_port,
                        "name": name_of(destination) if destination else "",
                    },
                    "verdict": verdict,
                    "proxyPort": c.proxy_port,
                    "current": c.epoch == self._tables.epoch,
                    "idleSeconds": round(max(now - c.seen, 0) / 1e9, 3),
                }
            )
        return sorted(found, key=lambda c: c["idleSeconds"])


def _port(port: Port) -> str:
    return f"{protocol(port.protocol)} {port.name or _ports(port.first, port.last)}"
