"""Policies in audit where a Gateway is on the way: who comes to it, what it sends on, and copies."""

from __future__ import annotations

from typing import Any

import pytest
from clients import Http, ask, connect, status_or_reset
from conftest import MeshFactory
from objects import gateway, http_route, listener, policy, ports, select, service, to
from rig import Mesh, workload
from test_gateway_http import address
from test_gateway_policy import INGRESS, WEB, apply, closed, clusterwide, through
from test_policy_traffic import audit, told
from test_routes_mirror import mirror

GET = [{"method": "GET"}]
CLIENT = {"fromEndpoints": [select(**{"k8s:app": "client", "io.kubernetes.pod.namespace": "default"})]}


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("stranger", "node-a"),
        workload("api", "node-a", serves=True),
        workload("far", "node-b", serves=True),
    )


def admits(*rules: dict[str, Any]) -> dict[str, Any]:
    return clusterwide("gate", INGRESS, ingress=list(rules))


def no_audit(mesh: Mesh, path: str) -> bool:
    return not any(
        r["verdict"] == "AUDIT" and r.get("path") == path for r in mesh.daemons["node-a"].observed(400)
    )


def test_who_comes_to_a_gateway(mesh: Mesh) -> None:
    apply(mesh, audit(admits({**CLIENT, "toPorts": [ports(80)]})))
    assert through(mesh, "/a") == 200
    assert through(mesh, "/b", "stranger") == 200
    record = told(mesh, "node-a", "AUDIT", reason="AUDIT_DENIED_INGRESS")
    assert record["source"]["name"] == "default/stranger"
    apply(mesh, admits({**CLIENT, "toPorts": [ports(80)]}))
    assert through(mesh, "/c") == 200
    with pytest.raises(TimeoutError):
        through(mesh, "/d", "stranger", timeout=0.6)


def test_what_is_asked_of_a_gateway(mesh: Mesh) -> None:
    rule = {**CLIENT, "toPorts": [ports(80, http=GET)]}
    apply(mesh, audit(admits(rule)))
    assert through(mesh, "/admitted") == 200
    assert through(mesh, "/not-admitted", method="POST") == 200
    record = told(mesh, "node-a", "AUDIT", type="request", path="/not-admitted")
    assert (record["method"], record["source"]["name"]) == ("POST", "default/client")
    assert no_audit(mesh, "/admitted")
    # Whom the rule does not name at all is told of by the kernel.
    assert through(mesh, "/b", "stranger") == 200
    with Http(mesh["client"], address(mesh), 80) as open_:
        assert open_.ask("/", method="POST").status == 200
        apply(mesh, admits(rule))
        assert status_or_reset(open_) in (0, 200)
        assert closed(open_) or open_.ask("/", method="POST").status == 403
    assert through(mesh, "/", method="POST") == 403


def test_what_a_client_may_ask_of_a_gateway(mesh: Mesh) -> None:
    """The other side: an egress policy in audit that names requests."""
    rule = {"toEntities": ["ingress"], "toPorts": [ports(80, http=GET)]}
    apply(mesh, audit(policy("out", select(app="client"), egress=[rule])))
    assert through(mesh, "/sent") == 200
    assert through(mesh, "/not-sent", method="POST") == 200
    told(mesh, "node-a", "AUDIT", type="request", path="/not-sent")
    assert no_audit(mesh, "/sent")


@pytest.mark.parametrize("backend", ["api", "far"])
def test_what_a_gateway_sends_on(mesh: Mesh, backend: str) -> None:
    rule = {"fromEntities": ["ingress"], "toPorts": [ports(8080, http=GET)]}
    apply(mesh, audit(policy("p", select(app=backend), ingress=[rule])), backend=backend)
    assert through(mesh, f"/get/{backend}") == 200
    assert through(mesh, f"/post/{backend}", method="POST") == 200
    told(mesh, "node-a", "AUDIT", type="request", path=f"/post/{backend}")
    assert no_audit(mesh, f"/get/{backend}")


def test_a_copy_of_a_request(mesh: Mesh) -> None:
    rule = {"fromEntities": ["ingress"], "toPorts": [ports(8080, http=GET)]}
    mesh.apply(
        service("api", WEB, selector={"app": "api"}),
        service("far", WEB, selector={"app": "far"}),
        gateway("gw", listener()),
        http_route("r", "gw", {"filters": [mirror("far")], "backendRefs": [to("api")]}),
        audit(policy("p", select(app="far"), ingress=[rule])),
    )
    assert through(mesh, "/copied", method="POST") == 200
    assert through(mesh, "/copied-get") == 200
    told(mesh, "node-a", "AUDIT", type="request", path="/copied")
    assert no_audit(mesh, "/copied-get")


def test_a_port_without_audit_beside(mesh: Mesh) -> None:
    apply(mesh, audit(admits({**CLIENT, "toPorts": [ports(80, http=GET)]})))
    assert ask(mesh["stranger"], address(mesh), 8081).status == 200
    connect(mesh["stranger"], address(mesh), 80).close()
