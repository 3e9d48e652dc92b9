"""`penstock bench compile`: a mesh of 10,000 workloads, compiled whole, and one label of it changed.

10,000 workloads of 500 identities, 100 of them on this node; 1,000 policies, each selecting one app and
allowing three peers on two ports. What is timed is the daemon's own way from the text of one manifest to the
kernel's maps: reading, numbers, compilation, what waits for the proxy, and the writes into real maps. Envoy
and namespaces take no part. The process that measures does what the daemon does with it, so its memory is
shown beside.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from penstock.bench.memory import resident
from penstock.bench.record import Bar, Result
from penstock.bench.site import scratch
from penstock.manifests.store import Store
from penstock.plan import Plan
from penstock.planner import Planner
from penstock.redirect.datapath import Datapath, take_down
from penstock.redirect.stage import InKernel, before_proxy
from penstock.redirect.tables import Tables
from penstock.world import Attachment, Link, WorkloadName, World

WORKLOADS, IDENTITIES, LOCAL, POLICIES = 10_000, 500, 100, 1_000
CHANGES, QUICK_CHANGES = 200, 20
COMPILE_BAR, CHANGE_BAR, RSS_BAR = 3.0, 20.0, 300.0
CHANGED = 7
"""The workload whose label changes: one of this node."""

Tell = Callable[[str], None]


def address(number: int) -> IPv4Address:
    return IPv4Address("10.32.0.1") + number


def workload(number: int, app: int) -> str:
    """One manifest; the first `LOCAL` are on this node."""
    local = number < LOCAL
    node = "node-a" if local else f"node-{number % 9}"
    netns = f", netns: /run/netns/w{number}" if local else ""
    return (
        "apiVersion: penstock.dev/v1alpha1\nkind: Workload\n"
        f"metadata: {{name: w{number}, labels: {{app: a{app}}}}}\n"
        f"spec: {{node: {node}, addresses: [{address(number)}]{netns}}}\n"
    )


def policy(number: int) -> str:
    app = number % IDENTITIES
    peers = ", ".join(f"{{matchLabels: {{app: a{(app + step) % IDENTITIES}}}}}" for step in (1, 2, 3))
    ports = ", ".join(f"{{port: {first + number}, protocol: TCP}}" for first in (1000, 3000))
    return (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n"
        f"metadata: {{name: p{number}}}\n"
        f"spec: {{endpointSelector: {{matchLabels: {{app: a{app}}}}}, "
        f"ingress: [{{fromEndpoints: [{peers}], toPorts: [{{ports: [{ports}]}}]}}]}}\n"
    )


class Mesh:
    """What the daemon does with a change, without Envoy and without namespaces."""

    def __init__(self, tables: Tables) -> None:
        self._store, self._planner, self._tables = Store(), Planner(), tables
        self._world = World("node-a", {})
        self._attachments: dict[WorkloadName, Attachment] = {
            ("default", f"w{n}"): Attachment(
                100 + n, (Link(10 + n, f"veth{n}", b"\2\0\0\0\0\1", (address(n),)),)
            )
            for n in range(LOCAL)
        }

    def read(self, files: dict[str, str]) -> None:
        documents = self._store.apply(files).documents
        self._world = World("node-a", documents, self._attachments, allocations=self._world.allocations)

    def compile(self) -> Plan:
        self._world, plan = self._planner.plan(self._world)
        return plan

    def write(self, plan: Plan) -> int:
        """What is written before the proxy is asked: the number of entries."""
        tables = self._tables
        now = InKernel(tables.policy(), tables.listeners(), tables.http_services(), tables.ipcache())
        return tables.apply(before_proxy(plan.kernel, now))


@contextmanager
def _tables(directory: Path) -> Iterator[Tables]:
    pins = directory / "bpf"
    try:
        datapath = Datapath(pins)
        tables = Tables(pins, (20000, 31999), host_access=True)
        yield tables
        tables.close()
        datapath.close()
    finally:
        take_down(pins)


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    changes = QUICK_CHANGES if quick else CHANGES
    raw: dict[str, list[float]] = {"read": [], "compile": [], "write": []}
    processor: list[float] = []
    files = {f"w{n}.yaml": workload(n, n % IDENTITIES) for n in range(WORKLOADS)}
    files |= {f"p{n}.yaml": policy(n) for n in range(POLICIES)}
    with scratch() as directory, _tables(directory) as tables:
        mesh = Mesh(tables)
        tell(f"{len(files)} manifests")
        first = _timed(lambda: mesh.read(files))
        plans: list[Plan] = []
        full = _timed(lambda: plans.append(mesh.compile()))
        written = _timed(lambda: mesh.write(plans.pop()))
        entries = sum(count for count, _ in tables.sizes().values())
        gc.collect()
        gc.freeze()
        for number in range(changes):
            busy = time.process_time()
            text = workload(CHANGED, (CHANGED + 1 + number) % IDENTITIES)
            raw["read"].append(_timed(partial(mesh.read, {f"w{CHANGED}.yaml": text})))
            raw["compile"].append(_timed(lambda: plans.append(mesh.compile())))
            raw["write"].append(_timed(lambda: mesh.write(plans.pop())))
            processor.append(time.process_time() - busy)
        memory = resident(os.getpid())["rss_mb"]
    totals = [sum(each) * 1000 for each in zip(*raw.values(), strict=True)]
    median = statistics.median(totals)
    arms: dict[str, dict[str, Any]] = {
        "whole": {"read_s": round(first, 3), "compile_s": round(full, 3), "write_s": round(written, 3)},
        "one label": {
            **{f"{name}_ms": round(statistics.median(each) * 1000, 2) for name, each in raw.items()},
            "median_ms": round(median, 2),
            "processor_ms": round(statistics.median(processor) * 1000, 2),
            "p99_ms": round(sorted(totals)[int(len(totals) * 0.99) - 1], 2),
        },
        "process": {"rss_mb": memory, "entries": entries},
    }
    return Result(
        bench="compile",
        method="from manifests to the kernel's maps: all at once, and one workload's label changed to "
        "another that is in use; times by the wall clock",
        settings={
            "workloads": WORKLOADS,
            "identities": IDENTITIES,
            "local": LOCAL,
            "policies": POLICIES,
            "changes": changes,
        },
        arms=arms,
        bars=(
            Bar("the whole mesh compiled", arms["whole"]["compile_s"], COMPILE_BAR, "s"),
            Bar("one label, from text to kernel, median", arms["one label"]["median_ms"], CHANGE_BAR, "ms"),
            Bar("memory of the process", memory, RSS_BAR, "MB"),
        ),
        raw={
            name: [round(s * 1000, 3) for s in each]
            for name, each in (raw | {"processor": processor}).items()
        },
    )


def _timed(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


COLUMNS = ("COMPILE", "READ", "COMPILE", "WRITE", "ALL", "PROCESSOR")


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    whole, label = data["arms"]["whole"], data["arms"]["one label"]
    total = whole["read_s"] + whole["compile_s"] + whole["write_s"]
    return [
        (
            "whole (s)",
            whole["read_s"],
            whole["compile_s"],
            whole["write_s"],
            round(total, 3),
            "",
        ),
        (
            "one label (ms)",
            label["read_ms"],
            label["compile_ms"],
            label["write_ms"],
            label["median_ms"],
            label["processor_ms"],
        ),
    ]
