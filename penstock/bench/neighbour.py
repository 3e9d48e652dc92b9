"""`penstock bench neighbour`: one workload floods the proxy, another's latency is watched.

The watched client asks at a fixed rate (open loop: a stall is paid for by all whom it held up). The other
one, from a workload of its own to a server of its own, asks over many connections as fast as it is answered.
Arms in turns: the node's Envoy without a flood, flooded, and flooded with `--proxy-rate`; two pairs of
sidecars without and with one.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.bench import histogram, page
from penstock.bench.errors import BenchError
from penstock.bench.loads import at_rate
from penstock.bench.record import Bar, Result
from penstock.bench.serving import HTTP_PORT, need, read_wrk
from penstock.bench.site import Site, alone, daemon, scratch, site, workload
from penstock.bench.stats import median, turns
from penstock.bench.ways import Way, http_rule, sidecars, web_server

RATE = 200
CONNECTIONS = 4
"""Of the watched client, whose requests are then due one by one, 5 ms apart and more."""
FLOOD = 64
"""Connections that the other one keeps busy."""
LIMIT = 1000
"""--proxy-rate of the arm with limits: packets a second for each workload."""
ROUNDS, QUICK_ROUNDS = 5, 2
SECONDS, QUICK_SECONDS = 5, 2
MOST = 2.0

ARMS: Mapping[str, str] = {
    "node-alone": "the node's Envoy, nobody else asks",
    "node-flooded": "another workload floods it",
    "node-limited": f"the same, --proxy-rate {LIMIT}",
    "sidecar-alone": "two sidecars, nobody else asks",
    "sidecar-flooded": "another pair is flooded",
}

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Arm:
    """`flood`: client and server, where there is one."""

    site: Site
    client: str
    server: str
    flood: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What the watched client saw, and the requests a second that the flood got answered."""

    run: histogram.Run
    flood_rps: float


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    need("nginx", "wrk", "h2load", "iptables-restore")
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    samples: dict[str, list[Sample]] = {arm: [] for arm in ARMS}
    with alone(), scratch() as directory, _arms(directory, tell) as found:
        for number, order in enumerate(turns(tuple(ARMS), rounds)):
            for arm in order:
                samples[arm].append(_sample(found[arm], seconds))
            last = ", ".join(f"{a} {histogram.percentile(samples[a][-1].run.histogram, 99)}" for a in ARMS)
            tell(f"{number + 1}/{rounds} rounds: p99 in us: {last}")
    return result(
        samples, {"rounds": rounds, "seconds": seconds, "rate": RATE, "flood": FLOOD, "limit": LIMIT}
    )


@contextmanager
def _arms(directory: Path, tell: Tell) -> Iterator[dict[str, Arm]]:
    with ExitStack() as stack:
        found = {}
        for lab, options in (("free", ()), ("paced", ("--proxy-rate", str(LIMIT)))):
            tell(f"a node with its daemon, {' '.join(options) or 'no limit'}")
            members = [workload(who) for who in ("client", "other")]
            members += [web_server(directory, lab, name) for name in ("watched", "flooded")]
            place = stack.enter_context(site(lab, members, directory))
            rules = [http_rule("watched", "client"), http_rule("flooded", "other")]
            stack.enter_context(daemon(place, rules, options=options))
            arm = Arm(place, "client", "watched", ("other", "flooded"))
            if options:
                found["node-limited"] = arm
            else:
                found |= {"node-flooded": arm, "node-alone": Arm(place, "client", "watched")}
        tell("sidecars")
        ways = sidecars(stack, directory)
        pair, other = ways["sidecar"], ways["sidecar-mtls"]
        found["sidecar-alone"] = Arm(pair.site, pair.client, pair.server)
        found["sidecar-flooded"] = Arm(pair.site, pair.client, pair.server, _ends(other))
        yield found


def _ends(way: Way) -> tuple[str, str]:
    return way.client, way.server


def _sample(arm: Arm, seconds: int) -> Sample:
    """One watched run, with the flood around it. Raises BenchError if a request of the watched one failed."""
    with _flooding(arm, seconds) as answered:
        found = at_rate(RATE, arm.site, arm.client, arm.server, CONNECTIONS, seconds)
    if found.errors:
        raise BenchError(f"{found.errors} of {found.requests} requests of the watched client failed")
    return Sample(found, answered[0] if answered else 0.0)


@contextmanager
def _flooding(arm: Arm, seconds: int) -> Iterator[list[float]]:
    """Inside, the other workload floods; afterwards the list holds the answers a second that it got."""
    answered: list[float] = []
    if arm.flood is None:
        yield answered
        return
    client, name = arm.flood
    url = f"http://{arm.site.address(name)}:{HTTP_PORT}/"
    # Longer than what is watched: it is ended as a user would end it, and tells what it has by then.
    argv = ["wrk", "-t1", f"-c{FLOOD}", f"-d{seconds * 3 + 10}s", "--latency", url]
    log = arm.site.directory / "flood.out"
    with log.open("w") as output:
        process = arm.site.run_in(client, argv, stdout=output, stderr=output)
        try:
            # Under way once it is answered: a first request of our own stands behind it in the queue.
            at_rate(RATE, arm.site, arm.client, arm.server, CONNECTIONS, 1)
            yield answered
            if process.poll() is not None:
                raise BenchError(f"the flood ended by itself: {log.read_text()[-500:]}")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
    answered.append(read_wrk(log.read_text()).rps)


def result(samples: Mapping[str, list[Sample]], settings: Mapping[str, Any]) -> Result:
    """Figures for each arm, and what a flood does to the watched client's 99th percentile."""
    arms = {arm: _figures(found) for arm, found in samples.items()}

    def ratio(arm: str, base: str) -> float:
        return round(float(arms[arm]["p99_us"] / max(arms[base]["p99_us"], 1)), 4)

    ratios = {
        "p99, limited / alone": ratio("node-limited", "node-alone"),
        "p99, flooded / alone": ratio("node-flooded", "node-alone"),
        "p99, sidecar: flooded / alone": ratio("sidecar-flooded", "sidecar-alone"),
    }
    return Result(
        bench="neighbour",
        method=f"open loop (h2load) at {RATE} requests a second over {CONNECTIONS} connections, latency from "
        f"when each was due; beside it a closed loop (wrk) over {FLOOD} connections from another workload to "
        "another server; distributions of the rounds merged",
        settings={**settings, "arms": dict(ARMS)},
        arms=arms,
        ratios=ratios,
        bars=(Bar("p99, limited / alone", ratios["p99, limited / alone"], MOST),),
        raw={
            arm: [
                {"flood_rps": round(s.flood_rps, 1), "histogram_us": histogram.text(s.run.histogram)}
                for s in found
            ]
            for arm, found in samples.items()
        },
    )


def _figures(samples: list[Sample]) -> dict[str, Any]:
    merged = histogram.merge(sample.run.histogram for sample in samples)
    shares = {"p50_us": 50, "p90_us": 90, "p99_us": 99, "p999_us": 99.9}
    return {
        **{key: histogram.percentile(merged, share) for key, share in shares.items()},
        "rps": round(median([sample.run.rps for sample in samples]), 1),
        "flood_rps": round(median([sample.flood_rps for sample in samples]), 1),
    }


COLUMNS = ("ARM", "P50 us", "P90 us", "P99 us", "P99.9 us", "ANSWERED/s", "FLOOD/s")
_KEYS = ("p50_us", "p90_us", "p99_us", "p999_us", "rps", "flood_rps")


def rows(data: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The table: a line for each arm."""
    return [(ARMS[arm], *(figures[key] for key in _KEYS)) for arm, figures in data["arms"].items()]


def reports(data: Mapping[str, Any]) -> dict[str, str]:
    """The page that is kept beside the figures."""
    merged = {
        arm: histogram.merge(histogram.read_text(run["histogram_us"]) for run in runs)
        for arm, runs in data["raw"].items()
    }
    plots = [page.tails("Latency of the watched client", merged)]
    return {".html": page.document("A noisy neighbour", data, ARMS, plots, COLUMNS, rows(data))}
