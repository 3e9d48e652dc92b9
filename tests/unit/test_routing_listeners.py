"""Which listeners a node's proxy has: those that somebody can be steered to, and no others."""

from __future__ import annotations

from test_routing_mesh import route
from test_routing_services import service
from worlds import identities, make, policy, read, settle, workload

from penstock.compiler import compile_world
from penstock.plan import ListenerKey, Plan
from penstock.policy.labels import HOST, INGRESS, REMOTE_NODE, WORLD
from penstock.routing.model import ListenerKind, ProxyListener

TWO = "apiVersion: v1\nkind: Node\nmetadata: {name: node-b}\n---"
PEOPLE = (
    TWO
    + workload("web", "10.1.0.1")
    + workload("db", "10.1.0.2")
    + workload("far", "10.2.0.1", node="node-b")
)
L7 = "toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: [{}]}}]"
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---"""
OFF = STRICT.replace("STRICT", "DISABLE")


def _of(plan: Plan, kind: ListenerKind) -> dict[int, ProxyListener]:
    return {x.source_class: x for x in plan.proxy.listeners if x.kind is kind}


def test_without_l7_only_mesh_tls_has_listeners() -> None:
    world, plan = make(PEOPLE)
    assert {x.kind for x in plan.proxy.listeners} == {ListenerKind.TLS_TCP}
    far = _of(plan, ListenerKind.TLS_TCP)[identities(world)["far"]]
    assert far.peer_id == "spiffe://penstock.local/ns/default/sa/default"
    assert not make(PEOPLE + OFF)[1].proxy.listeners
    assert not make(workload("web", "10.1.0.1") + workload("db", "10.1.0.2"))[1].proxy.listeners


def test_an_ingress_rule_makes_one_for_each_who_is_steered() -> None:
    rule = f"ingress: [{{fromEndpoints: [{{matchLabels: {{app: db}}}}], {L7}}}]"
    world, plan = make(PEOPLE + policy(f"{{endpointSelector: {{matchLabels: {{app: web}}}}, {rule}}}"))
    assert set(_of(plan, ListenerKind.HTTP_WORKLOAD)) == {identities(world)["db"]}
    assert not _of(plan, ListenerKind.TLS_HTTP)


def test_a_rule_for_any_peer_makes_one_for_everybody_but_the_host() -> None:
    world, plan = make(
        PEOPLE + policy(f"{{endpointSelector: {{matchLabels: {{app: web}}}}, ingress: [{{{L7}}}]}}")
    )
    everyone = {*identities(world).values(), WORLD, REMOTE_NODE, INGRESS}
    assert set(_of(plan, ListenerKind.HTTP_WORKLOAD)) == everyone
    assert HOST not in everyone
    # The remote one comes by mesh TLS too.
    assert set(_of(plan, ListenerKind.TLS_HTTP)) == {identities(world)["far"]}


def test_an_egress_rule_makes_one_for_the_sender() -> None:
    world, plan = make(
        PEOPLE + policy(f"{{endpointSelector: {{matchLabels: {{app: web}}}}, egress: [{{{L7}}}]}}")
    )
    assert set(_of(plan, ListenerKind.HTTP_WORKLOAD)) == {identities(world)["web"]}


def test_a_route_makes_one_for_every_local_workload() -> None:
    text = PEOPLE + service("api", "{selector: {app: db}, ports: [{port: 80}]}")
    text += route("[{backendRefs: [{name: api, port: 80}]}]")
    world, plan = make(text)
    assert set(_of(plan, ListenerKind.HTTP_SERVICE)) == {identities(world)[n] for n in ("web", "db")}


def test_a_remote_workload_that_is_strict_is_dialled_by_mesh_tls() -> None:
    world, plan = make(PEOPLE + STRICT)
    numbers = identities(world)
    dialled = [x for x in plan.proxy.listeners if x.kind is ListenerKind.TCP_MTLS]
    assert {(x.source_class, x.destination) for x in dialled} == {
        (numbers[n], numbers["far"]) for n in ("web", "db")
    }
    assert {x.server_id for x in dialled} == {"spiffe://penstock.local/ns/default/sa/default"}


def test_the_kernel_points_at_each_listener_by_class_kind_and_destination() -> None:
    _, plan = make(PEOPLE + STRICT)
    assert plan.kernel.listeners == {
        ListenerKey(x.source_class, x.kind, x.destination): x.port for x in plan.proxy.listeners
    }
    assert len(set(plan.kernel.listeners.values())) == len(plan.proxy.listeners)


def test_a_listener_without_a_port_is_named_and_left_out() -> None:
    from dataclasses import replace

    from penstock.compiler import names
    from penstock.world import Allocations

    world = read(PEOPLE)
    known = {text: 256 + n for n, text in enumerate(names(world).identities)}
    plan = compile_world(replace(world, allocations=Allocations(identities=known)))
    assert plan.unallocated == plan.listener_names != ()
    assert not plan.proxy.listeners
    _, settled = settle(world)
    assert settled.unallocated == ()
    assert len(settled.listener_names) == len(settled.proxy.listeners)


def test_churn_of_workloads_of_one_identity_changes_no_listener() -> None:
    one = PEOPLE + policy(f"{{endpointSelector: {{matchLabels: {{app: web}}}}, ingress: [{{{L7}}}]}}")
    more = (
        one
        + workload("web-2", "10.1.0.9", labels="app: web")
        + workload("db-2", "10.1.0.8", labels="app: db")
    )
    assert make(one)[1].listener_names == make(more)[1].listener_names
