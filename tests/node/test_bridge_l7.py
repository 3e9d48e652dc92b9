"""Workloads on bridges as Docker makes them: the same promises as behind routed veths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rig
from clients import ask, echoes, udp_echoes
from objects import policy, ports, route, select, service, to
from rig import Mesh

BRIDGES = {
    "node-a": {
        "front": ["10.244.1.0/25", "fd00:10:244:1:1::/80"],
        "back": ["10.244.1.128/25", "fd00:10:244:1:2::/80"],
    }
}
versions = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
L7 = policy(
    "web",
    select(app="web"),
    ingress=[
        {
            "fromEndpoints": [select(app="client")],
            "toPorts": [ports(8080, http=[{"method": "GET", "path": "/open/.*"}]), ports(9090)],
        }
    ],
)


@pytest.fixture(scope="module")
def mesh(make_mesh: Callable[..., Mesh]) -> Mesh:
    return make_mesh(
        rig.workload("client", "node-a", bridges=["front"]),
        rig.workload("other", "node-a", bridges=["front"]),
        rig.workload("web", "node-a", bridges=["front"], serves=True),
        rig.workload("v2", "node-a", bridges=["front"], serves=True),
        rig.workload("db", "node-a", bridges=["back"], serves=True),
        bridges=BRIDGES,
    )


@versions
def test_requests_pass_envoy_with_the_clients_address(mesh: Mesh, version: int) -> None:
    mesh.apply(L7)
    client, web = mesh["client"], mesh["web"].address(version)
    answer = ask(client, web, 8080, "/open/1")
    assert (answer.status, answer.pod) == (200, "web")
    assert ask(client, web, 8080, "/closed").status == 403


@versions
def test_what_no_l7_rule_names_stays_out_of_envoy(mesh: Mesh, version: int) -> None:
    mesh.apply(L7)
    before = mesh.on("web").downstream()
    assert echoes(mesh["client"], mesh["web"].address(version), 9090)
    assert not echoes(mesh["other"], mesh["web"].address(version), 9090)
    assert not udp_echoes(mesh["client"], mesh["web"].address(version), 9091)
    assert udp_echoes(mesh["client"], mesh["v2"].address(version), 9091)
    assert mesh.on("web").downstream() == before


@versions
def test_a_route_splits_a_services_address(mesh: Mesh, version: int) -> None:
    mesh.apply(
        service(
            "web", {"port": 80, "targetPort": 8080}, selector={"app": "web"}, ipFamilyPolicy="PreferDualStack"
        ),
        service(
            "v2", {"port": 80, "targetPort": 8080}, selector={"app": "v2"}, ipFamilyPolicy="PreferDualStack"
        ),
        route("web", "web", {"backendRefs": [to("web", 1), to("v2", 1)]}),
    )
    vip = mesh.vip("web", version)
    assert {ask(mesh["client"], vip, 80).pod for _ in range(40)} == {"web", "v2"}
    # One of them may be the client.
    assert {ask(mesh["web"], vip, 80).pod for _ in range(40)} == {"web", "v2"}
