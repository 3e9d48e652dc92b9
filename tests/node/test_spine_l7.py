"""What an L7 rule says of a request, both sides' rules, and tricks with paths, framing and protocols."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from clients import REFUSED, Answer, Http, ask, connect, echoes, pings, udp_echoes
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import Mesh, workload

from penstock import lab

DENIED = b"Access denied\r\n"


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"), workload("other", "node-a"), workload("api", "node-a", serves=True)
    )


def ingress(*http: dict[str, Any], who: str = "client", name: str = "in") -> dict[str, Any]:
    return policy(
        name,
        select(app="api"),
        ingress=[{"fromEndpoints": [select(app=who)], "toPorts": [ports(8080, http=list(http))]}],
    )


def egress(*http: dict[str, Any]) -> dict[str, Any]:
    return policy(
        "out",
        select(app="client"),
        egress=[{"toEndpoints": [select(app="api")], "toPorts": [ports(8080, http=list(http))]}],
    )


def get(mesh: Mesh, path: str, who: str = "client", **how: Any) -> Answer:
    return ask(mesh[who], mesh["api"].address(), 8080, path, **how)


def status(mesh: Mesh, path: str, who: str = "client", **how: Any) -> int:
    return get(mesh, path, who, **how).status


# --- fields ------------------------------------------------------------------------------------------------


def test_method_path_and_headers(mesh: Mesh) -> None:
    """Fields of an entry are ANDed, entries ORed; expressions match in full, the query is of the path."""
    mesh.apply(
        ingress(
            {"method": "GET", "path": "/exact"},
            {"method": "GET|HEAD", "path": "/items/[0-9]+"},
            {"method": "POST", "path": "/orders", "headers": ["X-Tenant: blue", "X-Trace"]},
            {"path": "/search[?]q=.*"},
        )
    )
    both = {"x-tenant": "blue", "x-trace": "1"}
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("/exact", {}, 200),
        ("/exact/", {}, 403),
        ("/exactly", {}, 403),
        ("/exact?x=1", {}, 403),
        ("/EXACT", {}, 403),
        ("/exact", {"method": "POST"}, 403),
        ("/items/7", {}, 200),
        ("/items/7", {"method": "HEAD"}, 200),
        ("/items/7", {"method": "PATCH"}, 403),
        ("/items/7", {"method": "DELETE"}, 403),
        ("/items/", {}, 403),
        ("/items/7/8", {}, 403),
        ("/orders", {"method": "POST", "headers": both}, 200),
        ("/orders", {"method": "POST", "headers": {"x-tenant": "blue"}}, 403),
        ("/orders", {"method": "POST", "headers": {**both, "x-tenant": "blues"}}, 403),
        ("/orders", {"headers": both}, 403),
        ("/search?q=x", {"method": "DELETE"}, 200),
        ("/search", {}, 403),
    ]
    got = [(path, how, status(mesh, path, **how)) for path, how, _ in cases]
    assert got == cases


@pytest.mark.parametrize("version", [4, 6])
def test_the_denial(mesh: Mesh, version: int) -> None:
    mesh.apply(ingress({"path": "/a"}))
    with Http(mesh["client"], mesh["api"].address(version), 8080) as connection:
        answer = connection.ask("/b")
        assert (answer.status, answer.body) == (403, DENIED)
        assert connection.ask("/a").status == 200
        assert connection.ask("/b", "POST", body=b"x" * 100_000).body == DENIED


def test_a_denied_grpc_call(mesh: Mesh) -> None:
    mesh.apply(ingress({"path": "/a"}))
    answer = get(mesh, "/pkg.Service/Call", method="POST", headers={"content-type": "application/grpc"})
    assert (answer.headers["grpc-status"], answer.headers["grpc-message"]) == ("7", "Access denied")


def test_host(mesh: Mesh) -> None:
    mesh.apply(ingress({"host": "api[.]example"}))
    assert status(mesh, "/", headers={"host": "api.example"}) == 200
    assert status(mesh, "/", headers={"host": "apixexample"}) == 403


def test_http_without_entries_of_a_rule_is_all_or_nothing(mesh: Mesh) -> None:
    """`{}` is every request."""
    mesh.apply(ingress({}))
    assert status(mesh, "/anything", method="DELETE") == 200


# --- tricks ------------------------------------------------------------------------------------------------

TRICKS = (
    "/private",
    "//private",
    "/./private",
    "/public/../private",
    "/public/./../private",
    "/public/x/../../private",
    "/public/%2e%2e/private",
    "/public/%2E%2E/private",
    "/public/.%2e/private",
    "/public%2f..%2fprivate",
    "/public/..%2fprivate",
    "/public/..%5cprivate",
    "/public/..\\private",
    "/public/%252e%252e/private",
    "/public//../private",
    "/public/..;/private",
    "/public/x?/../../private",
    "/public/x#/../../private",
    "http://elsewhere/private",
    "*",
    "/%70rivate",
    "/public/\t../private",
)


@pytest.mark.parametrize("trick", TRICKS)
def test_no_path_leads_a_request_past_the_rule(mesh: Mesh, trick: str) -> None:
    """Refused, or what the backend got is within the rule, however the backend reads it."""
    mesh.apply(ingress({"path": "/public/.*"}))
    with connect(mesh["client"], mesh["api"].address(), 8080) as sock:
        sock.sendall(f"GET {trick} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := sock.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    code = int(head.split()[1])
    if code == 200:
        seen = json.loads(body)["path"]
        assert seen.startswith("/public/")
        plain = seen.partition("?")[0].lower().replace("%2e", ".").replace("%2f", "/").replace("\\", "/")
        assert "/../" not in plain
    else:
        assert code in (400, 403, 404)


def test_an_honest_path_survives_being_tidied(mesh: Mesh) -> None:
    mesh.apply(ingress({"path": "/public/.*"}))
    for path, seen in (
        ("/public/a%20b", "/public/a%20b"),
        ("//public///x", "/public/x"),
        ("/private/../public/x", "/public/x"),
        ("/public/x?next=/../private", "/public/x?next=/../private"),
    ):
        answer = get(mesh, path)
        assert (answer.status, answer.json["path"]) == (200, seen)


def test_pipelined_requests_are_judged_one_by_one(mesh: Mesh) -> None:
    mesh.apply(ingress({"path": "/a"}))
    with connect(mesh["client"], mesh["api"].address(), 8080) as sock:
        sock.sendall(
            b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
            b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"
            b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        answer = b""
        while data := sock.recv(65536):
            answer += data
    # After a denial Envoy may close and leave what was sent ahead to be sent again (RFC 9112, 9.3.2).
    codes = [part.split()[0] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert codes in ([b"200", b"403"], [b"200", b"403", b"200"])


def test_a_request_hidden_in_a_body_is_a_body(mesh: Mesh) -> None:
    """Content-Length beside Transfer-Encoding, the classic of request smuggling (RFC 9112, 6.1)."""
    mesh.apply(ingress({"path": "/a"}))
    hidden = b"0\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(mesh["client"], mesh["api"].address(), 8080, timeout=2) as sock:
        sock.sendall(
            b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n%s"
            % (len(hidden), hidden)
        )
        answer = b""
        try:
            while data := sock.recv(65536):
                answer += data
        except (TimeoutError, ConnectionError):
            pass  # the connection is kept or ended as Envoy likes; what counts is what was served
    assert b'"/b"' not in answer


@pytest.mark.parametrize(("path", "code"), [("/a", 200), ("/b", 403)])
def test_http2_without_tls(mesh: Mesh, path: str, code: int) -> None:
    """It is judged as HTTP/1.1 is, and passed on as HTTP/2."""
    mesh.apply(ingress({"path": "/a"}))
    shown = ["-s", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", "--max-time", "5"]
    url = f"http://{mesh['api'].address()}:8080{path}"
    process = lab.run_in(
        mesh["client"].netns,
        ["curl", *shown, "--http2-prior-knowledge", url],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.communicate(timeout=10)[0] == f"{code} 2"


def test_connect_needs_a_rule_that_names_it(mesh: Mesh) -> None:
    mesh.apply(ingress({"path": "/.*"}))
    with connect(mesh["client"], mesh["api"].address(), 8080) as sock:
        sock.sendall(b"CONNECT 10.244.1.11:8080 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " not in sock.recv(999)[:15]


def test_what_is_not_http_is_refused_where_http_is_named(mesh: Mesh) -> None:
    mesh.apply(ingress({}))
    with connect(mesh["client"], mesh["api"].address(), 8080) as sock:
        sock.sendall(b"\x00\x01\x02 not a request\r\n\r\n")
        assert not sock.recv(999).startswith(b"HTTP/1.1 200")


# --- both sides, and what else rules say -------------------------------------------------------------------


def test_both_sides_must_allow(mesh: Mesh) -> None:
    mesh.apply(egress({"path": "/(a|b)"}), ingress({"path": "/(b|c)"}))
    assert [status(mesh, path) for path in ("/a", "/b", "/c")] == [403, 200, 403]
    mesh.apply(egress({"path": "/a"}))
    assert [status(mesh, path) for path in ("/a", "/b")] == [200, 403]
    assert status(mesh, "/b", "other") == 200
    # The sender's policy names one port of one workload: all else is denied by default.
    assert not echoes(mesh["client"], mesh["api"].address(), 9090)
    assert not pings(mesh["client"], mesh["api"].address())


def test_an_l4_denial_of_one_side_is_not_opened_by_the_other(mesh: Mesh) -> None:
    closed = policy("out", select(app="client"), egress=[{"toEndpoints": [select(app="other")]}])
    mesh.apply(closed, ingress({}))
    with pytest.raises(TimeoutError):
        get(mesh, "/", timeout=REFUSED)
    web = service("web", {"port": 80, "targetPort": 8080}, selector={"app": "api"})
    mesh.apply(closed, ingress({}), web, route("web", "web", {"backendRefs": [to("web")]}))
    assert ask(mesh["client"], mesh.vip("web"), 80).status == 403


def test_default_deny_and_its_absence(mesh: Mesh) -> None:
    address = mesh["api"].address()
    mesh.apply(policy("in", select(app="api"), ingress=[{}]))
    assert not echoes(mesh["client"], address, 9090)
    assert not udp_echoes(mesh["client"], address, 9091)
    assert echoes(mesh["api"], mesh["api"].address(), 9090, timeout=3)
    mesh.apply(policy("in", select(app="api"), ingress=[]))
    assert echoes(mesh["client"], address, 9090, timeout=3)
    mesh.apply(
        policy(
            "in",
            select(app="api"),
            ingress=[
                {"fromEndpoints": [select(app="client")], "toPorts": [ports(8080, http=[{"path": "/a"}])]}
            ],
            enableDefaultDeny={"ingress": False},
        )
    )
    assert echoes(mesh["other"], address, 9090, timeout=3)
    assert status(mesh, "/b") == 200


def test_denials_beat_what_allows(mesh: Mesh) -> None:
    mesh.apply(
        policy(
            "in",
            select(app="api"),
            ingress=[{"fromEndpoints": [select()]}],
            ingressDeny=[
                {"fromEndpoints": [select(app="other")]},
                {"fromEndpoints": [select(app="client")], "toPorts": [ports(9090)]},
            ],
        ),
        ingress({"path": "/a"}, name="more"),
    )
    address = mesh["api"].address()
    assert not echoes(mesh["client"], address, 9090)
    assert udp_echoes(mesh["client"], address, 9091, timeout=3)
    assert ask(mesh["client"], address, 8081).status == 200
    assert not udp_echoes(mesh["other"], address, 9091)


def test_a_plain_allow_beside_an_l7_rule_allows_every_request(mesh: Mesh) -> None:
    plain = policy(
        "plain",
        select(app="api"),
        ingress=[{"fromEndpoints": [select(app="client")], "toPorts": [ports(8080)]}],
    )
    mesh.apply(ingress({"path": "/a"}), ingress({"path": "/a"}, who="other", name="more"), plain)
    assert status(mesh, "/b") == 200
    assert status(mesh, "/b", "other") == 403


@pytest.mark.parametrize(
    ("entities", "let_in"),
    [(["world"], False), (["cluster"], True), (["all"], True), (["host"], False), (["remote-node"], False)],
)
def test_entities(mesh: Mesh, entities: list[str], let_in: bool) -> None:
    mesh.apply(policy("in", select(app="api"), ingress=[{"fromEntities": entities}]))
    assert echoes(mesh["client"], mesh["api"].address(), 9090, timeout=3 if let_in else REFUSED) is let_in
    # The node's own processes may always (a setting).
    with connect(mesh.spec.nodes[0], mesh["api"].address(), 9090) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def test_rules_without_peers_and_named_ports(mesh: Mesh) -> None:
    named = {"ports": [{"port": "http", "protocol": "TCP"}], "rules": {"http": [{"path": "/a"}]}}
    mesh.apply(policy("in", select(app="api"), ingress=[{"toPorts": [named]}]))
    for who in ("client", "other"):
        assert [status(mesh, path, who) for path in ("/a", "/b")] == [200, 403]
    assert not echoes(mesh["client"], mesh["api"].address(), 9090)


def test_port_ranges(mesh: Mesh) -> None:
    span = {"ports": [{"port": "8000", "endPort": 9090, "protocol": "TCP"}]}
    mesh.apply(
        policy(
            "in", select(app="api"), ingress=[{"fromEndpoints": [select(app="client")], "toPorts": [span]}]
        )
    )
    address = mesh["api"].address()
    assert echoes(mesh["client"], address, 9090, timeout=3)
    assert status(mesh, "/") == 200
    assert not udp_echoes(mesh["client"], address, 9091)
