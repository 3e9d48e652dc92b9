"""`penstock bench scale`: whether the size of the tables costs a connection anything.

Labs of one node and two workloads stand side by side and take turns. In some a daemon runs, with 10, 1,000 or
10,000 policy rules and as many Services; in others the same rule sets stand in iptables, as kube-proxy and
policy controllers write them: one -A for each, what is meant in the middle, established connections first. In
one there is nothing at all (`none`), for the price of a new connection.

Kept-alive connections go to the workload's own address, new ones there and to a Service's address; `self`
is the smallest of ours again: how far two measurements of the same thing lie apart here. `verdict_ns` is what
the first packet of a connection costs in from_workload alone (BPF_PROG_TEST_RUN).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from penstock.bench.cpu import costed
from penstock.bench.errors import BenchError
from penstock.bench.record import Bar, Result
from penstock.bench.rule_sets import CLIENT, IPTABLES_VIP, SERVER, VIP, VIP_PORT, few_rules, fill, iptables
from penstock.bench.serving import HTTP_PORT, load_cpu, need, nginx, server_cpu, wrk
from penstock.bench.site import (
    DaemonUnderTest,
    Site,
    alone,
    daemon,
    scratch,
    site,
    workload,
)
from penstock.bench.stats import doubt, median, paired, turns
from penstock.bench.verdict import verdict_ns

SIZES, QUICK_SIZES = (10, 1000, 10000), (10, 1000)
ROUNDS, QUICK_ROUNDS = 7, 3
SECONDS, QUICK_SECONDS = 3.0, 1.0
SLOPE_BAR, NEW_BAR = 0.97, 0.95
CONNECTIONS = 16
BY_SERVICE = "new by Service"
LOADS: dict[str, dict[str, Any]] = {
    "c1": {"connections": 1},
    f"c{CONNECTIONS}": {"connections": CONNECTIONS},
    "new": {"connections": CONNECTIONS, "anew": True},
    BY_SERVICE: {"connections": CONNECTIONS, "anew": True},
}

Tell = Callable[[str], None]
Samples = dict[str, dict[str, list[Any]]]


def run(
    tell: Tell,
    *,
    quick: bool = False,
    sizes: Sequence[int] = (),
    rounds: int | None = None,
    seconds: float | None = None,
) -> Result:
    """Measure; with other `sizes`, `rounds` or `seconds` a part of it. Raises PenstockError."""
    need("nginx", "wrk", "iptables-restore")
    sizes = sizes or (QUICK_SIZES if quick else SIZES)
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
    raw: Samples = {}
    cost: dict[str, list[float]] = {}
    running_of: dict[int, DaemonUnderTest] = {}
    with alone(), scratch() as directory, ExitStack() as stack:
        arms: dict[str, tuple[Site, str]] = {}
        arms["none"] = (_site(stack, directory, "none"), "")
        for size in sizes:
            place = _site(stack, directory, f"m{size}")
            running = running_of[size] = stack.enter_context(daemon(place, [few_rules()]))
            fill(running, size)
            arms[f"mesh {size}"] = (place, f"{VIP}:{VIP_PORT}")
            tell(f"{size} rules and {size} Services are in force")
            place = _site(stack, directory, f"i{size}")
            iptables(place, size)
            arms[f"iptables {size}"] = (place, f"{IPTABLES_VIP}:{VIP_PORT}")
        arms["self"] = arms[f"mesh {sizes[0]}"]
        for place, _ in arms.values():
            wrk(place, CLIENT, SERVER, connections=CONNECTIONS, seconds=1)
        for number, order in enumerate(turns(tuple(arms), rounds)):
            # Arms that are compared follow each other: what else the machine does changes by the second.
            for name, how in LOADS.items():
                for arm in order:
                    place, service = arms[arm]
                    if name == BY_SERVICE and not service:
                        continue
                    at = service if name == BY_SERVICE else ""
                    measure = partial(_wrk, place, at, seconds, how)
                    sample = costed(measure, seconds)
                    raw.setdefault(arm, {}).setdefault(name, []).append(sample)
            for size, running in running_of.items():
                ns = verdict_ns(arms[f"mesh {size}"][0], running.run_dir / "bpf", CLIENT, SERVER)
                cost.setdefault(str(size), []).append(ns)
            tell(f"{number + 1}/{rounds} rounds: " + _so_far(raw, sizes))
    return _result(raw, cost, sizes, rounds, seconds)


def _wrk(place: Site, at: str, seconds: float, how: Mapping[str, Any]) -> dict[str, Any]:
    return wrk(place, CLIENT, SERVER, seconds=seconds, at=at, **how).data()


def _site(stack: ExitStack, directory: Any, name: str) -> Site:
    run = [nginx(directory, name)]
    server = workload(SERVER, run=run, ports=[{"containerPort": HTTP_PORT}])
    return stack.enter_context(site(name, [workload(CLIENT), server], directory))


# --- figures ------------------------------------------------------------------------------------------------


def _rate(samples: Sequence[Mapping[str, Any]]) -> list[float]:
    return [sample["rps"] for sample in samples]


def _by_processor(samples: Sequence[Mapping[str, Any]]) -> list[float]:
    return [sample["per_cpu"] for sample in samples]


FIGURES = {"": _rate, " by processor time": _by_processor}


def _ratios(raw: Samples, sizes: Sequence[int]) -> dict[str, float]:
    found = {}
    smallest = sizes[0]
    for kind in ("mesh", "iptables"):
        base = raw[f"{kind} {smallest}"]
        for size in sizes[1:]:
            arm = raw[f"{kind} {size}"]
            for what, figure in FIGURES.items():
                for name in base:
                    found[f"{kind} {size}: {name}{what}"] = round(
                        paired(figure(arm[name]), figure(base[name])), 4
                    )
            slow, fast = ([s["p50_us"] for s in each["c1"]] for each in (arm, base))
            found[f"{kind} {size}: c1 p50"] = round(paired(slow, fast), 4)
    for what, figure in FIGURES.items():
        for name, samples in raw["self"].items():
            same = raw[f"mesh {smallest}"][name]
            found[f"self: {name}{what}"] = round(paired(figure(samples), figure(same)), 4)
        for size in sizes:
            new, none = raw[f"mesh {size}"]["new"], raw["none"]["new"]
            found[f"mesh {size}: new{what}, against none"] = round(paired(figure(new), figure(none)), 4)
    return found


def _so_far(raw: Samples, sizes: Sequence[int]) -> str:
    ratios = _ratios(raw, sizes)
    last = sizes[-1]
    shown = [f"{kind} {last}: new by Service" for kind in ("mesh", "iptables")]
    shown.append(f"mesh {last}: c{CONNECTIONS}")
    return ", ".join(f"{name} {ratios[name]:.3f}" for name in (*shown, f"mesh {last}: new, against none"))


def _noise(raw: Samples, sizes: Sequence[int], load: str, what: str) -> float:
    figure = FIGURES[what]
    return round(doubt(figure(raw["self"][load]), figure(raw[f"mesh {sizes[0]}"][load])), 4)


def _result(
    raw: Samples, cost: Mapping[str, Sequence[float]], sizes: Sequence[int], rounds: int, seconds: float
) -> Result:
    errors = sum(s["errors"] for arm in raw.values() for load in arm.values() for s in load)
    if errors:
        raise BenchError(f"{errors} requests failed under load")
    ratios = _ratios(raw, sizes)
    bars = []
    for what in FIGURES:
        for size in sizes[1:]:
            for name in LOADS:
                key = f"mesh {size}: {name}{what}"
                noise = _noise(raw, sizes, name, what)
                bars.append(
                    Bar(f"{key}, against {sizes[0]}", ratios[key], SLOPE_BAR, above=True, noise=noise)
                )
        largest = f"mesh {sizes[-1]}: new{what}, against none"
        noise = _noise(raw, sizes, "new", what)
        bars.append(Bar(largest, ratios[largest], NEW_BAR, above=True, noise=noise))
    return Result(
        bench="scale",
        method="1 KB answers (wrk, nginx) over kept-alive connections to a workload, over new ones to it and "
        "to a Service's address, with few and many rules and Services, in our maps and in iptables; "
        "medians, and medians of the ratios of neighbours in time; also for each second of the "
        "machine's processor time",
        settings={
            "rounds": rounds,
            "seconds": seconds,
            "sizes": list(sizes),
            "verdict_ns": {size: round(min(samples), 1) for size, samples in cost.items()},
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
        raw={**raw, "verdict_ns": cost},
    )


COLUMNS = ("ARM", "LOAD", "RATE", "TO THE FEWEST", "BY CPU", "P50 us", "P99 us")


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: for each load the arms under each other."""
    loads = dict.fromkeys(name for arm in data["arms"].values() for name in arm)
    found = []
    for name in loads:
        for arm, figures in data["arms"].items():
            if name in figures:
                f = figures[name]
                ratios = (data["ratios"].get(f"{arm}: {name}{what}") for what in FIGURES)
                shares = (f"{share:.3f}" if share else "" for share in ratios)
                found.append((arm, name, f"{f['rps']:.0f}/s", *shares, f.get("p50_us"), f.get("p99_us")))
    return found
