"""PeerAuthentication for the mesh, a namespace, a workload and a port, on every way in; who speaks first."""

from __future__ import annotations

import smtplib
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from clients import REFUSED, Sniffer, ask, connect, extra_address, until
from conftest import MeshFactory
from objects import gateway, http_route, listener, policy, ports, route, select, service, to
from rig import Mesh, workload
from test_gateway_http import address

SECRET = "a-token-that-must-not-be-read"
STRANGER = "192.168.77.201"
GREETING = "220 far.example ESMTP speaks first"
SMTP_SERVER = f"""
import socketserver
class Session(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"{GREETING}\\r\\n")
        data = False
        for line in self.rfile:
            word = line[:4].upper()
            if data:
                data = line != b".\\r\\n"
                if not data:
                    self.wfile.write(b"250 taken\\r\\n")
            elif word == b"DATA":
                data = True
                self.wfile.write(b"354 go on\\r\\n")
            elif word == b"QUIT":
                self.wfile.write(b"221 bye\\r\\n")
                return
            else:
                self.wfile.write(b"250 fine\\r\\n")
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    address_family = __import__("socket").AF_INET6
Server(("::", 25), Session).serve_forever()
"""
SERVICES = (
    service("far", {"port": 80, "targetPort": 8080}, selector={"app": "far"}),
    service("routed", {"port": 80, "targetPort": 8080}, selector={"app": "far"}),
    route("routed", "routed", {"backendRefs": [to("far")]}),
    gateway("gw", listener()),
    http_route("r", "gw", {"backendRefs": [to("far")]}),
)


@pytest.fixture(scope="module", params=["routed", "bridged"])
def mesh(make_mesh: MeshFactory, request: pytest.FixtureRequest) -> Mesh:
    """The same on routed links and with every workload on a bridge."""
    far = workload("far", "node-b", serves=True)
    far["ports"].append({"name": "smtp", "containerPort": 25})
    far["run"].append([sys.executable, "-c", SMTP_SERVER])
    return make_mesh(
        workload("client", "node-a"), far, workload("near", "node-b"), bridged=request.param == "bridged"
    )


# --- what a way carries -----------------------------------------------------------------------------------


def heard(mesh: Mesh, go: Callable[[], Any]) -> str:
    """How one request with a secret crosses the wire: in plain text, as TLS, or not at all."""
    with Sniffer(mesh.spec.underlay_netns, "port0") as seen:
        try:
            assert go().status == 200
        except (TimeoutError, ConnectionError):
            return "refused"
    if seen.carried(SECRET.encode()):
        return "plain"
    # No handshake, where a connection of before serves.
    assert any(payload[:2] == b"\x17\x03" for _, payload in seen.segments)
    return "tls"


def ways(mesh: Mesh) -> dict[str, Callable[[], Any]]:
    """Every way from another node to port 8080 of `far`."""
    client, far, node = mesh["client"], mesh["far"].address(), mesh.spec.node("node-a")
    told = {"headers": {"authorization": SECRET}, "timeout": 3.0}
    short = {**told, "timeout": REFUSED}

    def stranger() -> Any:
        with extra_address(node, STRANGER):
            return _from(node, far, STRANGER)

    return {
        "direct": lambda: ask(client, far, 8080, **told),
        "service": lambda: ask(client, mesh.vip("far"), 80, **told),
        "route": lambda: ask(client, mesh.vip("routed"), 80, **told),
        "gateway": lambda: ask(client, address(mesh), 80, **told),
        "host": lambda: ask(node, far, 8080, **short),  # type: ignore[arg-type]
        "stranger": stranger,
    }


def _from(node: Any, target: Any, source: str) -> Any:
    with connect(node, target, 8080, source=source, timeout=REFUSED) as sock:
        sock.sendall(f"GET / HTTP/1.0\r\nauthorization: {SECRET}\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.0 200")
    return type("Answered", (), {"status": 200})


TLS, PLAIN, NOT = "tls", "plain", "refused"
WAYS = ("direct", "service", "route", "gateway", "host", "stranger")
WANTED = {
    "STRICT": (TLS, TLS, TLS, TLS, NOT, NOT),
    "PERMISSIVE": (PLAIN, PLAIN, TLS, TLS, PLAIN, PLAIN),
    "DISABLE": (PLAIN,) * 6,
}
OPPOSITE = {"STRICT": "DISABLE", "PERMISSIVE": "STRICT", "DISABLE": "STRICT"}


def authentication(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def said_at(level: str, mode: str) -> list[dict[str, Any]]:
    """The mode at that level, and the opposite at every wider one."""
    mtls, other = {"mode": mode}, {"mode": OPPOSITE[mode]}
    levels = ["mesh", "namespace", "workload", "port"]
    wider = levels[: levels.index(level)]
    found = []
    if "mesh" in (level, *wider):
        found.append(authentication("mesh", "istio-system", mtls=mtls if level == "mesh" else other))
    if "namespace" in (level, *wider):
        found.append(authentication("namespace", mtls=mtls if level == "namespace" else other))
    if level in ("workload", "port"):
        own = authentication("far", selector=select(app="far"), mtls=mtls if level == "workload" else other)
        if level == "port":
            own["spec"]["portLevelMtls"] = {"8080": mtls}
        found.append(own)
    return found


@pytest.mark.parametrize("mode", WANTED)
@pytest.mark.parametrize("level", ["mesh", "namespace", "workload", "port"])
def test_a_mode_holds_on_every_way_in(mesh: Mesh, level: str, mode: str) -> None:
    mesh.apply(*SERVICES, *said_at(level, mode))
    before = mesh.on("far").counter("PLAINTEXT_TO_STRICT")
    there = ways(mesh)
    assert tuple(heard(mesh, there[way]) for way in WAYS) == WANTED[mode]
    # Whom the kernel itself proves: a neighbour, and the node's own processes.
    assert ask(mesh["near"], mesh["far"].address(), 8080).status == 200
    assert ask(mesh.spec.node("node-b"), mesh["far"].address(), 8080).status == 200  # type: ignore[arg-type]
    assert (mesh.on("far").counter("PLAINTEXT_TO_STRICT") > before) is (mode == "STRICT")


def test_a_port_changes_its_mode_under_a_live_connection(mesh: Mesh) -> None:
    """What was let in as plain text is not any more; the other ports stay as they were."""
    client, far = mesh["client"], mesh["far"].address()
    own = authentication("far", selector=select(app="far"), mtls={"mode": "PERMISSIVE"})
    mesh.apply(own)
    with connect(client, far, 9090, timeout=1) as open_, connect(client, far, 8081, timeout=1) as other:
        open_.sendall(b"there")
        assert open_.recv(99) == b"there"
        own["spec"]["portLevelMtls"] = {"9090": {"mode": "STRICT"}}
        mesh.apply(own)
        ended = pytest.raises((TimeoutError, ConnectionError))
        with Sniffer(mesh.spec.underlay_netns, "port0") as seen, ended:
            open_.sendall(SECRET.encode())
            if not open_.recv(99):
                raise ConnectionError
        assert not any(source == 9090 and SECRET.encode() in data for source, data in seen.segments)
        other.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert other.recv(99).startswith(b"HTTP/1.0 200")
    with connect(client, far, 9090, timeout=3) as anew, Sniffer(mesh.spec.underlay_netns, "port0") as seen:
        anew.sendall(SECRET.encode())
        assert anew.recv(99) == SECRET.encode()
    assert not seen.carried(SECRET.encode())


def test_a_rule_that_demands_authentication_says_the_same_as_strict(mesh: Mesh) -> None:
    """CiliumNetworkPolicy `authentication.mode: required`, for one port."""
    rule = {"fromEndpoints": [select()], "toPorts": [ports(8080)], "authentication": {"mode": "required"}}
    rest = {"fromEntities": ["all"], "toPorts": [ports(9090)]}
    mesh.apply(*SERVICES, policy("far", select(app="far"), ingress=[rule, rest]))
    there = ways(mesh)
    found = tuple(heard(mesh, there[way]) for way in ("direct", "service", "route", "host", "stranger"))
    assert found == (TLS, TLS, TLS, NOT, NOT)


# --- who speaks first --------------------------------------------------------------------------------------


class Mail(smtplib.SMTP):
    """The standard client, on a socket of a workload."""

    def __init__(self, mesh: Mesh, version: int) -> None:
        self._mesh = mesh
        super().__init__(str(mesh["far"].address(version)), 25, local_hostname="client", timeout=5)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return connect(self._mesh["client"], host, port, timeout=timeout)


@contextmanager
def wire(mesh: Mesh) -> Iterator[Sniffer]:
    with Sniffer(mesh.spec.underlay_netns, "port0") as seen:
        yield seen


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", WANTED)
def test_a_server_that_speaks_first_is_heard(mesh: Mesh, mode: str, version: int) -> None:
    mesh.apply(authentication("far", selector=select(app="far"), portLevelMtls={"25": {"mode": mode}}))
    until("the mail server listens", lambda: _greets(mesh, version))
    with wire(mesh) as seen, connect(mesh["client"], mesh["far"].address(version), 25, timeout=5) as sock:
        # Not a byte is sent before it.
        assert sock.recv(99).decode().strip() == GREETING
    assert seen.carried(GREETING.encode()) is (mode != "STRICT")
    with wire(mesh) as seen, Mail(mesh, version) as mail:
        letter = f"Subject: {SECRET}\r\n\r\nbody\r\n"
        assert mail.sendmail("a@client.example", ["b@far.example"], letter) == {}
    assert seen.carried(SECRET.encode()) is (mode != "STRICT")


def _greets(mesh: Mesh, version: int) -> bool:
    try:
        with connect(mesh["client"], mesh["far"].address(version), 25, timeout=2) as sock:
            return sock.recv(1) == b"2"
    except OSError:
        return False
