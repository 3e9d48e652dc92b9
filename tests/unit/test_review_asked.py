"""Warnings about what the proxy is to ask or to check by, and about parts of policies that do nothing."""

from __future__ import annotations

import pytest
from test_routing_grpc import grpc
from test_routing_mesh import PEOPLE, route

from penstock.manifests.loader import load
from penstock.manifests.store import Store
from penstock.routing.review_asked import review_asked
from penstock.world import World

GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  gatewayClassName: penstock
  listeners: [{name: http, port: 80, protocol: HTTP}, {name: tcp, port: 90, protocol: TCP}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: keys}
data: {other: x}
---"""


def policy(kind: str, said: str, target: str = "{kind: Service, name: v1, port: 80}") -> str:
    return f"""
apiVersion: penstock.dev/v1alpha1
kind: {kind}
metadata: {{name: p}}
spec: {{targetRefs: [{target}], {said}}}
---"""


def http(said: str) -> str:
    return policy("HTTPPolicy", said)


def keys(how: str) -> str:
    return http(f"jwt: {{providers: [{{name: a, issuer: i, jwks: {{{how}}}}}]}}")


def asks(ref: str) -> str:
    return http(f"extAuth: {{protocol: HTTP, backendRef: {{{ref}}}}}")


def said(text: str) -> list[str]:
    loaded = load(PEOPLE + GATEWAY + text, "f")
    assert not [p for p in loaded.problems if p.severity == "error"], loaded.problems
    found = review_asked(loaded.documents)
    assert all(p.severity == "warning" and p.line > 1 for p in found)
    return [f"{p.field} {p.code}" for p in found]


ASKED = "spec.extAuth.backendRef"
JWKS = "spec.jwt.providers[0].jwks"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (asks("name: v1, port: 80"), []),
        (asks("name: nobody, port: 80"), [f"{ASKED}.name reference"]),
        (asks("name: v1, port: 99"), [f"{ASKED}.port reference"]),
        (asks("name: v1, namespace: away, port: 80"), [f"{ASKED}.namespace grant"]),
        (keys("ref: {name: keys, key: other}"), []),
        (keys("ref: {name: keys}"), [f"{JWKS}.ref.key reference"]),
        (keys("ref: {kind: Secret, name: keys}"), [f"{JWKS}.ref.name reference"]),
        (
            keys("remote: {backendRef: {name: nobody, port: 80}}"),
            [f"{JWKS}.remote.backendRef.name reference"],
        ),
        (
            policy("HTTPPolicy", "compression: {}", "{kind: Gateway, name: gw, sectionName: tcp}"),
            ["spec.targetRefs[0].sectionName untouched"],
        ),
        (policy("HTTPPolicy", "compression: {}", "{kind: Gateway, name: gw, sectionName: http}"), []),
        (policy("BackendPolicy", "localityFailover: {mode: Zone}"), ["spec.localityFailover untouched"]),
        (policy("BackendPolicy", "localityFailover: {mode: Zone}, outlierDetection: {}"), []),
        (policy("BackendPolicy", "circuitBreaker: {}"), ["spec.circuitBreaker untouched"]),
        (
            policy("BackendPolicy", "circuitBreaker: {maxRequests: 0}"),
            ["spec.circuitBreaker.maxRequests never"],
        ),
        (policy("BackendPolicy", "circuitBreaker: {maxConnections: 0}"), []),
    ],
)
def test_what_cannot_be_asked(text: str, found: list[str]) -> None:
    assert said(text) == found


def test_filters_of_routes() -> None:
    auth = "{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: nobody, port: 80}}}"
    to = "backendRefs: [{name: v1, port: 80}]"
    assert said(route(f"[{{filters: [{auth}], {to}}}]")) == [
        "spec.rules[0].filters[0].externalAuth.backendRef.name reference"
    ]
    mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: v1, namespace: away, port: 80}}}"
    one = f"[{{backendRefs: [{{name: v1, port: 80, filters: [{mirror}]}}]}}]"
    place = "spec.rules[0].backendRefs[0].filters[0].requestMirror.backendRef.namespace grant"
    assert said(route(one)) == said(grpc(one)) == [place]


def test_a_grant_for_a_policy_names_its_own_group() -> None:
    """What the review says is what comes to be: the kind is of penstock.dev, not of Gateway API."""
    text = asks("name: v1, namespace: away, port: 80")
    for group, fits in (("penstock.dev", True), ("gateway.networking.k8s.io", False)):
        grant = f"""
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {{name: g, namespace: away}}
spec:
  from: [{{group: {group}, kind: HTTPPolicy, namespace: default}}]
  to: [{{group: "", kind: Service}}]
---
apiVersion: v1
kind: Service
metadata: {{name: v1, namespace: away}}
spec: {{selector: {{app: x}}, ports: [{{port: 80}}]}}
---"""
        found = said(text + grant)
        assert (f"{ASKED}.namespace grant" in found) is not fits
        documents = Store().apply({"f": PEOPLE + text + grant}).documents
        from penstock.compiler import compile_world
        from penstock.planner import numbered

        plan = compile_world(numbered(World("node-a", documents), ()))
        status = next(s for k, s in plan.statuses.items() if k.kind == "HTTPPolicy")
        ((_, conditions),) = status.extra["ancestors"]  # type: ignore[misc]
        assert [c.status for c in conditions if c.type == "ResolvedRefs"] == [fits]
