"""What the daemon knows, kept for whoever asks: the last World, Plan and outcome, as plain data."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from penstock import __version__, generated, status
from penstock.errors import PenstockError, UsageError
from penstock.explain.findings import findings
from penstock.facts import Facts
from penstock.gateway_status import built_in
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.problem import Problem
from penstock.manifests.registry import served_kind
from penstock.mtls.health import health
from penstock.observe.floods import PERIOD, Floods
from penstock.observe.flows import Directory, Flows
from penstock.observe.origins import Origins
from penstock.observe.reasons import BY_NUMBER
from penstock.plan import Plan
from penstock.policy.labels import DNS, RESERVED
from penstock.policy.membership import members
from penstock.redirect.layout import rule_number
from penstock.status import Transitions
from penstock.world import World
from penstock.xds.watch import SyncState

if TYPE_CHECKING:
    from penstock.apply import Applied
    from penstock.node import Node, Options


def directory(world: World, plan: Plan) -> Directory:
    """Names for the addresses, identities and rules of this moment."""
    everyone = members(world)
    workloads = {
        str(address): f"{m.namespace}/{m.document.key.name}" for m in everyone.all for address in m.addresses
    }
    identities = {number: f"reserved:{name}" for number, name in RESERVED.items()}
    identities |= {
        number: f"cidr:{network}" for network, number in everyone.index.prefixes.identities.items()
    }
    identities[DNS] = "dns"
    rules = {
        rule_number(entry): ", ".join(f"{key} ({origin})" for key, origin in entry.origins)
        for entry in plan.kernel.policy.values()
        if entry.origins
    }
    services = {
        (str(key.address), key.port): entry.name.rpartition(":")[0]
        for key, entry in plan.kernel.services.items()
    }
    return Directory(workloads, identities, rules, services, Origins(world))


class Report:
    def __init__(self, options: Options, node: Node, flows: Flows) -> None:
        self._options = options
        self._node = node
        self._flows = flows
        self._since = time.time()
        self._world = World(options.node, {})
        self._plan = Plan()
        self._applied: Applied | None = None
        self._problems: tuple[Problem, ...] = ()
        self._reviewed: tuple[Problem, ...] | None = ()
        self._failure = "nothing was applied yet"
        self.facts: Callable[[], Facts | None] = lambda: None
        """The stages of what was compiled last."""
        self._transitions = Transitions()
        self.earlier = ""
        """What ran before policies were in force."""
        self._floods = Floods()
        self.dns: dict[str, Any] | None = None
        """What the DNS proxy told of itself, when it was asked last."""

    async def watch(self) -> None:
        """For ever: look whether something comes in masses."""
        while True:
            counted = self._node.tables.counters()
            self._floods.look(time.monotonic(), {number: packets for number, (packets, _) in counted.items()})
            await asyncio.sleep(PERIOD)

    def update(self, world: World, plan: Plan, applied: Applied, problems: tuple[Problem, ...]) -> None:
        self._world, self._plan, self._applied, self._problems = world, plan, applied, problems
        self._reviewed = None
        self._failure = ""

    def failed(self, why: str) -> None:
        """The last change could not be compiled; the state before it stays in force."""
        self._failure = why

    @property
    def settled(self) -> bool:
        return not self._failure and self._applied is not None and self._applied.settled

    @property
    def _all_problems(self) -> tuple[Problem, ...]:
        """What is wrong with each file by itself, and what only all of them show (looked for when asked)."""
        if self._reviewed is None:
            documents = self._world.documents.values()
            self._reviewed = findings(documents, datetime.now(UTC), self.facts())
        return (*self._problems, *self._reviewed)

    def _objects(self) -> list[dict[str, Any]]:
        return status.objects(self._world.documents, self._problems, self._plan, in_force=self.settled)

    def _missing(self, objects: list[dict[str, Any]], wanted: Mapping[ObjectKey, Document]) -> Any:
        """What is not in force: known and being applied, or so new that it has not been looked at."""
        known = self._world.documents
        unseen = [d for key, d in wanted.items() if known.get(key) is not d]
        return [o for o in objects if o["state"] == "applying"] + [
            {
                "kind": d.key.kind,
                "namespace": d.key.namespace,
                "name": d.key.name,
                "file": d.file,
                "line": d.line,
                "generation": d.generation,
                "state": "applying",
                "message": "",
            }
            for d in unseen
        ]

    def status(self, *, busy: bool, documents: Mapping[ObjectKey, Document]) -> dict[str, Any]:
        """Everything that `penstock status` shows. `busy` while a change is being applied, to `documents`."""
        applied = self._applied
        objects = self._objects()
        low, high = self._world.settings.proxy_listen_ports
        errors = [self._failure] if self._failure else list(applied.errors if applied else ())
        return {
            "node": self._options.node,
            "version": __version__,
            "pid": os.getpid(),
            "since": self._since,
            "config": str(self._options.config),
            "policy_enforcement": self._options.settings.policy_enforcement,
            "settled": self.settled and not busy,
            "busy": busy,
            "errors": errors,
            "waiting_for": applied.waiting_for if applied else "",
            "missing": self._missing(objects, documents),
            "objects": objects,
            "problems": [_problem(p) for p in self._all_problems],
            "last_apply_ms": {k: round(v * 1000, 2) for k, v in (applied.seconds if applied else {}).items()},
            "envoy": {
                "pid": self._node.envoy.pid,
                "connected": self._node.server.connected > 0,
                "listeners": len(self._plan.proxy.listeners),
                "nacks": self._node.server.nacks,
                "resources": self._resources(),
            },
            "dns": {
                **self._node.dns.shown(),
                **(self.dns or {}),
            },
            "limits": {
                "listener_ports": [len(self._plan.proxy.listeners), high - low + 1],
                **{
                    f"map {name}": list(sizes)
                    for some in (self._node.tables, self._node.pressure)
                    for name, sizes in some.sizes().items()
                },
            },
            "ran_earlier": self.earlier,
            "overflow": dict(self._node.tables.overflow),
            "pressure": self._node.pressure.warnings(),
            "floods": self._floods.warnings(),
            "counters": self._counters(),
            "requests_not_recorded": self._flows.budget.skipped,
            "certificates": len(self._node.applier.svids),
            "certificate_health": {
                **health(self._node.ca, self._node.issuer, self._node.applier.secrets, time.time()),
                "revocations_in_force": self._node.certificates.enforced,
            },
        }

    def _resources(self) -> dict[str, dict[str, Any]]:
        """Resource type → how many are acknowledged, and each that is not, with its version and error."""
        found: dict[str, dict[str, Any]] = {}
        for client in self._node.server.state():
            for kind, resources in client.types.items():
                synced = [r for r in resources if r.state is SyncState.SYNCED]
                found[kind.rpartition(".")[2]] = {
                    "synced": len(synced),
                    "others": [
                        {
                            "name": r.name,
                            "state": r.state,
                            "version": r.version,
                            "acked": r.acked,
                            "error": r.error,
                        }
                        for r in resources
                        if r.state is not SyncState.SYNCED
                    ],
                }
        return found

    def _counters(self) -> dict[str, dict[str, int]]:
        """By the kernel's reasons; those of the proxy count connections, of which it tells no bytes."""
        refused = {reason: {"packets": n, "bytes": 0} for reason, n in self._flows.refused.items()}
        return refused | {
            BY_NUMBER[number].name if number in BY_NUMBER else str(number): {
                "packets": packets,
                "bytes": size,
            }
            for number, (packets, size) in self._node.tables.counters().items()
        }

    def _edge(self) -> dict[str, str]:
        """Listener of a Gateway → what it waits for now: Envoy may have gone since the last change."""
        serving = self._node.applier.serving if self._node.server.connected else frozenset()
        return {
            name: why or ("" if name in serving else "Envoy is not connected, or has just started")
            for name, why in (self._applied.edge if self._applied else {}).items()
        }

    def get(self, kind: str, object_name: str | None, namespace: str, all_namespaces: bool) -> Any:
        """One object by name, or ``{"items": […]}``. Raises UsageError, PenstockError (not found)."""
        served = served_kind(kind)
        if served is None:
            raise UsageError(f"there is no kind {kind!r}", hint="penstock get --help lists them")
        shown: Mapping[ObjectKey, Any] = {
            key: document
            for key, document in self._world.documents.items()
            if key.kind == served.name and (all_namespaces or key.namespace in ("", namespace))
        }
        default = built_in()
        if served.name == default.key.kind and default.key not in shown:
            shown = {default.key: default, **shown}
        now, edge = time.time(), self._edge()
        views = [
            status.view(
                self._world,
                self._plan,
                document,
                self._transitions,
                now,
                in_force=self.settled,
                edge=edge,
            )
            for key, document in shown.items()
            if object_name in (None, key.name)
        ]
        if served.name == "Service":
            views += [
                made
                for key, made in generated.services(self._world, self._plan)
                if (all_namespaces or key.namespace == namespace) and object_name in (None, key.name)
            ]
        if object_name is None:
            return {"items": views}
        if not views:
            raise PenstockError(
                f"no {served.name} {namespace}/{object_name}", hint=f"penstock get {kind} -A lists all"
            )
        return views[0]


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "severity": problem.severity,
        "code": problem.code,
        "file": problem.file,
        "line": problem.line,
        "kind": problem.kind,
        "namespace": problem.namespace,
        "name": problem.name,
        "field": problem.field,
        "message": problem.message,
        "hint": problem.hint,
        "text": str(problem),
    }
