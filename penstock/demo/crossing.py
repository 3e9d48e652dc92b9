"""Between nodes, and against the rules: mesh TLS on the wire, and every way of an intruder closed."""

from __future__ import annotations

from collections import Counter

from penstock.demo import client
from penstock.demo.evidence import rise, streams, tls_records
from penstock.demo.mesh import Mesh
from penstock.demo.report import Check, Found
from penstock.demo.tell import DENIED, NOTHING, dial, reason, said
from penstock.demo.watch import Record, flow, request
from penstock.demo.wire import Capture

HANDSHAKE = 0x16


def between_nodes(mesh: Mesh) -> Found:
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
    return Found(
        sent=(
            f"frontend on {here.name} → api by its route, to version 2: GET http://{routed}{paths[0]}",
            f"frontend on {here.name} → api-v2 on {there.name} by its own Service: GET http://{direct}{paths[1]}",
        ),
        got=(
            *(said(answer) for answer in answers),
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
            Check(
                "the client proved to be frontend, the server api",
                ids == {(_spiffe("frontend"), _spiffe("api"))},
            ),
        ),
    )


def unauthorised(mesh: Mesh) -> Found:
    """Every way of an intruder is closed: the route, the workload's own address, and plain text."""
    vip, direct, strict = mesh.vip("api"), mesh.address("api-v1"), mesh.address("api-v2")
    here, there = mesh.node_of("intruder"), mesh.node_of("api-v2")
    mark, mark_there, before = here.watch.mark(), there.watch.mark(), there.counters()
    answer = client.ask(mesh.netns("intruder"), vip, "/api/steal")
    dropped = dial(mesh.netns("intruder"), direct, 8080)
    plaintext = dial(here.netns, strict, 9090)
    neighbour = client.ask(there.netns, strict, "/metrics", port=9090)
    by_route = here.watch.after(mark, request("default/intruder", "/api/steal"))
    by_rule = here.watch.after(mark, flow("default/intruder", "default/api-v1", 8080))
    by_mode = there.watch.after(mark_there, flow(here.address, "default/api-v2", 9090))
    counted = rise(before, there.counters()).get("PLAINTEXT_TO_STRICT", 0)
    return Found(
        sent=(
            f"intruder → api by its Service: GET http://{vip}/api/steal",
            f"intruder → api-v1 direct: {direct}:8080",
            f"{here.name} itself → api-v2 direct, without TLS: {strict}:9090",
            f"{there.name} itself, where api-v2 runs: GET http://{strict}:9090/metrics",
        ),
        got=(said(answer), dropped, plaintext, said(neighbour)),
        went=(
            mesh.told(by_route),
            mesh.told(by_rule),
            mesh.told(by_mode),
            f"PLAINTEXT_TO_STRICT +{counted} packets",
        ),
        checks=(
            Check("the route: 403", (answer.status, answer.body) == (403, DENIED)),
            Check(
                "the workload's own address: dropped",
                dropped == NOTHING and reason(by_rule) == "POLICY_DENIED_INGRESS",
            ),
            Check(
                "plain text to a STRICT workload: dropped and counted, though a policy allows the port",
                plaintext == NOTHING and reason(by_mode) == "PLAINTEXT_TO_STRICT" and counted > 0,
            ),
            Check("within the node the same port answers", neighbour.status == 200),
        ),
    )


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
