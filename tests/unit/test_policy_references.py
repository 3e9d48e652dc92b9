"""Policies that name what other objects hold: Services, groups of networks, nodes, the API server."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from worlds import identities, identity_of, make, policy, read, workload

from penstock.manifests.loader import load
from penstock.plan import Direction, KernelTables, Verdict
from penstock.planner import Planner
from penstock.policy.lookup import look_up

WEB = workload("web", "10.1.0.1")
API = workload("api", "10.1.0.2")
DB = workload("db", "10.1.0.3")
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: api, namespace: default, labels: {tier: back}}
spec: {selector: {app: api}, ports: [{port: 80}]}
---"""
OUTSIDE = """
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: default}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside-1, namespace: default, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
endpoints: [{addresses: [203.0.113.7]}]
ports: [{port: 80}]
---"""
GROUP = """
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: partners, labels: {who: partners}}
spec: {externalCIDRs: [198.51.100.0/24, 203.0.113.0/25]}
---"""
NODES = """
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {zone: a}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-b, labels: {zone: b}}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-c, labels: {zone: c}}
status: {addresses: [{type: InternalIP, address: 192.0.2.3}]}
---"""


def egress(rule: str) -> str:
    return policy(f"{{endpointSelector: {{matchLabels: {{app: web}}}}, egress: [{rule}]}}")


def may(text: str, *addresses: str) -> list[bool]:
    """Whether web may open TCP 80 to each."""
    _, plan = make(text, node_addresses=(ip_address("192.0.2.1"),))
    return [allowed(plan.kernel, identity_of(plan, a)) for a in addresses]


def allowed(tables: KernelTables, identity: int) -> bool:
    subject = tables.endpoints[ip_address("10.1.0.1")].subject
    return look_up(tables.policy, subject, Direction.EGRESS, identity, 6, 80) is Verdict.ALLOW


@pytest.mark.parametrize(
    "rule",
    [
        "{toServices: [{k8sService: {serviceName: api, namespace: default}}]}",
        "{toServices: [{k8sService: {serviceName: api}}]}",
        "{toServices: [{k8sServiceSelector: {selector: {matchLabels: {tier: back}}}}]}",
        "{toServices: [{k8sService: {serviceName: api}}], toPorts: [{ports: [{port: 80}]}]}",
    ],
)
def test_to_services_means_the_workloads_behind_them(rule: str) -> None:
    assert may(WEB + API + DB + SERVICE + egress(rule), "10.1.0.2", "10.1.0.3", "8.8.8.8") == [
        True,
        False,
        False,
    ]


def test_a_service_without_a_selector_means_its_addresses() -> None:
    rule = egress("{toServices: [{k8sService: {serviceName: outside}}]}")
    assert may(WEB + API + OUTSIDE + rule, "203.0.113.7", "203.0.113.8", "10.1.0.2") == [True, False, False]


@pytest.mark.parametrize("name", ["{serviceName: nobody}", "{serviceName: api, namespace: other}"])
def test_a_service_that_is_not_there_selects_nobody(name: str) -> None:
    rule = egress(f"{{toServices: [{{k8sService: {name}}}]}}")
    assert may(WEB + API + SERVICE + rule, "10.1.0.2", "8.8.8.8") == [False, False]


@pytest.mark.parametrize(
    "entry", ["{cidrGroupRef: partners}", "{cidrGroupSelector: {matchLabels: {who: partners}}}"]
)
def test_a_group_of_networks_is_its_networks_less_what_is_excepted(entry: str) -> None:
    entry = entry[:-1] + ", except: [198.51.100.128/25]}"
    text = WEB + GROUP + egress(f"{{toCIDRSet: [{entry}]}}")
    there = ("198.51.100.1", "198.51.100.200", "203.0.113.1", "203.0.113.200")
    assert may(text, *there) == [True, False, True, False]
    assert may(text.replace(GROUP, ""), *there) == [False] * 4


def test_a_changed_group_changes_the_policy_that_was_read_before() -> None:
    text = WEB + GROUP + egress("{toCIDRSet: [{cidrGroupRef: partners}]}")
    planner = Planner()
    _, before = planner.plan(read(text))
    world, after = planner.plan(read(text.replace("203.0.113.0/25", "192.0.2.0/24")))
    assert allowed(before.kernel, identity_of(before, "203.0.113.1"))
    assert not allowed(after.kernel, identity_of(after, "203.0.113.1"))
    assert allowed(after.kernel, identity_of(after, "192.0.2.9"))
    assert Planner().plan(world)[1] == after


def test_the_api_server_is_the_service_kubernetes() -> None:
    there = OUTSIDE.replace("outside", "kubernetes")
    rule = egress("{toEntities: [kube-apiserver]}")
    assert may(WEB + there + rule, "203.0.113.7", "203.0.113.8") == [True, False]
    assert may(WEB + rule, "203.0.113.7") == [False]


def test_to_nodes_tells_nodes_apart_by_their_labels() -> None:
    text = WEB + NODES + egress("{toNodes: [{matchLabels: {zone: b}}]}")
    assert may(text, "192.0.2.1", "192.0.2.2", "192.0.2.3", "8.8.8.8") == [False, True, False, False]
    own = WEB + NODES + egress("{toNodes: [{matchLabels: {zone: a}}]}")
    assert may(own, "192.0.2.1", "192.0.2.2") == [True, False]
    every = WEB + NODES + egress("{toNodes: [{}]}")
    assert may(every, "192.0.2.1", "192.0.2.2", "192.0.2.3", "8.8.8.8") == [True, True, True, False]


def test_nodes_with_an_identity_of_their_own_stay_what_they_are_to_entities_and_networks() -> None:
    others = policy("{endpointSelector: {}, ingress: [{fromNodes: [{matchLabels: {zone: c}}]}]}", name="x")
    nodes = ("192.0.2.2", "192.0.2.3")
    for rule, wanted in (
        ("{toEntities: [remote-node]}", True),
        ("{toEntities: [cluster]}", True),
        ("{toEntities: [world]}", False),
        ("{toCIDR: [192.0.2.0/24]}", False),
        ("{toEndpoints: [{}]}", False),
        ("{toEndpoints: [{matchLabels: {reserved:remote-node: ''}}]}", True),
    ):
        assert may(WEB + NODES + others + egress(rule), *nodes) == [wanted, wanted], rule


def test_from_nodes_selects_the_sender() -> None:
    rule = "{fromNodes: [{matchLabels: {zone: b}}]}"
    text = WEB + NODES + policy(f"{{endpointSelector: {{matchLabels: {{app: web}}}}, ingress: [{rule}]}}")
    world, plan = make(text)
    subject = plan.kernel.endpoints[ip_address("10.1.0.1")].subject
    for address, wanted in (("192.0.2.2", Verdict.ALLOW), ("192.0.2.3", Verdict.DENY)):
        who = identity_of(plan, address)
        assert look_up(plan.kernel.policy, subject, Direction.INGRESS, who, 6, 80) is wanted
    assert identity_of(plan, "192.0.2.2") not in identities(world).values()


def test_without_a_rule_about_nodes_they_share_one_identity() -> None:
    _, plan = make(WEB + NODES)
    assert identity_of(plan, "192.0.2.2") == identity_of(plan, "192.0.2.3") == 6


def test_header_matches_are_exact_headers() -> None:
    http = "{path: /a, headerMatches: [{name: X-Team, value: blue}]}"
    rule = f"{{toEndpoints: [{{}}], toPorts: [{{ports: [{{port: 80}}], rules: {{http: [{http}]}}}}]}}"
    _, plan = make(WEB + API + egress(rule))
    (match,) = {m for r in plan.proxy.workload_rights for group in r.requests for m in group}
    assert (match.path, match.headers) == ("/a", (("x-team", "blue"),))


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ("{toServices: [{}]}", "toServices[0]"),
        ("{toServices: [{k8sService: {serviceName: a}}], toEndpoints: [{}]}", "toServices"),
        ("{toCIDRSet: [{}]}", "toCIDRSet[0]"),
        ("{toCIDRSet: [{cidr: 10.0.0.0/8, cidrGroupRef: x}]}", "toCIDRSet[0].cidrGroupRef"),
        ("{toNodes: [{matchLabels: {'a b': c}}]}", 'toNodes[0].matchLabels["a b"]'),
        ("{authentication: {mode: test-always-fail}}", "authentication.mode"),
        ("{authentication: {mode: sometimes}}", "authentication.mode"),
    ],
)
def test_what_cannot_be_meant_is_refused(rule: str, field: str) -> None:
    problems = [p for p in load(egress(rule), "a.yaml").problems if p.severity == "error"]
    assert [p.field for p in problems] == [f"spec.egress[0].{field}"]


def test_a_clusterwide_policy_must_say_of_which_namespace_a_service_is() -> None:
    text = egress("{toServices: [{k8sService: {serviceName: a}}]}")
    text = text.replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy").replace(
        ", namespace: default}", "}"
    )
    (problem,) = load(text, "a.yaml").problems
    assert problem.field == "spec.egress[0].toServices[0].k8sService.namespace"
