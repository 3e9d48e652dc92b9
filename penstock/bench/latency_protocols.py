"""`penstock bench latency-protocols`: the node's Envoy against sidecars under other kinds of HTTP.

The same arms, servers and rules as `bench latency`, at one number of connections: HTTP/2, gRPC, and HTTP/1.1
with a connection for each request, where the set-up of the connection is what costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from penstock.bench import cpu
from penstock.bench.errors import BenchError
from penstock.bench.latency import measure, summary
from penstock.bench.loads import KINDS
from penstock.bench.record import Result
from penstock.bench.serving import need
from penstock.bench.site import alone, scratch
from penstock.bench.stats import turns
from penstock.bench.ways import ARMS, ON_ONE_NODE, ways

CONNECTIONS = 8
ROUNDS, QUICK_ROUNDS = 5, 2
SECONDS, QUICK_SECONDS = 2, 1

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    need("nginx", "wrk", "h2load", "iptables-restore")
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {a: {k: [] for k in KINDS} for a in ON_ONE_NODE}
    with alone(), scratch() as directory, ways(directory, tell, ON_ONE_NODE) as found:
        idle = cpu.idle(float(seconds))
        for number, order in enumerate(turns(ON_ONE_NODE, rounds)):
            for kind, load in KINDS.items():
                for arm in order:
                    samples[arm][kind].append(measure(found[arm], CONNECTIONS, seconds, idle, load))
            tell(f"{number + 1}/{rounds} rounds")
    arms = {arm: {kind: summary(runs) for kind, runs in kinds.items()} for arm, kinds in samples.items()}
    failed = {f"{arm}, {k}": n for arm, kinds in arms.items() for k, s in kinds.items() if (n := s["errors"])}
    if failed:
        raise BenchError(f"requests failed under load: {failed}")
    return Result(
        bench="latency-protocols",
        method=f"closed loop at {CONNECTIONS} connections, 1 KB answers, arms in turns; as latency",
        settings={"rounds": rounds, "seconds": seconds, "connections": CONNECTIONS},
        arms=arms,
        ratios={
            f"throughput, {kind}, node / {other}": round(
                arms["node"][kind]["rps"] / arms[other][kind]["rps"], 4
            )
            for kind in KINDS
            for other in ("sidecar", "sidecar-mtls")
        },
        raw={
            arm: {
                kind: [{k: v for k, v in run.items() if k != "histogram_us"} for run in runs]
                for kind, runs in kinds.items()
            }
            for arm, kinds in samples.items()
        },
    )


COLUMNS = ("LOAD", "ARM", "P50 us", "P99 us", "REQUESTS/s", "CPU ms/1k", "PROXIES")
_KEYS = ("p50_us", "p99_us", "rps", "cpu_ms_per_1k", "proxy_cpu_ms_per_1k")


def rows(data: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The table: for each kind of load the arms under each other."""
    return [
        (kind, ARMS[arm], *(kinds[kind][key] for key in _KEYS))
        for kind in KINDS
        for arm, kinds in data["arms"].items()
    ]
