"""GRPCRoutes of Services: what calls they mean, in which order, and how backends are spoken to."""

from __future__ import annotations

import pytest
from test_manifests_checks import only
from test_routing_mesh import PEOPLE, _table, route
from worlds import make

from penstock.manifests.document import ObjectKey
from penstock.manifests.loader import load
from penstock.routing.actions import Actions, HeaderChanges
from penstock.routing.model import RouteBackend, StringMatch


def grpc(rules: str, *, name: str = "g") -> str:
    return route(rules, name=name).replace("kind: HTTPRoute", "kind: GRPCRoute")


def said(rules: str) -> list[str]:
    result = load(grpc(rules).rstrip("-\n"), "f.yaml")
    return [f"{p.field}: {p.message}" for p in result.problems if p.severity == "error"]


@pytest.mark.parametrize(
    ("method", "kind", "value"),
    [
        ("service: a.B, method: C", "exact", "/a.B/C"),
        ("service: a.B", "prefix", "/a.B"),
        ("method: C", "regex", "/[^/]+/C"),
        ("type: RegularExpression, service: 'a[.].*'", "regex", "/(?:a[.].*)/(?:[^/]+)"),
        ("type: RegularExpression, service: a|b, method: C.*", "regex", "/(?:a|b)/(?:C.*)"),
    ],
)
def test_calls(method: str, kind: str, value: str) -> None:
    header = "headers: [{name: X-A, value: b}]"
    _, plan = make(PEOPLE + grpc(f"[{{matches: [{{method: {{{method}}}, {header}}}]}}]"))
    (found,) = _table(plan).routes
    assert found.match.path == StringMatch(kind, value)  # type: ignore[arg-type]
    assert found.match.headers == (("x-a", StringMatch("exact", "b")),)
    assert found.grpc


def test_the_order() -> None:
    matches = (
        "{}",
        "{method: {method: C}}",
        "{method: {service: a.B}}",
        "{method: {service: a.B, method: C}}",
        "{method: {service: a.B, method: C}, headers: [{name: x, value: y}]}",
        "{method: {service: a.B.longer}}",
    )
    rules = "".join(f"{{name: m{n}, matches: [{m}]}}," for n, m in enumerate(matches))
    _, plan = make(PEOPLE + grpc(f"[{rules}]"))
    assert [r.name.split("/")[2] for r in _table(plan).routes] == ["m4", "m3", "m5", "m2", "m0", "m1"]


def test_backends_are_spoken_to_in_http2_whatever_the_port_says() -> None:
    refs = "backendRefs: [{name: v1, port: 80}, {name: v2, port: 80}, {name: nobody, port: 80}]"
    _, plan = make(
        PEOPLE + grpc(f"[{{matches: [{{method: {{service: a}}}}], {refs}}}]") + route(f"[{{{refs}}}]")
    )
    by_name = {r.name: r.backends for r in _table(plan).routes}
    assert by_name["default/g/0/0"] == (
        RouteBackend("default/v1:80/4/grpc", 1),
        RouteBackend("default/v2:80/4", 1),
        RouteBackend(None, 1),
    )
    assert by_name["default/r/0/0"][0] == RouteBackend("default/v1:80/4", 1)
    http2 = {c.name: c.http2 for c in plan.proxy.clusters}
    assert (http2["default/v1:80/4/grpc"], http2["default/v1:80/4"], http2["default/v2:80/4"]) == (
        True,
        False,
        True,
    )


def test_filters_and_status() -> None:
    modifier = "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}]}}"
    _, plan = make(PEOPLE + grpc(f"[{{filters: [{modifier}], backendRefs: [{{name: v2, port: 80}}]}}]"))
    assert _table(plan).routes[0].actions == Actions(request=HeaderChanges((("a", "b"),)))
    assert not plan.statuses[ObjectKey("GRPCRoute", "default", "g")].pending


@pytest.mark.parametrize(
    ("rules", "start"),
    [
        ("[{matches: [{method: {}}]}]", "spec.rules[0].matches[0].method: names neither"),
        ("[{matches: [{method: {service: a/b}}]}]", "spec.rules[0].matches[0].method.service: "),
        (
            "[{matches: [{method: {type: RegularExpression, method: '('}}]}]",
            "spec.rules[0].matches[0].method.method: ",
        ),
        (
            "[{filters: [{type: URLRewrite, urlRewrite: {}}]}]",
            'spec.rules[0].filters[0].type: "URLRewrite" is not for a GRPCRoute',
        ),
        ("[{timeouts: {}}]", "spec.rules[0].timeouts: "),
    ],
)
def test_bad_routes(rules: str, start: str) -> None:
    only(said(rules), start)
