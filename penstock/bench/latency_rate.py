"""`penstock bench latency-rate`: latency at a rate that is given, up to where each arm cannot keep up.

An open loop over kept-alive HTTP/1.1 connections: requests are due at a fixed rate whatever the answers do,
and latency counts from when each was due. So arms are compared at the same rate, which a closed loop cannot
do. An arm that reached less than `SHARE` of a rate is saturated and is not asked for more in that round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from penstock.bench import histogram, page, plots
from penstock.bench.loads import at_rate, saturation
from penstock.bench.record import Result
from penstock.bench.serving import need
from penstock.bench.site import alone, scratch
from penstock.bench.stats import median, turns
from penstock.bench.ways import ARMS, ON_ONE_NODE, Way, ways

RATES = (250, 500, 1000, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 24000)
QUICK_RATES = (500, 2000, 8000)
CONNECTIONS = 16
ROUNDS, QUICK_ROUNDS = 5, 2
SECONDS, QUICK_SECONDS = 2, 1
SHARE = 0.95

Tell = Callable[[str], None]
Runs = dict[str, dict[int, list[histogram.Run]]]
"""Arm → rate → a run for each round that asked for it."""


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    need("nginx", "wrk", "h2load", "iptables-restore")
    rates = QUICK_RATES if quick else RATES
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    runs: Runs = {arm: {} for arm in ON_ONE_NODE}
    with alone(), scratch() as directory, ways(directory, tell, ON_ONE_NODE) as found:
        for number, order in enumerate(turns(ON_ONE_NODE, rounds)):
            for arm in order:
                _sweep(found[arm], rates, seconds, runs[arm])
            tell(f"{number + 1}/{rounds} rounds")
    return result(runs, {"rounds": rounds, "seconds": seconds, "connections": CONNECTIONS, "rates": rates})


def _sweep(way: Way, rates: tuple[int, ...], seconds: int, runs: dict[int, list[histogram.Run]]) -> None:
    for rate in rates:
        found = partial(at_rate, rate)(way.site, way.client, way.server, CONNECTIONS, seconds)
        runs.setdefault(rate, []).append(found)
        if found.rps < SHARE * rate:
            return


def result(runs: Runs, settings: Mapping[str, Any]) -> Result:
    """Figures for each arm and rate, and where each arm is saturated (median of the rounds)."""
    arms: dict[str, dict[str, Any]] = {}
    for arm, by_rate in runs.items():
        arms[arm] = {str(rate): _figures(found) for rate, found in by_rate.items()}
    most = {
        arm: saturation(tuple(by_rate), [median([r.rps for r in found]) for found in by_rate.values()], SHARE)
        for arm, by_rate in runs.items()
    }
    return Result(
        bench="latency-rate",
        method=f"open loop (h2load) over {CONNECTIONS} kept-alive HTTP/1.1 connections, latency from when a "
        "request was due; distributions of the rounds merged",
        settings=settings,
        arms=arms,
        ratios={
            f"highest rate kept, {arm} / none": round(most[arm] / most["none"], 4) if most["none"] else 0.0
            for arm in most
            if arm != "none"
        }
        | {f"highest rate kept, {arm}": float(rate) for arm, rate in most.items()},
        raw={
            arm: {
                str(rate): [
                    {"rps": round(r.rps, 1), "errors": r.errors, "histogram_us": histogram.text(r.histogram)}
                    for r in found
                ]
                for rate, found in by_rate.items()
            }
            for arm, by_rate in runs.items()
        },
    )


def _figures(runs: list[histogram.Run]) -> dict[str, Any]:
    merged = histogram.merge(run.histogram for run in runs)
    shares = {"p50_us": 50, "p90_us": 90, "p99_us": 99, "p999_us": 99.9}
    return {
        **{key: histogram.percentile(merged, share) for key, share in shares.items()},
        "rps": round(median([run.rps for run in runs]), 1),
        "errors": sum(run.errors for run in runs),
    }


COLUMNS = ("ARM", "RATE/s", "REACHED/s", "P50 us", "P90 us", "P99 us", "P99.9 us", "ERRORS")
_KEYS = ("rps", "p50_us", "p90_us", "p99_us", "p999_us", "errors")


def rows(data: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The table: for each arm the rates that it was asked for."""
    return [
        (ARMS[arm], rate, *(figures[key] for key in _KEYS))
        for arm, by_rate in data["arms"].items()
        for rate, figures in by_rate.items()
    ]


def reports(data: Mapping[str, Any]) -> dict[str, str]:
    """The page that is kept beside the figures."""
    drawn = [plots.by_rate(data, share) for share in ("p50_us", "p99_us")]
    words = {arm: ARMS[arm] for arm in data["arms"]}
    return {".html": page.document("Latency at a given rate", data, words, drawn, COLUMNS, rows(data))}
