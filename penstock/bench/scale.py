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

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from penstock import lab
from penstock.bench.errors import BenchError
from penstock.bench.record import Bar, Result
from penstock.bench.serving import HTTP_PORT, load_cpu, need, nginx, server_cpu, wrk
from penstock.bench.site import (
    NODE,
    DaemonUnderTest,
    Site,
    allow,
    alone,
    daemon,
    policy,
    scratch,
    site,
    workload,
)
from penstock.bench.stats import doubt, median, paired, turns
from penstock.bench.verdict import verdict_ns

CLIENT, SERVER = "client", "server"
SIZES, QUICK_SIZES = (10, 1000, 10000), (10, 1000)
ROUNDS, QUICK_ROUNDS = 7, 3
SECONDS, QUICK_SECONDS = 3.0, 1.0
SLOPE_BAR, NEW_BAR = 0.97, 0.95
VIP, VIP_PORT = "10.96.200.1", 80
IPTABLES_VIP = "10.98.255.254"
CONNECTIONS = 16
BY_SERVICE = "new by Service"
LOADS: dict[str, dict[str, Any]] = {
    "c1": {"connections": 1},
    f"c{CONNECTIONS}": {"connections": CONNECTIONS},
    "new": {"connections": CONNECTIONS, "anew": True},
    BY_SERVICE: {"connections": CONNECTIONS, "anew": True},
}
_SETTLE = 180.0
_RULES_IN_POLICY = 100

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
            running = running_of[size] = stack.enter_context(daemon(place, [_policy()]))
            _fill(running, size)
            arms[f"mesh {size}"] = (place, f"{VIP}:{VIP_PORT}")
            tell(f"{size} rules and {size} Services are in force")
            place = _site(stack, directory, f"i{size}")
            _iptables(place, size)
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
                    sample = wrk(place, CLIENT, SERVER, seconds=seconds, at=at, **how).data()
                    raw.setdefault(arm, {}).setdefault(name, []).append(sample)
            for size, running in running_of.items():
                ns = verdict_ns(arms[f"mesh {size}"][0], running.run_dir / "bpf", CLIENT, SERVER)
                cost.setdefault(str(size), []).append(ns)
            tell(f"{number + 1}/{rounds} rounds: " + _so_far(raw, sizes))
    return _result(raw, cost, sizes, rounds, seconds)


def _site(stack: ExitStack, directory: Any, name: str) -> Site:
    run = [nginx(directory, name)]
    server = workload(SERVER, run=run, ports=[{"containerPort": HTTP_PORT}])
    return stack.enter_context(site(name, [workload(CLIENT), server], directory))


# --- the rule sets ------------------------------------------------------------------------------------------


def _stranger(number: int) -> str:
    return f"10.{200 + number // 65536}.{number // 256 % 256}.{number % 256}"


def _policy() -> dict[str, Any]:
    return policy("server", SERVER, ingress=[allow(CLIENT, (HTTP_PORT, "TCP"))])


def _fill(running: DaemonUnderTest, size: int) -> None:
    """So many rules, each for a network of its own, and so many Services."""
    ports = [{"ports": [{"port": str(HTTP_PORT), "protocol": "TCP"}]}]
    rules = [{"fromCIDR": [f"{_stranger(n)}/32"], "toPorts": ports} for n in range(size - 1)]
    documents: list[dict[str, Any]] = [
        policy(f"many-{first}", SERVER, ingress=rules[first : first + _RULES_IN_POLICY])
        for first in range(0, len(rules), _RULES_IN_POLICY)
    ]
    for number in range(size):
        spec: dict[str, Any] = {
            "selector": {"app": SERVER},
            "ports": [{"port": VIP_PORT, "targetPort": HTTP_PORT}],
        }
        if number == size // 2:
            spec["clusterIP"] = VIP
        documents.append(
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"s{number}"}, "spec": spec}
        )
    # As JSON, which is YAML too, and much faster written.
    part = running.config / "many.part"
    part.write_text("\n---\n".join(map(json.dumps, documents)))
    os.rename(part, running.config / "many.yaml")
    running.settle(_SETTLE)


def _iptables(place: Site, size: int) -> None:
    client, server = place.address(CLIENT), place.address(SERVER)
    meant = size // 2
    filters, services, targets = [], [], []
    for number in range(size):
        source = client if number == meant else _stranger(number)
        filters.append(f"-A POLICY -s {source}/32 -d {server}/32 -p tcp -m tcp --dport {HTTP_PORT} -j ACCEPT")
        vip = IPTABLES_VIP if number == meant else f"10.98.{number // 250}.{number % 250 + 1}"
        services.append(f"-A SERVICES -d {vip}/32 -p tcp -m tcp --dport {VIP_PORT} -j SVC-{number}")
        targets.append(f"-A SVC-{number} -p tcp -m tcp -j DNAT --to-destination {server}:{HTTP_PORT}")
    text = "\n".join(
        (
            "*nat",
            ":SERVICES - [0:0]",
            *(f":SVC-{n} - [0:0]" for n in range(size)),
            "-A PREROUTING -j SERVICES",
            *services,
            *targets,
            "COMMIT",
            "*filter",
            ":POLICY - [0:0]",
            "-A FORWARD -j POLICY",
            "-A POLICY -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            *filters,
            f"-A POLICY -d {server}/32 -j DROP",
            "COMMIT",
            "",
        )
    )
    process = lab.run_in(
        place.spec.node(NODE).netns,
        ["iptables-restore"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, _ = process.communicate(text, timeout=_SETTLE)
    if process.returncode:
        raise BenchError(f"iptables-restore: {said.strip()[-500:]}")


# --- figures ------------------------------------------------------------------------------------------------


def _rate(samples: Sequence[Mapping[str, Any]]) -> list[float]:
    return [sample["rps"] for sample in samples]


def _ratios(raw: Samples, sizes: Sequence[int]) -> dict[str, float]:
    found = {}
    smallest = sizes[0]
    for kind in ("mesh", "iptables"):
        base = raw[f"{kind} {smallest}"]
        for size in sizes[1:]:
            arm = raw[f"{kind} {size}"]
            for name in base:
                found[f"{kind} {size}: {name}"] = round(paired(_rate(arm[name]), _rate(base[name])), 4)
            slow, fast = ([s["p50_us"] for s in each["c1"]] for each in (arm, base))
            found[f"{kind} {size}: c1 p50"] = round(paired(slow, fast), 4)
    for name, samples in raw["self"].items():
        found[f"self: {name}"] = round(paired(_rate(samples), _rate(raw[f"mesh {smallest}"][name])), 4)
    for size in sizes:
        new = raw[f"mesh {size}"]["new"]
        found[f"mesh {size}: new, against none"] = round(paired(_rate(new), _rate(raw["none"]["new"])), 4)
    return found


def _so_far(raw: Samples, sizes: Sequence[int]) -> str:
    ratios = _ratios(raw, sizes)
    last = sizes[-1]
    shown = [f"{kind} {last}: new by Service" for kind in ("mesh", "iptables")]
    shown.append(f"mesh {last}: c{CONNECTIONS}")
    return ", ".join(f"{name} {ratios[name]:.3f}" for name in (*shown, f"mesh {last}: new, against none"))


def _noise(raw: Samples, sizes: Sequence[int], load: str) -> float:
    return round(doubt(_rate(raw["self"][load]), _rate(raw[f"mesh {sizes[0]}"][load])), 4)


def _result(
    raw: Samples, cost: Mapping[str, Sequence[float]], sizes: Sequence[int], rounds: int, seconds: float
) -> Result:
    errors = sum(s["errors"] for arm in raw.values() for load in arm.values() for s in load)
    if errors:
        raise BenchError(f"{errors} requests failed under load")
    ratios = _ratios(raw, sizes)
    bars = []
    for size in sizes[1:]:
        for name in LOADS:
            key = f"mesh {size}: {name}"
            noise = _noise(raw, sizes, name)
            bars.append(Bar(f"{key}, against {sizes[0]}", ratios[key], SLOPE_BAR, above=True, noise=noise))
    largest = f"mesh {sizes[-1]}: new, against none"
    bars.append(Bar(largest, ratios[largest], NEW_BAR, above=True, noise=_noise(raw, sizes, "new")))
    return Result(
        bench="scale",
        method="1 KB answers (wrk, nginx) over kept-alive connections to a workload, over new ones to it and "
        "to a Service's address, with few and many rules and Services, in our maps and in iptables; "
        "medians, and medians of the ratios of neighbours in time",
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


COLUMNS = ("ARM", "LOAD", "RATE", "TO THE FEWEST", "P50 us", "P99 us")


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: for each load the arms under each other."""
    loads = dict.fromkeys(name for arm in data["arms"].values() for name in arm)
    found = []
    for name in loads:
        for arm, figures in data["arms"].items():
            if name in figures:
                f = figures[name]
                share = data["ratios"].get(f"{arm}: {name}")
                rate = f"{f['rps']:.0f}/s"
                found.append(
                    (arm, name, rate, f"{share:.3f}" if share else "", f.get("p50_us"), f.get("p99_us"))
                )
    return found
