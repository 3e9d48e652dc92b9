"""`explain` of requests to a Gateway: both hops, by listener, host, route, policy and endpoint."""

from __future__ import annotations

from typing import Any

import pytest
from test_gateway_golden import API, BACKENDS, CERTIFICATE, ENDED, OTHER, filtered, gateway, route, rule
from test_routing_gateways import NODES
from worlds import read

from penstock.explain import Explanation, Planned, Question, explain
from penstock.planner import Planner

CLOSED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEntities: [ingress]
    toPorts: [{ports: [{port: "8080", protocol: TCP}], rules: {http: [{path: "/public.*"}]}}]
---
"""


def policy(kind: str, name: str, target: str, said: str) -> str:
    return f"""
apiVersion: penstock.dev/v1alpha1
kind: {kind}
metadata: {{name: {name}}}
spec: {{targetRefs: [{target}], {said}}}
---
"""


def ask(
    text: str, path: str = "/", host: str = "", source: str = "default/other", port: str = "80"
) -> Explanation:
    planner = Planner()
    _, plan = planner.plan(read(NODES + BACKENDS + text))
    assert planner.facts is not None
    headers: Any = (("Host", host),) if host else ()
    question = Question(source, "10.98.0.1", port, method="GET", path=path, headers=headers)
    return explain(question, planner.facts, plan, Planned(plan.kernel))


def words(found: Explanation) -> str:
    return "\n".join(step.text for step in found.steps)


@pytest.mark.parametrize("source", ["default/other", "203.0.113.9"])
def test_the_way_to_the_backend(source: str) -> None:
    """Also from outside: a client that is nobody's."""
    text = gateway() + route(rule()) + CLOSED
    found = ask(text, "/public/x", source=source)
    assert (found.verdict, found.decisive.code) == ("ALLOWED", None)
    said = words(found)
    assert "listener http: the routes of every host" in said
    assert "default/r/0/0 matches" in said and "1 of 1 parts go to default/api:80/4/edge" in said
    refused = ask(text, "/secret", source=source)
    assert (refused.verdict, refused.decisive.reason, refused.decisive.code) == (
        "DENIED",
        "REQUEST_DENIED",
        403,
    )


def test_which_listener_and_host() -> None:
    one, wide = (
        "{name: one, port: 80, protocol: HTTP, hostname: a.example}",
        '{name: wide, port: 80, protocol: HTTP, hostname: "*.example"}',
    )
    text = gateway(one, wide) + route(rule(), parent=", sectionName: one")
    text += route(rule("matches: [{path: {value: /x}}]", OTHER), name="s", parent=", sectionName: wide")
    assert "listener one: the routes of a.example" in words(ask(text, "/", "a.example"))
    found = ask(text, "/x", "b.example")
    assert "listener wide: the routes of *.example" in words(found) and "default/other:80" in words(found)
    for host, path in (("b.example", "/"), ("elsewhere.org", "/")):
        found = ask(text, path, host)
        assert (found.verdict, found.decisive.reason, found.decisive.code) == ("DENIED", "NO_ROUTE", 404)


def test_over_tls_the_name_chooses() -> None:
    one = f"{{name: one, port: 443, protocol: HTTPS, hostname: gw.example, {ENDED}}}"
    text = CERTIFICATE + gateway(one) + route(rule())
    assert ask(text, "/", "gw.example", port="443").verdict == "ALLOWED"
    assert "shows a certificate" in words(ask(text, "/", "other.example", port="443"))


def test_redirects_and_shares() -> None:
    redirect = "{type: RequestRedirect, requestRedirect: {scheme: https}}"
    assert ask(gateway() + route(f"{{filters: [{redirect}]}}")).decisive.code == 302
    shares = f"{API[:-1]}, filters: [{redirect}]}}, {OTHER}"
    found = ask(gateway() + route(rule(backends=shares)))
    assert "matches, by 2 shares" in words(found)
    assert {o.code for o in found.outcomes} == {302, None}
    header = "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}"
    assert ask(gateway() + route(filtered(header))).verdict == "ALLOWED"


@pytest.mark.parametrize(
    "target",
    [
        "{kind: Gateway, name: gw}",
        "{kind: Gateway, name: gw, sectionName: http}",
        "{kind: HTTPRoute, name: r}",
    ],
)
def test_policies_about_traffic_are_named_with_their_line(target: str) -> None:
    fault = policy("HTTPPolicy", "h", target, "fault: {abort: {httpStatus: 418}}")
    found = ask(gateway() + route(rule()) + fault)
    assert (found.decisive.reason, found.decisive.code) == ("FAULT", 418)
    assert "by HTTPPolicy default/h (" in words(found)


def test_policies_about_backends_are_named() -> None:
    said = "circuitBreaker: {maxRequests: 1}, healthCheck: {tcp: {}}, loadBalancer: {type: RoundRobin}"
    found = ask(gateway() + route(rule()) + policy("BackendPolicy", "b", "{name: api, port: 80}", said))
    assert "RoundRobin, circuit breaker, health checks by tcp, by BackendPolicy default/b (" in words(found)
