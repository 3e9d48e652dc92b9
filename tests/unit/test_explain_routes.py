"""Routes that do more than choose a backend: what is judged is the request as the backend gets it."""

from __future__ import annotations

import pytest
from test_explain_way import ALL, GUARD, SERVICES, ask
from worlds import policy


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


def http_policy(said: str, target: str = "{kind: HTTPRoute, name: r}") -> str:
    return f"""
apiVersion: penstock.dev/v1alpha1
kind: HTTPPolicy
metadata: {{name: h}}
spec: {{targetRefs: [{target}], {said}}}
---"""


TOKEN = "jwt: {providers: [{name: a, issuer: me, jwks: {ref: {name: keys}}}]}"
KEYS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: keys}
data: {jwks: '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}'}
---"""


@pytest.mark.parametrize(
    ("said", "reason", "code"),
    [
        ("fault: {abort: {httpStatus: 418}}", "FAULT", 418),
        ("fault: {abort: {httpStatus: 418, percent: 50}}", "REDIRECTED", None),
        ("rateLimit: {requests: 5, per: Identity}", "REDIRECTED", None),
        (TOKEN, "NOT_AUTHENTICATED", 401),
        (TOKEN.replace("keys", "gone"), "NOT_AUTHENTICATED", 500),
        ("extAuth: {protocol: GRPC, backendRef: {name: gone, port: 1}}", "NOT_AUTHORIZED", 500),
    ],
)
@pytest.mark.parametrize("target", ["{kind: HTTPRoute, name: r}", "{kind: Service, name: orders, port: 80}"])
def test_the_policy_that_refuses_is_named(said: str, reason: str, code: int | None, target: str) -> None:
    text = ALL + SERVICES + route(f"{{{TO}}}") + KEYS + http_policy(said, target)
    found = ask(text, "shop", "orders:80", "GET", "/x")
    assert (found.decisive.reason, found.decisive.code) == (reason, code)
    assert any(s.what == "policy" and "HTTPPolicy default/h" in s.text for s in found.steps)


OWN_TLS = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: f}
spec:
  parentRefs: [{group: "", kind: Service, name: far}]
  rules: [{backendRefs: [{name: far, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: p}
spec:
  targetRefs: [{group: "", kind: Service, name: far}]
  validation: {hostname: far.example, wellKnownCACertificates: System}
---"""
LOOKS = policy(
    """
  endpointSelector: {matchLabels: {app: far}}
  ingress: [{toPorts: [{ports: [{port: "8080"}], rules: {http: [{path: /}]}}]}]
""",
    name="looks",
)


def test_a_backends_own_tls_goes_inside_mesh_tls() -> None:
    found = ask(ALL + SERVICES + OWN_TLS, "shop", "far:80", "GET", "/")
    assert found.verdict == "ALLOWED"
    assert [s.text for s in found.steps if s.what in ("tls", "mesh")] == [
        "the backend's own, for far.example (BackendTLSPolicy)",
        "mesh TLS: both certificates are verified",
    ]
    unseen = ask(ALL + SERVICES + OWN_TLS + LOOKS, "shop", "far:80", "GET", "/")
    assert (unseen.verdict, unseen.decisive.reason, unseen.decisive.code) == ("DENIED", "TLS_UNSEEN", 503)
