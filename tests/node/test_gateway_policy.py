"""Policy on both hops of a request through a Gateway, and that no way leads around it."""

from __future__ import annotations

import http.client
from typing import Any

import pytest
from clients import REFUSED, Http, ask, connect, extra_address, until
from conftest import MeshFactory
from objects import (
    gateway,
    http_route,
    listener,
    peer_authentication,
    policy,
    ports,
    route,
    select,
    service,
    to,
)
from rig import Mesh, workload
from test_gateway_http import address

WEB = {"port": 80, "targetPort": 8080}
INGRESS = {"matchLabels": {"reserved:ingress": ""}}


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("stranger", "node-a"),
        workload("api", "node-a", serves=True),
        workload("far", "node-b", serves=True),
        workload("away", "node-b"),
    )


def clusterwide(name: str, selector: dict[str, Any], **spec: Any) -> dict[str, Any]:
    made = policy(name, selector, **spec)
    return {**made, "kind": "CiliumClusterwideNetworkPolicy"}


def apply(mesh: Mesh, *more: dict[str, Any], backend: str = "api") -> None:
    mesh.apply(
        service("api", WEB, selector={"app": "api"}),
        service("far", WEB, selector={"app": "far"}),
        gateway("gw", listener(), listener("https-like", 8081)),
        http_route("r", "gw", {"backendRefs": [to(backend)]}),
        *more,
    )


def through(mesh: Mesh, path: str = "/", who: str = "client", port: int = 80, **how: Any) -> int:
    return ask(mesh[who], address(mesh), port, path, **how).status


def silent(mesh: Mesh, who: str, port: int = 80) -> bool:
    try:
        ask(mesh[who], address(mesh), port, timeout=REFUSED)
    except TimeoutError:
        return True
    return False


def closed(connection: Http) -> bool:
    """Whether an open connection was reset."""
    try:
        connection.ask("/")
    except (ConnectionError, TimeoutError, http.client.HTTPException):
        return True
    return False


# --- gateway → workload ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["api", "far"])
def test_the_gateway_is_judged_as_ingress_whoever_the_client_is(mesh: Mesh, backend: str) -> None:
    public = ports(8080, http=[{"method": "GET", "path": "/public/.*"}])
    only = policy("p", select(app=backend), ingress=[{"fromEntities": ["ingress"], "toPorts": [public]}])
    apply(mesh, only, backend=backend)
    for who in ("client", "stranger"):
        assert through(mesh, "/public/x", who) == 200
        assert through(mesh, "/private", who) == 403


@pytest.mark.parametrize("backend", ["api", "far"])
def test_a_client_who_may_is_not_one_through_a_gateway_that_may_not(mesh: Mesh, backend: str) -> None:
    only = policy("p", select(app=backend), ingress=[{"fromEndpoints": [select(app="client")]}])
    apply(mesh, only, backend=backend)
    assert ask(mesh["client"], mesh[backend].address(), 8080).status == 200
    assert through(mesh) == 403


def test_rules_about_a_gateways_own_sending(mesh: Mesh) -> None:
    elsewhere = clusterwide("p", INGRESS, egress=[{"toEndpoints": [select(app="nobody")]}])
    apply(mesh, elsewhere)
    assert through(mesh) == 403


def test_a_policy_holds_for_the_next_request_on_an_open_connection(mesh: Mesh) -> None:
    apply(mesh)
    with Http(mesh["client"], address(mesh), 80) as connection:
        assert connection.ask("/").status == 200
        apply(mesh, policy("p", select(app="api"), ingress=[{"fromEndpoints": [select(app="client")]}]))
        assert connection.ask("/").status == 403
        apply(mesh)
        assert connection.ask("/").status == 200


def test_mutual_tls_to_another_node(mesh: Mesh) -> None:
    apply(mesh, peer_authentication("strict", "STRICT", app="far"), backend="far")
    before = mesh.daemons["node-b"].envoy_stats("listener.")
    assert through(mesh) == 200
    after = mesh.daemons["node-b"].envoy_stats("listener.")
    handshakes = [key for key in after if key.endswith("ssl.handshake") and after[key] > before.get(key, 0)]
    assert handshakes, "the request did not come by mesh TLS"


# --- client → gateway ------------------------------------------------------------------------------------


def test_who_may_speak_to_gateways(mesh: Mesh) -> None:
    apply(mesh)
    with Http(mesh["stranger"], address(mesh), 80) as connection:
        assert connection.ask("/").status == 200
        apply(mesh, clusterwide("p", INGRESS, ingress=[{"fromEndpoints": [select(app="client")]}]))
        assert closed(connection)
    assert through(mesh) == 200
    assert silent(mesh, "stranger")


def test_ports_of_gateways(mesh: Mesh) -> None:
    apply(mesh, clusterwide("p", INGRESS, ingress=[{"fromEntities": ["all"], "toPorts": [ports(8081)]}]))
    assert through(mesh, port=8081) == 200
    assert silent(mesh, "client")


def test_what_a_client_may_send(mesh: Mesh) -> None:
    locked = policy("p", select(app="client"), egress=[{"toEndpoints": [select(app="api")]}])
    apply(mesh, locked)
    assert silent(mesh, "client")
    assert through(mesh, who="stranger") == 200
    apply(mesh, policy("p", select(app="client"), egress=[{"toEntities": ["ingress"]}]))
    assert through(mesh) == 200


def public_only(name: str = "p") -> dict[str, Any]:
    public = ports(80, http=[{"path": "/public.*"}])
    rules = [
        {"fromEndpoints": [select(app="client")], "toPorts": [public]},
        {"fromEndpoints": [select(app="stranger")]},
    ]
    return clusterwide(name, INGRESS, ingress=rules)


def test_requests_to_gateways(mesh: Mesh) -> None:
    apply(mesh, public_only())
    assert through(mesh, "/public") == 200
    denied = ask(mesh["client"], address(mesh), 80, "/private")
    assert (denied.status, denied.body) == (403, b"Access denied\r\n")
    assert through(mesh, "/private", "stranger") == 200
    assert through(mesh, "/public/../private") == 403


def test_requests_of_a_client_to_gateways(mesh: Mesh) -> None:
    public = ports(80, http=[{"path": "/public.*"}])
    apply(mesh, policy("p", select(app="client"), egress=[{"toEntities": ["ingress"], "toPorts": [public]}]))
    assert through(mesh, "/public") == 200
    assert through(mesh, "/private") == 403
    assert through(mesh, "/private", "stranger") == 200


def test_an_open_connection_does_not_escape_rules_that_come(mesh: Mesh) -> None:
    apply(mesh)
    with (
        Http(mesh["client"], address(mesh), 80) as connection,
        Http(mesh["stranger"], address(mesh), 80) as other,
    ):
        assert connection.ask("/private").status == 200
        assert other.ask("/private").status == 200
        apply(mesh, public_only())
        assert closed(connection)
        assert other.ask("/private").status == 200
    with Http(mesh["client"], address(mesh), 80) as connection:
        assert connection.ask("/private").status == 403
        apply(mesh)
        assert connection.ask("/private").status == 200


# --- other ways ------------------------------------------------------------------------------------------


def test_a_gateway_behind_a_service_is_judged_too(mesh: Mesh) -> None:
    """Neither a Service nor a route of the mesh whose endpoint is the Gateway's address leads past its
    policy."""
    apply(mesh)
    slices = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "loop", "labels": {"kubernetes.io/service-name": "loop"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address(mesh)]}],
        "ports": [{"port": 80}],
    }
    only = clusterwide("p", INGRESS, ingress=[{"fromEndpoints": [select(app="client")]}])
    loop = service("loop", {"port": 80})
    apply(mesh, only, loop, slices)
    assert ask(mesh["client"], mesh.vip("loop"), 80).status == 200
    with pytest.raises(TimeoutError):
        ask(mesh["stranger"], mesh.vip("loop"), 80, timeout=REFUSED)
    apply(mesh, only, loop, slices, route("m", "loop", {"backendRefs": [to("loop")]}))
    assert ask(mesh["stranger"], mesh.vip("loop"), 80).status in (403, 503)
    assert ask(mesh["client"], mesh.vip("loop"), 80).status in (403, 503)


def test_nobody_speaks_as_the_gateway(mesh: Mesh) -> None:
    only = policy("p", select(app="api"), ingress=[{"fromEntities": ["ingress"]}])
    apply(mesh, only)
    before = mesh.daemons["node-a"].counter("SPOOFED_SOURCE")
    with (
        extra_address(mesh["stranger"], address(mesh)),
        pytest.raises(TimeoutError),
    ):
        connect(mesh["stranger"], mesh["api"].address(), 8080, timeout=REFUSED, source=address(mesh))
    assert mesh.daemons["node-a"].counter("SPOOFED_SOURCE") > before
    assert through(mesh) == 200


def test_a_gateway_at_the_nodes_own_address_is_judged_like_any_other(mesh: Mesh) -> None:
    own = str(mesh.spec.node("node-a").addresses[0])
    only = clusterwide("p", INGRESS, ingress=[{"fromEndpoints": [select(app="client")]}])
    mesh.apply(
        service("api", WEB, selector={"app": "api"}),
        gateway("gw", addresses=[{"value": own}]),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
        only,
    )
    assert address(mesh) == own
    assert through(mesh) == 200
    assert silent(mesh, "stranger")
    # From outside the node, too: there it comes by another device.
    with pytest.raises(TimeoutError):
        ask(mesh["away"], own, 80, timeout=REFUSED)
    apply(mesh)


def test_a_client_cannot_say_where_it_wants_to_go(mesh: Mesh) -> None:
    apply(mesh, policy("p", select(app="far"), ingress=[{"fromEndpoints": [select(app="nobody")]}]))
    target = f"{mesh['far'].address()}:8080"
    forged = {"x-penstock-destination": target, "x-envoy-original-dst-host": target, "Host": target}
    answer = ask(mesh["client"], address(mesh), 80, headers=forged)
    assert (answer.status, answer.pod) == (200, "api")


def test_rules_are_back_after_a_restart(mesh: Mesh) -> None:
    apply(mesh, public_only())
    daemon, where = mesh.daemons["node-a"], address(mesh)
    daemon.stop()
    assert ask(mesh["client"], where, 80, "/private").status == 403
    daemon.start()
    until("the daemon answers", daemon.answers, 15)
    daemon.wait()
    assert through(mesh, "/private") == 403
    assert through(mesh, "/public") == 200
