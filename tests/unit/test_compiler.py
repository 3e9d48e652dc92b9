"""A small World in full, and what holds of every World: the same facts, the same Plan."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from policy_cases import POLICIES, Policy, manifests
from policy_parties import Party, parties
from test_routing_mesh import route
from test_routing_services import service
from worlds import identities, make, policy, read, settle, workload

from penstock.compiler import compile_world, names
from penstock.manifests.document import ObjectKey
from penstock.plan import (
    Condition,
    EndpointEntry,
    IpcacheEntry,
    MeshMode,
    ObjectStatus,
    PolicyEntry,
    PolicyKey,
    PortEntry,
    SecretWanted,
    Verdict,
)
from penstock.policy.labels import HOST, REMOTE_NODE, WORLD
from penstock.routing.model import ProxyEndpoint, RequestMatch
from penstock.world import Attachment, Link, Settings

NODES = """
apiVersion: v1
kind: Node
metadata: {name: node-a}
spec: {podCIDRs: [10.1.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-b}
spec: {podCIDRs: [10.2.0.0/24, 'fd02::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}, {type: Hostname, address: node-b}]}
---"""
PEOPLE = (
    workload("web", "10.1.0.1, 'fd01::1'", account="web")
    + workload("db", "10.1.0.2", account="db")
    + workload("far", "10.2.0.1", node="node-b", account="far")
    + workload("plain", "198.51.100.7", node="elsewhere")
)
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {selector: {matchLabels: {app: far}}, mtls: {mode: STRICT}}
---"""
L7 = (
    "{endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{matchLabels: {app: db}}], "
    "toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: [{method: GET, path: /a.*}]}}]}]}"
)


def test_the_kernel_of_a_small_world() -> None:
    world, plan = make(NODES + PEOPLE + STRICT, node_addresses=(ip_address("192.0.2.1"),), node_cookie=7)
    numbers = identities(world)
    web, db, far, plain = (numbers[n] for n in ("web", "db", "far", "plain"))
    kernel = plan.kernel
    at = world.attachments[("default", "web")]
    entry = EndpointEntry(web, web * 256, at.ifindex, MeshMode.PERMISSIVE)
    assert kernel.endpoints == {
        ip_address("10.1.0.1"): entry,
        ip_address("fd01::1"): entry,
        ip_address("10.1.0.2"): replace(
            entry,
            identity=db,
            subject=db * 256,
            ifindex=world.attachments[("default", "db")].ifindex,
        ),
    }
    assert kernel.ipcache == {
        ip_network("0.0.0.0/0"): IpcacheEntry(WORLD, WORLD),
        ip_network("::/0"): IpcacheEntry(WORLD, WORLD),
        ip_network("192.0.2.1"): IpcacheEntry(HOST, HOST, local=True),
        ip_network("192.0.2.2"): IpcacheEntry(REMOTE_NODE, REMOTE_NODE),
        ip_network("10.1.0.1"): IpcacheEntry(web, web, local=True),
        ip_network("fd01::1"): IpcacheEntry(web, web, local=True),
        ip_network("10.1.0.2"): IpcacheEntry(db, db, local=True),
        ip_network("10.2.0.1"): IpcacheEntry(far, far, mesh=True, mode=MeshMode.STRICT),
        ip_network("198.51.100.7"): IpcacheEntry(plain, plain),
    }
    assert kernel.netns == {
        7: HOST,
        at.cookie: web,
        world.attachments[("default", "db")].cookie: db,
    }
    assert kernel.attach[at.ifindex] == ("default", "web")
    assert kernel.routes == {ip_network("10.2.0.0/24"): ip_address("192.0.2.2")}
    # Nothing is said, so everything is open: one entry for each direction.
    assert set(kernel.policy.values()) == {PolicyEntry(Verdict.ALLOW)}
    assert {(k.subject, k.identity, k.protocol) for k in kernel.policy} == {
        (web * 256, 0, 0),
        (db * 256, 0, 0),
    }
    assert len(kernel.policy) == 4


def test_certificates_are_wanted_for_each_local_address() -> None:
    _, plan = make(NODES + PEOPLE)
    assert plan.secrets == (
        SecretWanted("10.1.0.2", "spiffe://penstock.local/ns/default/sa/db", ("default", "db")),
        SecretWanted("10.1.0.1", "spiffe://penstock.local/ns/default/sa/web", ("default", "web")),
        SecretWanted("fd01::1", "spiffe://penstock.local/ns/default/sa/web", ("default", "web")),
    )
    _, plan = make(PEOPLE, settings=Settings(trust_domain="example.org"))
    assert plan.secrets[0].spiffe_id == "spiffe://example.org/ns/default/sa/db"


def test_an_l7_rule_in_kernel_and_proxy() -> None:
    world, plan = make(NODES + PEOPLE + policy(L7))
    numbers = identities(world)
    web, db = numbers["web"], numbers["db"]
    ingress = {
        k: e.verdict for k, e in plan.kernel.policy.items() if k.subject == web * 256 and not k.direction
    }
    assert ingress == {PolicyKey(web * 256, 0, db, 6, 80, 16): Verdict.REDIRECT}  # type: ignore[arg-type]
    assert {str(e.address): e for e in plan.proxy.workloads} == {
        "10.1.0.1": ProxyEndpoint(ip_address("10.1.0.1"), 80, f"{web * 256}:80"),
        "fd01::1": ProxyEndpoint(ip_address("fd01::1"), 80, f"{web * 256}:80"),
    }
    granted = {r.sources: r for r in plan.proxy.workload_rights}
    assert granted[(db,)].requests == ((RequestMatch(method="GET", path="/a.*"),),)
    # The node's own processes, and nobody else.
    assert granted[(HOST,)].requests == ()
    assert set(granted) == {(db,), (HOST,)}
    _, plan = make(NODES + PEOPLE + policy(L7), settings=Settings(host_access=False))
    assert {r.sources for r in plan.proxy.workload_rights} == {(db,)}


def test_backends_of_other_mesh_nodes_are_reached_by_their_own_identity() -> None:
    text = NODES + PEOPLE + service("api", "{selector: {app: far}, ports: [{port: 80}]}")
    text += service("old", "{selector: {app: plain}, ports: [{port: 80}]}")
    text += route("[{backendRefs: [{name: api, port: 80}, {name: old, port: 80}]}]")
    _, plan = make(text)
    found = {c.name: c.endpoints[0].server_id for c in plan.proxy.clusters}
    assert found == {
        "default/api:80/4": "spiffe://penstock.local/ns/default/sa/far",
        "default/old:80/4": None,
    }
    off = STRICT.replace("STRICT", "DISABLE")
    assert {c.endpoints[0].server_id for c in make(text + off)[1].proxy.clusters} == {None}


# --- statuses --------------------------------------------------------------------------------------------


def test_every_document_has_a_status() -> None:
    world, _ = settle(read(NODES + PEOPLE + policy(L7), absent=("db",)))
    plan = compile_world(world)
    assert set(plan.statuses) == set(world.documents)
    web = plan.statuses[ObjectKey("Workload", "default", "web")]
    assert web == ObjectStatus((Condition("Ready", True, "Attached"),))
    db = plan.statuses[ObjectKey("Workload", "default", "db")]
    assert db.pending == "network namespace /run/netns/db is absent"
    assert db.conditions[0].reason == "NamespaceAbsent"
    assert plan.statuses[ObjectKey("Workload", "default", "far")] == ObjectStatus()
    valid = plan.statuses[ObjectKey("CiliumNetworkPolicy", "default", "p")]
    assert valid.conditions == (Condition("Valid", True, "Accepted"),)


def test_an_absent_workload_is_nowhere_in_the_kernel() -> None:
    _, plan = settle(read(NODES + PEOPLE, absent=("db",)))
    address = ip_address("10.1.0.2")
    assert address not in plan.kernel.endpoints
    assert ip_network(address) not in plan.kernel.ipcache
    assert str(address) not in {s.name for s in plan.secrets}


# --- purity ------------------------------------------------------------------------------------------------


def test_names_are_all_that_needs_a_number() -> None:
    world, _ = make(
        PEOPLE + service("api", "{selector: {app: far}, ports: [{port: 80}], clusterIP: 10.96.0.9}")
    )
    wanted = names(world)
    assert set(wanted.identities) == set(world.allocations.identities)
    assert wanted.vips == {"default/api/4": ip_address("10.96.0.9")}
    assert wanted.services == ("default/api:80/4/TCP",)


@given(parties(), POLICIES)
def test_the_same_world_gives_the_same_plan(everyone: list[Party], policies: list[Policy]) -> None:
    world, plan = make(manifests(everyone, policies))
    items = list(world.documents.items())
    random.Random(1).shuffle(items)
    again = compile_world(replace(world, documents=dict(items)))
    assert again == plan
    # Byte for byte: the order of everything that is ordered is the same too.
    assert list(again.kernel.policy.items()) == list(plan.kernel.policy.items())
    assert repr(again.proxy) == repr(plan.proxy)


def test_a_namespace_that_two_workloads_name_has_one_identity() -> None:
    """As `network_mode: service:…` makes it: the kernel cannot tell their packets apart."""
    first, second = workload("app", "10.1.0.1"), workload("sidecar", "10.1.0.1")
    start = read(first + second)
    shared = start.attachments[("default", "app")]
    attachments = {**start.attachments, ("default", "sidecar"): shared}
    world, plan = settle(replace(start, attachments=attachments))
    number = identities(world)["app"]
    assert [e.identity for e in plan.kernel.endpoints.values()] == [number]
    assert plan.kernel.netns[shared.cookie] == number
    assert plan.kernel.attach == {shared.ifindex: ("default", "app")}
    status = plan.statuses[ObjectKey("Workload", "default", "sidecar")]
    assert status.conditions[0].reason == "SharedNamespace"
    assert "default/app" in status.pending
    alone, plan = settle(replace(world, attachments={("default", "sidecar"): shared}))
    assert [e.identity for e in plan.kernel.endpoints.values()] == [identities(alone)["sidecar"]]
    assert plan.statuses[ObjectKey("Workload", "default", "sidecar")].conditions[0].status


def test_several_links_of_a_workload() -> None:
    """One of them stands for it; what is elsewhere is not reached by its short cut."""
    start = read(workload("app", "10.1.0.1").replace("[10.1.0.1]", "[]"))
    here, there = ip_address("10.1.0.1"), ip_address("10.2.0.1")
    links = (
        Link(7, "veth7", b"home--", (here,), 3, b"bridge", (4,)),
        Link(8, "veth8", b"second", (there,), 4, b"other-"),
    )
    _, plan = settle(
        replace(
            start, attachments={("default", "app"): Attachment(9, links)}, other_ports=(Link(12, bridge=4),)
        )
    )
    kernel = plan.kernel
    assert {a: (e.ifindex, e.elsewhere) for a, e in kernel.endpoints.items()} == {
        here: (7, False),
        there: (7, True),
    }
    subject = kernel.endpoints[here].subject
    assert kernel.ports == {
        7: PortEntry(7, subject, b"home--", 3, b"bridge", (4,)),
        8: PortEntry(7, subject, b"second", 4, b"other-"),
        12: PortEntry(0, bridge=4),
    }
    assert set(kernel.attach) == {7, 8}
