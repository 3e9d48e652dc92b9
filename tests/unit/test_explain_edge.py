"""`explain` of streams and datagrams at Gateways, and of Ingresses, with the lines behind each decision."""

from __future__ import annotations

from typing import Any

import pytest
from test_gateway_golden import BACKENDS, CERTIFICATE, DATAGRAMS, ENDED, PASSED, gateway, route, rule
from test_routing_gateways import NODES
from worlds import policy, read

from penstock.explain import Explanation, Planned, Question, UnknownPartyError, explain, plain, split
from penstock.planner import Planner

TCP = "{name: tcp, port: 91, protocol: TCP}"
INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: site}
spec:
  ingressClassName: penstock
  rules:
  - host: shop.example
    http:
      paths:
      - {path: /cart, pathType: Prefix, backend: {service: {name: api, port: {number: 80}}}}
      - {path: /, pathType: Exact, backend: {service: {name: other, port: {number: 80}}}}
---
"""


def ask(text: str, destination: str, server_name: str | None = None, *request: str, **headers: str) -> Any:
    planner = Planner()
    _, plan = planner.plan(read(NODES + BACKENDS + text))
    assert planner.facts is not None
    who, port, protocol = split(destination)
    method, path = request or (None, None)
    question = Question(
        "default/other", who, port, protocol, method, path, tuple(headers.items()), server_name
    )
    return explain(question, planner.facts, plan, Planned(plan.kernel))


def told(found: Explanation, what: str) -> list[str]:
    return [step.text for step in found.steps if step.what == what]


def lines(found: Explanation) -> list[str]:
    """The fields that are named, each with a line of the file."""
    named = [r for step in plain(found)["steps"] for r in step["rules"]]
    assert all(r["file"] == "test.yaml" and r["line"] for r in named)
    return [f"{r['kind']} {r['name']} {r['field']}" for r in named]


def to(*names: str, port: int = 80) -> str:
    return f"{{backendRefs: [{', '.join(f'{{name: {n}, port: {port}}}' for n in names)}]}}"


def test_a_tcp_route() -> None:
    text = gateway(TCP) + route(to("api", "other"), kind="TCPRoute").replace("hostnames: [],", "")
    found = ask(text, "gateway/gw:91")
    assert (found.verdict, {o.endpoint for o in found.outcomes}) == (
        "ALLOWED",
        {"default/api:8080", "default/other:8080"},
    )
    assert lines(found) == [
        "Gateway gw spec.listeners[0]",
        "TCPRoute r spec.rules[0]",
        "TCPRoute r spec.rules[0].backendRefs[0]",
        "TCPRoute r spec.rules[0].backendRefs[1]",
    ]
    assert "1 of 2 parts go to default/api:80/4" in told(found, "route")[1]


def test_what_policies_leave_of_a_stream() -> None:
    """An endpoint that only some requests may reach has no streams; one that is closed has nothing."""
    text = gateway(TCP) + route(to("api", "other"), kind="TCPRoute").replace("hostnames: [],", "")
    some = '{fromEntities: [ingress], toPorts: [{ports: [{port: "8080"}], rules: {http: [{path: /a}]}}]}'
    for rules, reason in (("[]", "POLICY_DENIED_INGRESS"), (f"[{some}]", "REQUEST_DENIED")):
        closed = policy(f"{{endpointSelector: {{matchLabels: {{app: api}}}}, ingress: {rules or '[{}]'}}}")
        if rules == "[]":
            closed = closed.replace("ingress: []", "ingress: [{fromEndpoints: [{matchLabels: {app: x}}]}]")
        found = ask(text + closed, "10.98.0.1:91")
        assert [(o.endpoint, o.allowed, o.reason) for o in found.outcomes] == [
            ("default/api:8080", False, reason),
            ("default/other:8080", True, "REDIRECTED"),
        ]


ONE, WIDE = (
    f"{{name: one, port: 443, protocol: TLS, hostname: db.example, {PASSED}}}",
    f'{{name: wide, port: 443, protocol: TLS, hostname: "*.example", {ENDED}}}',
)
BY_NAME = (
    CERTIFICATE
    + gateway(ONE, WIDE)
    + route(to("api"), kind="TLSRoute", name="a", hosts="db.example", parent=", sectionName: one")
    + route(to("other"), kind="TLSRoute", name="b", hosts='"*.example"', parent=", sectionName: wide")
)


@pytest.mark.parametrize(
    ("name", "listener", "way", "endpoint"),
    [
        ("db.example", "listener one", "passed on as it is", "default/api:8080"),
        ("x.example", "listener wide", "TLS ends here", "default/other:8080"),
    ],
)
def test_a_tls_route_by_its_server_name(name: str, listener: str, way: str, endpoint: str) -> None:
    found = ask(BY_NAME, "gateway/gw:443", name)
    assert (found.verdict, found.outcomes[0].endpoint) == ("ALLOWED", endpoint)
    assert told(found, "listener")[0].startswith(listener) and way in told(found, "listener")[0]


def test_no_listener_for_a_server_name() -> None:
    for name in ("other.org", ""):
        found = ask(BY_NAME, "gateway/gw:443", name)
        assert (found.verdict, found.decisive.reason) == ("DENIED", "NO_STREAM")
        assert "none of" in told(found, "listener")[0]
    unsaid = ask(BY_NAME, "gateway/gw:443")
    assert "--server-name" in told(unsaid, "listener")[0]
    assert {o.endpoint for o in unsaid.outcomes} == {"default/api:8080", "default/other:8080"}


def test_datagrams() -> None:
    text = DATAGRAMS + gateway("{name: dns, port: 53, protocol: UDP}")
    text += route(to("dns", port=53), kind="UDPRoute").replace("hostnames: [],", "")
    found = ask(text, "gateway/gw:53/UDP")
    assert (found.verdict, found.outcomes[0].endpoint) == ("ALLOWED", "default/api:9053")
    assert "UDPRoute r spec.rules[0].backendRefs[0]" in lines(found)


def test_what_nothing_serves() -> None:
    for destination, why in (
        ("gateway/gw:91", "listener tcp serves nothing: no route is attached"),
        ("gateway/gw:92", "has no listener at 92/TCP"),
        ("gateway/gw:91/UDP", "has no listener at 91/UDP"),
    ):
        found = ask(gateway(TCP), destination)
        assert (found.verdict, found.decisive.reason) == ("DENIED", "NO_STREAM")
        assert why in told(found, "gateway")[0] and lines(found)
    lost = gateway(TCP) + route(to("nobody"), kind="TCPRoute").replace("hostnames: [],", "")
    assert ask(lost, "gateway/gw:91").decisive.reason == "NO_STREAM"
    with pytest.raises(UnknownPartyError, match="no Gateway default/nobody"):
        ask(gateway(TCP), "gateway/nobody:91")


def test_an_ingress() -> None:
    found = ask(INGRESS, "ingress:80", None, "GET", "/cart/1", Host="shop.example")
    assert (found.verdict, found.outcomes[0].endpoint) == ("ALLOWED", "default/api:8080")
    assert "Ingresses, port 80: the routes of shop.example" in told(found, "route")[0]
    assert "Ingress site spec.rules[0].http.paths[0]" in lines(found)
    refused = ask(INGRESS, "ingress:80", None, "GET", "/else", Host="shop.example")
    assert (refused.verdict, refused.decisive.code) == ("DENIED", 404)
    assert "the nearest is" in told(refused, "route")[1] and "spec.rules[0].http.paths" in lines(refused)[0]
    assert ask(INGRESS, "ingress:80", None, "GET", "/", Host="elsewhere").decisive.code == 404
    unasked = ask(INGRESS, "ingress:80")
    assert unasked.verdict == "ALLOWED" and "shop.example (2 matches)" in told(unasked, "route")[0]


def test_each_step_of_a_request_has_its_line() -> None:
    found = ask(gateway() + route(rule()), "gateway/gw:80", None, "GET", "/")
    assert lines(found) == [
        "Gateway gw spec.listeners[0]",
        "HTTPRoute r spec.rules[0]",
        "HTTPRoute r spec.rules[0].backendRefs[0]",
    ]
