"""Routes across namespaces: ReferenceGrants, and routes of a Service's consumers."""

from __future__ import annotations

import pytest
from test_routing_mesh import PEOPLE, _conditions, _table, path, route
from test_routing_services import service
from worlds import make, workload

from penstock.routing.model import RouteBackend, RouteMatch, StringMatch

AWAY = workload("far", "10.1.0.9", namespace="other")
PARENT = "{group: '', kind: Service, name: api, namespace: default}"


def grant(
    to: str = "{group: '', kind: Service}",
    source: str = "default",
    kind: str = "HTTPRoute",
    where: str = "other",
) -> str:
    return f"""
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {{name: g, namespace: {where}}}
spec:
  from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {source}}}]
  to: [{to}]
---"""


def consumer(rules: str, namespace: str = "shop", name: str = "c") -> str:
    return route(rules, name=name, parent=PARENT).replace(
        f"metadata: {{name: {name}}}", f"metadata: {{name: {name}, namespace: {namespace}}}"
    )


@pytest.mark.parametrize(
    ("text", "granted"),
    [
        ("", False),
        (grant(), True),
        (grant("{group: '', kind: Service, name: away}"), True),
        (grant("{group: '', kind: Service, name: another}"), False),
        (grant("{group: '', kind: Secret}"), False),
        (grant(source="another"), False),
        (grant(kind="GRPCRoute"), False),
        (grant(where="default"), False),
    ],
)
def test_a_backend_of_another_namespace_needs_a_grant(text: str, granted: bool) -> None:
    rules = "[{backendRefs: [{name: away, namespace: other, port: 80}]}]"
    world, plan = make(PEOPLE + AWAY + text + route(rules))
    wanted = "other/away:80/4" if granted else None
    assert _table(plan).routes[0].backends == (RouteBackend(wanted, 1),)
    reason = "ResolvedRefs" if granted else "RefNotPermitted"
    assert _conditions(world, plan)["ResolvedRefs"] == (granted, reason)


def test_consumers_see_their_own_routes_and_nobody_elses() -> None:
    _, plan = make(
        PEOPLE
        + route(f"[{{matches: [{{{path('/a')}}}], backendRefs: [{{name: v1, port: 80}}]}}]")
        + consumer(f"[{{matches: [{{{path('/long/er')}}}]}}, {{matches: [{{{path('/c')}}}]}}]")
        + consumer("[{}]", namespace="bank", name="b")
    )
    found = [(r.name, r.match.namespace, r.match.path.value, r.actions.missing) for r in _table(plan).routes]
    assert found == [
        ("bank/b/0/0", "bank", "/", False),
        ("default/api:80/4/bank", "bank", "/", True),
        ("shop/c/0/0", "shop", "/long/er", False),
        ("shop/c/1/0", "shop", "/c", False),
        ("default/api:80/4/shop", "shop", "/", True),
        ("default/r/0/0", None, "/a", False),
    ]


def test_without_a_producer_the_others_go_to_the_service_itself() -> None:
    _, plan = make(PEOPLE + consumer("[{}]"))
    table = _table(plan)
    last = table.routes[-1]
    assert last.match == RouteMatch(StringMatch("prefix", "/"))
    assert last.backends == (RouteBackend("default/api:80/4", 1),)
    assert "default/api:80/4" in {c.name for c in plan.proxy.clusters}
    reached = {e.policy_class for c in plan.proxy.clusters for e in c.endpoints}
    assert reached <= {name for right in table.rights for name in right.destinations}


def test_a_consumer_route_names_backends_of_its_own_namespace_by_itself_and_of_others_by_grant() -> None:
    shop = workload("own", "10.1.0.8", namespace="shop") + service(
        "own", "{selector: {app: own}, ports: [{port: 80}]}", namespace="shop"
    )
    refs = "[{backendRefs: [{name: own, port: 80}, {name: v1, namespace: default, port: 80}]}]"
    for text, wanted in (
        ("", ["shop/own:80/4", None]),
        (grant(source="shop", where="default"), ["shop/own:80/4", "default/v1:80/4"]),
    ):
        _, plan = make(PEOPLE + shop + text + consumer(refs))
        assert [b.cluster for b in _table(plan).routes[0].backends] == wanted


def test_listeners_of_services_know_their_clients_namespace() -> None:
    _, plan = make(PEOPLE + workload("c", "10.1.0.7", namespace="shop") + consumer("[{}]"))
    assert {x.namespace for x in plan.proxy.listeners} == {"default", "shop"}
