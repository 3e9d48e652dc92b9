"""What an L7 rule or a route names: requests, judged and routed one by one, also while the route changes."""

from __future__ import annotations

import time
from functools import partial
from statistics import median

from penstock.demo import client, load
from penstock.demo.evidence import binomial_bounds, rise
from penstock.demo.mesh import Mesh
from penstock.demo.report import Check, Found
from penstock.demo.tell import DENIED, said
from penstock.demo.watch import request

SPLIT = 1000
SHARE = 0.1
"""Of version 2, in examples/manifests/route.yaml."""
PARALLEL = 4
EDITS = 100
ROUTE = "route.yaml"
PAUSE = 0.005
"""Seconds that each client thinks between two requests while routes are edited."""
EFFECT = 5.0
"""Seconds within which an edit must be seen in an answer."""


def request_allowed(mesh: Mesh) -> Found:
    """A request that a rule names goes through Envoy, and arrives from the client's own address."""
    node, address, path = mesh.node_of("frontend"), mesh.vip("api"), "/api/hello"
    before, mark = node.counters(), node.watch.mark()
    answer = client.ask(mesh.netns("frontend"), address, path)
    record = node.watch.after(mark, request("default/frontend", path))
    redirected = rise(before, node.counters()).get("REDIRECTED", 0)
    return Found(
        sent=(f"frontend → api: GET http://{address}{path}",),
        got=(said(answer),),
        went=(mesh.told(record), f"{redirected} packets steered to Envoy"),
        checks=(
            Check("200 from a backend", answer.status == 200 and answer.pod in ("api-v1", "api-v2")),
            Check(
                "Envoy served it, at that backend",
                record is not None and record["upstream"]["name"] == f"default/{answer.pod}",
            ),
            Check("the kernel steered it", redirected > 0),
        ),
    )


def request_denied(mesh: Mesh) -> Found:
    """Method and path are judged request by request; another identity has other rights on the same port."""
    node, address = mesh.node_of("frontend"), mesh.vip("api")
    mark = node.watch.mark()
    frontend = client.Client(mesh.netns("frontend"), address)
    asked = [("GET", "/api/1"), ("GET", "/admin"), ("DELETE", "/api/2"), ("GET", "/api/3")]
    answers = [frontend.ask(path, method) for method, path in asked]
    frontend.close()
    admin = client.ask(mesh.netns("admin"), address, "/admin")
    records = [node.watch.after(mark, request("default/frontend", path)) for _, path in asked]
    allowed = node.watch.after(mark, request("default/admin", "/admin"))
    return Found(
        sent=(
            *(f"frontend → api: {method} http://{address}{path}" for method, path in asked),
            f"admin → api: GET http://{address}/admin",
        ),
        got=tuple(said(answer) for answer in (*answers, admin)),
        went=tuple(mesh.told(record) for record in (*records, allowed)),
        checks=(
            *(
                Check(f"{method} {path}: 403 and {DENIED!r}", (answer.status, answer.body) == (403, DENIED))
                for (method, path), answer in zip(asked[1:3], answers[1:3], strict=True)
            ),
            Check("before and after, the connection serves", answers[0].status == answers[3].status == 200),
            Check("one connection for all four", frontend.connections == 1),
            Check("admin has rights of its own: 200", admin.status == 200),
            Check("observe tells both denials", all(r and r["verdict"] == "DENIED" for r in records[1:3])),
        ),
    )


def split(mesh: Mesh) -> Found:
    """A route's weights, judged by the binomial distribution."""
    address = mesh.vip("api")
    outcome = load.run(
        mesh.netns("frontend"), address, "/api/split", clients=PARALLEL, requests=SPLIT // PARALLEL
    )
    low, high = binomial_bounds(SPLIT, SHARE)
    count = outcome.pods["api-v2"]
    return Found(
        sent=(f"frontend → api: {SPLIT} × GET http://{address}/api/split over {PARALLEL} connections",),
        got=outcome.told(),
        went=(f"api-v1 on {mesh.node_of('api-v1').name}, api-v2 on {mesh.node_of('api-v2').name}",),
        checks=(
            Check(f"all {SPLIT} answered 200", outcome.total == SPLIT and not outcome.failures),
            Check(f"version 2 got {low} to {high} of them (binomial, 5 sigma)", low <= count <= high),
        ),
    )


def live_change(mesh: Mesh) -> Found:
    """Weights edited again and again under load: every edit holds, nothing is lost, nobody reconnects."""
    address, netns = mesh.vip("api"), mesh.netns("frontend")
    probe = client.Client(netns, address)
    delays: list[float] = []
    with load.Running(netns, address, "/api/live", clients=PARALLEL, pause=PAUSE) as running:
        for number in range(EDITS):
            wanted = ("api-v1", "api-v2")[number % 2]
            mesh.edit(ROUTE, partial(_all_to, version=wanted))
            delays.append(_until(probe, wanted))
    probe.close()
    outcome = running.outcome
    middle, longest = (f"{value * 1000:.0f} ms" for value in (median(delays), max(delays)))
    return Found(
        sent=(
            f"{EDITS} edits of {ROUTE}: all to version 1, all to version 2, and back",
            f"meanwhile frontend → api: {outcome.total} × GET over {PARALLEL} kept-alive connections",
        ),
        got=outcome.told(),
        went=(f"from saving the file to the first answer by it: {middle} (median), {longest} at most",),
        checks=(
            Check(f"every edit was seen in an answer within {EFFECT:.0f} s", max(delays) < EFFECT),
            Check("0 failed requests", outcome.total > EDITS and not outcome.failures),
            Check("nobody had to connect again", outcome.connections == PARALLEL and probe.connections == 1),
        ),
    )


def _all_to(documents: list[object], version: str) -> None:
    """All weight of the route's last rule to one version."""
    route = documents[0]
    assert isinstance(route, dict)
    for reference in route["spec"]["rules"][-1]["backendRefs"]:
        reference["weight"] = 100 if reference["name"] == version else 0


def _until(probe: client.Client, pod: str) -> float:
    """Seconds from now to the first answer of `pod` over the probe's one connection; given up after EFFECT.

    Raises ConnectionError for an answer that is not 200.
    """
    since = time.perf_counter()
    while True:
        answer = probe.ask("/api/probe")
        taken = time.perf_counter() - since
        if answer.status != 200:
            raise ConnectionError(f"{answer.status} {answer.body!r} while the route was edited")
        if answer.pod == pod or taken > EFFECT:
            return taken
