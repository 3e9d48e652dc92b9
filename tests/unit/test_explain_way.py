"""Each decision on the way, over a few small worlds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from worlds import policy, workload

from penstock.explain import Explanation, Planned, Question, UnknownPartyError, explain, offline, plain, split
from penstock.explain.model import Request
from penstock.explain.requests import differences, normalized, route_differences
from penstock.manifests.loader import load
from penstock.routing.model import RequestMatch, RouteMatch, StringMatch

NODES = "".join(
    f"""
apiVersion: v1
kind: Node
metadata: {{name: {name}}}
status: {{addresses: [{{type: InternalIP, address: {address}}}]}}
---"""
    for name, address in (("node-a", "192.0.2.1"), ("node-b", "192.0.2.2"))
)
HTTP = "{name: http, containerPort: 8080, protocol: TCP}"
FAR = workload("far", "10.2.0.1", node="node-b", ports=HTTP).replace(
    "serviceAccountName", "netns: /run/netns/far\n  serviceAccountName"
)
ALL = (
    NODES
    + workload("shop", "10.1.0.1")
    + workload("bot", "10.1.0.2")
    + workload("orders", "10.1.0.3", ports=HTTP)
    + workload("db", "10.1.0.4", namespace="data", ports="{name: sql, containerPort: 5432, protocol: TCP}")
    + FAR
)
GUARD = policy(
    """
  endpointSelector: {matchLabels: {app: orders}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: shop}}]
    toPorts:
    - ports: [{port: "8080", protocol: TCP}]
      rules: {http: [{method: GET, path: "/orders/.*"}, {method: PUT, headers: ["X-Role: admin"]}]}
""",
    name="orders",
)
SERVICES = "".join(
    f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {selects}}}, ports: [{{port: 80, targetPort: http}}]}}
---"""
    for name, selects in (("orders", "orders"), ("far", "far"), ("empty", "nobody"))
)
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: far}
spec: {selector: {matchLabels: {app: far}}, mtls: {mode: STRICT}}
---"""
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split}
spec:
  parentRefs: [{group: "", kind: Service, name: far}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /orders}}]
    backendRefs: [{name: far, port: 80, weight: 9}, {name: orders, port: 80, weight: 1}]
  - matches: [{method: PUT}]
    backendRefs: [{name: empty, port: 80}]
---"""


def ask(
    text: str, source: str, destination: str, *request: str, node: str = "", **headers: str
) -> Explanation:
    result = load(text, "test.yaml")
    assert [str(p) for p in result.problems if p.severity == "error"] == []
    documents = {d.key: d for d in result.documents}
    who, port, protocol = split(destination)
    at = node or offline.node_of(documents, source, who)
    facts, plan = offline.compiled(offline.world(documents, at))
    question = Question(source, who, port, protocol, *request, headers=tuple(headers.items()))
    return explain(question, facts, plan, Planned(plan.kernel))


def way(found: Explanation) -> list[str]:
    """The decisions, the one that ends the way with an exclamation mark."""
    return [step.what + ("" if step.ok else "!") for step in found.steps]


LOCAL = ["source", "destination", "egress", "ingress"]
PROXIED = [*LOCAL, "listener", "request"]


@pytest.mark.parametrize(
    ("text", "question", "verdict", "reason", "steps"),
    [
        (ALL, "shop orders:8080", "ALLOWED", "FORWARDED_LOCAL", LOCAL),
        (ALL + GUARD, "shop orders:8080", "ALLOWED", "REDIRECTED", PROXIED),
        (ALL + GUARD, "shop orders:8080 GET /orders/1", "ALLOWED", "REDIRECTED", PROXIED),
        (ALL + GUARD, "shop orders:8080 GET /admin", "DENIED", "REQUEST_DENIED", [*PROXIED[:-1], "request!"]),
        (ALL + GUARD, "bot orders:8080", "DENIED", "POLICY_DENIED_INGRESS", [*LOCAL[:-1], "ingress!"]),
        (ALL + GUARD, "shop orders:8080/UDP", "DENIED", "POLICY_DENIED_INGRESS", [*LOCAL[:-1], "ingress!"]),
        (ALL + GUARD, "shop orders:8/ICMP", "DENIED", "POLICY_DENIED_INGRESS", [*LOCAL[:-1], "ingress!"]),
        (
            ALL + GUARD,
            "world orders:8080",
            "DENIED",
            "POLICY_DENIED_INGRESS",
            ["source", "destination", "ingress!"],
        ),
        (ALL + GUARD, "host orders:9", "ALLOWED", "FORWARDED_LOCAL", ["source", "destination", "ingress"]),
        (ALL, "shop 198.51.100.1:443", "ALLOWED", "FORWARDED_STACK", LOCAL),
        (ALL + SERVICES, "shop orders:80", "ALLOWED", "FORWARDED_LOCAL", ["source", "service", *LOCAL[1:]]),
        (ALL + SERVICES, "shop empty:80", "DENIED", "NO_BACKEND", ["source", "service!"]),
        (
            ALL + SERVICES,
            "world orders.default.svc:80",
            "DENIED",
            "UNTRANSLATED_SERVICE",
            ["source", "service!"],
        ),
        (ALL + STRICT, "world far:8080", "DENIED", "PLAINTEXT_TO_STRICT", [*LOCAL[:2], "ingress", "mesh!"]),
        (
            ALL + STRICT,
            "shop far:8080",
            "ALLOWED",
            "REDIRECTED",
            ["source", "destination", "egress", "listener", "ingress", "mesh", "listener"],
        ),
        (ALL, "shop far:8080", "ALLOWED", "FORWARDED_STACK", [*LOCAL, "mesh"]),
        (
            ALL + SERVICES + ROUTE,
            "shop far:80 DELETE /",
            "DENIED",
            "NO_ROUTE",
            ["source", "service", "listener", "route!"],
        ),
        (
            ALL + SERVICES + ROUTE,
            "shop far:80 PUT /",
            "DENIED",
            "NO_USABLE_BACKEND",
            ["source", "service", "listener", "route", "route!"],
        ),
        (
            ALL + SERVICES + ROUTE + GUARD,
            "shop far:80 GET /orders",
            "PARTLY",
            "REQUEST_DENIED",
            [
                *("source", "service", "listener", "route"),
                *("route", "request", "ingress", "mesh", "listener"),
                *("route", "request!"),
            ],
        ),
    ],
)
def test_the_way(text: str, question: str, verdict: str, reason: str, steps: list[str]) -> None:
    found = ask(text, *question.split())
    assert (found.verdict, found.decisive.reason, way(found)) == (verdict, reason, steps)


def step(found: Explanation, what: str) -> Any:
    return [s for s in found.steps if s.what == what][-1]


def test_each_entry_names_its_policy_and_line() -> None:
    found = ask(ALL + GUARD, "shop", "orders:8080", "GET", "/orders/1")
    lines = (ALL + GUARD).splitlines()
    for what in ("ingress", "request"):
        ((key, origin),) = step(found, what).origins
        assert (str(key), origin.rule) == ("CiliumNetworkPolicy default/orders", "spec.ingress[0].toPorts[0]")
        assert "- ports" in lines[origin.line - 1]
        assert f"test.yaml:{origin.line}" in step(found, what).text
    assert f"identity {facts_number(found)} (default/shop), TCP 8080" in step(found, "ingress").text


def facts_number(found: Explanation) -> str:
    return step(found, "source").text.partition("identity ")[2].partition(" ")[0]


def test_a_default_deny_names_who_closed_it() -> None:
    found = ask(ALL + GUARD, "bot", "orders:8080")
    assert "default deny by CiliumNetworkPolicy default/orders (test.yaml:" in step(found, "ingress").text
    assert found.advice


def test_a_deny_rule_is_named_and_no_rule_is_advised() -> None:
    text = ALL + policy(
        "{endpointSelector: {matchLabels: {app: shop}}, egressDeny: [{toEntities: [world]}]}", name="never"
    )
    found = ask(text, "shop", "198.51.100.1:443")
    assert (found.verdict, found.decisive.reason) == ("DENIED", "POLICY_DENIED_EGRESS")
    assert "CiliumNetworkPolicy default/never" in step(found, "egress").text
    assert (found.advice, "default/never" in found.hint) == ("", True)


@pytest.mark.parametrize(
    ("request_", "headers", "nearest"),
    [
        (("GET", "/admin"), {}, "path /admin is not /orders/.*"),
        (("PUT", "/x"), {}, "header x-role is absent"),
        (("PUT", "/x"), {"X-Role": "user"}, "header x-role is 'user', not 'admin'"),
        (("POST", "/orders/1"), {}, "method POST is not GET"),
    ],
)
def test_what_of_the_request_does_not_match(
    request_: Sequence[str], headers: dict[str, str], nearest: str
) -> None:
    found = ask(ALL + GUARD, "shop", "orders:8080", *request_, **headers)
    assert (found.decisive.reason, found.decisive.code) == ("REQUEST_DENIED", 403)
    assert f"no ingress rule matches; {nearest} (the nearest: " in step(found, "request").text


def test_a_header_may_open_it() -> None:
    assert ask(ALL + GUARD, "shop", "orders:8080", "PUT", "/x", **{"x-role": "admin"}).verdict == "ALLOWED"


def test_both_nodes_judge_what_passes_between_them() -> None:
    guard = policy(
        "{endpointSelector: {matchLabels: {app: far}},"
        " ingress: [{fromEndpoints: [{matchLabels: {app: bot}}]}]}"
    )
    for node in ("node-a", "node-b"):
        found = ask(ALL + guard, "shop", "far:8080", node=node)
        assert found.decisive.reason == "POLICY_DENIED_INGRESS"
        assert (step(found, "egress").node, step(found, "ingress").node) == ("node-a", "node-b")
        assert ask(ALL + guard, "bot", "far:8080", node=node).verdict == "ALLOWED"


def test_the_node_is_that_of_the_source() -> None:
    found = ask(ALL + STRICT, "far", "orders:8080")
    assert [s.node for s in found.steps if s.what == "egress"] == ["node-b"]


@pytest.mark.parametrize(
    ("source", "destination", "says"),
    [
        ("nobody", "orders:8080", "nobody is called 'nobody'"),
        ("shop", "orders:sql", "has no port 'sql'"),
        ("shop", "bot", "which port of default/bot"),
        ("shop", "shop:80", "never leaves it"),
        ("shop", "orders:80/XYZ", "no protocol 'XYZ'"),
        ("shop", "a:b:c:d", "is not WHO"),
        ("shop", "[fd00::9]:80", "IPv6"),
    ],
)
def test_who_or_what_is_meant_must_be_clear(source: str, destination: str, says: str) -> None:
    with pytest.raises(UnknownPartyError, match=says.replace("[", r"\[")):
        ask(ALL, source, destination)


@pytest.mark.parametrize("destination", ["db:sql", "data/db", "data/db:5432", "10.1.0.4:5432", "db:5432/tcp"])
def test_a_workload_has_many_names(destination: str) -> None:
    assert ask(ALL, "shop", destination).destination.startswith("data/db:5432/TCP")


def test_a_listener_that_is_not_there_closes_what_a_rule_names() -> None:
    documents = {d.key: d for d in load(ALL + GUARD, "test.yaml").documents}
    facts, plan = offline.compiled(offline.world(documents, "node-a"))
    without = Planned(replace(plan.kernel, listeners={}))
    found = explain(Question("shop", "orders", "8080"), facts, plan, without)
    assert (found.decisive.reason, way(found)[-1]) == ("PROXY_NOT_READY", "listener!")
    assert explain(Question("bot", "shop", "80"), facts, plan, without).verdict == "ALLOWED"


def test_json_has_the_same_to_say() -> None:
    found = plain(ask(ALL + GUARD, "bot", "orders:8080"))
    assert (found["verdict"], found["reason"], found["live"]) == ("DENIED", "POLICY_DENIED_INGRESS", False)
    assert found["steps"][-1]["rules"][0]["file"] == "test.yaml"
    assert found["endpoints"] == [
        {"endpoint": "default/orders:8080", "allowed": False, "reason": "POLICY_DENIED_INGRESS", "code": None}
    ]


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("/a/../b", "/b"),
        ("/a//b/", "/a/b/"),
        ("/a%2Fb", "/a/b"),
        ("/../../a", "/a"),
        ("/a/.", "/a/"),
        ("/?q=/../", "/?q=/../"),
        ("/a/%2e%2e/b?x", "/b?x"),
    ],
)
def test_paths_are_read_as_the_proxy_reads_them(sent: str, read: str) -> None:
    assert normalized(sent) == read


def request(method: str, path: str, **headers: str) -> Request:
    return Request(method, path, {":authority": "h", **headers})


@pytest.mark.parametrize(
    ("match", "meets", "fails"),
    [
        (RouteMatch(StringMatch("exact", "/a")), "/a?q", "/a/"),
        (RouteMatch(StringMatch("prefix", "/a")), "/a/b", "/ab"),
        (RouteMatch(StringMatch("prefix", "/")), "/x", "*"),
        (RouteMatch(StringMatch("regex", "/a.c")), "/abc", "/abcd"),
        (
            RouteMatch(StringMatch("prefix", "/"), query=(("v", StringMatch("exact", "2")),)),
            "/?v=2&v=3",
            "/?v=3",
        ),
    ],
)
def test_route_matches(match: RouteMatch, meets: str, fails: str) -> None:
    assert route_differences(match, request("GET", meets)) == []
    assert len(route_differences(match, request("GET", fails))) == 1


def test_patterns_match_in_full() -> None:
    assert differences(RequestMatch(path="/a"), request("GET", "/ab"))
    assert differences(RequestMatch(host="h"), request("GET", "/")) == []
    assert differences(RequestMatch(headers=(("k", None),)), request("GET", "/", k="")) == []
