"""PeerAuthentication: the narrowest that speaks wins, down to a single port."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from test_routing_mesh import route
from test_routing_services import service
from worlds import identities, make, workload

from penstock.plan import ListenerKey, MeshMode, Plan, PortMode
from penstock.routing.model import ListenerKind

OFF, PERMISSIVE, STRICT = MeshMode
NODES = """
apiVersion: v1
kind: Node
metadata: {name: node-b}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---"""
PEOPLE = NODES + workload("web", "10.1.0.1") + workload("far", "10.2.0.1", node="node-b")


def authentication(name: str, spec: str, namespace: str = "default") -> str:
    return (
        "\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---"
    )


def selected(mode: str, ports: str = "", app: str = "web", name: str = "own") -> str:
    mtls = f", mtls: {{mode: {mode}}}" if mode else ""
    more = f", portLevelMtls: {{{ports}}}" if ports else ""
    return authentication(name, f"{{selector: {{matchLabels: {{app: {app}}}}}{mtls}{more}}}")


MESH = authentication("mesh", "{mtls: {mode: STRICT}}", "istio-system")
NAMESPACE = authentication("namespace", "{mtls: {mode: DISABLE}}")


def mode(*documents: str) -> MeshMode:
    _, plan = make(PEOPLE + "".join(documents))
    return plan.kernel.endpoints[ip_address("10.1.0.1")].mode


@pytest.mark.parametrize(
    ("documents", "wanted"),
    [
        ((), PERMISSIVE),
        ((MESH,), STRICT),
        ((MESH, NAMESPACE), OFF),
        ((MESH, NAMESPACE, selected("PERMISSIVE")), PERMISSIVE),
        ((MESH, selected("UNSET")), STRICT),
        ((authentication("a", "{mtls: {mode: STRICT}}"), NAMESPACE), STRICT),
        ((MESH, authentication("other", "{mtls: {mode: DISABLE}}", "istio-system")), STRICT),
        ((MESH, NAMESPACE, selected("STRICT", app="other")), OFF),
        ((selected("", "80: {mode: STRICT}"),), PERMISSIVE),
        ((NAMESPACE, selected("", "80: {mode: STRICT}")), OFF),
        ((selected("", "80: {mode: STRICT}", name="a"), selected("DISABLE", name="b")), OFF),
    ],
)
def test_the_narrowest_that_speaks_wins(documents: tuple[str, ...], wanted: MeshMode) -> None:
    assert mode(*documents) is wanted


def ports(*documents: str) -> dict[int, PortMode]:
    world, plan = make(PEOPLE + "".join(documents))
    web = identities(world)["web"]
    return {port: found for (identity, port), found in plan.kernel.port_modes.items() if identity == web}


def test_a_port_says_more_than_its_workload() -> None:
    own = selected("STRICT", "80: {mode: DISABLE}, 81: {mode: PERMISSIVE}, 82: {mode: UNSET}")
    assert ports(MESH, NAMESPACE, own) == {80: PortMode(OFF, OFF), 81: PortMode(PERMISSIVE, PERMISSIVE)}
    # Of two the first by name speaks, port by port.
    other = selected("", "80: {mode: STRICT}, 90: {mode: STRICT}", name="z")
    assert ports(own, other)[80].here is OFF
    assert ports(own, other)[90].here is STRICT
    assert ports(MESH, NAMESPACE) == {}


def far(spec: str) -> tuple[dict[str, int], Plan]:
    world, plan = make(PEOPLE + selected(spec, "8080: {mode: STRICT}", app="far"))
    return identities(world), plan


@pytest.mark.parametrize("others", ["DISABLE", "PERMISSIVE", ""])
def test_senders_of_another_node_have_a_tunnel_for_a_strict_port(others: str) -> None:
    numbers, plan = far(others)
    tunnel = ListenerKey(numbers["web"], ListenerKind.TCP_MTLS, numbers["far"])
    assert tunnel in plan.kernel.listeners
    assert plan.kernel.port_modes[numbers["far"], 8080] == PortMode(STRICT, STRICT)


def test_the_receiver_of_a_strict_port_has_the_listener_for_it() -> None:
    own = authentication("ns", "{mtls: {mode: DISABLE}}")
    _, closed = make(PEOPLE + own)
    assert not [k for k in closed.kernel.listeners if k.kind is ListenerKind.TLS_TCP]
    _, plan = make(PEOPLE + own + selected("", "80: {mode: STRICT}"))
    assert [k for k in plan.kernel.listeners if k.kind is ListenerKind.TLS_TCP]


@pytest.mark.parametrize(("port", "tls"), [("STRICT", True), ("PERMISSIVE", True), ("DISABLE", False)])
def test_an_endpoint_behind_a_service_is_spoken_to_as_its_port_asks(port: str, tls: bool) -> None:
    others = "STRICT" if port == "DISABLE" else "DISABLE"
    served = service("api", "{selector: {app: far}, ports: [{port: 80, targetPort: 8080}]}")
    documents = PEOPLE + served + route("[{backendRefs: [{name: api, port: 80}]}]")
    _, plan = make(documents + selected(others, f"8080: {{mode: {port}}}", app="far"))
    endpoints = [e for cluster in plan.proxy.clusters for e in cluster.endpoints]
    assert endpoints
    assert all((e.server_id is not None) is tls for e in endpoints)
