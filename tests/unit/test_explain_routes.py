"""Routes that do more than choose a backend: what is judged is the request as the backend gets it."""

from __future__ import annotations

import pytest
from test_explain_way import ALL, GUARD, SERVICES, ask


def route(rule: str, *, namespace: str = "default") -> str:
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r, namespace: {namespace}}}
spec:
  parentRefs: [{{group: "", kind: Service, name: orders, namespace: default}}]
  rules: [{rule}]
---"""


TO = "backendRefs: [{name: orders, port: 80}]"
PATH = "matches: [{path: {type: PathPrefix, value: /shop}}]"
REWRITE = (
    "filters: [{type: URLRewrite,"
    " urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /orders}}}]"
)
HEADER = (
    "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Role, value: admin}]}}]"
)
REDIRECT = "filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301, hostname: h}}]"


@pytest.mark.parametrize(
    ("rule", "request_", "verdict", "code"),
    [
        (f"{{{PATH}, {TO}}}", "GET /shop/1", "DENIED", 403),
        (f"{{{PATH}, {REWRITE}, {TO}}}", "GET /shop/1", "ALLOWED", None),
        (f"{{{PATH}, {REWRITE}, {TO}}}", "GET /orders/1", "DENIED", 404),
        (f"{{{HEADER}, {TO}}}", "PUT /x", "ALLOWED", None),
        (f"{{{TO}}}", "PUT /x", "DENIED", 403),
        (f"{{{REDIRECT}}}", "GET /x", "ALLOWED", 301),
    ],
)
def test_the_request_is_judged_as_the_backend_gets_it(
    rule: str, request_: str, verdict: str, code: int | None
) -> None:
    found = ask(ALL + SERVICES + GUARD + route(rule), "shop", "orders:80", *request_.split())
    assert (found.verdict, found.decisive.code) == (verdict, code)


def test_a_route_of_another_namespace_is_for_its_own_clients() -> None:
    text = ALL + SERVICES + route(f"{{{REDIRECT}}}", namespace="data")
    assert ask(text, "db", "default/orders:80", "GET", "/").decisive.code == 301
    own = ask(text, "shop", "default/orders:80", "GET", "/")
    assert (own.verdict, own.decisive.code) == ("ALLOWED", None)
