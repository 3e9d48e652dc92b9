"""`penstock bench latency`: one node proxy against sidecars, and against no mesh at all.

All arms stand at once on this machine; one is loaded at a time, in turns whose order rotates. The load is a
closed loop (wrk) over kept-alive HTTP/1.1 connections: a figure of latency is one at the rate that its arm
reaches, and says nothing about another rate. Distributions are merged over the
rounds; throughput and processor time are medians of the rounds. `self` is `none` measured again: how far two
measurements of the same thing lie apart.

Between nodes no hop is saved: each node's Envoy takes part, as two sidecars would. `node-remote` is to be
compared with `none-remote`. Other kinds of load are in `latency_protocols` (HTTP/2, gRPC, a connection for
each request) and `latency_rate` (an open loop).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.bench import cpu, histogram
from penstock.bench.errors import BenchError
from penstock.bench.loads import Load, keep_alive
from penstock.bench.memory import resident
from penstock.bench.page import page
from penstock.bench.record import Bar, Result
from penstock.bench.serving import load_cpu, need, server_cpu
from penstock.bench.site import alone, scratch
from penstock.bench.stats import median, turns
from penstock.bench.ways import ARMS, Way, ways

CONNECTIONS, QUICK_CONNECTIONS = (1, 2, 4, 8, 16, 32, 64), (1, 32)
ROUNDS, QUICK_ROUNDS = 5, 3
SECONDS, QUICK_SECONDS = 2, 2
IDLE_SECONDS, QUICK_IDLE_SECONDS = 5.0, 2.0

_BUSY = 0.2
"""Seconds a second that others may take, before what they leave cannot be told from what is measured."""

METHOD = (
    "closed loop (wrk, 1 KB answers from nginx, kept-alive HTTP/1.1), arms in turns; percentiles of the "
    "merged distributions, medians of throughput and processor time; every Envoy with the same workers, HTTP "
    "connection manager, RBAC at the server's side, and every request in its access log by gRPC"
)

Tell = Callable[[str], None]
Samples = Mapping[str, Mapping[int, list[dict[str, Any]]]]
"""Arm → connections → a sample for each round."""
Arms = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Arm → connections → its figures."""


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    need("nginx", "wrk", "iptables-restore")
    connections = QUICK_CONNECTIONS if quick else CONNECTIONS
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    samples: dict[str, dict[int, list[dict[str, Any]]]] = {arm: {c: [] for c in connections} for arm in ARMS}
    with alone(), scratch() as directory, ways(directory, tell) as found:
        idle = cpu.idle(QUICK_IDLE_SECONDS if quick else IDLE_SECONDS)
        tell(
            f"idle, the machine spends {1000 * idle.total:.0f} ms a second"
            + ("; figures of processor time say little now" if idle.total > _BUSY else "")
        )
        for number, order in enumerate(turns(tuple(ARMS), rounds)):
            for c in connections:
                for arm in order:
                    samples[arm][c].append(measure(found[arm], c, seconds, idle))
            tell(f"{number + 1}/{rounds} rounds: " + _so_far(samples, min(connections)))
    settings = {
        "rounds": rounds, "seconds": seconds, "server_cpu": server_cpu(), "load_cpu": load_cpu(),
        "idle_cpu_ms_per_s": round(1000 * idle.total, 1), "arms": dict(ARMS),
    }  # fmt: skip
    return result(samples, settings)


def measure(
    way: Way, connections: int, seconds: int, idle: cpu.Spent, load: Load = keep_alive
) -> dict[str, Any]:
    """One run: a sample."""
    before, proxies, receivers = cpu.machine(), cpu.processes(way.proxies), cpu.processes(way.receivers)
    threads = [cpu.workers(pid) for pid in way.proxies]
    run = load(way.site, way.client, way.server, connections, seconds)
    spent = cpu.machine().since(before).without(idle, run.seconds)
    workers = [
        [round(1000 * (now - earlier[name])) for name, now in sorted(cpu.workers(pid).items())]
        for pid, earlier in zip(way.proxies, threads, strict=True)
    ]
    return {
        "seconds": round(run.seconds, 3),
        "requests": run.requests,
        "errors": run.errors,
        "rps": round(run.rps, 1),
        "user_ms": round(1000 * spent.user),
        "system_ms": round(1000 * spent.system),
        "softirq_ms": round(1000 * spent.softirq),
        "proxies_ms": round(1000 * (cpu.processes(way.proxies) - proxies)),
        "receivers_ms": round(1000 * (cpu.processes(way.receivers) - receivers)),
        "workers_ms": workers,
        "rss_mb": round(sum(resident(pid)["rss_mb"] for pid in way.proxies), 1),
        "histogram_us": run.histogram,
    }


def summary(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of an arm at one number of connections."""
    whole = histogram.merge(sample["histogram_us"] for sample in samples)

    def per_1k(*keys: str) -> float:
        return round(median([1000 * sum(s[k] for k in keys) / s["requests"] for s in samples]), 2)

    return {
        **{
            f"p{name}_us": histogram.percentile(whole, share)
            for name, share in (("50", 50), ("90", 90), ("99", 99), ("999", 99.9))
        },
        "rps": round(median([sample["rps"] for sample in samples]), 1),
        "errors": sum(sample["errors"] for sample in samples),
        "cpu_ms_per_1k": per_1k("user_ms", "system_ms", "softirq_ms"),
        "softirq_ms_per_1k": per_1k("softirq_ms"),
        "kernel_ms_per_1k": per_1k("system_ms", "softirq_ms"),
        "proxy_cpu_ms_per_1k": per_1k("proxies_ms"),
        "log_cpu_ms_per_1k": per_1k("receivers_ms"),
        "rss_mb": median([sample["rss_mb"] for sample in samples]),
    }


def spread(samples: Sequence[Mapping[str, Any]]) -> float:
    """Processor time of the least busy worker over that of the busiest, all rounds together."""
    totals = [sum(worker) for worker in zip(*(sample["workers_ms"][0] for sample in samples), strict=True)]
    return round(min(totals) / max(totals), 3) if totals and max(totals) else 0.0


def result(samples: Samples, settings: Mapping[str, Any]) -> Result:
    """Arms, ratios and bars out of the samples. Raises BenchError if requests failed."""
    arms = {arm: {str(c): summary(runs) for c, runs in loads.items()} for arm, loads in samples.items()}
    failed = {arm: n for arm, loads in arms.items() if (n := sum(load["errors"] for load in loads.values()))}
    if failed:
        raise BenchError(f"requests failed under load: {failed}")
    most = max(next(iter(samples.values())))
    ratios = {**_ratios(arms, str(most)), f"workers at {most}": spread(samples["node"][most])}
    return Result(
        bench="latency",
        method=METHOD,
        settings=settings,
        arms=arms,
        ratios=ratios,
        bars=tuple(_bars(ratios, arms, most, settings["idle_cpu_ms_per_s"] / 1000)),
        raw={
            arm: {
                str(c): [{**run, "histogram_us": histogram.text(run["histogram_us"])} for run in runs]
                for c, runs in loads.items()
            }
            for arm, loads in samples.items()
        },
    )


_PAIRS = (
    ("node", "sidecar"),
    ("node", "sidecar-mtls"),
    ("node-remote", "sidecar"),
    ("node-remote-mtls", "sidecar-mtls"),
)


def _ratios(arms: Arms, most: str) -> dict[str, float]:
    """What is named "added" is less the arm without a mesh over the same distance."""

    def added(arm: str, key: str) -> float:
        base = "none-remote" if "remote" in arm else "none"
        return float(arms[arm]["1"][key] - arms[base]["1"][key])

    def fastest(arm: str) -> float:
        return max(float(load["rps"]) for load in arms[arm].values())

    def share(of: float, against: float) -> float:
        return round(of / against, 4) if against > 0 else 0.0

    found = {}
    for one, other in _PAIRS:
        pair = f"{one} / {other}"
        for key in ("p50", "p99"):
            found[f"added {key}, {pair}"] = share(added(one, f"{key}_us"), added(other, f"{key}_us"))
        found[f"throughput, {pair}"] = share(fastest(one), fastest(other))
        found[f"cpu, {pair}"] = share(arms[one][most]["cpu_ms_per_1k"], arms[other][most]["cpu_ms_per_1k"])
    for arm in ("programs", "self"):
        found[f"throughput, {arm} / none"] = share(fastest(arm), fastest("none"))
        found[f"p50, {arm} / none"] = share(arms[arm]["1"]["p50_us"], arms["none"]["1"]["p50_us"])
    return found


def _bars(ratios: Mapping[str, float], arms: Arms, most: int, idle: float) -> list[Bar]:
    """Noise is what the arm without a mesh differs from itself by, as a share of what the bar is about.

    That of processor time is what the idle machine spends, `idle` seconds a second.
    """
    noise = {what: abs(ratios[f"{what}, self / none"] - 1) for what in ("throughput", "p50")}

    def near(key: str, other: str) -> float:
        own = {arm: float(arms[arm]["1"][f"{key}_us"]) for arm in ("none", "self", other)}
        return abs(own["self"] - own["none"]) / max(own[other] - own["none"], 1)

    limits = (
        ("added p50, node / sidecar", 0.45, False, near("p50", "sidecar")),
        ("added p50, node / sidecar-mtls", 0.35, False, near("p50", "sidecar-mtls")),
        ("added p99, node / sidecar", 0.6, False, near("p99", "sidecar")),
        ("added p99, node / sidecar-mtls", 0.6, False, near("p99", "sidecar-mtls")),
        ("throughput, node / sidecar", 1.9, True, noise["throughput"] * 1.9),
        ("throughput, node / sidecar-mtls", 2.3, True, noise["throughput"] * 2.3),
        ("cpu, node / sidecar-mtls", 0.5, False, idle),
        ("throughput, programs / none", 0.97, True, noise["throughput"]),
        ("p50, programs / none", 1.03, False, noise["p50"]),
        (f"workers at {most}", 0.75, True, 0.0),
    )
    return [
        Bar(name, ratios[name], limit, above=above, noise=round(n, 4)) for name, limit, above, n in limits
    ]


def _so_far(samples: Samples, c: int) -> str:
    return f"p50 at {c}: " + ", ".join(
        f"{arm} {histogram.percentile(histogram.merge(s['histogram_us'] for s in loads[c]), 50)}"
        for arm, loads in samples.items()
    )


COLUMNS = (
    "ARM", "CONNECTIONS", "P50 us", "P90 us", "P99 us", "P99.9 us", "REQUESTS/s",
    "CPU ms/1k", "KERNEL", "PROXIES", "LOGS", "RSS MB",
)  # fmt: skip
_KEYS = (
    "p50_us", "p90_us", "p99_us", "p999_us", "rps",
    "cpu_ms_per_1k", "kernel_ms_per_1k", "proxy_cpu_ms_per_1k", "log_cpu_ms_per_1k", "rss_mb",
)  # fmt: skip


def rows(data: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The table: for each number of connections the arms under each other."""
    arms = data["arms"]
    return [
        (data["settings"]["arms"][arm], c, *(arms[arm][c][key] for key in _KEYS))
        for c in arms["none"]
        for arm in arms
    ]


def reports(data: Mapping[str, Any]) -> dict[str, str]:
    """What is kept beside the figures, by the file's suffix."""
    return {".md": markdown(data), ".html": page(data, COLUMNS, rows(data))}


def markdown(data: Mapping[str, Any]) -> str:
    """Machine and method, the table, the bars."""
    machine = data["machine"]
    cells = [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 1), *rows(data)]
    found = [
        "# One node proxy against sidecars",
        "",
        f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, {machine['envoy']}, "
        f"{data['date']}, load {machine['load'][0]:.1f}.",
        "",
        f"{data['method'][0].upper()}{data['method'][1:]}.",
        "",
        *("| " + " | ".join(map(str, row)) + " |" for row in cells),
        "",
        "Between nodes no hop is saved: each node's Envoy takes part, as two sidecars would.",
        "",
        "| ratio | measured | bar | |",
        "| --- | ---: | ---: | --- |",
    ]
    for bar in data["bars"]:
        verdict = ("held" if bar["held"] else "missed") if bar["clear"] else "too noisy to tell"
        sign = "≥" if bar["above"] else "<"
        found.append(f"| {bar['name']} | {bar['value']:g} | {sign} {bar['limit']:g} | {verdict} |")
    return "\n".join(found) + "\n"
