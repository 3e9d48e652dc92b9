"""`penstock bench disruption`: requests at a steady rate while things change, and how many of them fail.

A client asks over 50 kept-alive connections, half of them to a Service's address with an HTTPRoute, half to a
Gateway over TLS (h2load, a fixed rate). Meanwhile one kind of event happens again and again, each when the
last is in force: a weight changes; a route is edited, added, removed; a backend is added, drained, replaced;
the listener's certificate rotates; a policy tightens for another client; the daemon restarts. All requests
are judged by L7 rules. Every answer that is not a 2xx counts, and so does every connection that fails.
"""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from penstock.bench.certificate import self_signed
from penstock.bench.errors import BenchError
from penstock.bench.record import Bar, Result
from penstock.bench.serving import HTTP_PORT, load_cpu, need, nginx
from penstock.bench.site import (
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
from penstock.bench.stats import summary

CLIENT, OTHER, BACKENDS = "client", "other", ("b0", "b1", "b2")
VIP, GATEWAY, HOST = "10.96.200.1", "10.97.200.1", "shop.example.com"
CONNECTIONS = 50
RATE = 400
TIMES, QUICK_TIMES = 100, 10
_ROUND = 5
"""Seconds that one run of the load takes; connections live so long."""
_API = "gateway.networking.k8s.io/v1"

Tell = Callable[[str], None]
Event = Callable[["Scene", int], None]


@dataclass(slots=True)
class Scene:
    """The mesh under load, and what its manifests say now."""

    place: Site
    running: DaemonUnderTest

    def address(self, backend: str) -> str:
        return self.place.address(backend)

    def change(self, name: str, *documents: Mapping[str, Any]) -> None:
        self.running.write(name, *documents)

    def remove(self, name: str) -> None:
        (self.running.config / f"{name}.yaml").unlink()


# --- manifests --------------------------------------------------------------------------------------------


def _service(name: str, **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": HTTP_PORT}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": ports, **spec},
    }


def _slice(service: str, ready: Sequence[str], draining: Sequence[str] = ()) -> dict[str, Any]:
    gone = {"ready": False, "serving": True, "terminating": True}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": HTTP_PORT}],
        "endpoints": [{"addresses": [a]} for a in ready]
        + [{"addresses": [a], "conditions": gone} for a in draining],
    }


def _parents() -> list[dict[str, Any]]:
    return [{"name": "shop"}, {"kind": "Service", "group": "", "name": "shop"}]


def _route(
    name: str = "shop", path: str = "/", weights: tuple[int, int] = (1, 1), **more: Any
) -> dict[str, Any]:
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": path}}],
        "backendRefs": [
            {"name": backend, "port": 80, "weight": weight}
            for backend, weight in zip(("one", "many"), weights, strict=True)
        ],
        **more,
    }
    spec = {"parentRefs": _parents(), "rules": [rule]}
    return {"apiVersion": _API, "kind": "HTTPRoute", "metadata": {"name": name}, "spec": spec}


def _gateway() -> dict[str, Any]:
    tls = {"mode": "Terminate", "certificateRefs": [{"name": "shop"}]}
    return {
        "apiVersion": _API,
        "kind": "Gateway",
        "metadata": {"name": "shop"},
        "spec": {
            "gatewayClassName": "penstock",
            "addresses": [{"type": "IPAddress", "value": GATEWAY}],
            "listeners": [{"name": "https", "port": 443, "protocol": "HTTPS", "tls": tls}],
        },
    }


def _secret() -> dict[str, Any]:
    chain, key = self_signed(HOST)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "shop"},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": chain, "tls.key": key},
    }


def _policies(paths: tuple[str, ...]) -> list[dict[str, Any]]:
    """Client and Gateways may read everything; the other client only `paths`."""
    everything = allow(CLIENT, (HTTP_PORT, "TCP"), http=[{"method": "GET"}])
    doors = {"fromEntities": ["ingress"], "toPorts": everything["toPorts"]}
    other = allow(OTHER, (HTTP_PORT, "TCP"), http=[{"method": "GET", "path": path} for path in paths])
    return [policy(backend, backend, ingress=[everything, doors, other]) for backend in BACKENDS]


def _first(place: Site) -> dict[str, list[dict[str, Any]]]:
    one, two = place.address("b0"), place.address("b1")
    return {
        "services": [_service("shop", clusterIP=VIP), _service("one"), _service("many")],
        "shop": [_slice("shop", [one, two])],
        "one": [_slice("one", [one])],
        "many": [_slice("many", [one, two])],
        "route": [_route()],
        "gateway": [_gateway()],
        "secret": [_secret()],
        "policy": _policies(("/.*",)),
    }


# --- events -----------------------------------------------------------------------------------------------


def _weight(scene: Scene, number: int) -> None:
    scene.change("route", _route(weights=((90, 10), (10, 90), (100, 0), (0, 1))[number % 4]))


def _edited(scene: Scene, number: int) -> None:
    header = {"name": "x-edit", "value": str(number)}
    changed = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [header]}}
    scene.change("route", _route(path="/", filters=[changed] if number % 3 else []))


def _added(scene: Scene, number: int) -> None:
    # The one before goes in the same moment as the next comes.
    name = f"more{number % 2}"
    scene.change(name, _route(name, f"/{'x' * (number % 2)}"))
    scene.running.settle()
    scene.remove(name)


def _backend(scene: Scene, number: int) -> None:
    """b2 comes, b1 drains and goes, b1 comes in the place of b2."""
    b0, b1, b2 = map(scene.address, BACKENDS)
    ready, draining = [([b0, b1, b2], []), ([b0, b2], [b1]), ([b0, b2], []), ([b0, b1], [])][number % 4]
    for service in ("shop", "many"):
        scene.change(service, _slice(service, ready, draining))
    scene.change("one", _slice("one", [(b0, b2, b2, b0)[number % 4]]))


def _certificate(scene: Scene, number: int) -> None:
    scene.change("secret", _secret())


def _policy(scene: Scene, number: int) -> None:
    scene.change("policy", *_policies((("/a",), ("/a", "/b"), ("/.*",))[number % 3]))


def _restart(scene: Scene, number: int) -> None:
    scene.running.restart()


EVENTS: Mapping[str, Event] = {
    "weight changes": _weight,
    "route edited": _edited,
    "route added and removed": _added,
    "backend added, drained, replaced": _backend,
    "certificate rotates": _certificate,
    "policy tightens for another": _policy,
    "daemon restarts": _restart,
}


# --- load -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """What the load generators told: answers, those that were no 2xx, requests that ended in an error."""

    answers: int = 0
    others: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    failed: int = 0

    def add(self, text: str) -> None:
        requests = re.search(
            r"^requests: \d+ total.* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text, re.M
        )
        codes = re.search(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text, re.M)
        if requests is None or codes is None or not int(codes[1]):
            raise BenchError(f"h2load said something else: {text[-500:]}")
        self.answers += int(codes[1])
        self.others += sum(map(int, codes.groups()[1:]))
        for name, count in zip(("3xx", "4xx", "5xx"), codes.groups()[1:], strict=True):
            self.codes[name] = self.codes.get(name, 0) + int(count)
        self.failed += int(requests[3]) + int(requests[4])


def _load(place: Site) -> Iterator[subprocess.Popen[str]]:
    """Half of the connections to the Service, half to the Gateway, for _ROUND seconds."""
    half, rate = CONNECTIONS // 2, RATE / CONNECTIONS
    for url, at in ((f"http://{VIP}/", f"{VIP}:80"), (f"https://{HOST}/", f"{GATEWAY}:443")):
        argv = ["taskset", "-c", str(load_cpu()), "h2load", "--h1", "-t1", "-m1", f"-c{half}", f"-D{_ROUND}"]
        argv += [f"--rps={rate:g}", f"--connect-to={at}", url]
        yield place.run_in(CLIENT, argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _under_load(scene: Scene, event: Event, times: int) -> tuple[Seen, list[float]]:
    """The event so many times, and how long each took until all was in force (ms)."""
    seen, took = Seen(), list[float]()
    chance = random.Random(1)
    while len(took) < times:
        end = time.monotonic() + _ROUND - 0.7
        loads = list(_load(scene.place))
        try:
            time.sleep(0.3)  # until all connections are there
            while len(took) < times and time.monotonic() < end:
                started = time.monotonic()
                event(scene, len(took))
                scene.running.settle(30)
                took.append(round((time.monotonic() - started) * 1000, 1))
                time.sleep(chance.uniform(0.0, 0.03))
            for load in loads:
                text, _ = load.communicate(timeout=_ROUND + 30)
                seen.add(text)
        finally:
            for load in loads:
                if load.poll() is None:
                    load.kill()
                    load.wait()
    return seen, took


def run(tell: Tell, *, quick: bool = False, events: Mapping[str, Event] = EVENTS) -> Result:
    """Measure. Raises PenstockError."""
    need("nginx", "h2load")
    times = QUICK_TIMES if quick else TIMES
    raw: dict[str, list[float]] = {}
    found: dict[str, Seen] = {}
    with alone(), scratch() as directory, ExitStack() as stack:
        servers = [
            workload(name, run=[nginx(directory, name)], ports=[{"containerPort": HTTP_PORT}])
            for name in BACKENDS
        ]
        place = stack.enter_context(
            site("disruption", [workload(CLIENT), workload(OTHER), *servers], directory)
        )
        running = stack.enter_context(daemon(place, ()))
        scene = Scene(place, running)
        for name, documents in _first(place).items():
            scene.change(name, *documents)
        running.settle(30)
        for name, event in events.items():
            found[name], raw[name] = _under_load(scene, event, times)
            seen = found[name]
            tell(
                f"{name}: {times} times, {seen.answers} answers, {seen.others} not 2xx, {seen.failed} failed"
            )
    return Result(
        bench="disruption",
        method=f"{RATE} requests a second over {CONNECTIONS} kept-alive connections (h2load), half to a "
        "Service with an HTTPRoute, half to a Gateway over TLS, while each event happens again and again",
        settings={"times": times, "connections": CONNECTIONS, "rate": RATE},
        arms={
            name: {
                "answers": seen.answers,
                "not_2xx": seen.others,
                "codes": seen.codes,
                "failed": seen.failed,
                "settled_ms": summary(raw[name], 1),
            }
            for name, seen in found.items()
        },
        bars=tuple(
            Bar(f"{name}: not 2xx, or failed", seen.others + seen.failed, 1) for name, seen in found.items()
        ),
        raw={"settled_ms": raw},
    )


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (name, data["settings"]["times"], f["answers"], f["not_2xx"], f["failed"], f["settled_ms"]["median"])
        for name, f in data["arms"].items()
    ]


COLUMNS = ("EVENT", "TIMES", "ANSWERS", "NOT 2XX", "FAILED", "IN FORCE (ms)")
