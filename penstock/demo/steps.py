"""The story: eight steps, in order. Each tries something and says what proves it."""

from __future__ import annotations

import http.client
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from penstock.demo import client, load
from penstock.demo.evidence import binomial_bounds, rise, streams, tls_records
from penstock.demo.mesh import Mesh
from penstock.demo.report import Check, Step
from penstock.demo.watch import Record, flow, request
from penstock.demo.wire import Capture
from penstock.errors import PenstockError

DENIED = b"Access denied\r\n"
REFUSED_AFTER = 0.7
"""Seconds that a dropped connection is tried for: the kernel says meanwhile that it dropped it."""
SPLIT = 1000
SHARE = 0.1
"""Of version 2, in examples/manifests/route.yaml."""
PARALLEL = 4
EDITS = 40
ROUTE = "route.yaml"
PAUSE = 0.005
"""Seconds that each client thinks between two requests while routes are edited."""
HANDSHAKE = 0x16


def kernel_only(mesh: Mesh) -> Step:
    """L4 that a policy allows never sees Envoy."""
    node, address = mesh.node_of("db"), mesh.vip("db")
    data = bytes(range(256)) * 4096
    before, proxied, mark = node.counters(), node.proxied(), node.watch.mark()
    got = client.echoed(mesh.netns("frontend"), address, 5432, data)
    record = node.watch.after(mark, flow("default/frontend", "default/db", 5432))
    moved, through = rise(before, node.counters()), node.proxied() - proxied
    forwarded, redirected = moved.get("FORWARDED_LOCAL", 0), moved.get("REDIRECTED", 0)
    return Step(
        "l4-allowed",
        "L4 allowed: it stays in the kernel, Envoy never sees it",
        sent=(f"frontend → db {address}:5432, {len(data) >> 10} KiB over TCP",),
        got=(f"{len(got) >> 10} KiB back",),
        went=(mesh.told(record), f"{forwarded} packets forwarded in the kernel, {redirected} steered to Envoy"),
        checks=(
            Check("the same bytes came back", got == data),
            Check("the kernel handed them over (FORWARDED_LOCAL)", _reason(record) == "FORWARDED_LOCAL"),
            Check("not one packet was steered to Envoy", forwarded > 0 and redirected == 0),
            Check("Envoy counts not one connection more", through == 0),
        ),
    )


def kernel_drop(mesh: Mesh) -> Step:
    """L4 that no rule allows is dropped, counted, and told with its reason."""
    node, address = mesh.node_of("db"), mesh.vip("db")
    before, proxied, mark = node.counters(), node.proxied(), node.watch.mark()
    outcome = _dial(mesh.netns("intruder"), address, 5432)
    record = node.watch.after(mark, flow("default/intruder", "default/db", 5432))
    moved, through = rise(before, node.counters()), node.proxied() - proxied
    return Step(
        "l4-dropped",
        "L4 dropped: a client that no rule names gets silence, the operator gets the reason",
        sent=(f"intruder → db {address}:5432",),
        got=(outcome,),
        went=(mesh.told(record), f"POLICY_DENIED_INGRESS +{moved.get('POLICY_DENIED_INGRESS', 0)} packets"),
        checks=(
            Check("nothing came back", outcome == NOTHING),
            Check("observe tells the reason", _reason(record) == "POLICY_DENIED_INGRESS"),
            Check("the drop is counted", moved.get("POLICY_DENIED_INGRESS", 0) > 0),
            Check("Envoy counts not one connection more", through == 0),
        ),
    )


def request_allowed(mesh: Mesh) -> Step:
    """A request that a rule names goes through Envoy, and arrives from the client's own address."""
    node, address, path = mesh.node_of("frontend"), mesh.vip("api"), "/api/hello"
    before, mark = node.counters(), node.watch.mark()
    answer = client.ask(mesh.netns("frontend"), address, path)
    record = node.watch.after(mark, request("default/frontend", path))
    redirected = rise(before, node.counters()).get("REDIRECTED", 0)
    return Step(
        "l7-allowed",
        "L7 allowed: what a rule or a route names goes through the node's Envoy",
        sent=(f"frontend → api: GET http://{address}{path}",),
        got=(_said(answer),),
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


def request_denied(mesh: Mesh) -> Step:
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
    return Step(
        "l7-denied",
        "L7 denied: on one connection, what the policy names passes and the rest is 403",
        sent=(
            *(f"frontend → api: {method} http://{address}{path}" for method, path in asked),
            f"admin → api: GET http://{address}/admin",
        ),
        got=tuple(_said(answer) for answer in (*answers, admin)),
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


def split(mesh: Mesh) -> Step:
    """A route's weights, judged by the binomial distribution."""
    address = mesh.vip("api")
    outcome = load.run(
        mesh.netns("frontend"), address, "/api/split", clients=PARALLEL, requests=SPLIT // PARALLEL
    )
    low, high = binomial_bounds(SPLIT, SHARE)
    count = outcome.pods["api-v2"]
    return Step(
        "split",
        "Traffic split: nine of ten requests to version 1, one to version 2",
        sent=(f"frontend → api: {SPLIT} × GET http://{address}/api/split over {PARALLEL} connections",),
        got=(f"{outcome.pods['api-v1']} from api-v1, {count} from api-v2, {len(outcome.failures)} failed",),
        went=(f"api-v1 on {mesh.node_of('api-v1').name}, api-v2 on {mesh.node_of('api-v2').name}",),
        checks=(
            Check(f"all {SPLIT} answered 200", outcome.total == SPLIT and not outcome.failures),
            Check(f"version 2 got {low} to {high} of them (binomial, 5 sigma)", low <= count <= high),
        ),
    )


def between_nodes(mesh: Mesh) -> Step:
    """Between nodes everything to the API is mesh TLS with both workloads' certificates."""
    here, there = mesh.node_of("frontend"), mesh.node_of("api-v2")
    routed, direct = mesh.vip("api"), mesh.vip("api-v2")
    paths, secret = ("/api/card/4929-1234", "/api/card/4929-5678"), "Bearer-of-good-news"
    headers = {"x-version": "v2", "authorization": secret}
    mark = there.watch.mark()
    with Capture(mesh.netns("frontend")) as inside, Capture(here.netns) as underlay:
        answers = [
            client.ask(mesh.netns("frontend"), address, path, headers=headers)
            for address, path in zip((routed, direct), paths, strict=True)
        ]
        plain = b"".join(s.data for s in inside.segments())
        ends = {mesh.address("frontend"), mesh.address("api-v2")}
        crossed = streams(s for s in underlay.segments() if {s.source[0], s.destination[0]} == ends)
    logged = [there.watch.after(mark, request("default/frontend", path)) for path in paths]
    records = [tls_records(data) for data in crossed.values()]
    wire = b"".join(crossed.values())
    words = [text.encode() for text in (*paths, secret, "HTTP/1.1")]
    ids = {_ids(record) for record in logged}
    hello = next((d[:16].hex(" ") for d in crossed.values() if d[0] == HANDSHAKE), "nothing")
    return Step(
        "mtls",
        "Between nodes: mutual TLS with the workloads' own certificates",
        sent=(
            f"frontend on {here.name} → api by its route, to version 2: GET http://{routed}{paths[0]}",
            f"frontend on {here.name} → api-v2 on {there.name} by its own Service: GET http://{direct}{paths[1]}",
        ),
        got=(
            *(_said(answer) for answer in answers),
            f"on the underlay: {len(wire)} bytes, TLS records: {_tally(records)}",
            f"the handshake begins {hello} …",
        ),
        went=(
            *(mesh.told(record) for record in logged),
            *(f"client {client_id}, server {server_id}" for client_id, server_id in sorted(ids)),
        ),
        checks=(
            Check("both answered by api-v2", all((a.status, a.pod) == (200, "api-v2") for a in answers)),
            Check("on frontend's own link the requests can be read", all(word in plain for word in words)),
            Check("between the nodes there are TLS records and nothing else", bool(records) and all(records)),
            Check("a handshake is among them", any(r and "handshake" in r for r in records)),
            Check("no word of the requests is among them", not any(word in wire for word in words)),
            Check("the client proved to be frontend, the server api", ids == {(_spiffe("frontend"), _spiffe("api"))}),
        ),
    )


def unauthorised(mesh: Mesh) -> Step:
    """Every way of an intruder is closed: the route, the workload's own address, and plain text."""
    vip, direct, strict = mesh.vip("api"), mesh.address("api-v1"), mesh.address("api-v2")
    here, there = mesh.node_of("intruder"), mesh.node_of("api-v2")
    mark, mark_there, before = here.watch.mark(), there.watch.mark(), there.counters()
    answer = client.ask(mesh.netns("intruder"), vip, "/api/steal")
    dropped = _dial(mesh.netns("intruder"), direct, 8080)
    plaintext = _dial(here.netns, strict, 9090)
    neighbour = client.ask(there.netns, strict, "/metrics", port=9090)
    by_route = here.watch.after(mark, request("default/intruder", "/api/steal"))
    by_rule = here.watch.after(mark, flow("default/intruder", "default/api-v1", 8080))
    by_mode = there.watch.after(mark_there, flow(here.address, "default/api-v2", 9090))
    counted = rise(before, there.counters()).get("PLAINTEXT_TO_STRICT", 0)
    return Step(
        "unauthorised",
        "Refused: an intruder on every way, and plain text from the other node",
        sent=(
            f"intruder → api by its Service: GET http://{vip}/api/steal",
            f"intruder → api-v1 direct: {direct}:8080",
            f"{here.name} itself → api-v2 direct, without TLS: {strict}:9090",
            f"{there.name} itself, where api-v2 runs: GET http://{strict}:9090/metrics",
        ),
        got=(_said(answer), dropped, plaintext, _said(neighbour)),
        went=(mesh.told(by_route), mesh.told(by_rule), mesh.told(by_mode), f"PLAINTEXT_TO_STRICT +{counted} packets"),
        checks=(
            Check("the route: 403", (answer.status, answer.body) == (403, DENIED)),
            Check(
                "the workload's own address: dropped",
                dropped == NOTHING and _reason(by_rule) == "POLICY_DENIED_INGRESS",
            ),
            Check(
                "plain text to a STRICT workload: dropped and counted, though a policy allows the port",
                plaintext == NOTHING and _reason(by_mode) == "PLAINTEXT_TO_STRICT" and counted > 0,
            ),
            Check("within the node the same port answers", neighbour.status == 200),
        ),
    )


def live_change(mesh: Mesh) -> Step:
    """Weights edited again and again under load: every edit holds, nothing is lost, nobody reconnects."""
    address, netns = mesh.vip("api"), mesh.netns("frontend")
    delays: list[float] = []
    late = 0
    probe = client.Client(netns, address)
    with load.Running(netns, address, "/api/live", clients=PARALLEL, pause=PAUSE) as running:
        try:
            for number in range(EDITS):
                wanted = ("api-v1", "api-v2")[number % 2]
                mesh.edit(ROUTE, partial(_all_to, version=wanted))
                delay = _until(probe, wanted)
                if delay is None:
                    late += 1
                else:
                    delays.append(delay)
        finally:
            probe.close()
    outcome = running.outcome
    delays.sort()
    took = f"{delays[len(delays) // 2] * 1000:.0f} ms (median), {delays[-1] * 1000:.0f} ms (longest)" if delays else "–"
    return Step(
        "live-change",
        "A route changed live, under load",
        sent=(
            f"{EDITS} edits of {ROUTE}: all to version 1, all to version 2, and back",
            f"meanwhile frontend → api: {outcome.total} × GET over {PARALLEL} kept-alive connections",
        ),
        got=(f"{outcome.pods['api-v1']} from api-v1, {outcome.pods['api-v2']} from api-v2, {len(outcome.failures)} failed", *outcome.told()),
        went=(f"from saving the file to the first request that goes by it: {took}",),
        checks=(
            Check("every edit took effect within 2 s", not late and len(delays) == EDITS),
            Check("0 failed requests", outcome.total > EDITS and not outcome.failures),
            Check("no client had to connect again", outcome.connections == PARALLEL and probe.connections == 1),
        ),
    )


STEPS: tuple[Callable[[Mesh], Step], ...] = (
    kernel_only,
    kernel_drop,
    request_allowed,
    request_denied,
    split,
    between_nodes,
    unauthorised,
    live_change,
)


def run(step: Callable[[Mesh], Step], mesh: Mesh) -> Step:
    """One step; whatever stops it half-way is a step that did not hold."""
    try:
        return step(mesh)
    except (OSError, http.client.HTTPException, PenstockError) as error:
        claim = f"{type(error).__name__}: {error}"
        name = step.__name__.replace("_", "-")
        title = (step.__doc__ or name).strip().splitlines()[0]
        return Step(name, title, checks=(Check(claim, False),))


# --- small things -------------------------------------------------------------------------------------

NOTHING = f"nothing in {REFUSED_AFTER} s"


def _dial(netns: Path, address: str, port: int) -> str:
    try:
        client.dial(netns, address, port, REFUSED_AFTER).close()
    except TimeoutError:
        return NOTHING
    except OSError as error:
        return str(error.strerror or error)
    return "connected"


def _reason(record: Record | None) -> str:
    return str(record["reason"]) if record else ""


def _said(answer: client.Answer) -> str:
    return f"200, answered by {answer.pod}" if answer.status == 200 else f"{answer.status} {answer.body!r}"


def _ids(record: Record | None) -> tuple[str, str]:
    """SPIFFE ids that the client and the server of a request proved."""
    if record is None:
        return "", ""
    return " ".join(record["peer_ids"]), " ".join(record["local_ids"])


def _spiffe(account: str) -> str:
    return f"spiffe://penstock.local/ns/default/sa/{account}"


def _tally(records: list[list[str] | None]) -> str:
    counted = Counter(name for names in records for name in names or ["something else"])
    return ", ".join(f"{count} {name}" for name, count in counted.items()) or "none"


def _all_to(documents: list[object], version: str) -> None:
    """All weight of the route's last rule to one version."""
    route = documents[0]
    assert isinstance(route, dict)
    for reference in route["spec"]["rules"][-1]["backendRefs"]:
        reference["weight"] = 100 if reference["name"] == version else 0


def _until(probe: client.Client, pod: str) -> float | None:
    """Seconds from now to the first answer of `pod` over the probe's one connection; None after 2 s."""
    since = time.perf_counter()
    while (taken := time.perf_counter() - since) < 2.0:
        if probe.ask("/api/probe").pod == pod:
            return taken
    return None
