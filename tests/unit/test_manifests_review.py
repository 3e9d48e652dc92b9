"""Names and selectors that find nothing, seen over the whole set."""

from __future__ import annotations

from penstock.manifests.loader import load
from penstock.manifests.review import review


def said(*documents: str) -> list[str]:
    loaded = load("---\n".join(documents), "f")
    assert [str(p) for p in loaded.problems] == []
    found = review(loaded.documents)
    assert all(p.severity == "warning" for p in found)
    return [f"{p.kind} {p.name}: {p.field}: {p.message}" + (f"; {p.hint}" if p.hint else "") for p in found]


def workload(name: str, app: str = "web", namespace: str = "default", extra: str = "") -> str:
    return (
        "apiVersion: penstock.dev/v1alpha1\nkind: Workload\n"
        f"metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}\nspec: {{{extra}}}\n"
    )


def policy(selector: str, peers: str = "") -> str:
    return (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"
        f"spec:\n  endpointSelector: {selector}\n  ingress:\n  - fromEndpoints: [{peers}]\n"
    )


def service(name: str, spec: str) -> str:
    return f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"


def route(spec: str) -> str:
    head = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\n"
    return f"{head}spec: {{{spec}}}\n"


PARENT = "parentRefs: [{group: '', kind: Service, name: web, port: 80}]"
WEB = service("web", "selector: {app: web}, ports: [{port: 80}]")


def test_selectors_that_match_are_silent() -> None:
    assert said(workload("w"), policy("{matchLabels: {app: web}}", "{matchLabels: {'k8s:app': web}}")) == []
    assert (
        said(workload("w"), policy("{}", "{matchLabels: {'io.cilium.k8s.policy.serviceaccount': default}}"))
        == []
    )
    assert (
        said(workload("w"), policy("{}", "{matchExpressions: [{key: app, operator: NotIn, values: [x]}]}"))
        == []
    )
    assert said(workload("w"), policy("{}", "{matchLabels: {'reserved:host': ''}}")) == []


def test_a_value_that_no_workload_has() -> None:
    assert said(workload("w"), policy("{matchLabels: {app: wbe}}")) == [
        "CiliumNetworkPolicy p: spec.endpointSelector.matchLabels.app: "
        'selects no workload in namespace default: none has app "wbe"; did you mean "web"?'
    ]


def test_a_label_that_no_workload_has() -> None:
    assert said(workload("w"), policy("{}", "{matchLabels: {ap: web}}")) == [
        "CiliumNetworkPolicy p: spec.ingress[0].fromEndpoints[0].matchLabels.ap: "
        'selects no workload in namespace default: none has the label "ap"; did you mean "app"?'
    ]


def test_workloads_of_another_namespace() -> None:
    here, there = workload("w"), workload("v", "api", "shop")
    assert said(here, there, policy("{}", "{matchLabels: {app: api}}")) == [
        "CiliumNetworkPolicy p: spec.ingress[0].fromEndpoints[0]: selects no workload in namespace default; "
        "it would in shop"
    ]
    named = "{matchLabels: {app: api, 'k8s:io.kubernetes.pod.namespace': shop}}"
    assert said(here, there, policy("{}", named)) == []


def test_no_workload_at_all() -> None:
    assert said(policy("{matchLabels: {app: web}}")) == [
        "CiliumNetworkPolicy p: spec.endpointSelector: "
        "selects no workload: there is none in namespace default"
    ]


def test_services() -> None:
    assert said(workload("w"), WEB) == []
    assert said(workload("w"), service("s", "selector: {app: wbe}, ports: [{port: 80}]")) == [
        "Service s: spec.selector.app: selects no workload in namespace default: "
        'none has app "wbe"; did you mean "web"?'
    ]
    named = workload("w", extra="ports: [{name: http, containerPort: 8080}]")
    assert said(named, service("s", "selector: {app: web}, ports: [{port: 80, targetPort: htp}]")) == [
        'Service s: spec.ports[0].targetPort: no workload has a port named "htp"; did you mean "http"?'
    ]
    assert said(service("s", "ports: [{port: 80}]"))[0].startswith("Service s: spec: has no selector and no")


def test_endpoint_slices() -> None:
    text = (
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"
        "metadata: {name: e, labels: {kubernetes.io/service-name: %s}}\n"
    )
    assert said(service("s", "ports: [{port: 80}]"), text % "s") == []
    assert said(text % "s") == [
        'EndpointSlice e: metadata.labels["kubernetes.io/service-name"]: there is no Service default/s'
    ]


def test_routes() -> None:
    backends = "rules: [{backendRefs: [{name: web, port: 80}]}]"
    assert said(workload("w"), WEB, route(f"{PARENT}, {backends}")) == []
    assert said(route(PARENT)) == ["HTTPRoute r: spec.parentRefs[0].name: there is no Service default/web"]
    assert said(
        workload("w"), WEB, route(f"{PARENT}, rules: [{{backendRefs: [{{name: wbe, port: 80}}]}}]")
    ) == [
        'HTTPRoute r: spec.rules[0].backendRefs[0].name: there is no Service default/wbe; did you mean "web"?'
    ]
    assert said(
        workload("w"), WEB, route(f"{PARENT}, rules: [{{backendRefs: [{{name: web, port: 81}}]}}]")
    ) == ["HTTPRoute r: spec.rules[0].backendRefs[0].port: Service default/web has no port 81; it has 80"]


def test_addresses_given_twice() -> None:
    found = said(workload("v", extra="addresses: [10.0.0.1]"), workload("w", extra="addresses: [10.0.0.1]"))
    assert found[0] == (
        "Workload v: spec.addresses[0]: 10.0.0.1 is also the address of Workload default/w (f:6)"
    )
    assert len(found) == 2


def void(*entries: str) -> list[str]:
    text = (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"
        "spec:\n  endpointSelector: {}\n  ingress:\n" + "".join(f"  - {entry}\n" for entry in entries)
    )
    return said(workload("w"), text)


L7 = "{fromEndpoints: [{}], toPorts: [{ports: [{port: 80}], rules: {http: [{path: /a}]}}]}"


def test_an_l7_rule_beside_a_broad_l4_allow() -> None:
    message = (
        "CiliumNetworkPolicy p: spec.ingress[0].toPorts[0].rules.http: is void: "
        "f:13 spec.ingress[1]{} allows every request of the same peers on this port; "
        "give that rule rules.http too, or remove it"
    )
    assert void(L7, "{fromEntities: [all]}") == [message.format("")]
    assert void(L7, "{fromEndpoints: [{}]}") == [message.format("")]
    assert void(L7, "{toPorts: [{ports: [{port: 70, endPort: 90}]}]}") == [message.format(".toPorts[0]")]


def test_an_l7_rule_that_holds() -> None:
    assert void(L7) == []
    assert void(L7, L7) == []
    assert void(L7, "{toPorts: [{ports: [{port: 81}]}]}") == []
    assert void(L7, "{toPorts: [{ports: [{port: 80, protocol: UDP}]}]}") == []
    assert void(L7, "{fromEntities: [host]}") == []
    assert void(L7, "{fromCIDR: [0.0.0.0/0]}") == []
    # An empty rule closes, and allows nothing.
    assert void(L7, "{}") == []
