"""No path around a policy: every way to a workload, and every trick that a workload can play."""

from __future__ import annotations

import select as select_
import socket
import struct
import time
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from clients import REFUSED, ask, connect, extra_address, make_socket, served
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import Mesh, workload

from penstock import lab
from penstock.lab import LabNode, LabWorkload
from penstock.world import Settings

NAMED = [{"method": "GET", "path": "/public/.*"}]
DUAL = {"ipFamilyPolicy": "RequireDualStack"}


@pytest.fixture(scope="module", params=["routed", "bridged"])
def mesh(make_mesh: MeshFactory, request: pytest.FixtureRequest) -> Mesh:
    found = make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a", serves=True),
        workload("api", "node-a", serves=True),
        workload("far", "node-b", serves=True),
        workload("away", "node-b"),
        bridged=request.param == "bridged",
    )
    guards = [
        policy(
            name,
            select(app=name),
            ingress=[
                {
                    "fromEndpoints": [select(app="client"), select(app="away")],
                    "toPorts": [ports(8080, http=NAMED)],
                }
            ],
        )
        for name in ("api", "far")
    ]
    web = {"port": 80, "targetPort": 8080}
    found.apply(
        *guards,
        *(service(name, web, selector={"app": name}, **DUAL) for name in ("api", "far")),
        *(service(f"routed-{name}", web, selector={"app": name}, **DUAL) for name in ("api", "far")),
        *(route(f"routed-{name}", f"routed-{name}", {"backendRefs": [to(name)]}) for name in ("api", "far")),
    )
    return found


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("client", ["client", "away"])
@pytest.mark.parametrize("target", ["api", "far"])
@pytest.mark.parametrize("way", ["address", "service", "route"])
def test_every_way_is_judged(mesh: Mesh, way: str, target: str, client: str, version: int) -> None:
    where = {
        "address": lambda: (mesh[target].address(version), 8080),
        "service": lambda: (mesh.vip(target, version), 80),
        "route": lambda: (mesh.vip(f"routed-{target}", version), 80),
    }
    address, port = where[way]()
    assert ask(mesh[client], address, port, "/public/x").pod == target
    assert ask(mesh[client], address, port, "/private").status == 403


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("way", ["address", "service", "route"])
def test_every_way_is_closed_to_whom_no_rule_names(mesh: Mesh, way: str, version: int) -> None:
    if way == "route":
        assert ask(mesh["other"], mesh.vip("routed-api", version), 80, "/public/x").status == 403
        return
    address, port = (
        (mesh["api"].address(version), 8080) if way == "address" else (mesh.vip("api", version), 80)
    )
    with pytest.raises(TimeoutError):
        ask(mesh["other"], address, port, "/public/x", timeout=REFUSED)


# --- the proxy's own ports ---------------------------------------------------------------------------------


def proxy_ports(mesh: Mesh, node: str) -> set[int]:
    low, high = Settings().proxy_listen_ports
    found = set()
    with lab.entered(mesh.spec.node(node).netns):
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/thread-self/net", table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                port = int(local.rpartition(":")[2], 16)
                if state == "0A" and low <= port <= high:
                    found.add(port)
    return found


@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_a_proxy_port_that_is_dialled_serves_nothing(mesh: Mesh, node: str) -> None:
    here = mesh.spec.node(node)
    target = mesh["api" if node == "node-a" else "far"]
    addresses = ["127.0.0.1", "::1", *map(str, here.addresses), *map(str, target.addresses)]
    dialled = proxy_ports(mesh, node)
    assert dialled
    request = f"GET /public/x HTTP/1.1\r\nHost: {target.address()}:8080\r\n\r\n".encode()
    clients = (here, mesh["client"], mesh["away"], mesh["other"])
    ways = [(c, a, p) for c in clients for a in addresses for p in sorted(dialled)]
    assert answers(ways, request) == {}


def answers(
    ways: list[tuple[LabWorkload | LabNode, str, int]], request: bytes
) -> dict[tuple[str, str, int], bytes]:
    """What comes back for a request on each way, all tried at once; nothing where nothing comes."""
    poller = select_.poll()
    names: dict[int, tuple[str, str, int]] = {}
    found: dict[tuple[str, str, int], bytes] = {}
    with ExitStack() as stack:
        sockets = {}
        for client, address, port in ways:
            sock = stack.enter_context(make_socket(client.netns, version=6 if ":" in address else 4))
            sock.setblocking(False)
            sock.connect_ex((address, port))
            sockets[sock.fileno()], names[sock.fileno()] = sock, (client.name, address, port)
            poller.register(sock, select_.POLLOUT)
        deadline = time.monotonic() + 2
        while sockets and (left := deadline - time.monotonic()) > 0:
            for fd, events in poller.poll(left * 1000):
                if events & select_.POLLOUT and not events & (select_.POLLERR | select_.POLLHUP):
                    sockets[fd].send(request)
                    poller.modify(fd, select_.POLLIN)
                    continue
                data = b""
                with suppress(OSError):
                    data = sockets[fd].recv(4096)
                if data:
                    found[names[fd]] = data
                poller.unregister(fd)
    return found


@pytest.mark.parametrize("name", ["x-penstock-destination", "x-envoy-original-dst-host"])
def test_no_header_leads_elsewhere(mesh: Mesh, name: str) -> None:
    other = f"{mesh['other'].address()}:8080"
    answer = ask(
        mesh["client"], mesh["api"].address(), 8080, "/public/x", headers={name: other, "host": other}
    )
    assert answer.pod == "api"
    assert "X-Penstock-Destination" not in answer.json["headers"]


def test_what_a_client_claims_to_be_forwarded_for_is_not_believed(mesh: Mesh) -> None:
    headers = {"x-forwarded-for": str(mesh["client"].address()), "x-envoy-external-address": "10.244.1.10"}
    vip = mesh.vip("routed-api")
    assert ask(mesh["other"], vip, 80, "/public/x", headers=headers).status == 403
    assert ask(mesh["client"], vip, 80, "/public/x", headers={"x-forwarded-for": "192.0.2.1"}).status == 200


def test_a_client_port_of_the_proxys_range_changes_nothing(mesh: Mesh) -> None:
    for number, path in enumerate(("/public/x", "/private")):
        with connect(mesh["client"], mesh["api"].address(), 8080, source_port=24000 + number) as sock:
            request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            assert served(sock, request).split()[1] == (b"200" if path == "/public/x" else b"403")


# --- addresses that are somebody else's --------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("victim", ["client", "away", "node"])
def test_a_workload_cannot_speak_with_another_ones_address(mesh: Mesh, victim: str, version: int) -> None:
    daemon = mesh.on("other")
    if victim == "node":
        stolen = next(a for a in mesh.spec.node("node-a").addresses if a.version == version)
    else:
        stolen = mesh[victim].address(version)
    with extra_address(mesh["other"], stolen):
        before = daemon.counter("SPOOFED_SOURCE")
        with pytest.raises(TimeoutError):
            connect(mesh["other"], mesh["api"].address(version), 8080, timeout=REFUSED, source=stolen)
        with make_socket(mesh["other"].netns, socket.SOCK_DGRAM, version) as sock:
            sock.bind((str(stolen), 0))
            sock.sendto(b"x", (str(mesh["api"].address(version)), 9091))
    assert daemon.counter("SPOOFED_SOURCE") >= before + 2


@pytest.mark.parametrize("version", [4, 6])
def test_another_node_cannot_speak_with_a_local_workloads_address(mesh: Mesh, version: int) -> None:
    daemon, stolen = mesh.on("client"), mesh["client"].address(version)
    before = daemon.counter("SPOOFED_SOURCE")
    with extra_address(mesh.spec.node("node-b"), stolen), pytest.raises((TimeoutError, OSError)):
        connect(mesh.spec.node("node-b"), mesh["api"].address(version), 8080, timeout=REFUSED, source=stolen)
    assert daemon.counter("SPOOFED_SOURCE") > before


def test_packets_made_by_hand(mesh: Mesh) -> None:
    """A raw socket forges the source; and what a Service's address gets untranslated goes nowhere."""
    daemon = mesh.on("other")

    def forge(source: str, destination: str, port: int) -> None:
        udp = struct.pack("!HHHH", 5353, port, 9, 0) + b"x"
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0,
            ip_address(source).packed, ip_address(destination).packed,
        )  # fmt: skip
        with make_socket(mesh["other"].netns, socket.SOCK_DGRAM), lab.entered(mesh["other"].netns):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw:
            raw.sendto(head + udp, (destination, 0))

    before = {reason: daemon.counter(reason) for reason in ("SPOOFED_SOURCE", "POLICY_DENIED_INGRESS")}
    forge(str(mesh["client"].address()), str(mesh["api"].address()), 9091)
    assert daemon.counter("SPOOFED_SOURCE") == before["SPOOFED_SOURCE"] + 1
    # To a Service's address, past the connect hooks: judged at the endpoint as any other way there.
    with lab.entered(mesh["other"].netns):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with raw:
        vip = mesh.vip("api")
        syn = struct.pack("!HHIIBBHHH", 40000, 80, 1, 0, 0x50, 2, 1024, 0, 0)
        raw.sendto(syn, (vip, 0))
    assert daemon.counter("POLICY_DENIED_INGRESS") == before["POLICY_DENIED_INGRESS"] + 1
