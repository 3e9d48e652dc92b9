"""Only what an L7 rule or a route names goes to Envoy; all else never does, by the counters of both."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import REFUSED, ask, connect, echoes, make_socket, pings, udp_echoes, until
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import Mesh, workload

from penstock import lab


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    found = make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a"),
        workload("api", "node-a", serves=True),
        workload("far", "node-b", serves=True),
    )
    named = {"method": "GET", "path": "/public/.*"}
    found.apply(
        *(
            policy(
                name,
                select(app=name),
                ingress=[
                    {"fromEndpoints": [select(app="client")], "toPorts": [ports(8080, http=[named])]},
                    {
                        "fromEndpoints": [select(app="client")],
                        "toPorts": [ports(8081, 9090), ports(9091, protocol="UDP")],
                    },
                    {"fromEntities": ["host"]},
                ],
                # Echo requests are judged by no port.
                egress=[{"toEntities": ["all"]}],
            )
            for name in ("api", "far")
        ),
        service(
            "plain",
            {"port": 80, "targetPort": 8081},
            selector={"app": "api"},
            ipFamilyPolicy="RequireDualStack",
        ),
        service(
            "routed",
            {"port": 80, "targetPort": 8081},
            selector={"app": "api"},
            ipFamilyPolicy="RequireDualStack",
        ),
        route("routed", "routed", {"backendRefs": [to("plain")]}),
    )
    return found


@contextmanager
def untouched(mesh: Mesh) -> Iterator[None]:
    """Neither the kernel steered a packet nor did any Envoy take a connection meanwhile."""

    def look() -> list[int]:
        return [n for d in mesh.daemons.values() for n in (d.counter("REDIRECTED"), d.downstream())]

    before = look()
    yield
    assert look() == before


@contextmanager
def through_envoy(mesh: Mesh, *nodes: str) -> Iterator[None]:
    daemons = [mesh.daemons[name] for name in nodes]
    before = [(d.counter("REDIRECTED"), d.downstream()) for d in daemons]
    yield
    for daemon, (packets, connections) in zip(daemons, before, strict=True):
        assert daemon.counter("REDIRECTED") > packets
        assert daemon.downstream() > connections


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("target", ["api", "far"])
def test_what_no_rule_names_never_meets_envoy(mesh: Mesh, target: str, version: int) -> None:
    address = mesh[target].address(version)
    with untouched(mesh):
        assert ask(mesh["client"], address, 8081).status == 200
        assert echoes(mesh["client"], address, 9090, timeout=3)
        assert udp_echoes(mesh["client"], address, 9091, timeout=3)
        assert not echoes(mesh["other"], address, 9090)
        assert not udp_echoes(mesh["other"], address, 9091)
        assert not pings(mesh["client"], address)
        assert pings(mesh[target], mesh["other"].address(version))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("target", ["api", "far"])
def test_datagrams_in_fragments_are_judged_as_a_whole(mesh: Mesh, target: str, version: int) -> None:
    """Only the first fragment has ports (RFC 791, RFC 8200 4.5)."""
    address = (str(mesh[target].address(version)), 9091)
    for who, passes in (("client", True), ("other", False)):
        with make_socket(mesh[who].netns, socket.SOCK_DGRAM, version) as sock:
            sock.settimeout(3 if passes else REFUSED)
            sock.sendto(b"x" * 5000, address)
            if passes:
                assert sock.recv(9999) == b"x" * 5000
            else:
                with pytest.raises(TimeoutError):
                    sock.recv(9999)


@pytest.mark.parametrize("version", [4, 6])
def test_a_plain_service_stays_in_the_kernel(mesh: Mesh, version: int) -> None:
    with untouched(mesh):
        assert ask(mesh["client"], mesh.vip("plain", version), 80).pod == "api"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("target", "node"), [("api", "node-a"), ("far", "node-b")])
def test_what_an_l7_rule_names_goes_through_envoy(mesh: Mesh, target: str, node: str, version: int) -> None:
    address = mesh[target].address(version)
    with through_envoy(mesh, node):
        assert ask(mesh["client"], address, 8080, "/public/x").pod == target
        denied = ask(mesh["client"], address, 8080, "/private")
    assert (denied.status, denied.body) == (403, b"Access denied\r\n")


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_route_names_goes_through_envoy(mesh: Mesh, version: int) -> None:
    with through_envoy(mesh, "node-a"):
        assert ask(mesh["client"], mesh.vip("routed", version), 80).pod == "api"


@pytest.mark.parametrize("version", [4, 6])
def test_a_source_that_the_rule_does_not_name_is_dropped_in_the_kernel(mesh: Mesh, version: int) -> None:
    daemon = mesh.on("api")
    before = daemon.counter("POLICY_DENIED_INGRESS")
    with untouched(mesh), pytest.raises(TimeoutError):
        ask(mesh["other"], mesh["api"].address(version), 8080, "/public/x", timeout=0.6)
    assert daemon.counter("POLICY_DENIED_INGRESS") > before


@pytest.mark.parametrize("version", [4, 6])
def test_the_client_keeps_its_address_and_the_flow_its_names(mesh: Mesh, version: int) -> None:
    """The record of a request names both workloads; the backend sees the request untouched."""
    seen = ask(mesh["client"], mesh["api"].address(version), 8080, "/public/seen").json
    assert not {"X-Forwarded-For", "X-Request-Id", "X-Penstock-Destination"} & set(seen["headers"])
    daemon, address = mesh.on("api"), str(mesh["client"].address(version))

    def recorded() -> list[dict[str, Any]]:
        seen = [r for r in daemon.observed() if r.get("path") == "/public/seen"]
        return [r for r in seen if r["source"]["address"] == address]

    request = until("Envoy told of the request", recorded)[-1]
    assert request["source"]["name"] == "default/client"
    assert request["destination"]["name"] == "default/api"
    assert (request["method"], request["code"], request["verdict"]) == ("GET", 200, "SERVED")


@pytest.mark.parametrize("version", [4, 6])
def test_a_source_port_may_be_used_again_at_once(mesh: Mesh, version: int) -> None:
    """The proxy ended the first connection: what is left of it must not swallow the SYN of the next one.

    The node keeps its closed connections for a minute, as every other.
    """
    with lab.entered(mesh.on("client").node.netns):
        assert int(Path("/proc/sys/net/ipv4/tcp_max_tw_buckets").read_text()) > 1000
    client, address = mesh["client"], mesh["api"].address(version)
    request = b"GET /public/a HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n"
    for _ in range(3):
        with connect(client, address, 8080, source_port=40123, timeout=2.0) as sock:
            sock.sendall(request)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200")
