"""BackendTLSPolicy, for Gateways and in the mesh, through the real Envoy and a backend that speaks TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from clients import Answer, Load, Sniffer, ask, until
from conftest import MeshFactory
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
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
from rig import PENSTOCK, Mesh, workload
from test_gateway_http import address, conditions, shown
from test_gateway_streams import by_name, l4_route, secret, tls
from test_gateway_tls import Pair, Tls

from penstock.control import ControlClient
from penstock.lab.echo_tls import self_signed

API = "gateway.networking.k8s.io/v1"
URI = "spiffe://backend.example/api"
PORTS = ({"name": "https", "port": 443, "targetPort": 8443}, {"name": "tls", "port": 94, "targetPort": 9443})
API_SERVICE = service("api", *PORTS, selector={"app": "api"})


def certificate() -> tuple[bytes, bytes]:
    """A certificate that is its own CA, with names of both kinds."""
    import datetime

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "backend")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("api.example"), x509.UniformResourceIdentifier(URI)]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), pem


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The backend's PEM file, and the certificate that vouches for it."""
    chain, key = certificate()
    file = tmp_path_factory.mktemp("pem") / "backend.pem"
    file.write_bytes(chain + key)
    return file, chain.decode()


MINE = Pair("gateway.example")
"""The certificate that a Gateway shows to backends."""


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory, authority: tuple[Path, str]) -> Mesh:
    def echo(name: str, *more: str) -> list[list[str]]:
        ports = ["--https", "8443", "--tls", "9443", "--http", "8080"]
        return [[*PENSTOCK, "lab", "echo", "--name", name, *ports, "--certificate", str(authority[0]), *more]]

    clients = authority[0].with_name("clients.pem")
    clients.write_bytes(MINE.chain)
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", run=echo("api")),
        workload("asks", "node-a", run=echo("asks", "--client-ca", str(clients))),
        workload("far", "node-b", run=echo("far")),
    )


def https_service(name: str) -> dict[str, Any]:
    return service(name, PORTS[0], selector={"app": name})


def config_map(pem: str, name: str = "ca") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"ca.crt": pem}}


def backend_tls(
    name: str = "p", hostname: str = "api.example", section: str = "", target: str = "api", **more: Any
) -> dict[str, Any]:
    means: dict[str, Any] = {"group": "", "kind": "Service", "name": target}
    if section:
        means["sectionName"] = section
    validation = {"hostname": hostname, **more}
    if "wellKnownCACertificates" not in validation:
        validation.setdefault("caCertificateRefs", [{"group": "", "kind": "ConfigMap", "name": "ca"}])
    return {
        "apiVersion": API,
        "kind": "BackendTLSPolicy",
        "metadata": {"name": name},
        "spec": {"targetRefs": [means], "validation": validation},
    }


ROUTE = http_route("r", "gw", {"backendRefs": [to("api", port=443)]})


def apply(mesh: Mesh, authority: tuple[Path, str], *more: dict[str, Any]) -> None:
    mesh.apply(API_SERVICE, gateway("gw"), ROUTE, config_map(authority[1]), *more)


def get(mesh: Mesh) -> Answer:
    return ask(mesh["client"], address(mesh), 80)


def told(mesh: Mesh, name: str = "p") -> dict[str, tuple[str, str]]:
    (ancestor,) = shown(mesh, "backendtlspolicy", name)["status"]["ancestors"]
    assert ancestor["ancestorRef"]["kind"] in ("Gateway", "Service")
    assert ancestor["controllerName"] == "penstock.dev/gateway-controller"
    return conditions(ancestor["conditions"])


GOOD = {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("True", "ResolvedRefs")}


def test_BackendTLSPolicy(mesh: Mesh, authority: tuple[Path, str]) -> None:
    apply(mesh, authority, backend_tls())
    answer = get(mesh)
    assert (answer.status, answer.pod) == (200, "api")
    assert answer.json["tls"]["serverName"] == "api.example"
    assert told(mesh) == GOOD


def test_a_backend_with_another_name_is_not_spoken_to(mesh: Mesh, authority: tuple[Path, str]) -> None:
    apply(mesh, authority, backend_tls(hostname="other.example"))
    assert get(mesh).status == 503


def test_a_backend_of_another_authority_is_not_spoken_to(mesh: Mesh, authority: tuple[Path, str]) -> None:
    other = self_signed(("api.example",))[0].decode()
    mesh.apply(API_SERVICE, gateway("gw"), ROUTE, config_map(other), backend_tls())
    assert get(mesh).status == 503
    apply(mesh, authority, backend_tls(wellKnownCACertificates="System"))
    assert get(mesh).status == 503
    assert told(mesh) == GOOD


def test_BackendTLSPolicySANValidation(mesh: Mesh, authority: tuple[Path, str]) -> None:
    names = [{"type": "URI", "uri": URI}, {"type": "Hostname", "hostname": "nobody.example"}]
    apply(mesh, authority, backend_tls(hostname="sni.example", subjectAltNames=names))
    answer = get(mesh)
    assert (answer.status, answer.json["tls"]["serverName"]) == (200, "sni.example")
    apply(mesh, authority, backend_tls(subjectAltNames=names[1:]))
    assert get(mesh).status == 503


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ({"group": "", "kind": "ConfigMap", "name": "nobody"}, "InvalidCACertificateRef"),
        ({"group": "x.example", "kind": "Fancy", "name": "ca"}, "InvalidKind"),
    ],
)
def test_BackendTLSPolicyInvalidCACertificateRef(
    mesh: Mesh, authority: tuple[Path, str], ref: dict[str, str], reason: str
) -> None:
    apply(mesh, authority, backend_tls(caCertificateRefs=[ref]))
    assert told(mesh) == {
        "Accepted": ("False", "NoValidCACertificate"),
        "ResolvedRefs": ("False", reason),
    }
    assert get(mesh).status >= 500


def test_BackendTLSPolicyConflictResolution(mesh: Mesh, authority: tuple[Path, str]) -> None:
    """At equal age the first by name counts; one for the port by name comes before one for the Service."""
    apply(mesh, authority, backend_tls("a"), backend_tls("b", hostname="other.example"))
    assert get(mesh).status == 200
    assert (told(mesh, "a"), told(mesh, "b")["Accepted"]) == (GOOD, ("False", "Conflicted"))
    apply(mesh, authority, backend_tls("a", hostname="other.example"), backend_tls("b", section="https"))
    assert get(mesh).status == 200
    assert (told(mesh, "a"), told(mesh, "b")) == (GOOD, GOOD)


def test_a_policy_comes_and_goes(mesh: Mesh, authority: tuple[Path, str]) -> None:
    apply(mesh, authority)
    assert get(mesh).status >= 400
    apply(mesh, authority, backend_tls())
    assert get(mesh).status == 200


def test_TLSRoute_terminate_and_encrypt_again(mesh: Mesh, authority: tuple[Path, str]) -> None:
    mesh.apply(
        API_SERVICE,
        secret("cert", "gw.example"),
        config_map(authority[1]),
        gateway("gw", tls("tls", "Terminate", "cert")),
        l4_route("TLSRoute", "r", to("api", port=94), hostnames=["gw.example"]),
        backend_tls(),
    )
    assert by_name(mesh, "gw.example") == ("api", "gw.example")


def test_GatewayBackendClientCertificate(mesh: Mesh, authority: tuple[Path, str]) -> None:
    """Each Gateway shows its own certificate; the one without any is turned away by the backend."""
    shows = {"backend": {"clientCertificateRef": {"name": "mine"}}}
    both = http_route("r", "gw", {"backendRefs": [to("asks", port=443)]})
    both["spec"]["parentRefs"].append({"name": "bare"})
    mesh.apply(
        https_service("asks"),
        MINE.secret("mine"),
        gateway("gw", tls=shows),
        gateway("bare"),
        both,
        config_map(authority[1]),
        backend_tls(target="asks"),
    )
    (certificate,) = get(mesh).json["tls"]["peerCertificates"]
    assert certificate.strip() == MINE.chain.decode().strip()
    assert ask(mesh["client"], address(mesh, "bare"), 80).status == 503
    found = conditions(shown(mesh, "gateway", "gw")["status"]["conditions"])
    assert found["ResolvedRefs"] == ("True", "ResolvedRefs")


def test_GatewayHTTPSAndTLSPassthroughSamePort(mesh: Mesh) -> None:
    plain = service("web", {"port": 80, "targetPort": 8080}, selector={"app": "api"})
    ended = {"mode": "Terminate", "certificateRefs": [{"name": "cert"}]}
    mesh.apply(
        API_SERVICE,
        plain,
        MINE.secret("cert"),
        gateway(
            "gw",
            listener("ended", 443, "HTTPS", hostname="*.example", tls=ended),
            tls("passed", hostname="api.example"),
        ),
        http_route("r", {"name": "gw", "sectionName": "ended"}, {"backendRefs": [to("web")]}),
        l4_route("TLSRoute", "s", to("api", port=94), hostnames=["api.example"], sectionName="passed"),
    )
    assert by_name(mesh, "api.example") == ("api", "backend")
    with Tls(mesh, "gateway.example", MINE) as connection:
        assert connection.ask("gateway.example").pod == "api"
    status = shown(mesh, "gateway", "gw")["status"]["listeners"]
    assert [(x["attachedRoutes"], conditions(x["conditions"])["Accepted"]) for x in status] == [
        (1, ("True", "Accepted")),
        (1, ("True", "Accepted")),
    ]


STRICT = peer_authentication("strict", "STRICT", app="far")


def far_service(family: int = 4) -> dict[str, Any]:
    return service("far", *PORTS, selector={"app": "far"}, ipFamilies=[f"IPv{family}"])


def wire(mesh: Mesh) -> Sniffer:
    return Sniffer(mesh.spec.underlay_netns, "port0")


def inside_mesh_tls(seen: Sniffer) -> bool:
    """Whether only TLS went there, and none of its server names was the backend's."""
    return seen.tls() and not seen.carried(b"api.example")


@pytest.mark.parametrize("family", [4, 6])
def test_a_backend_on_another_node(mesh: Mesh, authority: tuple[Path, str], family: int) -> None:
    """Its own TLS goes there inside mesh TLS: judged by identity, and also where nothing else is taken."""
    far = http_route("r", "gw", {"backendRefs": [to("far", port=443)]})
    shared = [far_service(family), gateway("gw"), far, config_map(authority[1])]
    mesh.apply(*shared, backend_tls(target="far"), STRICT)
    with wire(mesh) as seen:
        answer = get(mesh)
    assert (answer.status, answer.pod) == (200, "far")
    assert answer.json["tls"]["serverName"] == "api.example"
    assert inside_mesh_tls(seen)
    mesh.apply(*shared, backend_tls(target="far", hostname="other.example"), STRICT)
    assert get(mesh).status == 503
    mesh.apply(*shared, backend_tls(target="far"), policy("in", select(app="far"), ingress=[{}]))
    assert get(mesh).status in (403, 503)
    gateways = [{"fromEntities": ["ingress"]}]
    mesh.apply(*shared, backend_tls(target="far"), policy("in", select(app="far"), ingress=gateways), STRICT)
    assert get(mesh).status == 200


def test_a_stream_to_another_node(mesh: Mesh, authority: tuple[Path, str]) -> None:
    mesh.apply(
        far_service(),
        secret("cert", "gw.example"),
        config_map(authority[1]),
        gateway("gw", tls("tls", "Terminate", "cert")),
        l4_route("TLSRoute", "r", to("far", port=94), hostnames=["gw.example"]),
        backend_tls(target="far"),
        STRICT,
    )
    with wire(mesh) as seen:
        assert by_name(mesh, "gw.example") == ("far", "gw.example")
    assert inside_mesh_tls(seen)


def meshed() -> dict[str, Any]:
    return route("r", "far", {"backendRefs": [to("far", port=443)]})


def far(mesh: Mesh, path: str = "/", family: int = 4, who: str = "client") -> Answer:
    return ask(mesh[who], mesh.vip("far", family), 443, path)


@pytest.mark.parametrize("family", [4, 6])
def test_in_the_mesh_to_another_node(mesh: Mesh, authority: tuple[Path, str], family: int) -> None:
    shared = [far_service(family), meshed(), config_map(authority[1]), backend_tls(target="far")]
    mesh.apply(*shared, STRICT)
    with wire(mesh) as seen:
        answer = far(mesh, "/tls-in-tls", family)
    assert (answer.status, answer.pod, answer.json["tls"]["serverName"]) == (200, "far", "api.example")
    assert inside_mesh_tls(seen)

    def told() -> list[dict[str, Any]]:
        return [r for r in mesh.on("client").observed(4096) if r.get("path") == "/tls-in-tls"]

    (record,) = until("Envoy tells of it", told)[-1:]
    assert (record["verdict"], record["destination"]["name"]) == ("SERVED", "default/far"), record
    # A name that the backend's certificate lacks, and a server whose mesh identity is another one.
    mesh.apply(*shared[:3], backend_tls(target="far", hostname="other.example"), STRICT)
    assert far(mesh, family=family).status == 503
    # Without mesh TLS the backend's own goes there as it is.
    mesh.apply(*shared, peer_authentication("off", "DISABLE", app="far"))
    with wire(mesh) as seen:
        assert far(mesh, family=family).status == 200
    assert seen.carried(b"api.example")


def test_policy_judges_what_goes_inside_mesh_tls(mesh: Mesh, authority: tuple[Path, str]) -> None:
    """At the sender for both sides, for the chosen endpoint; at the receiver by identity, and closed where an
    L7 rule would have to look inside."""
    shared = [far_service(), meshed(), config_map(authority[1]), backend_tls(target="far"), STRICT]
    mesh.apply(*shared)
    # Each with a certificate of its own: the other node lets no address in with another one's.
    assert [far(mesh, who=who).status for who in ("client", "api") * 3] == [200] * 6
    only = policy("in", select(app="far"), ingress=[{"fromEndpoints": [select(app="client")]}])
    mesh.apply(*shared, only)
    assert (far(mesh).status, far(mesh, who="api").status) == (200, 403)
    outward = {"toEndpoints": [select(app="far")], "toPorts": [ports(8443, http=[{"path": "/open"}])]}
    vips = {"toEndpoints": [{}], "toPorts": [ports(443)]}
    mesh.apply(*shared, only, policy("out", select(app="client"), egress=[outward, vips]))
    assert (far(mesh, "/open").status, far(mesh, "/closed").status) == (200, 403)
    inward = {"fromEndpoints": [select(app="client")], "toPorts": [ports(8443, http=[{"path": "/open"}])]}
    mesh.apply(*shared, policy("in", select(app="far"), ingress=[inward]))
    assert (far(mesh, "/open").status, far(mesh, "/closed").status) == (503, 403)
    warned = [p for p in mesh.on("client").status()["problems"] if p["code"] == "mesh-tls"]
    assert warned and "an L7 rule judges requests there" in warned[0]["message"]


def test_certificates_rotate_under_load(mesh: Mesh, authority: tuple[Path, str]) -> None:
    """Those of the mesh, and the authorities of the backend's: nobody notices."""
    shared = [far_service(), meshed(), backend_tls(target="far"), STRICT]
    mesh.apply(*shared, config_map(authority[1]))
    other = self_signed(("nobody.example",))[0].decode()
    loads = (Load(mesh["client"], mesh.vip("far"), 443, keep=keep, pause=0.01) for keep in (True, False))
    with next(loads) as kept, next(loads) as anew:
        for daemon in mesh.daemons.values():
            with ControlClient(daemon.run_dir) as client:
                client.call("cert_rotate", timeout=60, names=[], all=True, seconds=30)
        mesh.apply(*shared, config_map(authority[1] + other))
        mesh.apply(*shared, config_map(authority[1]))
        kept.more()
        anew.more()
    assert set(kept.seen) == set(anew.seen) == {200}, (kept.seen, anew.seen)


def test_in_the_mesh(mesh: Mesh, authority: tuple[Path, str]) -> None:
    closed = policy(
        "in",
        select(app="api"),
        ingress=[
            {
                "fromEndpoints": [select(app="client")],
                "toPorts": [
                    {"ports": [{"port": "8443", "protocol": "TCP"}], "rules": {"http": [{"path": "/open"}]}}
                ],
            }
        ],
    )
    mesh.apply(
        API_SERVICE,
        route("r", "api", {"backendRefs": [to("api", port=443)]}),
        config_map(authority[1]),
        backend_tls(),
        closed,
    )
    answer = ask(mesh["client"], mesh.vip("api"), 443, "/open")
    assert (answer.status, answer.json["tls"]["serverName"]) == (200, "api.example")
    # Policy judges inside of it.
    assert ask(mesh["client"], mesh.vip("api"), 443, "/closed").status == 403
    assert told(mesh) == GOOD
