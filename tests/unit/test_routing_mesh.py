"""HTTPRoutes of Services: the order in which matches are tried, shares, references, statuses."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from test_routing_services import service
from worlds import make, read, settle, workload

from penstock.manifests.document import ObjectKey
from penstock.plan import Plan
from penstock.routing.model import RouteBackend, ServiceTable, StringMatch
from penstock.world import World

PEOPLE = (
    workload("v1", "10.1.0.1, 'fd01::1'")
    + workload("v2", "10.1.0.2")
    + service("api", "{selector: {app: v1}, ports: [{port: 80}], ipFamilyPolicy: PreferDualStack}")
    + service(
        "v1",
        "{selector: {app: v1}, ports: [{name: a, port: 80}, {name: b, port: 81}],"
        " ipFamilyPolicy: PreferDualStack}",
    )
    + service("v2", "{selector: {app: v2}, ports: [{port: 80, appProtocol: kubernetes.io/h2c}]}")
    + service("away", "{ports: [{port: 80}]}", namespace="other")
)


def route(rules: str, *, name: str = "r", parent: str = "{group: '', kind: Service, name: api}") -> str:
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{parent}]
  rules: {rules}
---"""


def _table(plan: Plan, name: str = "default/api:80/4") -> ServiceTable:
    return next(t for t in plan.proxy.services if t.name == name)


def _order(*matches: str) -> list[str]:
    """The routes' names by which their matches are tried; rules are named m0, m1, …"""
    rules = "".join(f"{{name: m{n}, matches: [{m}]}}," for n, m in enumerate(matches))
    _, plan = make(PEOPLE + route(f"[{rules}]"))
    return [r.name.split("/")[2] for r in _table(plan).routes]


def path(value: str, kind: str = "PathPrefix") -> str:
    return f"path: {{type: {kind}, value: {value}}}"


def test_exact_before_prefix_before_regular_expression() -> None:
    assert _order(
        f"{{{path('/.*', 'RegularExpression')}}}",
        f"{{{path('/a')}}}",
        f"{{{path('/a/b')}}}",
        f"{{{path('/a', 'Exact')}}}",
        "{}",
    ) == ["m3", "m2", "m1", "m4", "m0"]


def test_then_method_then_headers_then_query() -> None:
    header = "headers: [{name: X, value: y}]"
    two = "headers: [{name: X, value: y}, {name: Y, value: z}]"
    query = "queryParams: [{name: q, value: v}]"
    assert _order(
        "{}", f"{{{query}}}", f"{{{header}}}", f"{{{two}}}", "{method: GET}", f"{{{header}, {query}}}"
    ) == ["m4", "m3", "m5", "m2", "m1", "m0"]


def test_a_tie_goes_to_the_first() -> None:
    assert _order("{method: GET}", "{method: PUT}", "{method: POST}") == ["m0", "m1", "m2"]


def test_a_tie_between_routes_goes_to_the_oldest_then_to_the_name() -> None:
    text = PEOPLE + "".join(route(f"[{{name: m{n}}}]", name=n) for n in ("c", "a", "b"))
    world = read(text)
    since = {"a": 5.0, "b": 9.0, "c": 5.0}
    documents = {
        k: replace(d, since=since[k.name]) if k.kind == "HTTPRoute" else d for k, d in world.documents.items()
    }
    _, plan = settle(replace(world, documents=documents))
    assert [r.name.split("/")[1] for r in _table(plan).routes] == ["a", "c", "b"]


def test_the_order_does_not_depend_on_the_order_of_documents() -> None:
    text = PEOPLE + "".join(
        route(f"[{{matches: [{{{path(p)}}}]}}]", name=n) for n, p in (("x", "/a"), ("y", "/b"), ("z", "/ccc"))
    )
    world = read(text)
    _, first = settle(world)
    items = list(world.documents.items())
    random.Random(3).shuffle(items)
    _, second = settle(replace(world, documents=dict(items)))
    assert first == second


def test_matches_are_carried_over() -> None:
    _, plan = make(
        PEOPLE
        + route(
            "[{matches: [{path: {type: Exact, value: /x}, method: GET, headers: [{name: X-A, value: '1'},"
            " {name: b, type: RegularExpression, value: '.+'}], queryParams: [{name: Q, value: v}]}]}]"
        )
    )
    (found,) = _table(plan).routes
    assert found.name == "default/r/0/0"
    assert found.match.path == StringMatch("exact", "/x")
    assert found.match.method == "GET"
    assert found.match.headers == (("x-a", StringMatch("exact", "1")), ("b", StringMatch("regex", ".+")))
    assert found.match.query == (("Q", StringMatch("exact", "v")),)


# --- backends -------------------------------------------------------------------------------------------


def test_a_split_by_weight() -> None:
    world, plan = make(
        PEOPLE + route("[{backendRefs: [{name: v1, port: 80, weight: 9}, {name: v2, port: 80}]}]")
    )
    table = _table(plan)
    assert table.routes[0].backends == (
        RouteBackend("default/v1:80/4", 9),
        RouteBackend("default/v2:80/4", 1),
    )
    clusters = {c.name: c for c in plan.proxy.clusters}
    assert [str(e.address) for e in clusters["default/v1:80/4"].endpoints] == ["10.1.0.1"]
    assert (clusters["default/v1:80/4"].http2, clusters["default/v2:80/4"].http2) == (False, True)
    # IPv6 has a table of its own, in which the Service without that family answers 500.
    assert _table(plan, "default/api:80/6").routes[0].backends == (
        RouteBackend("default/v1:80/6", 9),
        RouteBackend(None, 1),
    )
    assert _conditions(world, plan)["ResolvedRefs"] == (True, "ResolvedRefs")


def test_the_kernel_sends_a_routed_service_to_the_proxy() -> None:
    world, plan = make(PEOPLE + route("[{backendRefs: [{name: v1, port: 80}]}]"))
    steered = {s.name for s in plan.kernel.services.values() if s.http}
    assert steered == {"default/api:80/4", "default/api:80/6"}
    vip = world.allocations.vips["default/api/4"]
    assert str(_table(plan).address) == vip
    assert not any(s.http for s in make(PEOPLE)[1].kernel.services.values())


def _conditions(world: World, plan: Plan, name: str = "r") -> dict[str, tuple[bool, str]]:
    status = plan.statuses[ObjectKey("HTTPRoute", "default", name)]
    ((_, conditions),) = status.extra["parents"]  # type: ignore[misc]
    return {c.type: (c.status, c.reason) for c in conditions}


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("{name: nobody, port: 80}", "BackendNotFound"),
        ("{name: v1, port: 99}", "BackendNotFound"),
        ("{name: away, namespace: other, port: 80}", "RefNotPermitted"),
        ("{name: v1, kind: Fancy, group: x.y, port: 80}", "InvalidKind"),
    ],
)
def test_a_reference_that_cannot_be_used_keeps_its_share(backend: str, reason: str) -> None:
    world, plan = make(PEOPLE + route(f"[{{backendRefs: [{{name: v2, port: 80}}, {backend}]}}]"))
    assert _conditions(world, plan) == {"Accepted": (True, "Accepted"), "ResolvedRefs": (False, reason)}
    assert [b.cluster for b in _table(plan).routes[0].backends] == ["default/v2:80/4", None]
    assert plan.statuses[ObjectKey("HTTPRoute", "default", "r")].pending


@pytest.mark.parametrize(
    ("parent", "reason"),
    [
        ("{group: '', kind: Service, name: nobody}", "NoMatchingParent"),
        ("{group: '', kind: Service, name: api, port: 99}", "NoMatchingParent"),
        ("{group: '', kind: Service, name: v1, sectionName: c}", "NoMatchingParent"),
        ("{group: '', kind: Service, name: v1, sectionName: a, port: 81}", "NoMatchingParent"),
    ],
)
def test_a_parent_that_is_not_there(parent: str, reason: str) -> None:
    world, plan = make(PEOPLE + route("[{backendRefs: [{name: v1, port: 80}]}]", parent=parent))
    assert _conditions(world, plan)["Accepted"] == (False, reason)
    assert not plan.proxy.services
    assert plan.statuses[ObjectKey("HTTPRoute", "default", "r")].pending


@pytest.mark.parametrize("section", ["port: 81", "sectionName: b", "sectionName: b, port: 81"])
def test_a_parent_port_takes_only_that_port(section: str) -> None:
    parent = f"{{group: '', kind: Service, name: v1, {section}}}"
    _, plan = make(PEOPLE + route("[{backendRefs: [{name: v2, port: 80}]}]", parent=parent))
    assert {t.name for t in plan.proxy.services} == {"default/v1:81/4", "default/v1:81/6"}
