"""Copies of requests (RequestMirror), through the real Envoy: judged as the client's own requests."""

from __future__ import annotations

from typing import Any

import pytest
from clients import Answer, ask
from conftest import MeshFactory
from objects import gateway, http_route, policy, ports, route, select, service, to
from rig import Mesh, workload
from scripted import Scripted

WEB = {"port": 80, "targetPort": 8080}
SERVICES = tuple(service(n, WEB, selector={"app": n}) for n in ("api", "shadow", "second"))


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    listening = [{"name": "http", "containerPort": 8080}]
    return make_mesh(
        workload("client", "node-a"),
        workload("stranger", "node-a"),
        workload("api", "node-a", serves=True),
        workload("shadow", "node-a", ports=listening),
        workload("second", "node-a", ports=listening),
        workload("far", "node-b", ports=listening),
    )


def mirror(name: str, **share: Any) -> dict[str, Any]:
    ref = {"name": name, "port": 80}
    return {"type": "RequestMirror", "requestMirror": {"backendRef": ref, **share}}


def apply(mesh: Mesh, *filters: dict[str, Any], more: tuple[dict[str, Any], ...] = ()) -> None:
    mesh.apply(*SERVICES, route("r", "api", {"filters": list(filters), "backendRefs": [to("api")]}), *more)


def get(mesh: Mesh, path: str = "/", who: str = "client", **how: Any) -> Answer:
    return ask(mesh[who], mesh.vip("api"), 80, path, **how)


def test_HTTPRouteRequestMirror(mesh: Mesh) -> None:
    with Scripted(mesh["shadow"], 8080, lambda _: 500) as shadow:
        apply(mesh, mirror("shadow"))
        answer = get(mesh, "/a?b=c", headers={"host": "svc.example", "x-a": "1"})
        assert (answer.status, answer.pod) == (200, "api")
        assert shadow.wait(1)
        (head,) = shadow.heads
        assert head.startswith("GET /a?b=c HTTP/1.1\r\n")
        assert "host: svc.example\r\n" in head.lower()
        assert "x-a: 1\r\n" in head.lower()
        assert "x-penstock" not in head.lower()
        # Whose it is, the backend sees too.
        assert shadow.peers == [str(mesh["client"].address())]


def test_HTTPRouteRequestMultipleMirrors(mesh: Mesh) -> None:
    with Scripted(mesh["shadow"], 8080) as shadow, Scripted(mesh["second"], 8080) as second:
        apply(mesh, mirror("shadow"), mirror("second"))
        assert get(mesh).status == 200
        assert shadow.wait(1)
        assert second.wait(1)


def test_HTTPRouteRequestPercentageMirror(mesh: Mesh) -> None:
    with Scripted(mesh["shadow"], 8080) as shadow, Scripted(mesh["second"], 8080) as second:
        apply(
            mesh,
            mirror("shadow", percent=50),
            mirror("second", fraction={"numerator": 0}),
            mirror("second", fraction={"numerator": 1, "denominator": 10}),
        )
        for _ in range(200):
            assert get(mesh).status == 200
        assert shadow.wait(60)
        assert second.wait(5)
        assert len(shadow.heads) < 140
        assert len(second.heads) < 50


def test_a_mirror_is_judged_as_a_request_of_its_client(mesh: Mesh) -> None:
    """Neither another path, nor another client, nor what a client claims, is a way around policy."""
    rules = [{"method": "GET", "path": "/open"}]
    peers = [{"fromEndpoints": [select(app="client")], "toPorts": [ports(8080, http=rules)]}]
    closed = policy("in", select(app="shadow"), ingress=peers)
    mine = mesh["client"].address()
    with Scripted(mesh["shadow"], 8080) as shadow:
        apply(mesh, mirror("shadow"), more=(closed,))
        claimed = {
            "x-penstock-mirror-class": "1",
            "x-penstock-mirror-client": str(mine),
            "x-penstock-mirror-cluster": "default/shadow:80/4",
        }
        assert get(mesh, "/closed").status == 200
        assert get(mesh, "/closed", headers=claimed).status == 200
        assert get(mesh, "/open", "stranger").status == 200
        assert get(mesh, "/open", "stranger", headers=claimed).status == 200
        assert get(mesh, "/open?last").status == 200
        assert shadow.wait(0)
        assert get(mesh, "/open").status == 200
        assert shadow.wait(1)
        assert [head.partition("\r\n")[0] for head in shadow.heads] == ["GET /open HTTP/1.1"]


def test_a_sender_that_may_not_sends_no_copies(mesh: Mesh) -> None:
    out = policy("out", select(app="client"), egress=[{"toEndpoints": [select(app="api")]}])
    with Scripted(mesh["shadow"], 8080) as shadow:
        apply(mesh, mirror("shadow"), more=(out,))
        assert get(mesh).status == 200
        assert get(mesh, "/other", "stranger").status == 200
        assert shadow.wait(1)
        assert shadow.heads[0].startswith("GET /other ")


def test_a_mirror_to_another_node_is_mesh_tls_with_the_clients_certificate(mesh: Mesh) -> None:
    far = service("shadow", WEB, selector={"app": "far"})
    with Scripted(mesh["far"], 8080) as shadow:
        mesh.apply(
            far, SERVICES[0], route("r", "api", {"filters": [mirror("shadow")], "backendRefs": [to("api")]})
        )
        assert get(mesh).status == 200
        assert shadow.wait(1)
        assert shadow.peers == [str(mesh["client"].address())]


def test_a_mirror_that_is_not_there_changes_nothing(mesh: Mesh) -> None:
    apply(mesh, mirror("nobody"))
    assert get(mesh).pod == "api"
    found = mesh.on("client").call(
        "get", kind="httproute", object_name="r", namespace="default", all_namespaces=False
    )
    (parent,) = found["status"]["parents"]
    assert ("ResolvedRefs", "False", "BackendNotFound") in [
        (c["type"], c["status"], c["reason"]) for c in parent["conditions"]
    ]


def through_gateway(mesh: Mesh, path: str = "/") -> Answer:
    found = mesh.on("client").call(
        "get", kind="gateway", object_name="gw", namespace="default", all_namespaces=False
    )
    return ask(mesh["client"], found["status"]["addresses"][0]["value"], 80, path)


def test_a_mirror_of_a_gateway_is_judged_as_the_gateways(mesh: Mesh) -> None:
    rule = {"filters": [mirror("shadow")], "backendRefs": [to("api")]}
    edge = (gateway("gw"), http_route("r", "gw", rule))
    peers = [
        {"fromEndpoints": [select(app="client")]},
        {"fromEntities": ["ingress"], "toPorts": [ports(8080, http=[{"path": "/open"}])]},
    ]
    closed = policy("in", select(app="shadow"), ingress=peers)
    with Scripted(mesh["shadow"], 8080) as shadow:
        mesh.apply(*SERVICES, *edge, closed)
        assert through_gateway(mesh, "/closed").status == 200
        assert through_gateway(mesh, "/open").status == 200
        assert shadow.wait(1)
        assert [head.partition("\r\n")[0] for head in shadow.heads] == ["GET /open HTTP/1.1"]
        assert shadow.peers != [str(mesh["client"].address())]
