"""Gateways where IPv6 is spoken: to backends that have nothing else, copies and datagrams included. Each way
is judged as the Gateway's, like those of IPv4."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from clients import Answer, ask, make_socket
from conftest import MeshFactory
from objects import gateway, http_route, listener, policy, ports, select, service, to
from rig import Mesh, workload
from scripted import Scripted
from test_gateway_features import mirror
from test_gateway_streams import l4_route

ADDRESS = "fd00:98::7"
PORTS = (
    {"name": "http", "port": 80, "targetPort": 8080},
    {"name": "udp", "port": 91, "targetPort": 9091, "protocol": "UDP"},
)
SERVICES = tuple(service(n, *PORTS, selector={"app": n}, ipFamilies=["IPv6"]) for n in ("api", "shadow"))


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        workload("shadow", "node-a", serves=True),
    )


def front(address: str = ADDRESS) -> dict[str, Any]:
    at = [{"value": address}] if address else [{}]
    return gateway("gw", listener(), listener("udp", 91, "UDP"), addresses=at)


def address(mesh: Mesh) -> str:
    daemon = mesh.on("client")
    found = daemon.call("get", kind="gateway", object_name="gw", namespace="default", all_namespaces=False)
    return str(found["status"]["addresses"][0]["value"])


def get(mesh: Mesh, path: str = "/") -> Answer:
    return ask(mesh["client"], address(mesh), 80, path)


def udp(mesh: Mesh) -> str:
    where = address(mesh)
    version = 6 if ":" in where else 4
    with make_socket(mesh["client"].netns, socket.SOCK_DGRAM, version=version) as sock:
        sock.settimeout(0.7)
        sock.sendto(b"who?", (where, 91))
        try:
            data, peer = sock.recvfrom(999)
        except (TimeoutError, ConnectionError):
            return ""
        assert peer[:2] == (where, 91)
        return str(json.loads(data)["pod"])


@pytest.mark.parametrize("at", [ADDRESS, ""], ids=["at IPv6", "at IPv4"])
def test_requests_and_datagrams(mesh: Mesh, at: str) -> None:
    ways = (
        front(at),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
        l4_route("UDPRoute", "u", to("api", port=91)),
    )
    mesh.apply(*SERVICES, *ways)
    assert (get(mesh).pod, udp(mesh)) == ("api", "api")
    closed = policy("in", select(app="api"), ingress=[{"fromEndpoints": [select(app="client")]}])
    mesh.apply(*SERVICES, *ways, closed)
    assert (get(mesh).status, udp(mesh)) == (403, "")
    through = policy("in", select(app="api"), ingress=[{"fromEntities": ["ingress"]}])
    mesh.apply(*SERVICES, *ways, through)
    assert (get(mesh).pod, udp(mesh)) == ("api", "api")


def test_copies(mesh: Mesh) -> None:
    rule = {"filters": [mirror("copies")], "backendRefs": [to("api")]}
    copies = service(
        "copies", {"port": 80, "targetPort": 8085}, selector={"app": "shadow"}, ipFamilies=["IPv6"]
    )
    ways = (front(), copies, http_route("r", "gw", rule))
    peers = {"fromEntities": ["ingress"], "toPorts": [ports(8085, http=[{"path": "/open"}])]}
    with Scripted(mesh["shadow"], 8085, version=6) as shadow:
        mesh.apply(*SERVICES, *ways)
        assert get(mesh, "/free").pod == "api"
        assert shadow.wait(1)
        mesh.apply(*SERVICES, *ways, policy("in", select(app="shadow"), ingress=[peers]))
        for path in ("/closed", "/open", "/closed", "/open"):
            assert get(mesh, path).pod == "api"
        assert shadow.wait(3)
        assert [head.split()[1] for head in shadow.heads] == ["/free", "/open", "/open"]
        assert set(shadow.peers) != {str(mesh["client"].address(6))}
