"""`penstock bench l4`: what the programs cost traffic that never meets Envoy.

Two labs of one node and two workloads stand side by side, the same but for the daemon: in one it runs, with a
policy that allows this traffic at both ends; in the other no program was ever attached. Only one is loaded
at a time, and they take turns. `self` is the lab without programs measured again in each round: how far
two measurements of the same thing lie apart here. Generator and server stay on one CPU each.

The connect hooks at the root of cgroup v2 see connections of both labs (they pass over foreign ones after
one look-up); connections are kept, so this is no part of what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from penstock.bench.cpu import costed
from penstock.bench.errors import BenchError
from penstock.bench.record import Bar, Result
from penstock.bench.serving import (
    HTTP_PORT,
    STREAM_PORT,
    find,
    iperf3,
    iperf3_server,
    load_cpu,
    need,
    nginx,
    server_cpu,
    wrk,
)
from penstock.bench.site import Site, allow, alone, daemon, policy, scratch, site, workload
from penstock.bench.stats import doubt, median, paired, turns

CLIENT, SERVER = "client", "server"
BARS = {"l4": 1.0, "l4-bridge": 0.97}
"""Throughput against no programs: past the stack there is something to win, past a bridge hardly."""
CONNECTIONS = (1, 32)
ROUNDS, QUICK_ROUNDS = 9, 5
SECONDS, QUICK_SECONDS = 4.0, 1.0
ARMS = {"none": "without programs", "programs": "programs, L4 allow", "self": "without programs, again"}

Tell = Callable[[str], None]


def run(
    tell: Tell,
    *,
    quick: bool = False,
    rounds: int | None = None,
    seconds: float | None = None,
    bridged: bool = False,
    prepare: Callable[[Site], None] = lambda _: None,
) -> Result:
    """Measure. `bridged` workloads are neighbours on a bridge; `prepare` has a look at each lab first.

    Raises PenstockError.
    """
    need("nginx", "wrk")
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
    stream = find("iperf3") is not None
    raw: dict[str, dict[str, list[Any]]] = {arm: {} for arm in ARMS}
    with alone(), scratch() as directory, ExitStack() as stack:
        places = {
            name: stack.enter_context(
                site(name, _workloads(directory, name, stream), directory, bridged=bridged)
            )
            for name in ("bare", "l4")
        }
        for place in places.values():
            prepare(place)
        tell("two labs, one of them with a daemon")
        stack.enter_context(daemon(places["l4"], _policies()))
        sites = {"none": places["bare"], "programs": places["l4"], "self": places["bare"]}
        for place in places.values():
            wrk(place, CLIENT, SERVER, connections=32, seconds=1)
        for number, order in enumerate(turns(tuple(ARMS), rounds)):
            for name, measure in _loads(seconds, stream).items():
                for arm in order:
                    sample = costed(partial(measure, sites[arm]), seconds)
                    raw[arm].setdefault(name, []).append(sample)
            tell(f"{number + 1}/{rounds} rounds: " + _so_far(raw))
    return _result(raw, rounds, seconds, "l4-bridge" if bridged else "l4")


def _workloads(directory: Any, name: str, stream: bool) -> list[dict[str, Any]]:
    run = [nginx(directory, name), *([iperf3_server()] if stream else [])]
    ports = [{"containerPort": HTTP_PORT}, *([{"containerPort": STREAM_PORT}] if stream else [])]
    return [workload(CLIENT), workload(SERVER, run=run, ports=ports)]


def _policies() -> list[dict[str, Any]]:
    """Both ends have rules, none of them with L7: the kernel judges both sides of each flow."""
    ports = ((HTTP_PORT, "TCP"), (STREAM_PORT, "TCP"))
    return [
        policy("server", SERVER, ingress=[allow(CLIENT, *ports)]),
        policy("client", CLIENT, egress=[{"toEndpoints": [{"matchLabels": {"app": SERVER}}]}]),
    ]


def _loads(seconds: float, stream: bool) -> dict[str, Callable[[Site], dict[str, Any]]]:
    loads: dict[str, Callable[[Site], dict[str, Any]]] = {
        f"c{c}": lambda place, c=c: wrk(  # type: ignore[misc]
            place, CLIENT, SERVER, connections=c, seconds=seconds
        ).data()
        for c in CONNECTIONS
    }
    if stream:
        loads["stream"] = lambda place: {"gbps": round(iperf3(place, CLIENT, SERVER, seconds=seconds), 3)}
    return loads


def _throughput(samples: list[dict[str, Any]]) -> list[float]:
    return [sample["rps"] if "rps" in sample else sample["gbps"] for sample in samples]


def _by_processor(samples: list[dict[str, Any]]) -> list[float]:
    return [sample["per_cpu"] for sample in samples]


FIGURES = {"throughput": _throughput, "by processor time": _by_processor}


def _so_far(raw: Mapping[str, Mapping[str, list[Any]]]) -> str:
    return ", ".join(
        f"{name} {paired(_throughput(raw['programs'][name]), _throughput(samples)):.3f} "
        f"(self {paired(_throughput(raw['self'][name]), _throughput(samples)):.3f})"
        for name, samples in raw["none"].items()
    )


def _result(raw: Mapping[str, Mapping[str, list[Any]]], rounds: int, seconds: float, bench: str) -> Result:
    errors = sum(sample.get("errors", 0) for arm in raw.values() for load in arm.values() for sample in load)
    if errors:
        raise BenchError(f"{errors} requests failed under load")
    ratios = {}
    for arm in ("programs", "self"):
        for name, base in raw["none"].items():
            for what, figure in FIGURES.items():
                ratios[f"{name} {what}, {arm}"] = round(paired(figure(raw[arm][name]), figure(base)), 4)
        ratios[f"c1 p50, {arm}"] = round(
            paired(*([sample["p50_us"] for sample in raw[which]["c1"]] for which in (arm, "none"))), 4
        )
    bars = [
        Bar(
            f"{name} {what} (self {ratios[f'{name} {what}, self']:.3f})",
            ratios[f"{name} {what}, programs"],
            BARS[bench],
            above=True,
            noise=round(doubt(figure(raw["self"][name]), figure(raw["none"][name])), 4),
        )
        for what, figure in FIGURES.items()
        for name in raw["none"]
    ]
    return Result(
        bench=bench,
        method="1 KB answers over kept-alive connections (wrk, nginx) and one TCP stream (iperf3) between "
        "two workloads of one node: programs and L4 policy against no programs, in turns; medians, and "
        "medians of the ratios of neighbours in time; also for each second of the machine's processor time",
        settings={
            "rounds": rounds,
            "seconds": seconds,
            "server_cpu": server_cpu(),
            "load_cpu": load_cpu(),
        },
        arms={
            arm: {
                name: {key: round(median([s[key] for s in samples]), 3) for key in samples[0]}
                for name, samples in loads.items()
            }
            for arm, loads in raw.items()
        },
        ratios=ratios,
        bars=tuple(bars),
        raw=raw,
    )


COLUMNS = ("ARM", "LOAD", "THROUGHPUT", "RATIO", "BY CPU", "P50 us", "P99 us")


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: for each load the arms under each other."""
    found = []
    for name in data["arms"]["none"]:
        for arm, words in ARMS.items():
            figures = data["arms"][arm][name]
            speed = f"{figures['rps']:.0f}/s" if "rps" in figures else f"{figures['gbps']:.2f} Gbit/s"
            share = data["ratios"].get(f"{name} throughput, {arm}", 1.0)
            work = data["ratios"].get(f"{name} by processor time, {arm}", 1.0)
            took = (figures.get("p50_us", ""), figures.get("p99_us", ""))
            found.append((words, name, speed, f"{share:.3f}", f"{work:.3f}", *took))
    return found
