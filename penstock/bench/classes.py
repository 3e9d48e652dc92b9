"""`penstock bench classes`: 50 source classes and 200 Services with L7 routes on one node.

Fifty workloads, each of an identity of its own, may read from a server by L7 rules; 200 Services lead to it,
each with an HTTPRoute. So the proxy has listeners for each class and tables for each Service, and never
anything for a pair of them. Asked for: Envoy's memory and descriptors, and how long one more route takes from
its file to the first answer by it.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.bench.folders import route, service, steps_of
from penstock.bench.kept import Kept
from penstock.bench.memory import resident
from penstock.bench.record import Bar, Result
from penstock.bench.serving import HTTP_PORT, need, nginx
from penstock.bench.site import DaemonUnderTest, Site, allow, alone, daemon, policy, scratch, site, workload
from penstock.bench.stats import summary

CLASSES, SERVICES = 50, 200
SERVER = "server"
CHANGES, QUICK_CHANGES = 100, 20
MEMORY_BAR, SHARE_BAR, P99_BAR = 600.0, 0.1, 100.0
_SETTLE = 120.0

Tell = Callable[[str], None]


def _client(number: int) -> str:
    return f"c{number:02}"


def _vip(number: int) -> str:
    return f"10.96.100.{number + 1}"


def _service(number: int) -> dict[str, Any]:
    return service(f"s{number}", HTTP_PORT, clusterIP=_vip(number), selector={"app": SERVER})


def _route(name: str, service: int, path: str) -> dict[str, Any]:
    parent = {"kind": "Service", "group": "", "name": f"s{service}"}
    return route(name, parent, f"s{service}", path)


def _policy() -> dict[str, Any]:
    """A rule of its own for each client."""
    rules = [
        allow(_client(n), (HTTP_PORT, "TCP"), http=[{"method": "GET", "path": f"/(of-{n}|new.*)?"}])
        for n in range(CLASSES)
    ]
    return policy("server", SERVER, ingress=rules)


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    need("nginx")
    changes = QUICK_CHANGES if quick else CHANGES
    with alone(), scratch() as directory:
        server = workload(SERVER, run=[nginx(directory, "classes")], ports=[{"containerPort": HTTP_PORT}])
        clients = [workload(_client(n), serviceAccountName=_client(n)) for n in range(CLASSES)]
        with (
            site("classes", [server, *clients], directory) as place,
            daemon(place, [_policy()]) as running,
        ):
            tell(f"{CLASSES} classes are in force")
            running.write("services", *map(_service, range(SERVICES)))
            for number in range(SERVICES):
                running.write(f"route-{number}", _route(f"r{number}", number, "/"))
            running.settle(_SETTLE)
            tell(f"{SERVICES} Services with routes are in force")
            before = len(running.applied())
            found = _measure(place, running, changes)
            steps = running.applied()[before:]
            pid = running.envoy_pid()
            memory = {"envoy": resident(pid), "daemon": resident(running.pid)}
            descriptors, limit = len(list(Path(f"/proc/{pid}/fd").iterdir())), _limit(pid)
    figures = summary(found)
    return Result(
        bench="classes",
        method=f"{CLASSES} source classes and {SERVICES} Services with routes: Envoy's memory and "
        "descriptors, and ms from a new route's file to the first answer by it",
        settings={"classes": CLASSES, "services": SERVICES, "changes": changes},
        arms={
            "new route": {
                **figures,
                "unit": "ms",
                "daemon": steps_of(steps),
            },
            "memory": memory,
            "descriptors": {"open": descriptors, "limit": limit},
        },
        bars=(
            Bar("Envoy's memory", memory["envoy"]["rss_mb"], MEMORY_BAR, "MB"),
            Bar("share of its descriptors", round(descriptors / limit, 4), SHARE_BAR),
            Bar("new route, p99", figures["p99"], P99_BAR, "ms"),
        ),
        raw={"new_route_ms": found, "daemon_steps_ms": steps},
    )


def _limit(pid: int) -> int:
    text = Path(f"/proc/{pid}/limits").read_text()
    found = re.search(r"^Max open files\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 1


def _measure(place: Site, running: DaemonUnderTest, changes: int) -> list[float]:
    found: list[float] = []
    chance = random.Random(1)
    for number in range(changes):
        service, name = chance.randrange(SERVICES), f"new{number}"
        # Instead of the route that takes everything: one that takes this path only.
        with Kept(place, _client(number % CLASSES), (_vip(service), 80)) as client:
            running.write(f"route-{service}", _route(f"r{service}", service, "/nothing"))
            running.settle()
            client.until(404, "any", f"/{name}")
            rename = running.prepare(name, _route(name, service, f"/{name}"))
            time.sleep(chance.uniform(0.01, 0.06))
            started = time.monotonic()
            rename()
            found.append(round((client.until(200, "any", f"/{name}") - started) * 1000, 3))
        running.settle()
    return found


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    arms = data["arms"]
    return [
        ("new route (ms): median, p99", arms["new route"]["median"], arms["new route"]["p99"]),
        ("Envoy (MB)", arms["memory"]["envoy"]["rss_mb"], ""),
        ("daemon (MB)", arms["memory"]["daemon"]["rss_mb"], ""),
        ("Envoy's descriptors, of", arms["descriptors"]["open"], arms["descriptors"]["limit"]),
    ]


COLUMNS = ("CLASSES", "", "")
