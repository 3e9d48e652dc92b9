"""Warnings about routes that are valid and will surprise, each with its code."""

from __future__ import annotations

import pytest
from test_routing_grpc import grpc
from test_routing_mesh import PEOPLE, route
from test_routing_namespaces import AWAY, consumer, grant
from test_routing_services import service
from worlds import workload

from penstock.manifests.loader import load
from penstock.routing.review import review_routes

GOOD = "backendRefs: [{name: v1, port: 80}]"


def said(text: str) -> list[str]:
    loaded = load(PEOPLE + AWAY + text, "f")
    found = review_routes(loaded.documents)
    assert all(p.severity == "warning" and p.line > 1 for p in found)
    return [f"{p.name} {p.field} {p.code}" for p in found]


def rules(*matches: str) -> str:
    return route("[" + ", ".join(f"{{matches: [{m}], {GOOD}}}" for m in matches) + "]")


def path(kind: str, value: str, more: str = "") -> str:
    return f"{{path: {{type: {kind}, value: '{value}'}}{more}}}"


@pytest.mark.parametrize(
    ("first", "second", "shadowed"),
    [
        ("{}", "{}", 1),
        (path("PathPrefix", "/a"), path("PathPrefix", "/a/"), 1),
        (path("PathPrefix", "/a/"), path("PathPrefix", "/a"), 1),
        ("{}", path("RegularExpression", "/a.*"), 1),
        (path("PathPrefix", "/a"), path("RegularExpression", "/a/b.*"), 1),
        (path("PathPrefix", "/a"), path("RegularExpression", "/a/?.*"), None),
        (path("PathPrefix", "/a"), path("RegularExpression", "/a/b|/c"), None),
        (path("PathPrefix", "/a"), path("RegularExpression", "/a/(b|c)+|/a"), 1),
        (path("RegularExpression", "/abcd.*"), path("RegularExpression", "/abcd1"), 1),
        (path("RegularExpression", "/abcd.*"), path("RegularExpression", "/abc/"), None),
        (path("PathPrefix", "/a", ", method: GET"), path("RegularExpression", "/a/b.*"), None),
        (path("PathPrefix", "/a"), path("Exact", "/a"), None),
        ("{}", path("PathPrefix", "/a"), None),
        ("{method: GET}", "{method: PUT}", None),
        ("{headers: [{name: X, value: y}]}", "{headers: [{name: x, value: y}]}", 1),
        ("{headers: [{name: X, value: y}]}", "{}", None),
    ],
)
def test_matches_that_can_never_match(first: str, second: str, shadowed: int | None) -> None:
    wanted = [] if shadowed is None else [f"r spec.rules[{shadowed}].matches[0] shadowed"]
    assert said(rules(first, second)) == wanted


def test_other_routes_of_the_same_parent_shadow_too_but_not_those_of_other_clients() -> None:
    one = f"[{{{GOOD}}}]"
    assert said(route(one, name="a") + route(one, name="b")) == ["b spec.rules[0].matches[0] shadowed"]
    assert said(route(one, name="a") + grpc(one, name="b")) == ["b spec.rules[0].matches[0] shadowed"]
    other = "{group: '', kind: Service, name: v1}"
    assert said(route(one, name="a") + route(one, name="b", parent=other)) == []
    assert said(route(one) + consumer("[{}]")) == []


EDGE = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw}
spec:
  gatewayClassName: penstock
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: alt, port: 81, protocol: HTTP}
---"""


def test_whatever_a_parent_is_called_by() -> None:
    """By the Gateway, by a listener's name or by its port: what counts is where a route is attached."""
    one = f"[{{{GOOD}}}]"
    names = ["{name: gw}", "{name: gw, sectionName: http}", "{name: gw, port: 80}"]
    for first in names:
        for second in names[1:]:
            found = said(EDGE + route(one, name="a", parent=first) + route(one, name="b", parent=second))
            assert found == ["b spec.rules[0].matches[0] shadowed"]
    # At the other listener it is the first.
    narrow, wide = route(one, name="a", parent=names[1]), route(one, name="b", parent=names[0])
    assert said(EDGE + narrow + wide) == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("{selector: {app: v1}, ports: [{port: 80, targetPort: web}]}", "has a TCP port named web"),
        ("{selector: {app: idle}, ports: [{port: 80, targetPort: 8080}]}", "is not ready"),
        ("{selector: {app: nobody}, ports: [{port: 80}]}", "has the labels"),
        ("{ports: [{name: http, port: 80}]}", "no EndpointSlice of it has endpoints"),
        ("{selector: {app: idle}, publishNotReadyAddresses: true, ports: [{port: 80}]}", ""),
    ],
)
def test_why_there_is_no_endpoint(more: str, why: str) -> None:
    idle = workload("idle", "10.244.0.99").replace("spec:", "spec:\n  ready: false")
    text = idle + service("s", more) + route("[{backendRefs: [{name: s, port: 80}]}]")
    found = review_routes(load(PEOPLE + text, "f").documents)
    assert [(p.code, why in p.hint) for p in found] == ([("endpoints", True)] if why else [])


def test_weights_that_sum_to_zero() -> None:
    assert said(route("[{backendRefs: [{name: v1, port: 80, weight: 0}]}]")) == [
        "r spec.rules[0].backendRefs weights"
    ]


def test_a_missing_grant() -> None:
    text = route("[{backendRefs: [{name: away, namespace: other, port: 80}]}]")
    assert said(text) == ["r spec.rules[0].backendRefs[0].namespace grant"]
    assert said(text + grant()) == ["r spec.rules[0].backendRefs[0].name endpoints"]


def test_a_backend_without_endpoints() -> None:
    text = service("empty", "{selector: {app: nobody}, ports: [{port: 80}]}")
    assert said(text + route("[{backendRefs: [{name: empty, port: 80}]}]")) == [
        "r spec.rules[0].backendRefs[0].name endpoints"
    ]
    assert said(text + route("[{backendRefs: [{name: v1, port: 80}]}]")) == []
