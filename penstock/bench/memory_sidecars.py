"""`penstock bench memory-sidecars`: a sidecar beside each of N workloads, against one Envoy for all.

Both sides stand at once, with the same workloads, each of which serves HTTP behind a rule of its own. No
request is sent: what is measured is what it takes to be there. Real sidecars hold more than these, which know
one peer each; the node's Envoy holds the rules of all. On the way to N both are measured at fewer: so many
sidecars, and so many of the workloads behind a rule.

RSS counts the pages of the binary, which all processes share, once for each; PSS counts them once
altogether. With N processes of one binary that is most of the difference, so both are shown. The bar is
about RSS, the figure by which containers are given memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from penstock.bench import cpu, page, plots, sidecar
from penstock.bench.memory import resident
from penstock.bench.record import Bar, Result
from penstock.bench.serving import HTTP_PORT, need
from penstock.bench.site import allow, alone, daemon, policy, scratch, site, workload

WORKLOADS, QUICK_WORKLOADS = 30, 10
STEPS = (1, 2, 5, 10, 15, 20, 25, 30)
"""Numbers of workloads at which both are measured, up to the last."""
IDLE_SECONDS, QUICK_IDLE_SECONDS = 20, 5
_SIZES = ("rss_mb", "pss_mb", "own_mb")

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    need("iptables-restore")
    count = QUICK_WORKLOADS if quick else WORKLOADS
    seconds = QUICK_IDLE_SECONDS if quick else IDLE_SECONDS
    names = [f"w{number:02}" for number in range(count)]
    ports = [{"name": "http", "containerPort": HTTP_PORT}]
    members = [workload(name, ports=ports, serviceAccountName=name) for name in names]
    peers = dict(zip(names, names[1:] + names[:1], strict=True))
    rules = [
        policy(own, own, ingress=[allow(peer, (HTTP_PORT, "TCP"), http=[{"method": "GET", "path": "/.*"}])])
        for own, peer in peers.items()
    ]
    with (
        alone(),
        scratch() as directory,
        site("one", members, directory) as one,
        daemon(one, []) as running,
        site("many", members, directory) as many,
        sidecar.log_receiver(directory) as (log, _),
        ExitStack() as stack,
    ):
        identities = sidecar.identities(directory, names)
        pids: list[int] = []
        steps = dict[str, dict[str, float]]()
        parts = {"daemon": running.pid, "envoy": running.envoy_pid()}
        if dns := running.dns_pid():
            parts["dns"] = dns
        for number, (own, peer) in enumerate(peers.items(), 1):
            config = sidecar.bootstrap(
                many.address(own), many.address(peer), log,
                identity=identities[own], peer_id=identities[peer].spiffe_id,
            )  # fmt: skip
            pids.append(stack.enter_context(sidecar.beside(many, own, config)))
            tell(f"{number}/{count} sidecars")
            if number in STEPS:
                running.write("policies", *rules[:number])
                running.settle()
                steps[str(number)] = {
                    "node": _together(parts.values())["rss_mb"],
                    "sidecars": _together(pids)["rss_mb"],
                }
        everybody = {**{name: (pid,) for name, pid in parts.items()}, "sidecars": tuple(pids)}
        found = {name: _together(these) for name, these in everybody.items()}
        spent = {name: cpu.processes(these) for name, these in everybody.items()}
        time.sleep(seconds)
        for name, these in everybody.items():
            found[name]["idle_cpu_ms_per_s"] = round(1000 * (cpu.processes(these) - spent[name]) / seconds, 2)
    node = {size: round(sum(found[name][size] for name in parts), 1) for size in _SIZES}
    ratios = {f"{size}, node / sidecars": round(node[size] / found["sidecars"][size], 4) for size in _SIZES}
    return Result(
        bench="memory-sidecars",
        method="MB resident (smaps_rollup), idle: one Envoy, the daemon (and a DNS proxy where one is "
        "needed), against a sidecar for each workload",
        settings={"workloads": count, "idle_seconds": seconds},
        arms={
            "node": {**node, **{name: found[name] for name in parts}},
            "sidecars": found["sidecars"],
        },
        ratios=ratios,
        raw={"rss_mb": steps},
        # Of fewer sidecars the share is larger by as much; the bar is about 30.
        bars=(Bar("RSS, node / sidecars", ratios["rss_mb, node / sidecars"], round(2 / count, 4)),),
    )


def _together(pids: Iterable[int]) -> dict[str, float]:
    each = [resident(pid) for pid in pids]
    return {size: round(sum(one[size] for one in each), 1) for size in _SIZES}


COLUMNS = ("MEMORY (MB)", "RSS", "PSS", "OWN", "IDLE CPU ms/s")


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: the node's two processes, and the sidecars together."""
    arms, count = data["arms"], data["settings"]["workloads"]
    lines = (
        ("the node's Envoy", arms["node"]["envoy"]),
        ("the daemon", arms["node"]["daemon"]),
        *([("the DNS proxy", arms["node"]["dns"])] if "dns" in arms["node"] else []),
        (f"{count} sidecars", arms["sidecars"]),
    )
    return [(name, *(part[size] for size in _SIZES), part["idle_cpu_ms_per_s"]) for name, part in lines]


WORDS = {
    "node": "one Envoy, the daemon (and a DNS proxy where one is needed)",
    "sidecars": "a sidecar for each",
}


def reports(data: dict[str, Any]) -> dict[str, str]:
    """The page that is kept beside the figures."""
    steps = data["raw"]["rss_mb"]
    lines = {arm: [(float(n), found[arm]) for n, found in steps.items()] for arm in WORDS}
    drawn = [plots.lines("Resident memory", "workloads", "MB", lines)]
    return {".html": page.document("Memory against sidecars", data, WORDS, drawn, COLUMNS, rows(data))}
