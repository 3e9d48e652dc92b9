"""Gateways over HTTPS, through the real Envoy: certificates by SNI, HTTP/2, misdirected requests, client
certificates."""

from __future__ import annotations

import base64
import http.client
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clients import Answer, connect
from conftest import MeshFactory
from objects import gateway, http_route, listener, service, to
from rig import Mesh, workload
from test_gateway_http import address, conditions, shown

from penstock.lab.echo_tls import self_signed

WEB = {"port": 80, "targetPort": 8080}
SERVICES = tuple(service(n, WEB, selector={"app": n}) for n in ("api", "other"))


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        workload("other", "node-a", serves=True),
    )


class Pair:
    """A certificate that is its own authority, and its key."""

    def __init__(self, *names: str) -> None:
        self.chain, self.key = self_signed(names)

    def secret(self, name: str, namespace: str = "default") -> dict[str, Any]:
        data = {"tls.crt": self.chain, "tls.key": self.key}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "type": "kubernetes.io/tls",
            "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
        }

    def authorities(self, name: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"ca.crt": self.chain.decode()},
        }


def tls(*names: str) -> dict[str, Any]:
    return {"certificateRefs": [{"name": name} for name in names]}


def https(hostname: str, *secrets: str, name: str = "", port: int = 443, **more: Any) -> dict[str, Any]:
    host = {"hostname": hostname} if hostname else {}
    return listener(
        name or (hostname.replace("*", "any") or "all"), port, "HTTPS", tls=tls(*secrets), **host, **more
    )


class Tls:
    """One TLS connection from a workload. Trusts `server` alone, and shows the certificate of `mine`."""

    def __init__(
        self,
        mesh: Mesh,
        sni: str,
        server: Pair,
        mine: Pair | None = None,
        *,
        port: int = 443,
        alpn: str = "http/1.1",
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=server.chain.decode())
        context.set_alpn_protocols([alpn])
        if mine is not None:
            with tempfile.TemporaryDirectory() as folder:
                pem = Path(folder, "pem")
                pem.write_bytes(mine.key + mine.chain)
                context.load_cert_chain(pem)
        raw = connect(mesh["client"], address(mesh), port)
        self.sock = context.wrap_socket(raw, server_hostname=sni)
        self._http = http.client.HTTPConnection(sni, port)
        self._http.sock = self.sock
        self._http.auto_open = 0

    def ask(self, host: str, path: str = "/") -> Answer:
        self._http.request("GET", path, headers={"Host": host})
        response = self._http.getresponse()
        return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Tls:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refused(attempt: Callable[[], Tls]) -> bool:
    """Whether a connection is refused: in TLS 1.3 the client learns of its own certificate's fate
    afterwards."""
    try:
        with attempt() as connection:
            connection.ask("example.org")
    except (OSError, http.client.HTTPException, ssl.SSLError):
        return True
    return False


def listeners(mesh: Mesh, name: str = "gw") -> dict[str, dict[str, tuple[str, str]]]:
    status = shown(mesh, "gateway", name)["status"]
    return {each["name"]: conditions(each["conditions"]) for each in status["listeners"]}


A, WILD, REST = Pair("a.example.org"), Pair("*.wild.org"), Pair("localhost", "other.example.org")


def test_certificates_by_sni_and_misdirected_requests(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        A.secret("a"),
        WILD.secret("wild"),
        REST.secret("rest"),
        gateway("gw", https("a.example.org", "a"), https("*.wild.org", "wild"), https("", "rest")),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    )
    for sni, pair in (("a.example.org", A), ("deep.wild.org", WILD), ("other.example.org", REST)):
        with Tls(mesh, sni, pair) as connection:
            answer = connection.ask(sni)
            assert (answer.status, answer.pod) == (200, "api")
            assert answer.json["headers"]["X-Forwarded-Proto"] == ["https"]
    with Tls(mesh, "a.example.org", A) as connection:
        assert connection.ask("x.wild.org").status == 421
        assert connection.ask("elsewhere.net").status == 421
        assert connection.ask("a.example.org:443").status == 200
    with Tls(mesh, "other.example.org", REST) as connection:
        assert connection.ask("a.example.org").status == 421
        assert connection.ask("elsewhere.net").status == 200


def test_OverlappingTLSConfig(mesh: Mesh) -> None:
    mesh.apply(
        A.secret("a"),
        gateway(
            "gw",
            https("foo.example.org", "a"),
            https("*.example.org", "a"),
            https("apart.net", "a"),
            https("*.example.org", "a", name="elsewhere", port=8443),
        ),
    )
    found = listeners(mesh)
    for name in ("foo.example.org", "any.example.org"):
        assert found[name]["OverlappingTLSConfig"] == ("True", "OverlappingHostnames")
        assert found[name]["Programmed"] == ("True", "Programmed")
    for name in ("apart.net", "elsewhere"):
        assert "OverlappingTLSConfig" not in found[name]


def test_without_a_listener_for_it_a_host_is_not_found(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        A.secret("a"),
        gateway("gw", https("a.example.org", "a")),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    )
    with Tls(mesh, "a.example.org", A) as connection:
        assert connection.ask("elsewhere.net").status == 404


def test_several_certificates_of_one_listener(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        A.secret("a"),
        WILD.secret("wild"),
        gateway("gw", https("", "a", "wild")),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    )
    for sni, pair in (("a.example.org", A), ("deep.wild.org", WILD)):
        with Tls(mesh, sni, pair) as connection:
            assert connection.ask(sni).status == 200


def test_http2_is_offered(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        A.secret("a"),
        gateway("gw", https("a.example.org", "a")),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    )
    with Tls(mesh, "a.example.org", A, alpn="h2") as connection:
        assert connection.sock.selected_alpn_protocol() == "h2"


def test_a_certificate_is_replaced_under_open_connections(mesh: Mesh) -> None:
    new = Pair("a.example.org")
    rest = (
        *SERVICES,
        gateway("gw", https("a.example.org", "a")),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    )
    mesh.apply(A.secret("a"), *rest)
    with Tls(mesh, "a.example.org", A) as before:
        assert before.ask("a.example.org").status == 200
        mesh.apply(new.secret("a"), *rest)
        with Tls(mesh, "a.example.org", new) as after:
            assert after.ask("a.example.org").status == 200
        assert before.ask("a.example.org").status == 200


def test_bad_certificates_are_told_and_take_only_their_listener(mesh: Mesh) -> None:
    torn = A.secret("torn")
    torn["data"]["tls.key"] = base64.b64encode(REST.key).decode()
    far = A.secret("far", "elsewhere")
    grant = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "ReferenceGrant",
        "metadata": {"name": "g", "namespace": "elsewhere"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "default"}],
            "to": [{"group": "", "kind": "Secret", "name": "far"}],
        },
    }
    there = {"certificateRefs": [{"name": "far", "namespace": "elsewhere"}]}
    other = {"certificateRefs": [{"name": "a", "kind": "ConfigMap"}]}
    documents = [
        *SERVICES,
        A.secret("a"),
        torn,
        far,
        gateway(
            "gw",
            https("a.example.org", "a"),
            https("torn.org", "torn"),
            https("absent.org", "absent"),
            listener("far", 443, "HTTPS", hostname="far.org", tls=there),
            listener("other", 443, "HTTPS", hostname="other.org", tls=other),
        ),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    ]
    mesh.apply(*documents)
    found = listeners(mesh)
    assert found["a.example.org"]["Programmed"] == ("True", "Programmed")
    for name in ("torn.org", "absent.org", "other"):
        assert found[name]["ResolvedRefs"] == ("False", "InvalidCertificateRef"), name
        assert found[name]["Programmed"][0] == "False"
    assert found["far"]["ResolvedRefs"] == ("False", "RefNotPermitted")
    with Tls(mesh, "a.example.org", A) as connection:
        assert connection.ask("a.example.org").status == 200
    mesh.apply(*documents, grant)
    assert listeners(mesh)["far"]["ResolvedRefs"] == ("True", "ResolvedRefs")


@pytest.mark.parametrize("asked", [False, True], ids=["anybody", "with a client's certificate"])
def test_a_client_that_comes_back_resumes_its_session(mesh: Mesh, asked: bool) -> None:
    """A handshake without signatures; but who has to prove who it is does so each time."""
    frontend = {"tls": {"frontend": {"default": validation("friends")}}} if asked else {}
    mesh.apply(
        *SERVICES,
        A.secret("a"),
        FRIEND.authorities("friends"),
        gateway("gw", listener(), https("a.example.org", "a"), **frontend),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    )
    mine = FRIEND if asked else None
    with Tls(mesh, "a.example.org", A, mine) as first:
        assert first.ask("a.example.org").status == 200
        assert not first.sock.session_reused
        context, session = first.sock.context, first.sock.session
    raw = connect(mesh["client"], address(mesh), 443)
    with context.wrap_socket(raw, server_hostname="a.example.org", session=session) as again:
        again.sendall(b"GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: close\r\n\r\n")
        assert again.recv(4096).startswith(b"HTTP/1.1 200")
        assert again.session_reused is not asked


# --- clients' certificates --------------------------------------------------------------------------

FRIEND, STRANGER = Pair("friend"), Pair("stranger")


def validation(*names: str, **more: Any) -> dict[str, Any]:
    return {"validation": {"caCertificateRefs": [{"name": name} for name in names], **more}}


def asks_clients(mesh: Mesh, frontend: dict[str, Any]) -> None:
    mesh.apply(
        *SERVICES,
        A.secret("a"),
        FRIEND.authorities("friends"),
        STRANGER.authorities("strangers"),
        gateway(
            "gw",
            listener(),
            https("a.example.org", "a"),
            https("a.example.org", "a", name="second", port=8443),
            tls={"frontend": frontend},
        ),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    )


def test_clients_must_show_a_certificate(mesh: Mesh) -> None:
    asks_clients(
        mesh,
        {"default": validation("friends"), "perPort": [{"port": 8443, "tls": validation("strangers")}]},
    )
    for port, welcome, other in ((443, FRIEND, STRANGER), (8443, STRANGER, FRIEND)):
        with Tls(mesh, "a.example.org", A, welcome, port=port) as connection:
            assert connection.ask("a.example.org").status == 200
        assert refused(lambda port=port, other=other: Tls(mesh, "a.example.org", A, other, port=port))
        assert refused(lambda port=port: Tls(mesh, "a.example.org", A, port=port))


def test_the_insecure_fallback_lets_everyone_in_and_says_so(mesh: Mesh) -> None:
    asks_clients(mesh, {"default": validation("friends", mode="AllowInsecureFallback")})
    for mine in (FRIEND, STRANGER, None):
        with Tls(mesh, "a.example.org", A, mine) as connection:
            assert connection.ask("a.example.org").status == 200
    found = conditions(shown(mesh, "gateway", "gw")["status"]["conditions"])
    assert found["InsecureFrontendValidationMode"] == ("True", "ConfigurationChanged")


def test_authorities_that_are_not_there_close_only_https(mesh: Mesh) -> None:
    asks_clients(mesh, {"default": validation("nobody")})
    found = listeners(mesh)
    assert found["http"]["Programmed"] == ("True", "Programmed")
    assert found["second"]["ResolvedRefs"] == ("False", "InvalidCACertificateRef")
    assert found["second"]["Accepted"] == ("False", "NoValidCACertificate")
    assert refused(lambda: Tls(mesh, "a.example.org", A, FRIEND))
