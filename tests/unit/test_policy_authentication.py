"""authentication.mode: between nodes only mesh TLS, within the node the kernel's word is enough."""

from __future__ import annotations

from ipaddress import ip_address

from worlds import NODE, identity_of, make, policy, read, workload

from penstock.explain import Planned, explain
from penstock.explain.model import Question
from penstock.explain.offline import compiled
from penstock.plan import Direction, ListenerKey, MeshMode
from penstock.policy.lookup import demands_proof
from penstock.redirect.steering import Steering, steering
from penstock.routing.model import ListenerKind
from penstock.world import Proxied

NODES = """
apiVersion: v1
kind: Node
metadata: {name: node-b}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---"""
PEOPLE = (
    workload("web", "10.1.0.1")
    + workload("api", "10.1.0.2")
    + workload("far", "10.2.0.1", node="node-b")
    + NODES
)
OUT = (
    "{endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [all], "
    "toPorts: [{ports: [{port: 80}]}], authentication: {mode: required}}]}"
)
INTO_FAR = (
    "{endpointSelector: {matchLabels: {app: far}}, ingress: [{fromEndpoints: [{}], "
    "authentication: {mode: required}}]}"
)
OFF = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: DISABLE}}
---"""


def test_an_egress_rule_gets_a_tunnel_to_each_workload_of_the_mesh() -> None:
    _, plan = make(PEOPLE + policy(OUT))
    web, far = identity_of(plan, "10.1.0.1"), identity_of(plan, "10.2.0.1")
    tunnels = {k for k in plan.kernel.listeners if k.kind is ListenerKind.TCP_MTLS}
    assert tunnels == {ListenerKey(web, ListenerKind.TCP_MTLS, far)}
    subject = plan.kernel.endpoints[ip_address("10.1.0.1")].subject
    for peer in (far, identity_of(plan, "10.1.0.2"), 2):
        assert demands_proof(plan.kernel.policy, subject, Direction.EGRESS, peer, 6, 80)
        assert not demands_proof(plan.kernel.policy, subject, Direction.EGRESS, peer, 6, 81)


def test_where_mesh_tls_is_off_there_is_no_tunnel() -> None:
    _, plan = make(PEOPLE + OFF + policy(OUT))
    assert not [k for k in plan.kernel.listeners if k.kind is ListenerKind.TCP_MTLS]


def test_who_lets_only_proven_senders_in_is_strict_to_other_nodes_and_not_at_home() -> None:
    _, plan = make(PEOPLE + policy(INTO_FAR))
    modes = {n.network_address: e.mode for n, e in plan.kernel.ipcache.items()}
    assert modes[ip_address("10.2.0.1")] is MeshMode.STRICT
    _, there = make(PEOPLE.replace(f"node: {NODE}", "node: node-x") + policy(INTO_FAR), node="node-b")
    assert all(e.mode is not MeshMode.STRICT for e in there.kernel.endpoints.values())


def test_live_connections_are_judged_the_same() -> None:
    _, plan = make(PEOPLE + policy(OUT))
    web, far, api, world = map(ip_address, ("10.1.0.1", "10.2.0.1", "10.1.0.2", "8.8.8.8"))
    connections = [Proxied(web, 40000, to, 80) for to in (far, api, world)]
    found = steering(plan.kernel, (20000, 31999), connections)
    assert [ruling.how for ruling in found.values()] == [
        Steering.TO_PROXY,
        Steering.PAST_PROXY,
        Steering.FORBIDDEN,
    ]


def test_explain_says_so() -> None:
    facts, plan = compiled(read(PEOPLE + policy(OUT)))
    for target, reason in (
        ("far:80", "REDIRECTED"),
        ("api:80", "FORWARDED_LOCAL"),
        ("8.8.8.8:80", "UNAUTHENTICATED"),
    ):
        said = explain(Question("web", *target.split(":")), facts, plan, Planned(plan.kernel))
        assert said.decisive.reason == reason, (target, said)
