"""Gateways over plain HTTP, through the real Envoy: two hops, both judged; routes, hosts, statuses."""

from __future__ import annotations

from typing import Any

import pytest
from clients import Answer, ask
from conftest import MeshFactory
from objects import gateway, http_route, service, to
from rig import Mesh, workload

WEB = {"port": 80, "targetPort": 8080}
SERVICES = tuple(service(n, WEB, selector={"app": n}) for n in ("api", "other"))


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        workload("other", "node-a", serves=True),
    )


def shown(mesh: Mesh, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
    daemon = next(iter(mesh.daemons.values()))
    return dict(daemon.call("get", kind=kind, object_name=name, namespace=namespace, all_namespaces=False))


def address(mesh: Mesh, name: str = "gw") -> str:
    return str(shown(mesh, "gateway", name)["status"]["addresses"][0]["value"])


def conditions(listed: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in listed}


def get(mesh: Mesh, host: str = "example.com", path: str = "/", *, port: int = 80, **how: Any) -> Answer:
    headers = {"Host": host, **how.pop("headers", {})}
    return ask(mesh["client"], address(mesh), port, path, headers=headers, **how)


def test_a_gateway_serves_a_route(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        gateway("gw"),
        http_route("r", "gw", {"backendRefs": [to("api")]}, hostnames=["example.com"]),
    )
    status = shown(mesh, "gateway", "gw")["status"]
    assert conditions(status["conditions"]) == {
        "Accepted": ("True", "Accepted"),
        "Programmed": ("True", "Programmed"),
    }
    assert status["listeners"][0]["attachedRoutes"] == 1
    answer = get(mesh, "example.com:8000")
    assert (answer.status, answer.pod) == (200, "api")
    assert answer.json["headers"]["X-Forwarded-For"] == [str(mesh["client"].addresses[0])]
    assert get(mesh, "elsewhere.com").status == 404
