"""Where a Service is served, and by whom: one entry of the kernel's table for each place."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from worlds import make, workload

from penstock.manifests.loader import load
from penstock.plan import Plan, ServiceEntry, ServiceKey
from penstock.world import Address

TCP = 6
NODES = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
HERE, THERE = "10.244.1.10", "10.244.2.10"
WORKLOADS = workload("web-1", HERE, labels="app: web") + workload(
    "web-2", THERE, labels="app: web", node="node-b"
)


def service(spec: str, *, name: str = "web", notes: str = "") -> str:
    ports = "" if "ports:" in spec else "ports: [{port: 80, targetPort: 8080}], "
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, annotations: {{{notes}}}}}
spec: {{selector: {{app: web}}, {ports}{spec}}}
---"""


def made(text: str) -> Plan:
    _, plan = make(WORKLOADS + text, node_addresses=NODES)
    return plan


def at(plan: Plan, address: str | Address, port: int = 80) -> ServiceEntry:
    return plan.kernel.services[ServiceKey(ip_address(str(address)), port, TCP)]


def who(backends: tuple[tuple[Address, int], ...]) -> list[str]:
    return [str(address) for address, _ in backends]


def test_a_cluster_ip_is_no_place_for_the_outside() -> None:
    plan = made(service("clusterIP: 10.96.0.7"))
    (entry,) = plan.kernel.services.values()
    assert (entry.external, entry.outside, who(entry.backends)) == (False, None, [HERE, THERE])
    assert plan.kernel.served_addresses == plan.kernel.reserved_ports == ()


def test_a_node_port_is_on_every_address_of_its_family() -> None:
    plan = made(service("type: NodePort, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]"))
    entry = at(plan, NODES[0], 30080)
    assert who(entry.backends) == [HERE, THERE]
    assert entry.outside is not None
    assert who(entry.outside.backends) == [HERE]
    assert ServiceKey(NODES[1], 30080, TCP) not in plan.kernel.services
    assert plan.kernel.reserved_ports == (30080,)


def test_a_load_balancer_and_external_addresses() -> None:
    spec = "type: LoadBalancer, loadBalancerIP: 10.98.0.9, externalIPs: [198.51.100.7, 192.0.2.1]"
    plan = made(service(spec))
    for address in ("10.98.0.9", "198.51.100.7", "192.0.2.1"):
        assert at(plan, address).external
    # The last one is the node's own: nobody else needs to answer for it.
    assert list(map(str, plan.kernel.served_addresses)) == ["10.98.0.9", "198.51.100.7"]
    without = made(service("type: LoadBalancer, allocateLoadBalancerNodePorts: false"))
    assert without.kernel.reserved_ports == ()
    assert len(without.kernel.served_addresses) == 1


NODE_B = """
apiVersion: v1
kind: Node
metadata: {name: node-b%s}
spec: {podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---"""
PORTS = "type: NodePort, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]"


def test_what_other_nodes_send_on_is_for_their_address() -> None:
    plan = made(NODE_B % "" + service(PORTS))
    own, others = at(plan, NODES[0], 30080), at(plan, "192.0.2.2", 30080)
    assert own.beyond is not None
    assert who(own.beyond.backends) == [THERE]
    # What was sent on once is not sent on again.
    assert (others.outside, others.beyond) == (own.outside, None)


def test_nothing_is_sent_on_where_that_is_not_wanted_or_not_understood() -> None:
    local = made(NODE_B % "" + service(PORTS + ", externalTrafficPolicy: Local"))
    foreign = made(NODE_B % ", annotations: {penstock.dev/mesh: 'false'}" + service(PORTS))
    for plan in (local, foreign):
        assert at(plan, NODES[0], 30080).beyond is None
        assert ServiceKey(ip_address("192.0.2.2"), 30080, TCP) not in plan.kernel.services


def test_local_endpoints_only() -> None:
    plan = made(service("clusterIP: 10.96.0.7, internalTrafficPolicy: Local"))
    assert who(at(plan, "10.96.0.7").backends) == [HERE]


def test_numbers_of_sets_are_their_own() -> None:
    plan = made(NODE_B % "" + service("type: NodePort, internalTrafficPolicy: Local"))
    numbers = {each.number: each for entry in plan.kernel.services.values() for each in entry.sets}
    assert 0 not in numbers
    # Own (local), all, outside, alias and beyond.
    assert len(numbers) == 5


def test_two_services_of_one_node_port() -> None:
    port = "type: NodePort, ports: [{port: 80, nodePort: 30080}]"
    plan = made(service(port, name="a") + service(port, name="b"))
    pending = {key.name: status.pending for key, status in plan.statuses.items() if key.kind == "Service"}
    assert pending["a"] == ""
    assert "port 30080 belongs to Service default/a" in pending["b"]


def test_affinity_and_maglev() -> None:
    spec = "clusterIP: 10.96.0.7, sessionAffinity: ClientIP"
    entry = at(made(service(spec, notes="penstock.dev/load-balancing: maglev")), "10.96.0.7")
    assert (entry.affinity, entry.maglev) == (10800, 16381)
    timed = f"{spec}, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 60}}}}"
    notes = 'penstock.dev/load-balancing: maglev, penstock.dev/maglev-table-size: "251"'
    entry = at(made(service(timed, notes=notes)), "10.96.0.7")
    assert (entry.affinity, entry.maglev) == (60, 251)


@pytest.mark.parametrize(
    ("spec", "notes", "said"),
    [
        ("type: NodePort, ports: [{port: 80, nodePort: 80}]", "", "is not in the range of node ports"),
        ("loadBalancerIP: 10.0.0.1", "", "stands only in a Service of type LoadBalancer"),
        ("externalTrafficPolicy: Local", "", "stands only in a Service of type NodePort"),
        ("clusterIP: None, type: NodePort", "", "None does not go with type NodePort"),
        ("sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}", "", "only where sessionAffinity is"),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            "",
            "86401 is not from 1 to 86400",
        ),
        ("ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6]", "", "holds one family"),
        ("clusterIP: 10.96.0.1, ipFamilies: [IPv6]", "", "must name the families of clusterIPs"),
        ("externalIPs: [nowhere]", "", "spec.externalIPs[0]"),
        ("type: ExternalName, externalName: x.example", "", "is not supported by this version"),
        ("clusterIP: 10.96.0.1", "penstock.dev/load-balancing: ring", '"ring" is none of random, maglev'),
        ("clusterIP: 10.96.0.1", 'penstock.dev/maglev-table-size: "1000"', '"1000" is none of 251'),
    ],
)
def test_what_is_wrong_is_said(spec: str, notes: str, said: str) -> None:
    problems = [str(p) for p in load(service(spec, notes=notes), "s.yaml").problems]
    assert any(said in problem for problem in problems), problems
