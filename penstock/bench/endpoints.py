"""`penstock bench endpoints`: 1,000 Services of 10 endpoints each, from cold to warm; one endpoint changed.

The Services get their endpoints from EndpointSlices and are the backends of routes at 10 Gateways, so that
the proxy has a cluster for each. The whole folder is renamed into place before a daemon whose Envoy has
nothing yet; what it took is what the daemon says of that change. Its own part is measured in this process:
from parsed documents to the bytes of the last response, by the same code. Then one endpoint of one Service
changes again and again: from the daemon's publishing to the acknowledgement of all, and from the file. A
process that only sleeps tells at which of these moments the machine itself stood still.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from penstock.bench.errors import BenchError
from penstock.bench.folders import gateway, load, steps_of
from penstock.bench.idle import Idle, lateness
from penstock.bench.memory import resident
from penstock.bench.record import Bar, Result
from penstock.bench.site import DaemonUnderTest, alone, daemon, scratch, site, workload
from penstock.bench.stats import median, summary
from penstock.envoy.resources import Builder
from penstock.manifests.store import Store
from penstock.planner import Planner
from penstock.world import Settings, World
from penstock.xds.delta import DeltaSession
from penstock.xds.snapshot import Snapshot, TypeUrl, resource

SERVICES, ENDPOINTS, GATEWAYS = 1000, 10, 10
CHANGES, QUICK_CHANGES = 200, 30
WARM_BAR, OWN_BAR, ACK_BAR, RSS_BAR = 1.5, 0.3, 5.0, 150.0
_RUNS = 3

Tell = Callable[[str], None]


def slice_(number: int, edition: int = 0) -> str:
    """The endpoints of a Service: addresses that nobody has; the last one follows the `edition`."""
    last = [*range(ENDPOINTS - 1), ENDPOINTS + edition % 100]
    listed = ", ".join(f"{{addresses: [10.{64 + number // 256}.{number % 256}.{n + 1}]}}" for n in last)
    return (
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"
        f"metadata: {{name: s{number}, labels: {{kubernetes.io/service-name: s{number}}}}}\n"
        "addressType: IPv4\nports: [{name: http, port: 8080}]\n"
        f"endpoints: [{listed}]\n"
    )


def _service(number: int) -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\n"
        "spec: {ports: [{name: http, port: 80, targetPort: 8080}]}\n"
    )


def _route(number: int) -> str:
    return (
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n"
        f"metadata: {{name: s{number}}}\n"
        f"spec: {{parentRefs: [{{name: g{number % GATEWAYS}}}], hostnames: [s{number}.example.com], "
        f"rules: [{{backendRefs: [{{name: s{number}, port: 80}}]}}]}}\n"
    )


def files() -> dict[str, str]:
    found = {f"g{n}.yaml": json.dumps(gateway(f"g{n}")) for n in range(GATEWAYS)}
    for number in range(SERVICES):
        found[f"service-{number}.yaml"] = _service(number)
        found[f"slice-{number}.yaml"] = slice_(number)
        found[f"route-{number}.yaml"] = _route(number)
    return found


def own_part() -> dict[str, float]:
    """Seconds from parsed documents to the last byte, by stages, by the clock; and what reading took."""
    started = time.perf_counter()
    documents = Store().apply(files()).documents
    read = time.perf_counter() - started
    gc.collect()
    gc.freeze()
    laps = [time.perf_counter()]
    _, plan = Planner().plan(World("node-a", documents))
    laps.append(time.perf_counter())
    snapshot = Snapshot(dict(Builder(Settings(), resource).build(plan.proxy)))
    laps.append(time.perf_counter())
    session = DeltaSession()
    for kind in (TypeUrl.CDS, TypeUrl.LDS):
        session.receive(discovery_pb2.DeltaDiscoveryRequest(type_url=kind))
    size = sum(len(session.encode(response)) for response in session.publish(snapshot))
    laps.append(time.perf_counter())
    if len(snapshot.of(TypeUrl.EDS)) <= SERVICES:
        raise BenchError(f"only {len(snapshot.of(TypeUrl.EDS))} clusters came of {SERVICES} Services")
    names = ("plan", "resources", "responses")
    found = {name: round(b - a, 4) for name, (a, b) in zip(names, pairwise(laps), strict=True)}
    gc.unfreeze()
    return {"read": round(read, 4), **found, "own": round(laps[-1] - laps[0], 4), "mb": round(size / 1e6, 2)}


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    changes = QUICK_CHANGES if quick else CHANGES
    own = [own_part() for _ in range(_RUNS)]
    tell(f"own part: {min(each['own'] for each in own):.3f} s")
    with (
        alone(),
        scratch() as directory,
        site("endpoints", [workload("client")], directory) as place,
        daemon(place, ()) as running,
    ):
        before = len(running.applied())
        load(running, "all", files())
        cold = max(running.applied()[before:], key=lambda each: each["done"])
        warm = (cold["compile"] + cold["proxy_ready"]) / 1000
        tell(f"all warm after {warm:.2f} s")
        with Idle() as idle:
            steps, whole, spans = _change(running, changes)
        memory = {"daemon": resident(running.pid), "envoy": resident(running.envoy_pid())}
    acks = [round(each["proxy_ready"] - each["built"], 3) for each in steps]
    figures = {name: median([each[name] for each in own]) for name in own[0]}
    ack = summary(acks)
    undisturbed = [acks[n] for n in idle.undisturbed(spans)]
    if not undisturbed:
        raise BenchError("the machine stood still during each change", hint="measure when it is quieter")
    return Result(
        bench="endpoints",
        method=f"{SERVICES} Services of {ENDPOINTS} endpoints each (EndpointSlices): from parsed documents "
        "to warm in Envoy; one endpoint changed: from publishing, and from the file, to its acknowledgement",
        settings={"services": SERVICES, "endpoints": ENDPOINTS, "changes": changes},
        arms={
            "cold": {"own_s": figures["own"], "warm_s": round(warm, 3), "stages": figures, "daemon_ms": cold},
            "one endpoint": {
                "ack_ms": ack,
                "ack_undisturbed_ms": summary(undisturbed),
                "held_up_ms": summary(lateness(idle.held_up) or [0.0]),
                "file_to_ack_ms": summary(whole),
                "daemon": steps_of(steps),
            },
            "memory": memory,
        },
        bars=(
            Bar("all warm in Envoy", round(warm, 3), WARM_BAR, "s"),
            Bar("own part", figures["own"], OWN_BAR, "s"),
            Bar("one endpoint to its acknowledgement, p99", ack["p99"], ACK_BAR, "ms"),
            Bar("memory of the daemon", memory["daemon"]["rss_mb"], RSS_BAR, "MB"),
        ),
        raw={
            "own_s": own,
            "ack_ms": acks,
            "held_up": idle.held_up,
            "spans": spans,
            "file_to_ack_ms": whole,
            "daemon_steps_ms": steps,
        },
    )


def _change(
    running: DaemonUnderTest, changes: int
) -> tuple[list[dict[str, Any]], list[float], list[tuple[float, float]]]:
    """The daemon's steps of each change, ms from its file, and from when to when it was acknowledged."""
    whole = []
    before = len(running.applied())
    for number in range(changes):
        part = running.config / ".slice.part"
        part.write_text(slice_(7, number + 1))
        time.sleep(0.02)
        started = time.monotonic()
        part.rename(running.config / "all" / "slice-7.yaml")
        running.settle()
        whole.append(round((time.monotonic() - started) * 1000, 3))
    steps, ends = running.applied()[before:], running.applied_at()[before:]
    if len(steps) != changes:
        raise BenchError(f"{len(steps)} changes were applied instead of {changes}")
    # The log tells milliseconds.
    spans = [
        (at - (step["done"] - step["built"]) / 1000 - 0.001, at + 0.001)
        for step, at in zip(steps, ends, strict=True)
    ]
    return steps, whole, spans


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    cold, one, memory = (data["arms"][name] for name in ("cold", "one endpoint", "memory"))
    return [
        ("cold: own part", f"{cold['own_s']} s", ""),
        ("cold: all warm", f"{cold['warm_s']} s", ""),
        ("one endpoint: acknowledged", f"{one['ack_ms']['median']} ms", f"{one['ack_ms']['p99']} ms"),
        (
            f"one endpoint, while an idle process was not held up ({one['ack_undisturbed_ms']['samples']})",
            *(f"{one['ack_undisturbed_ms'][k]} ms" for k in ("median", "p99")),
        ),
        ("one endpoint: from the file", *(f"{one['file_to_ack_ms'][k]} ms" for k in ("median", "p99"))),
        *((f"memory: {who}", f"{figures['rss_mb']} MB", "") for who, figures in memory.items()),
    ]


COLUMNS = ("ENDPOINTS", "MEDIAN", "P99")
