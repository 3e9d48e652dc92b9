"""Gateways as compile sees them: hosts, attachment, addresses, and what follows for kernel and policy."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gateway_golden import BACKENDS, POLICY, gateway, route, rule
from worlds import make, read, settle, workload

from penstock.explain import explain
from penstock.explain.kernel import Planned
from penstock.explain.model import Question
from penstock.manifests.document import ObjectKey
from penstock.plan import ListenerKey, Plan, ServiceKey
from penstock.planner import Planner
from penstock.redirect.steering import Steering, past_admission, steering
from penstock.routing import hosts
from penstock.routing.model import ListenerKind
from penstock.world import Proxied

NODE = """
apiVersion: v1
kind: Node
metadata: {name: %s}
spec: {podCIDRs: [%s]}
status: {addresses: [{type: InternalIP, address: %s}]}
---
"""
NODES = NODE % ("node-a", "10.244.1.0/24", "192.0.2.1") + NODE % ("node-b", "10.244.2.0/24", "192.0.2.2")
GW = ip_address("10.98.0.1")

names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)
patterns = st.one_of(names, names.map("*.{}".format), st.just(""))


@given(patterns, patterns)
def test_hosts_meet_in_one_of_the_two(one: str, other: str) -> None:
    both = hosts.meet(one, other)
    assert both == hosts.meet(other, one)
    assert both is None or (hosts.covers(one, both) and hosts.covers(other, both) and both in (one, other))


@given(patterns, patterns)
def test_covering_names_are_those_that_cover(one: str, other: str) -> None:
    assert hosts.covers(one, other) == (one in hosts.covering(other))


@given(st.lists(patterns, min_size=1), names)
def test_a_host_belongs_to_the_most_specific_name(among: list[str], host: str) -> None:
    own = hosts.owner(host, among)
    covering = [each for each in among if hosts.covers(each, host)]
    assert (own is None) == (not covering)
    if own is not None:
        assert hosts.specific(own) == max(map(hosts.specific, covering))


def test_the_kernel_knows_a_gateway_and_steers_nothing() -> None:
    _, plan = make(NODES + BACKENDS + gateway() + route(rule()))
    entry = plan.kernel.services[ServiceKey(GW, 80, 6)]
    assert (entry.gateway, entry.http, entry.backends) == (True, False, ())
    assert {key.kind for key in plan.kernel.listeners} == {ListenerKind.TLS_TCP}  # from the other node
    assert set(plan.kernel.addresses) == {GW, ip_address("10.244.1.254")}


def test_ingress_addresses_are_the_same_on_every_node() -> None:
    everyone = NODES + BACKENDS + gateway() + workload("taken", "10.244.2.254", node="node-b")
    _, here = make(everyone)
    _, there = make(everyone, node="node-b")
    for plan, mine in ((here, "10.244.1.254"), (there, "10.244.2.253")):
        known = {str(n.network_address): e for n, e in plan.kernel.ipcache.items() if e.identity == 8}
        assert {"10.244.1.254", "10.244.2.253"} <= known.keys()
        assert known[mine].local and not known[mine].mesh
        assert all(e.mesh != e.local for e in known.values())
        assert mine in {s.name for s in plan.secrets}
        assert {s.spiffe_id for s in plan.secrets if s.name == mine} == {
            "spiffe://penstock.local/ns/penstock/sa/ingress"
        }


def test_without_a_gateway_nothing_of_it_is_there() -> None:
    _, plan = make(NODES + BACKENDS)
    assert not plan.kernel.addresses
    assert 8 not in {e.identity for e in plan.kernel.ipcache.values()}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("127.0.0.1", "a loopback address"),
        ("224.0.0.1", "a multicast address"),
        ("192.0.2.2", "an address of Node node-b"),
        ("10.244.1.11", "it belongs to Workload default/api"),
        ("10.244.2.254", "the ingress address of Node node-b"),
    ],
)
def test_addresses_that_cannot_be_used(value: str, why: str) -> None:
    text = gateway().replace("value: 10.98.0.1", f"value: {value}")
    _, plan = make(NODES + BACKENDS + text)
    status = plan.statuses[ObjectKey("Gateway", "default", "gw")]
    assert [(c.status, c.reason) for c in status.conditions] == [
        (True, "Accepted"),
        (False, "AddressNotUsable"),
    ]
    assert why in status.pending


def test_a_route_of_which_some_rules_are_closed_says_so() -> None:
    def conditions(*rules: str) -> dict[str, tuple[bool, str]]:
        _, plan = make(NODES + BACKENDS + gateway() + route(", ".join(rules)))
        parents: Any = plan.statuses[ObjectKey("HTTPRoute", "default", "r")].extra["parents"]
        return {c.type: (c.status, c.message) for c in parents[0][1]}

    asks = "{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: gone, port: 1}}}"
    open_, closed = rule("matches: [{path: {value: /x}}]"), rule(f"filters: [{asks}]")
    found = conditions(open_, closed)
    assert not found["ResolvedRefs"][0]
    assert found["PartiallyInvalid"] == (
        True,
        "nobody passes rules[1]: the service that they ask is not there",
    )
    assert "PartiallyInvalid" not in conditions(open_)
    assert "PartiallyInvalid" not in conditions(closed)


def l7(plan: Plan) -> set[ListenerKey]:
    return {key for key in plan.kernel.listeners if key.kind is ListenerKind.GATEWAY}


def test_l7_rules_about_gateways_take_a_listener_for_each_class_that_they_name() -> None:
    _, plan = make(NODES + BACKENDS + gateway() + route(rule()) + POLICY)
    other = plan.kernel.endpoints[ip_address("10.244.1.12")].identity
    number = plan.kernel.services[ServiceKey(GW, 80, 6)].service_id
    assert l7(plan) == {ListenerKey(other, ListenerKind.GATEWAY, number)}
    assert plan.proxy.tables[0].admission is not None


def test_a_policy_in_audit_about_gateways_denies_nobody_and_is_told() -> None:
    audited = POLICY.replace(
        "metadata: {name: p}", 'metadata: {name: p, annotations: {penstock.dev/audit: "true"}}'
    )
    planner = Planner()
    _, plan = planner.plan(read(NODES + BACKENDS + gateway() + route(rule()) + audited))
    assert planner.facts is not None
    served = plan.kernel.services[ServiceKey(GW, 80, 6)]
    other = plan.kernel.endpoints[ip_address("10.244.1.12")].identity
    assert served.audit and ListenerKey(other, ListenerKind.GATEWAY, served.service_id) in l7(plan)
    table = plan.proxy.tables[0]
    assert table.admission is not None and table.admission_audit not in (None, table.admission)
    # Who came by itself stays, and so does who was steered to be looked at.
    clients = [ip_address(a) for a in ("10.244.1.11", "10.244.1.12")]
    found = [Proxied(c, 40000, GW, 80, steered=s) for c in clients for s in (False, True)]
    kept = {c: r.how for c, r in steering(plan.kernel, (20000, 31999), found).items()}
    assert Steering.FORBIDDEN not in kept.values() and kept[found[3]] is Steering.TO_PROXY
    assert past_admission(plan.kernel, found) == []
    said = explain(Question("other", str(GW), "80"), planner.facts, plan, Planned(plan.kernel))
    assert said.verdict == "ALLOWED"
    assert [s.text for s in said.steps if s.what == "audit"] == ["a policy in audit looks at each request"]
    said = explain(Question("api", str(GW), "80"), planner.facts, plan, Planned(plan.kernel))
    assert said.verdict == "ALLOWED"
    assert any("would deny it" in s.text for s in said.steps if s.what == "audit")


def test_what_becomes_of_open_connections_to_a_gateway() -> None:
    text = NODES + BACKENDS + gateway() + route(rule())
    _, plain = make(text)
    _, judged = make(text + POLICY)
    api, other = (ip_address(a) for a in ("10.244.1.11", "10.244.1.12"))
    direct = [Proxied(client, 40000, GW, 80, steered=False) for client in (api, other)]
    steered = Proxied(other, 40001, GW, 80)
    ports = (20000, 31999)
    assert {r.how for r in steering(plain.kernel, ports, direct).values()} == {Steering.TO_PROXY}
    assert steering(plain.kernel, ports, [steered])[steered].how is Steering.PAST_PROXY
    found = {c: r.how for c, r in steering(judged.kernel, ports, [*direct, steered]).items()}
    assert found == {
        direct[0]: Steering.FORBIDDEN,
        direct[1]: Steering.TO_PROXY,
        steered: Steering.TO_PROXY,
    }
    assert past_admission(judged.kernel, direct) == [direct[1]]
    assert past_admission(plain.kernel, direct) == []


def test_a_gateway_is_no_backend_of_the_proxy() -> None:
    loop = """
apiVersion: v1
kind: Service
metadata: {name: loop}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: loop, labels: {kubernetes.io/service-name: loop}}
addressType: IPv4
endpoints: [{addresses: [10.98.0.1]}]
ports: [{port: 80}]
---
"""
    _, plan = make(NODES + BACKENDS + loop + gateway() + route(rule(backends="{name: loop, port: 80}")))
    (cluster,) = [c for c in plan.proxy.clusters if "loop" in c.name]
    assert cluster.endpoints == ()


def test_the_same_world_gives_the_same_plan_whatever_was_before() -> None:
    """What is remembered of the last World never changes a result."""
    planner = Planner()
    base = NODES + BACKENDS
    first = gateway() + route(rule()) + route(rule(), name="s", hosts="a.org")
    steps = [
        first,
        first + route(rule(backends="{name: other, port: 80}"), name="t", hosts="a.org"),
        gateway("{name: one, port: 80, protocol: HTTP, hostname: a.org}") + route(rule()),
        first + POLICY,
        first.replace("port: 80, protocol", "port: 81, protocol"),
        first,
    ]
    world: Any = None
    for text in steps:
        fresh = read(base + text)
        if world is not None:
            # The documents that did not change stay the very same, as the store keeps them.
            kept = {
                k: world.documents[k] if world.documents.get(k) == d else d
                for k, d in fresh.documents.items()
            }
            fresh = read(base + text, allocations=world.allocations)
            object.__setattr__(fresh, "documents", kept)
        world, plan = planner.plan(fresh)
        _, alone = settle(world)
        assert plan.proxy == alone.proxy
        assert plan.statuses == alone.statuses
        assert plan.kernel == alone.kernel


def test_secrets_are_not_shown() -> None:
    secret = """
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {tls.key: very-secret}
---
"""
    world, plan = make(secret)
    assert "very-secret" not in repr(world.documents) and "very-secret" not in repr(plan)


def test_explain_says_what_is_decided_before_a_gateway() -> None:
    facts_of = Planner()
    _, plan = facts_of.plan(read(NODES + BACKENDS + gateway() + route(rule()) + POLICY))
    assert facts_of.facts is not None
    for client, path, verdict in (
        ("api", "/public", "DENIED"),
        ("other", "/public", "ALLOWED"),
        ("other", "/x", "DENIED"),
    ):
        question = Question(f"default/{client}", "10.98.0.1", "80", method="GET", path=path)
        found = explain(question, facts_of.facts, plan, Planned(plan.kernel))
        assert found.verdict == verdict, (client, path)
