"""Filters, timeouts and retries of mesh routes, through the real Envoy."""

from __future__ import annotations

from time import monotonic
from typing import Any

import pytest
from clients import Answer, ask
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import Mesh, workload
from scripted import Scripted

WEB = {"port": 80, "targetPort": 8080}
SERVICES = tuple(service(n, WEB, selector={"app": n}) for n in ("api", "shadow", "other"))


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        workload("other", "node-a", serves=True),
        workload("shadow", "node-a", ports=[{"name": "http", "containerPort": 8080}]),
    )


def changes(kind: str, **what: Any) -> dict[str, Any]:
    field = "requestHeaderModifier" if kind == "RequestHeaderModifier" else "responseHeaderModifier"
    return {"type": kind, field: what}


def header(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}


def prefix(value: str) -> list[dict[str, Any]]:
    return [{"path": {"type": "PathPrefix", "value": value}}]


def rule(*filters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"filters": list(filters), "backendRefs": [to("api")], **more}


def apply(mesh: Mesh, *rules: dict[str, Any], more: tuple[dict[str, Any], ...] = ()) -> None:
    mesh.apply(*SERVICES, route("r", "api", *rules), *more)


def get(mesh: Mesh, path: str = "/", **how: Any) -> Answer:
    return ask(mesh["client"], mesh.vip("api"), 80, path, **how)


def test_header_modifiers(mesh: Mesh) -> None:
    apply(
        mesh,
        rule(
            changes(
                "RequestHeaderModifier",
                set=[header("X-Set", "50%"), header("x-new", "n")],
                add=[header("X-Add", "two"), header("x-fresh", "f")],
                remove=["X-Gone"],
            ),
            changes(
                "ResponseHeaderModifier",
                set=[header("Server", "ours")],
                add=[header("x-more", "1")],
                remove=["CONTENT-TYPE"],
            ),
        ),
    )
    sent = {"x-SET": "old", "x-add": "one", "x-gone": "1", "x-kept": "k"}
    answer = get(mesh, headers=sent)
    got = answer.json["headers"]
    assert (got["X-Set"], got["X-New"], got["X-Fresh"], got["X-Kept"]) == (["50%"], ["n"], ["f"], ["k"])
    assert ",".join(got["X-Add"]) == "one,two"
    assert "X-Gone" not in got
    assert (answer.headers["server"], answer.headers["x-more"]) == ("ours", "1")
    assert "content-type" not in {name.lower() for name in answer.headers}


def test_filters_of_a_backend_follow_the_choice(mesh: Mesh) -> None:
    def marked(name: str) -> dict[str, Any]:
        rewrite = {"type": "URLRewrite", "urlRewrite": {"hostname": f"{name}.example"}}
        modifier = changes("RequestHeaderModifier", set=[header("x-for", name)])
        answer = changes("ResponseHeaderModifier", set=[header("x-from", name)])
        return {**to(name), "filters": [modifier, answer, rewrite]}

    common = changes("RequestHeaderModifier", set=[header("x-for", "all"), header("x-rule", "r")])
    apply(mesh, {"filters": [common], "backendRefs": [marked("api"), marked("other")]})
    seen = set()
    for _ in range(40):
        answer = get(mesh)
        got = answer.json
        seen.add(answer.pod)
        assert (got["headers"]["X-For"], got["headers"]["X-Rule"]) == ([answer.pod], ["r"])
        assert (got["host"], answer.headers["x-from"]) == (f"{answer.pod}.example", answer.pod)
    assert seen == {"api", "other"}
    apply(mesh, {"backendRefs": [marked("other")]})
    assert get(mesh).json["headers"]["X-For"] == ["other"]


def redirected(mesh: Mesh, redirect: dict[str, Any], path: str = "/a/b?q=1", host: str = "svc") -> str:
    item = {"type": "RequestRedirect", "requestRedirect": redirect}
    apply(mesh, {"matches": prefix("/a"), "filters": [item]})
    answer = get(mesh, path, headers={"host": host})
    return f"{answer.status} {answer.headers['location']}"


@pytest.mark.parametrize(
    ("redirect", "host", "location"),
    [
        ({}, "svc", "302 http://svc/a/b?q=1"),
        ({"hostname": "x.example"}, "svc", "302 http://x.example/a/b?q=1"),
        ({"hostname": "x.example", "statusCode": 301}, "svc:80", "301 http://x.example/a/b?q=1"),
        ({"scheme": "https", "statusCode": 307}, "svc", "307 https://svc/a/b?q=1"),
        ({"scheme": "https"}, "svc:80", "302 https://svc:443/a/b?q=1"),
        ({"scheme": "https", "port": 8443, "statusCode": 308}, "svc:80", "308 https://svc:8443/a/b?q=1"),
        ({"port": 8080, "statusCode": 303}, "svc", "303 http://svc:8080/a/b?q=1"),
        ({"port": 80}, "svc", "302 http://svc/a/b?q=1"),
        ({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/n"}}, "svc", "302 http://svc/n?q=1"),
        (
            {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/n/"}},
            "svc",
            "302 http://svc/n/b?q=1",
        ),
        ({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}, "svc", "302 http://svc/b?q=1"),
    ],
)
def test_redirects(mesh: Mesh, redirect: dict[str, Any], host: str, location: str) -> None:
    assert redirected(mesh, redirect, host=host) == location


def test_path_rewrites(mesh: Mesh) -> None:
    """The table of Gateway API's HTTPPathModifier."""
    table = [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo?a=/foo", "/foo", "/", "/?a=/foo"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
    ]
    rules = []
    for number, (_, match, replacement, _) in enumerate(table):
        change = {"type": "ReplacePrefixMatch", "replacePrefixMatch": replacement}
        numbered = {**prefix(match)[0], "headers": [header("x-case", str(number))]}
        rules.append(rule({"type": "URLRewrite", "urlRewrite": {"path": change}}, matches=[numbered]))
    apply(mesh, *rules)
    got = [get(mesh, path, headers={"x-case": str(n)}).json["path"] for n, (path, *_) in enumerate(table)]
    assert got == [wanted for *_, wanted in table]


def test_a_full_path_and_a_hostname(mesh: Mesh) -> None:
    full = {"type": "ReplaceFullPath", "replaceFullPath": "/one"}
    apply(mesh, rule({"type": "URLRewrite", "urlRewrite": {"hostname": "in.example", "path": full}}))
    got = get(mesh, "/a/b/c?q=1").json
    assert (got["path"], got["host"]) == ("/one?q=1", "in.example")
    assert not [name for name in got["headers"] if "original" in name.lower()]


def test_policy_judges_what_the_backend_gets(mesh: Mesh) -> None:
    change = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/inner"}
    rewriting = rule({"type": "URLRewrite", "urlRewrite": {"path": change}}, matches=prefix("/outer"))
    marking = rule(changes("RequestHeaderModifier", set=[header("x-role", "user")]))
    for allowed, path, code in (
        ("/inner/.*", "/outer/x", 200),
        ("/outer/.*", "/outer/x", 403),
        ("/inner/.*", "/inner/x", 200),
    ):
        http = [{"path": allowed, **({} if path != "/inner/x" else {"headers": ["x-role: user"]})}]
        peers = [{"fromEndpoints": [select(app="client")], "toPorts": [ports(8080, http=http)]}]
        apply(mesh, rewriting, marking, more=(policy("in", select(app="api"), ingress=peers),))
        # What the client claims does not count: the route sets it.
        assert get(mesh, path, headers={"x-role": "admin"}).status == code


def preflight(mesh: Mesh, origin: str, **more: str) -> Answer:
    asked = {"origin": origin, "access-control-request-method": "PUT", **more}
    return get(mesh, "/", method="OPTIONS", headers=asked)


def test_cors(mesh: Mesh) -> None:
    cors = {
        "allowOrigins": ["https://a.example", "https://*.b.example"],
        "allowMethods": ["GET", "PUT"],
        "allowHeaders": ["x-one"],
        "exposeHeaders": ["x-two"],
        "allowCredentials": True,
        "maxAge": 60,
    }
    apply(mesh, rule({"type": "CORS", "cors": cors}))
    for origin in ("https://a.example", "https://deep.er.b.example"):
        answer = preflight(mesh, origin)
        headers = {k.lower(): v for k, v in answer.headers.items()}
        assert answer.status in (200, 204)
        assert headers["access-control-allow-origin"] == origin
        assert headers["access-control-allow-methods"].replace(" ", "") == "GET,PUT"
        assert headers["access-control-allow-headers"] == "x-one"
        assert headers["access-control-max-age"] == "60"
        assert headers["access-control-allow-credentials"] == "true"
        assert not answer.body
        plain = get(mesh, headers={"origin": origin})
        assert plain.pod == "api"
        assert plain.headers["access-control-allow-origin"] == origin
        assert plain.headers["access-control-expose-headers"] == "x-two"
    foreign = preflight(mesh, "https://b.example.evil")
    assert "access-control-allow-origin" not in {name.lower() for name in foreign.headers}
    assert not foreign.body
    assert "access-control-allow-origin" not in get(mesh, headers={"origin": "https://x"}).headers


def test_timeouts(mesh: Mesh) -> None:
    apply(
        mesh,
        rule(matches=prefix("/whole"), timeouts={"request": "200ms"}),
        rule(matches=prefix("/try"), timeouts={"backendRequest": "200ms"}),
        rule(matches=prefix("/none"), timeouts={"request": "0s", "backendRequest": "0s"}),
    )
    for path in ("/whole", "/try"):
        began = monotonic()
        assert get(mesh, f"{path}?delay=3000").status == 504
        assert monotonic() - began < 2
        assert get(mesh, path).status == 200
    assert get(mesh, "/none?delay=400").status == 200


def test_retries(mesh: Mesh) -> None:
    back = [to("shadow")]
    with Scripted(mesh["shadow"], 8080, lambda n: (503, 0, 200)[n % 3]) as backend:
        retry = {"codes": [503], "attempts": 2, "backoff": "10ms"}
        apply(mesh, {"backendRefs": back, "retry": retry})
        assert get(mesh).status == 200
        assert len(backend.heads) == 3
        apply(mesh, {"backendRefs": back, "retry": {"codes": [500], "attempts": 2}})
        assert get(mesh).status == 503
        assert len(backend.heads) == 4


def test_a_denial_is_not_tried_again(mesh: Mesh) -> None:
    closed = policy("in", select(app="shadow"), ingress=[{}])
    with Scripted(mesh["shadow"], 8080) as backend:
        retry = {"codes": [500, 503, 404], "attempts": 5}
        shares = [to("shadow"), to("api", weight=0)]
        apply(mesh, {"backendRefs": shares, "retry": retry}, more=(closed,))
        answer = get(mesh)
        assert (answer.status, answer.body, backend.heads) == (403, b"Access denied\r\n", [])
