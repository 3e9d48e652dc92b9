"""Ingresses: what the front door serves, and what is refused."""

from __future__ import annotations

import pytest
from test_manifests_checks import only, said
from test_routing_mesh import PEOPLE
from worlds import make

from penstock.manifests.document import ObjectKey
from penstock.plan import Plan
from penstock.routing.model import HostTable


def ingress(spec: str, name: str = "i") -> str:
    return f"""
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: {name}}}
spec: {{ingressClassName: penstock, {spec}}}
---"""


def path(value: str, kind: str = "Prefix", to: str = "v1") -> str:
    return f"{{path: {value}, pathType: {kind}, backend: {{service: {{name: {to}, port: {{number: 80}}}}}}}}"


def rule(host: str, *paths: str) -> str:
    named = f"host: '{host}', " if host else ""
    return f"{{{named}http: {{paths: [{', '.join(paths)}]}}}}"


def table(plan: Plan, name: str = "ingress:80/TCP") -> HostTable:
    return next(t for t in plan.proxy.tables if t.name == name)


def order(plan: Plan, host: str) -> list[str]:
    (found,) = [h for h in table(plan).hosts if h.host == host]
    return [r.match.path.value for r in found.routes]


def test_exact_then_longest() -> None:
    rules = rule("a.x", path("/"), path("/long"), path("/lo", "Exact"), path("/longer/way"))
    _, plan = make(PEOPLE + ingress(f"rules: [{rules}]"))
    assert order(plan, "a.x") == ["/lo", "/longer/way", "/long", "/"]
    assert plan.kernel.addresses


def test_rules_without_a_host_and_defaults_stand_last() -> None:
    default = "defaultBackend: {service: {name: v2, port: {number: 80}}}"
    text = ingress(f"rules: [{rule('a.x', path('/a'))}, {rule('', path('/any'))}], {default}")
    _, plan = make(PEOPLE + text)
    assert order(plan, "a.x") == ["/a", "/any", "/"]
    assert order(plan, "") == ["/any", "/"]


def test_the_front_door_is_judged_as_ingress_and_nothing_else() -> None:
    _, plan = make(PEOPLE + ingress(f"rules: [{rule('a.x', path('/'))}]"))
    assert {r.sources for r in table(plan).rights} == {(8,)}
    assert all(s.gateway for s in plan.kernel.services.values() if s.name.startswith("ingress:"))


def test_without_an_ingress_there_is_no_door() -> None:
    _, plan = make(PEOPLE)
    assert (plan.proxy.edge, plan.kernel.addresses) == ((), ())


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (f"rules: [{rule('a.x', path('/', to='nobody'))}]", "no Service default/nobody"),
        (f"rules: [{rule('a.x', path('/'))}], tls: [{{secretName: s}}]", "there is no Secret default/s"),
    ],
)
def test_what_it_waits_for(spec: str, why: str) -> None:
    _, plan = make(PEOPLE + ingress(spec))
    assert plan.statuses[ObjectKey("Ingress", "default", "i")].pending == why


@pytest.mark.parametrize(
    ("spec", "start"),
    [
        ("{}", "spec: needs rules or a defaultBackend"),
        (
            "{defaultBackend: {resource: {kind: Bucket, name: b}}}",
            "spec.defaultBackend.resource: as a backend is not supported",
        ),
        ("{defaultBackend: {}}", "spec.defaultBackend.service: is missing"),
        (
            "{defaultBackend: {service: {name: a, port: {name: x, number: 1}}}}",
            "spec.defaultBackend.service.port: needs exactly one",
        ),
        (
            "{rules: [{http: {paths: [{path: a, pathType: Prefix,"
            " backend: {service: {name: a, port: {number: 1}}}}]}}]}",
            'spec.rules[0].http.paths[0].path: "a" does not begin',
        ),
        (
            "{rules: [{http: {paths: [{pathType: Exact,"
            " backend: {service: {name: a, port: {number: 1}}}}]}}]}",
            "spec.rules[0].http.paths[0].path: is missing",
        ),
        (
            "{rules: [{host: 'a b', http: {paths: []}}]}",
            'spec.rules[0].host: "a b"',
        ),
    ],
)
def test_bad_ingresses(spec: str, start: str) -> None:
    found = said("Ingress", f"spec: {spec}")
    only([f for f in found if f.startswith(start)], start)
