"""`penstock bench routes`: from a new HTTPRoute on disk to the first answer by it, with many routes loaded.

3,000 routes, one in each file and each for a host name of its own, are spread over 10 Gateways (and, beside
it, stand at one). Then files with one more route are renamed into place, one after the other, with the daemon
at rest. The clock starts just before the rename and stops when a client that asks for the new name over one
kept-alive connection to that Gateway, every half millisecond, reads its first 200.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from penstock.bench.folders import gateway, load, service, steps_of
from penstock.bench.kept import Kept
from penstock.bench.record import Bar, Result
from penstock.bench.serving import HTTP_PORT, need, nginx
from penstock.bench.site import DaemonUnderTest, Site, alone, daemon, scratch, site, workload
from penstock.bench.stats import median, summary

CLIENT, SERVER = "client", "server"
GATEWAYS, ROUTES = 10, 3000
CHANGES, QUICK_CHANGES = 200, 40
MEDIAN_BAR, P99_BAR = 30.0, 100.0

Tell = Callable[[str], None]


def route(name: str, gateway: int) -> str:
    """One HTTPRoute, as somebody would write it: a name, two paths, a backend."""
    return (
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n"
        f"metadata:\n  name: {name}\n"
        "spec:\n"
        f"  parentRefs:\n  - name: gw{gateway}\n"
        f"  hostnames: [{name}.example.com]\n"
        "  rules:\n"
        "  - matches:\n    - path: {type: PathPrefix, value: /}\n"
        f"    backendRefs:\n    - {{name: {SERVER}, port: 80}}\n"
    )


def files(gateways: int) -> dict[str, str]:
    return {f"r{number}.yaml": route(f"r{number}", number % gateways) for number in range(ROUTES)}


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    need("nginx")
    changes = QUICK_CHANGES if quick else CHANGES
    raw: dict[str, list[float]] = {}
    steps: dict[str, list[dict[str, Any]]] = {}
    arms = {f"{GATEWAYS} Gateways": GATEWAYS, "1 Gateway": 1}
    backend = service(SERVER, HTTP_PORT, selector={"app": SERVER})
    with alone(), scratch() as directory:
        for arm, gateways in arms.items():
            server = workload(
                SERVER, run=[nginx(directory, arm[:2].strip())], ports=[{"containerPort": HTTP_PORT}]
            )
            with (
                site("routes", [workload(CLIENT), server], directory) as place,
                daemon(place, [backend, *(gateway(f"gw{n}") for n in range(gateways))]) as running,
            ):
                load(running, "routes", files(gateways))
                tell(f"{arm}: {ROUTES} routes are in force")
                before = len(running.applied())
                raw[arm] = _measure(place, running, gateways, changes, partial(_told, tell, arm))
                steps[arm] = running.applied()[before:]
    figures = {arm: summary(samples) for arm, samples in raw.items()}
    first = next(iter(arms))
    return Result(
        bench="routes",
        method=f"ms from the rename of a file with a new HTTPRoute to the first 200 by it, with {ROUTES} "
        "routes loaded, one for each file",
        settings={"routes": ROUTES, "gateways": GATEWAYS, "changes": changes},
        arms={
            arm: {
                **figures[arm],
                "unit": "ms",
                "daemon": steps_of(steps[arm]),
            }
            for arm in arms
        },
        bars=(
            Bar(f"{first}, median", figures[first]["median"], MEDIAN_BAR, "ms"),
            Bar(f"{first}, p99", figures[first]["p99"], P99_BAR, "ms"),
        ),
        raw={**raw, "daemon_steps_ms": steps},
    )


def _told(tell: Tell, arm: str, what: str) -> None:
    tell(f"{arm}: {what}")


def _measure(place: Site, running: DaemonUnderTest, gateways: int, changes: int, tell: Tell) -> list[float]:
    found: list[float] = []
    # A fixed seed: the same waits in each run, none of them in step with anything of the daemon's.
    chance = random.Random(1)
    address = {n: running.gateway_address(f"gw{n}") for n in range(gateways)}
    with_route: dict[int, Kept] = {n: Kept(place, CLIENT, (address[n], 80)) for n in range(gateways)}
    for number in range(changes):
        at = number % gateways
        client, name = with_route[at], f"new{number}"
        part = Path(running.config / f".{name}.part")
        part.write_text(route(name, at))
        client.until(404, f"{name}.example.com")
        time.sleep(chance.uniform(0.01, 0.06))
        started = time.monotonic()
        part.rename(running.config / "routes" / f"{name}.yaml")
        found.append(round((client.until(200, f"{name}.example.com") - started) * 1000, 3))
        running.settle()
        if (number + 1) % 20 == 0:
            tell(f"{number + 1}/{changes} routes: median {median(found):.1f} ms, worst {max(found):.1f} ms")
    for client in with_route.values():
        client.__exit__()
    return found


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (arm, *(figures[key] for key in ("median", "p90", "p99", "max", "samples")))
        for arm, figures in data["arms"].items()
    ]


COLUMNS = ("NEW ROUTE (ms)", "MEDIAN", "P90", "P99", "MAX", "SAMPLES")
