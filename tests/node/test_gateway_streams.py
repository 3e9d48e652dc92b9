"""TLSRoute and TCPRoute on Gateways, through the real Envoy: by feature name, and no way around policy."""

from __future__ import annotations

import json
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from clients import connect, make_socket, until
from conftest import MeshFactory
from objects import gateway, listener, peer_authentication, policy, select, service, to
from rig import PENSTOCK, Mesh, workload
from test_explain import told as explain

from penstock.lab.echo_tls import self_signed

API = "gateway.networking.k8s.io/v1"
SERVICES = tuple(
    service(
        name,
        {"name": "tcp", "port": 90, "targetPort": 9090},
        {"name": "tls", "port": 443, "targetPort": 8443},
        {"name": "udp", "port": 91, "targetPort": 9091, "protocol": "UDP"},
        selector={"app": name},
    )
    for name in ("one", "two")
)


def serving(name: str) -> dict[str, Any]:
    echo = [*PENSTOCK, "lab", "echo", "--name", name, "--tcp", "9090", "--tls", "8443", "--udp", "9091"]
    return workload(name, "node-a", run=[[*echo, "--hostname", f"{name}.example"]])


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(workload("client", "node-a"), serving("one"), serving("two"))


def secret(name: str, *hostnames: str) -> dict[str, Any]:
    certificate, key = self_signed(hostnames)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": certificate.decode(), "tls.key": key.decode()},
    }


def l4_route(
    kind: str, name: str, *refs: dict[str, Any], hostnames: list[str] | None = None, **parent: Any
) -> dict[str, Any]:
    spec: dict[str, Any] = {"parentRefs": [{"name": "gw", **parent}], "rules": [{"backendRefs": list(refs)}]}
    if hostnames:
        spec["hostnames"] = hostnames
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def tls(name: str = "tls", mode: str = "Passthrough", *secrets: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"mode": mode}
    if secrets:
        made["certificateRefs"] = [{"name": s} for s in secrets]
    return listener(name, 443, "TLS", tls=made, **more)


def shown(mesh: Mesh, kind: str, name: str) -> dict[str, Any]:
    daemon = mesh.on("client")
    found = daemon.call("get", kind=kind, object_name=name, namespace="default", all_namespaces=False)
    return dict(found["status"])


def address(mesh: Mesh) -> str:
    return str(shown(mesh, "gateway", "gw")["addresses"][0]["value"])


def told(mesh: Mesh, kind: str, name: str) -> dict[str, str]:
    (parent,) = shown(mesh, kind, name)["parents"]
    return {c["type"]: f"{c['status']} {c['reason']}" for c in parent["conditions"]}


def who(sock: socket.socket) -> str:
    """Who answers there; '' if the connection is closed or silent."""
    sock.settimeout(1.5)
    with suppress(OSError):
        sock.sendall(b"who?")
        if data := sock.recv(999):
            return str(json.loads(data)["pod"])
    return ""


def tcp(mesh: Mesh, port: int = 90, client: str = "client") -> str:
    with suppress(OSError), connect(mesh[client], address(mesh), port, timeout=1.5) as sock:
        return who(sock)
    return ""


@contextmanager
def over_tls(mesh: Mesh, name: str) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        connect(mesh["client"], address(mesh), 443) as sock,
        context.wrap_socket(sock, server_hostname=name) as wrapped,
    ):
        yield wrapped


def by_name(mesh: Mesh, name: str) -> tuple[str, str]:
    """(who answers, the name in the certificate that was shown)"""
    try:
        with over_tls(mesh, name) as sock:
            from cryptography import x509

            shown = x509.load_der_x509_certificate(sock.getpeercert(binary_form=True) or b"")
            return who(sock), str(shown.subject.rdns[0].rfc4514_string()).removeprefix("CN=")
    except OSError:
        return "", ""


TCP_GATEWAY = gateway("gw", listener("tcp", 90, "TCP"))


def test_TCPRoute(mesh: Mesh) -> None:
    mesh.apply(*SERVICES, TCP_GATEWAY, l4_route("TCPRoute", "r", to("one", port=90)))
    assert tcp(mesh) == "one"
    assert told(mesh, "tcproute", "r") == {
        "Accepted": "True Accepted",
        "ResolvedRefs": "True ResolvedRefs",
        "Programmed": "True Programmed",
    }
    (status,) = shown(mesh, "gateway", "gw")["listeners"]
    assert status["attachedRoutes"] == 1
    assert status["supportedKinds"] == [{"group": "gateway.networking.k8s.io", "kind": "TCPRoute"}]
    # A backend may be a client too.
    assert tcp(mesh, client="two") == "one"


def test_TCPRoute_weights(mesh: Mesh) -> None:
    refs = (to("one", weight=3, port=90), to("two", weight=1, port=90), to("two", weight=0, port=90))
    mesh.apply(*SERVICES, TCP_GATEWAY, l4_route("TCPRoute", "r", *refs))
    seen = Counter(tcp(mesh) for _ in range(80))
    assert seen["one"] + seen["two"] == 80
    assert 45 < seen["one"] < 74


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ({"name": "nobody", "port": 90}, "BackendNotFound"),
        ({"name": "one", "port": 90, "namespace": "shop"}, "RefNotPermitted"),
        ({"name": "one", "kind": "Fancy", "group": "x.example"}, "InvalidKind"),
        ({"name": "one", "port": 91}, "UnsupportedProtocol"),
    ],
)
def test_TCPRoute_invalid_backend(mesh: Mesh, ref: dict[str, Any], reason: str) -> None:
    mesh.apply(*SERVICES, TCP_GATEWAY, l4_route("TCPRoute", "r", ref))
    assert told(mesh, "tcproute", "r")["ResolvedRefs"] == f"False {reason}"
    assert tcp(mesh) == ""


def test_TCPRoute_no_matching_listener(mesh: Mesh) -> None:
    mesh.apply(*SERVICES, TCP_GATEWAY, l4_route("TCPRoute", "r", to("one", port=90), sectionName="other"))
    assert told(mesh, "tcproute", "r")["Accepted"] == "False NoMatchingParent"
    mesh.apply(*SERVICES, gateway("gw"), l4_route("TCPRoute", "r", to("one", port=90)))
    assert told(mesh, "tcproute", "r")["Accepted"] == "False NotAllowedByListeners"


def test_routes_of_streams_at_each_listener(mesh: Mesh) -> None:
    """By section, by port, by both, or at all that fit; the others stay Programmed, and nobody listens."""
    ways: list[dict[str, Any]] = [{}, {"port": 92}, {"sectionName": "b"}, {"sectionName": "b", "port": 92}]
    ports = [("a", 90, "TCP"), ("b", 92, "TCP"), ("udp", 91, "UDP"), ("web", 80, "HTTP")]
    listened = [listener(*each) for each in ports]
    for parent in ways:
        mesh.apply(
            *SERVICES, gateway("gw", *listened), l4_route("TCPRoute", "r", to("one", port=90), **parent)
        )
        status = shown(mesh, "gateway", "gw")
        counts = {each["name"]: each["attachedRoutes"] for each in status["listeners"]}
        assert counts == {"a": not parent, "b": 1, "udp": 0, "web": 0}
        for each in (*status["listeners"], status):
            assert {c["status"] for c in each["conditions"] if c["type"] == "Programmed"} == {"True"}
        assert [tcp(mesh, port) for port in (90, 92)] == ["" if parent else "one", "one"]
    for kind, section in (("UDPRoute", "a"), ("TCPRoute", "udp"), ("TLSRoute", "web"), ("TLSRoute", "a")):
        names = {"hostnames": ["one.example"]} if kind == "TLSRoute" else {}
        route = l4_route(
            kind, "r", to("one", port=91 if kind == "UDPRoute" else 90), sectionName=section, **names
        )
        mesh.apply(*SERVICES, gateway("gw", *listened), route)
        assert told(mesh, kind.lower(), "r")["Accepted"] == "False NotAllowedByListeners", (kind, section)
        assert {each["attachedRoutes"] for each in shown(mesh, "gateway", "gw")["listeners"]} == {0}


def test_the_older_of_two_routes_has_the_listener(mesh: Mesh) -> None:
    """Both are accepted and counted; of equal age the first by name is the older one."""
    for kind, on in (("UDPRoute", listener("x", 91, "UDP")), ("TCPRoute", listener("x", 90, "TCP"))):
        port = 91 if kind == "UDPRoute" else 90
        routes = [l4_route(kind, name, to(name, port=port)) for name in ("one", "two")]
        mesh.apply(*SERVICES, gateway("gw", on), *routes)
        assert {told(mesh, kind.lower(), name)["Accepted"] for name in ("one", "two")} == {"True Accepted"}
        assert shown(mesh, "gateway", "gw")["listeners"][0]["attachedRoutes"] == 2
        assert {udp(mesh) if kind == "UDPRoute" else tcp(mesh) for _ in range(6)} == {"one"}


def test_TLSRoute(mesh: Mesh) -> None:
    """Passed on as it is: the backend's own certificate is shown."""
    names = ["one.example", "*.wild.example"]
    mesh.apply(
        *SERVICES,
        gateway("gw", tls()),
        l4_route("TLSRoute", "r", to("one", port=443), hostnames=names),
        l4_route("TLSRoute", "s", to("two", port=443), hostnames=["two.example", "deep.wild.example"]),
    )
    assert by_name(mesh, "one.example") == ("one", "one.example")
    assert by_name(mesh, "two.example") == ("two", "two.example")
    assert by_name(mesh, "any.wild.example")[0] == "one"
    assert by_name(mesh, "deep.wild.example")[0] == "two"
    assert by_name(mesh, "other.example") == ("", "")
    assert told(mesh, "tlsroute", "r")["Accepted"] == "True Accepted"


def test_TLSRoute_hostname_intersection(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        gateway("gw", tls(hostname="*.wild.example")),
        l4_route("TLSRoute", "r", to("one", port=443), hostnames=["a.wild.example", "one.example"]),
        l4_route("TLSRoute", "s", to("two", port=443), hostnames=["two.example"]),
    )
    assert by_name(mesh, "a.wild.example")[0] == "one"
    assert by_name(mesh, "one.example") == ("", "")
    assert told(mesh, "tlsroute", "s")["Accepted"] == "False NoMatchingListenerHostname"


def test_TLSRouteModeTerminate(mesh: Mesh) -> None:
    """The Gateway's certificate is shown, and what is inside goes on in the clear."""
    mesh.apply(
        *SERVICES,
        secret("cert", "gw.example"),
        gateway("gw", tls("tls", "Terminate", "cert")),
        l4_route("TLSRoute", "r", to("one", port=90), hostnames=["gw.example"]),
    )
    assert by_name(mesh, "gw.example") == ("one", "gw.example")
    assert by_name(mesh, "other.example") == ("", "")


def test_TLSRouteModeMixed(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        secret("cert", "ended.example"),
        gateway(
            "gw",
            tls("passed", hostname="one.example"),
            tls("ended", "Terminate", "cert", hostname="ended.example"),
        ),
        l4_route("TLSRoute", "r", to("one", port=443), hostnames=["one.example"], sectionName="passed"),
        l4_route("TLSRoute", "s", to("two", port=90), hostnames=["ended.example"], sectionName="ended"),
    )
    assert by_name(mesh, "one.example") == ("one", "one.example")
    assert by_name(mesh, "ended.example") == ("two", "ended.example")
    # The kernel's own maps say the same, and so do the manifests alone.
    for more in ((), ("-f", str(mesh.config))):
        for name, code, end in (
            ("one.example", 0, "one:8443"),
            ("ended.example", 0, "two:9090"),
            ("x", 1, ""),
        ):
            asked = ("client", "gateway/gw:443", "--server-name", name, *more)
            exit_code, found, _ = explain(mesh, "node-a", *asked)
            assert (exit_code, [e["endpoint"].removeprefix("default/") for e in found["endpoints"]]) == (
                code,
                [end],
            )


# --- policy ---------------------------------------------------------------------------------------------


def test_a_stream_is_judged_as_the_gateways(mesh: Mesh) -> None:
    """Identity 8 alone counts: neither the client's own rights, nor a rule for some requests, opens it."""
    route = l4_route("TCPRoute", "r", to("one", port=90))

    def apply(*peers: dict[str, Any]) -> None:
        closed = policy("in", select(app="one"), ingress=[*peers, {"fromEndpoints": [select(app="two")]}])
        mesh.apply(*SERVICES, TCP_GATEWAY, route, closed)

    def explained() -> str:
        return str(explain(mesh, "node-a", "client", f"{address(mesh)}:90")[1]["reason"])

    apply({"fromEndpoints": [select(app="client")]})
    assert (tcp(mesh), explained()) == ("", "POLICY_DENIED_INGRESS")
    apply({"fromEntities": ["ingress"]})
    assert (tcp(mesh), explained()) == ("one", "REDIRECTED")
    http = [{"ports": [{"port": "9090", "protocol": "TCP"}], "rules": {"http": [{"path": "/x"}]}}]
    apply({"fromEntities": ["ingress"], "toPorts": http})
    assert (tcp(mesh), explained()) == ("", "REQUEST_DENIED")


def test_an_open_stream_obeys_the_policy_of_now(mesh: Mesh) -> None:
    route = l4_route("TCPRoute", "r", to("one", port=90))
    mesh.apply(*SERVICES, TCP_GATEWAY, route)
    with connect(mesh["client"], address(mesh), 90) as sock:
        assert who(sock) == "one"
        closed = policy("in", select(app="one"), ingress=[{"fromEndpoints": [select(app="two")]}])
        mesh.apply(*SERVICES, TCP_GATEWAY, route, closed)
        assert who(sock) == ""


def test_a_client_that_may_not_reach_gateways(mesh: Mesh) -> None:
    out = policy("out", select(app="client"), egress=[{"toEndpoints": [select(app="one")]}])
    mesh.apply(*SERVICES, TCP_GATEWAY, l4_route("TCPRoute", "r", to("one", port=90)), out)
    assert tcp(mesh) == ""
    assert tcp(mesh, client="two") == "one"


def test_a_route_changes_under_an_open_stream(mesh: Mesh) -> None:
    mesh.apply(*SERVICES, TCP_GATEWAY, l4_route("TCPRoute", "r", to("one", port=90)))
    with connect(mesh["client"], address(mesh), 90) as sock:
        assert who(sock) == "one"
        mesh.apply(*SERVICES, TCP_GATEWAY, l4_route("TCPRoute", "r", to("two", port=90)))
        until("new connections go the new way", lambda: tcp(mesh) == "two")
        assert who(sock) == "one"


# --- UDP ------------------------------------------------------------------------------------------------

UDP_GATEWAY = gateway("gw", listener("udp", 91, "UDP"), listener("tcp", 91, "TCP"))


def udp(mesh: Mesh, client: str = "client") -> str:
    """Who answers a datagram from a new port; '' if nobody does."""
    with make_socket(mesh[client].netns, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.7)
        sock.sendto(b"who?", (address(mesh), 91))
        try:
            data, peer = sock.recvfrom(999)
        except (TimeoutError, ConnectionError):
            return ""
        assert peer == (address(mesh), 91)
        return str(json.loads(data)["pod"])


def test_UDPRoute(mesh: Mesh) -> None:
    mesh.apply(*SERVICES, UDP_GATEWAY, l4_route("UDPRoute", "r", to("one", port=91), sectionName="udp"))
    assert udp(mesh) == "one"
    assert udp(mesh, "two") == "one"
    assert told(mesh, "udproute", "r") == {
        "Accepted": "True Accepted",
        "ResolvedRefs": "True ResolvedRefs",
        "Programmed": "True Programmed",
    }
    status = next(s for s in shown(mesh, "gateway", "gw")["listeners"] if s["name"] == "udp")
    assert status["attachedRoutes"] == 1


def test_UDPRoute_weights(mesh: Mesh) -> None:
    refs = (to("one", weight=3, port=91), to("two", weight=1, port=91))
    mesh.apply(*SERVICES, UDP_GATEWAY, l4_route("UDPRoute", "r", *refs))
    seen = Counter(udp(mesh) for _ in range(80))
    assert seen["one"] + seen["two"] == 80
    assert 45 < seen["one"] < 74


def test_UDPRoute_invalid_backends(mesh: Mesh) -> None:
    """The share of what cannot be used gets lost; alone it is everything."""
    mesh.apply(*SERVICES, UDP_GATEWAY, l4_route("UDPRoute", "r", to("nobody", port=91)))
    assert told(mesh, "udproute", "r")["ResolvedRefs"] == "False BackendNotFound"
    assert udp(mesh) == ""
    half = (to("one", port=91), to("one", port=90))
    mesh.apply(*SERVICES, UDP_GATEWAY, l4_route("UDPRoute", "r", *half))
    assert told(mesh, "udproute", "r")["ResolvedRefs"] == "False UnsupportedProtocol"
    seen = Counter(udp(mesh) for _ in range(12))
    assert set(seen) == {"one", ""}


def test_datagrams_are_judged_as_the_gateways(mesh: Mesh) -> None:
    """They leave neither from the node's own address, which is let in everywhere, nor as the client's."""
    route = l4_route("UDPRoute", "r", to("one", port=91))

    def apply(*peers: dict[str, Any]) -> None:
        mesh.apply(*SERVICES, UDP_GATEWAY, route, policy("in", select(app="one"), ingress=list(peers)))

    apply({"fromEndpoints": [select(app="client")]})
    assert udp(mesh) == ""
    apply({"fromEntities": ["host"]})
    assert udp(mesh) == ""
    apply({"fromEntities": ["ingress"]})
    assert udp(mesh) == "one"
    out = policy("out", select(app="client"), egress=[{"toEndpoints": [select(app="one")]}])
    mesh.apply(*SERVICES, UDP_GATEWAY, route, out)
    assert (udp(mesh), udp(mesh, "two")) == ("", "one")


def test_a_flow_of_datagrams_obeys_the_policy_of_now(mesh: Mesh) -> None:
    route = l4_route("UDPRoute", "r", to("one", port=91))
    mesh.apply(*SERVICES, UDP_GATEWAY, route)
    with make_socket(mesh["client"].netns, socket.SOCK_DGRAM) as sock:
        sock.connect((address(mesh), 91))
        assert who(sock) == "one"
        closed = policy("in", select(app="one"), ingress=[{"fromEndpoints": [select(app="two")]}])
        mesh.apply(*SERVICES, UDP_GATEWAY, route, closed)
        assert who(sock) == ""


def test_a_backend_that_demands_mesh_tls_takes_streams_of_its_own_node(mesh: Mesh) -> None:
    strict = peer_authentication("strict", "STRICT", app="one")
    mesh.apply(*SERVICES, TCP_GATEWAY, l4_route("TCPRoute", "r", to("one", port=90)), strict)
    assert tcp(mesh) == "one"
