"""Services and routes: the virtual address as an application sees it, and where requests end up."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

import pytest
from clients import Http, Load, ask, connect, echoes, make_socket, status_or_reset, udp_echoes
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import Mesh, workload

DUAL = {"ipFamilyPolicy": "RequireDualStack"}
WEB = {"name": "web", "port": 80, "targetPort": "http"}
ECHO = {"name": "echo", "port": 7, "targetPort": 9090}
DGRAM = {"name": "dgram", "port": 7, "targetPort": "dgram", "protocol": "UDP"}


def of(name: str, *served: dict[str, Any], **selector: str) -> dict[str, Any]:
    return service(name, *served, selector=selector, **DUAL)


SERVICES = (
    of("api", WEB, ECHO, DGRAM, tier="api"),
    of("v1", WEB, ECHO, DGRAM, app="v1"),
    of("v2", WEB, ECHO, DGRAM, app="v2"),
    of("nobody", WEB, DGRAM, app="nobody"),
)


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("v1", "node-a", serves=True, labels={"app": "v1", "tier": "api"}),
        workload("v2", "node-b", serves=True, labels={"app": "v2", "tier": "api"}),
    )


def pods(mesh: Mesh, address: str, path: str = "/", count: int = 40, **how: Any) -> Counter[str]:
    """Who answers: by name, or by status code where it is not 200."""
    seen: Counter[str] = Counter()
    with Http(mesh["client"], address, 80) as connection:
        for _ in range(count):
            answer = connection.ask(path, **how)
            seen[answer.pod if answer.status == 200 else str(answer.status)] += 1
    return seen


# --- in the kernel -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_by_the_virtual_address(mesh: Mesh, version: int) -> None:
    mesh.apply(*SERVICES)
    vip = mesh.vip("api", version)
    seen = Counter(ask(mesh["client"], vip, 80).pod for _ in range(30))
    assert set(seen) == {"v1", "v2"}
    with connect(mesh["client"], vip, 7) as sock:
        assert sock.getpeername()[:2] == (vip, 7)
        sock.sendall(b"hello")
        assert sock.recv(9) == b"hello"


def test_an_ipv6_socket_that_asks_for_an_ipv4_service(mesh: Mesh) -> None:
    """As the dual-stack sockets of many runtimes do (RFC 4291, 2.5.5.2)."""
    mesh.apply(*SERVICES)
    mapped = f"::ffff:{mesh.vip('api')}"
    with connect(mesh["client"], mapped, 7) as sock:
        assert sock.getpeername()[:2] == (mapped, 7)
        sock.sendall(b"hello")
        assert sock.recv(9) == b"hello"
    assert udp_echoes(mesh["client"], mapped, 7, timeout=3)
    assert udp_echoes(mesh["client"], mapped, 7, connected=False, timeout=3)


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("version", [4, 6])
def test_udp_by_the_virtual_address(mesh: Mesh, version: int, connected: bool) -> None:
    mesh.apply(*SERVICES)
    for _ in range(6):
        assert udp_echoes(mesh["client"], mesh.vip("api", version), 7, connected=connected, timeout=3)


def test_one_udp_socket_for_two_services(mesh: Mesh) -> None:
    """Each answer seems to come from the Service that was asked."""
    mesh.apply(*SERVICES)
    asked = [(mesh.vip("v1"), 7), (mesh.vip("v2"), 7)]
    with make_socket(mesh["client"].netns, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        for address in [*asked, *asked]:
            sock.sendto(b"x", address)
            assert sock.recvfrom(9) == (b"x", address)


@pytest.mark.parametrize("version", [4, 6])
def test_a_service_without_endpoints_refuses_at_once(mesh: Mesh, version: int) -> None:
    mesh.apply(*SERVICES)
    daemon = mesh.on("client")
    before = daemon.counter("NO_BACKEND")
    with pytest.raises(ConnectionRefusedError):
        connect(mesh["client"], mesh.vip("nobody", version), 80, timeout=5)
    assert daemon.counter("NO_BACKEND") > before


@pytest.mark.parametrize("version", [4, 6])
def test_a_workload_reaches_itself_by_its_own_service(mesh: Mesh, version: int) -> None:
    mesh.apply(*SERVICES)
    assert ask(mesh["v1"], mesh.vip("v1", version), 80).pod == "v1"
    assert echoes(mesh["v1"], mesh.vip("v1", version), 7, timeout=3)
    assert udp_echoes(mesh["v1"], mesh.vip("v1", version), 7, timeout=3)


@pytest.mark.parametrize("version", [4, 6])
def test_the_nodes_own_processes_reach_services(mesh: Mesh, version: int) -> None:
    mesh.apply(*SERVICES, route("v1", "v1", {"backendRefs": [to("v1")]}))
    for name in ("api", "v1"):
        with connect(mesh.spec.nodes[0], mesh.vip(name, version), 80) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert sock.recv(99).startswith(b"HTTP/1.0 200")


def test_a_port_that_the_service_does_not_have(mesh: Mesh) -> None:
    """Nobody has the address: it must not leave the node as if it were somebody's."""
    mesh.apply(*SERVICES)
    with pytest.raises(OSError):
        connect(mesh["client"], mesh.vip("v1"), 81, timeout=0.6)


# --- routes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_weights(mesh: Mesh, version: int) -> None:
    mesh.apply(*SERVICES, route("api", "api", {"backendRefs": [to("v1", 90), to("v2", 10), to("nobody", 0)]}))
    seen = pods(mesh, mesh.vip("api", version), count=600)
    assert seen.total() == seen["v1"] + seen["v2"]
    # 60 of 600 on average, standard deviation 7.3.
    assert 27 <= seen["v2"] <= 93


def test_precedence(mesh: Mesh) -> None:
    """Exact before the longest prefix before less; then method, headers, query; each names its winner."""

    def rule(backend: str, **match: Any) -> dict[str, Any]:
        return {"matches": [match], "backendRefs": [to(backend)]}

    def path(kind: str, value: str) -> dict[str, Any]:
        return {"type": kind, "value": value}

    header = [{"name": "X-Canary", "value": "yes"}]
    query = [{"name": "v", "value": "2"}]
    mesh.apply(
        *SERVICES,
        route(
            "api",
            "api",
            rule("v1", path=path("PathPrefix", "/a")),
            rule("v2", path=path("PathPrefix", "/a/b")),
            rule("v1", path=path("Exact", "/a/b/c")),
            rule("v2", path=path("PathPrefix", "/a"), method="POST"),
            rule("v2", path=path("PathPrefix", "/a"), headers=header),
            rule("v2", path=path("PathPrefix", "/a"), queryParams=query),
            rule("v1", path=path("PathPrefix", "/a"), headers=header, queryParams=query),
        ),
    )
    canary = {"x-canary": "yes"}
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("/a", {}, "v1"),
        ("/a/", {}, "v1"),
        ("/a/x", {}, "v1"),
        ("/ab", {}, "404"),
        ("/", {}, "404"),
        ("/a/b", {}, "v2"),
        ("/a/b/d", {}, "v2"),
        ("/a/bc", {}, "v1"),
        ("/a/b/c", {}, "v1"),
        ("/a/b/c/d", {}, "v2"),
        ("/a", {"method": "POST"}, "v2"),
        ("/a", {"method": "PUT"}, "v1"),
        ("/a", {"headers": canary}, "v2"),
        ("/a", {"headers": {"x-canary": "no"}}, "v1"),
        ("/a?v=2", {}, "v2"),
        ("/a?v=3", {}, "v1"),
        ("/a?v=2", {"headers": canary}, "v1"),
        ("/a?v=2", {"headers": canary, "method": "POST"}, "v2"),
        ("/a/../a/b", {}, "v2"),
    ]
    got = [(p, how, next(iter(pods(mesh, mesh.vip("api"), p, 1, **how)))) for p, how, _ in cases]
    assert got == cases


def test_a_missing_backend_answers_500_for_just_its_share(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        route(
            "api",
            "api",
            {"matches": [{"path": {"value": "/gone"}}], "backendRefs": [to("absent")]},
            {"matches": [{"path": {"value": "/empty"}}], "backendRefs": [to("nobody")]},
            {"backendRefs": [to("v1"), to("absent")]},
        ),
    )
    assert set(pods(mesh, mesh.vip("api"), "/gone", 5)) == {"500"}
    assert set(pods(mesh, mesh.vip("api"), "/empty", 5)) == {"503"}
    half = pods(mesh, mesh.vip("api"), count=60)
    assert set(half) == {"v1", "500"}
    shown = mesh.on("client").call(
        "get", kind="httproute", object_name="api", namespace="default", all_namespaces=False
    )
    conditions = {c["type"]: c for c in shown["status"]["parents"][0]["conditions"]}
    assert conditions["Accepted"]["status"] == "True"
    assert (conditions["ResolvedRefs"]["status"], conditions["ResolvedRefs"]["reason"]) == (
        "False",
        "BackendNotFound",
    )


def test_when_the_route_goes_the_service_is_plain_again(mesh: Mesh) -> None:
    daemon = mesh.on("client")
    mesh.apply(*SERVICES, route("api", "api", {"backendRefs": [to("v1")]}))
    assert set(pods(mesh, mesh.vip("api"), count=10)) == {"v1"}
    mesh.apply(*SERVICES)
    before = (daemon.counter("REDIRECTED"), daemon.downstream())
    assert {ask(mesh["client"], mesh.vip("api"), 80).pod for _ in range(20)} == {"v1", "v2"}
    assert (daemon.counter("REDIRECTED"), daemon.downstream()) == before


def test_an_open_connection_outlives_its_route(mesh: Mesh) -> None:
    """It goes on through the proxy to its end, as to the plain Service; new ones do not meet the proxy."""
    daemon = mesh.on("client")
    mesh.apply(*SERVICES, route("api", "api", {"backendRefs": [to("v1")]}))
    with Http(mesh["client"], mesh.vip("api"), 80) as open_:
        assert open_.ask().pod == "v1"
        mesh.apply(*SERVICES)
        assert {open_.ask().pod for _ in range(20)} == {"v1", "v2"}
        before = daemon.downstream()
        assert ask(mesh["client"], mesh.vip("api"), 80).status == 200
        assert daemon.downstream() == before
        # And through whatever else changes meanwhile.
        mesh.apply(*SERVICES, policy("other", select(app="nobody"), ingress=[{}]))
        assert open_.ask().status == 200
        closed = [
            policy(n, select(app=n), ingress=[{"fromEndpoints": [select(app="x")]}]) for n in ("v1", "v2")
        ]
        mesh.apply(*SERVICES, *closed)
        assert status_or_reset(open_) in (0, 403)


def test_other_ports_and_protocols_of_a_routed_service(mesh: Mesh) -> None:
    """The route's parent is the whole Service, and HTTP is on its TCP ports; UDP stays in the kernel."""
    mesh.apply(*SERVICES, route("api", "api", {"backendRefs": [to("v1")]}))
    assert udp_echoes(mesh["client"], mesh.vip("api"), 7, timeout=3)


@pytest.mark.parametrize("version", [4, 6])
def test_each_request_is_judged_at_the_endpoint_that_was_chosen(mesh: Mesh, version: int) -> None:
    """v2 lets nobody but v1 in: its share answers 403, and no other share grows for it."""
    closed = policy("v2", select(app="v2"), ingress=[{"fromEndpoints": [select(app="v1")]}])
    mesh.apply(*SERVICES, closed, route("api", "api", {"backendRefs": [to("v1", 50), to("v2", 50)]}))
    seen = pods(mesh, mesh.vip("api", version), count=120)
    assert set(seen) == {"v1", "403"}
    assert 30 <= seen["403"] <= 90


def test_at_the_endpoint_l7_rules_of_both_sides_hold(mesh: Mesh) -> None:
    http = [{"method": "GET", "path": "/ok.*"}]
    guard = policy(
        "v1",
        select(app="v1"),
        ingress=[{"fromEndpoints": [select(app="client")], "toPorts": [ports(8080, http=http)]}],
    )
    out = policy(
        "out",
        select(app="client"),
        egress=[
            {
                "toEndpoints": [select(tier="api")],
                "toPorts": [ports(8080, http=[{"path": "/ok/[0-9]+"}])],
            }
        ],
    )
    both = route(
        "api",
        "api",
        {"backendRefs": [to("v1")]},
        {"matches": [{"path": {"value": "/ok/9"}}], "backendRefs": [to("v2")]},
    )
    mesh.apply(*SERVICES, guard, out, both)
    vip = mesh.vip("api")
    assert set(pods(mesh, vip, "/ok/1", 5)) == {"v1"}
    assert set(pods(mesh, vip, "/ok/x", 5)) == {"403"}
    assert set(pods(mesh, vip, "/ok/1", 5, method="POST")) == {"403"}
    assert set(pods(mesh, vip, "/ok/9", 5, method="POST")) == {"v2"}
    assert set(pods(mesh, vip, "/ok/9/x", 5)) == {"403"}
    # The same rules hold on the way past the route.
    assert ask(mesh["client"], mesh["v1"].address(), 8080, "/ok/1").pod == "v1"
    assert ask(mesh["client"], mesh["v1"].address(), 8080, "/ok/x").status == 403
    assert ask(mesh["client"], mesh.vip("v1"), 80, "/ok/x").status == 403


# --- changes under load ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_no_request_fails_while_routes_change(mesh: Mesh, keep: bool) -> None:
    def routed(*backends: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        return (*SERVICES, route("api", "api", {"backendRefs": list(backends)}))

    mesh.apply(*routed(to("v1")))
    with Load(mesh["client"], mesh.vip("api"), 80, keep=keep) as load:
        for weight in range(4):
            mesh.apply(*routed(to("v1", 3 - weight), to("v2", weight)))
            load.more(5)
            extra = of(f"extra-{weight}", WEB, tier="api")
            mesh.apply(*SERVICES, extra, route("api", "api", {"backendRefs": [to(f"extra-{weight}")]}))
            load.more(5)
    assert set(load.seen) == {200}


def test_no_new_connection_fails_while_a_route_comes_and_goes(mesh: Mesh) -> None:
    mesh.apply(*SERVICES)
    with Load(mesh["client"], mesh.vip("api"), 80, keep=False) as load:
        for _ in range(4):
            mesh.apply(*SERVICES, route("api", "api", {"backendRefs": [to("v2")]}))
            load.more(5)
            mesh.apply(*SERVICES)
            load.more(5)
    assert set(load.seen) == {200}
