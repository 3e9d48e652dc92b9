"""Ingress and IngressClass through the real Envoy: classes, hosts, paths, TLS, defaults, and policy."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from clients import Answer, ask, connect
from conftest import MeshFactory
from objects import policy, ports, select, service
from rig import Mesh, workload
from test_explain import told
from test_gateway_http import shown
from test_gateway_streams import secret

SERVICES = tuple(
    service(n, {"name": "web", "port": 80, "targetPort": 8080}, selector={"app": n})
    for n in ("api", "other", "spare")
)


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        *(workload(name, "node-a", serves=True) for name in ("api", "other", "spare")),
    )


def backend(name: str, port: int | str = 80) -> dict[str, Any]:
    named = {"name": port} if isinstance(port, str) else {"number": port}
    return {"service": {"name": name, "port": named}}


def path(value: str, to: str, kind: str = "Prefix", port: int | str = 80) -> dict[str, Any]:
    return {"path": value, "pathType": kind, "backend": backend(to, port)}


def rule(host: str, *paths: dict[str, Any]) -> dict[str, Any]:
    return {**({"host": host} if host else {}), "http": {"paths": list(paths)}}


def ingress(
    name: str, *rules: dict[str, Any], class_name: str | None = "penstock", **spec: Any
) -> dict[str, Any]:
    if class_name:
        spec["ingressClassName"] = class_name
    if rules:
        spec["rules"] = list(rules)
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name}, "spec": spec}


def ingress_class(name: str, controller: str, *, default: bool = False) -> dict[str, Any]:
    annotations = {"ingressclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"controller": controller},
    }


def address(mesh: Mesh, name: str = "i") -> str:
    return str(shown(mesh, "ingress", name)["status"]["loadBalancer"]["ingress"][0]["ip"])


def get(mesh: Mesh, host: str = "a.example", where: str = "/", name: str = "i") -> Answer:
    return ask(mesh["client"], address(mesh, name), 80, where, headers={"Host": host})


def pod(mesh: Mesh, host: str = "a.example", where: str = "/") -> str:
    answer = get(mesh, host, where)
    return answer.pod if answer.status == 200 else str(answer.status)


def over_tls(mesh: Mesh, name: str, host: str = "") -> tuple[int, str]:
    """(status, the name in the certificate)"""
    from cryptography import x509

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        connect(mesh["client"], address(mesh), 443) as sock,
        context.wrap_socket(sock, server_hostname=name) as wrapped,
    ):
        wrapped.sendall(f"GET / HTTP/1.1\r\nHost: {host or name}\r\nConnection: close\r\n\r\n".encode())
        status = int(wrapped.recv(4096).split()[1])
        certificate = x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")
        return status, str(certificate.subject.rdns[0].rfc4514_string()).removeprefix("CN=")


def test_hosts_and_path_types(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        ingress(
            "i",
            rule(
                "a.example",
                path("/exact", "other", "Exact"),
                path("/pre/fix", "other"),
                path("/impl", "other", "ImplementationSpecific"),
                path("/named", "other", port="web"),
                path("/", "api"),
            ),
            rule("b.example", path("/only", "spare")),
        ),
    )
    assert pod(mesh, where="/exact") == "other"
    assert pod(mesh, where="/exact/") == "api"
    assert pod(mesh, where="/pre/fix/more") == "other"
    assert pod(mesh, where="/pre/fixed") == "api"
    assert pod(mesh, where="/impl/x") == "other"
    assert pod(mesh, where="/named") == "other"
    assert pod(mesh, "A.example:8080") == "api"
    assert (pod(mesh, "b.example", "/only"), pod(mesh, "b.example", "/")) == ("spare", "404")
    assert pod(mesh, "c.example") == "404"
    for host, where, code, line in (
        ("a.example", "/pre/fix/x", 0, "spec.rules[0].http.paths[1]"),
        ("b.example", "/", 1, "spec.rules[1].http.paths[0]"),
    ):
        asked = ("client", "ingress:80", "GET", where, "-H", f"Host: {host}")
        exit_code, said, _ = told(mesh, "node-a", *asked)
        fields = [rule["field"] for step in said["steps"] for rule in step["rules"]]
        assert exit_code == code and line in fields, said
    found = get(mesh).json
    assert found["headers"]["X-Forwarded-For"] == [str(mesh["client"].address())]


def test_a_wildcard_is_one_label(mesh: Mesh) -> None:
    mesh.apply(*SERVICES, ingress("i", rule("*.example", path("/", "api")), defaultBackend=backend("spare")))
    assert pod(mesh, "x.example") == "api"
    assert pod(mesh, "x.y.example") == "spare"
    assert pod(mesh, "example") == "spare"


def test_default_backends_and_rules_without_a_host(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        ingress("i", rule("a.example", path("/a", "api")), rule("", path("/any", "other"))),
        ingress("d", defaultBackend=backend("spare")),
    )
    assert pod(mesh, where="/a") == "api"
    assert pod(mesh, where="/any") == "other"
    assert pod(mesh, where="/else") == "spare"
    assert (pod(mesh, "z.example", "/any"), pod(mesh, "z.example")) == ("other", "spare")


def test_several_ingresses_share_a_host(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        ingress("i", rule("a.example", path("/", "api"))),
        ingress("j", rule("a.example", path("/deep", "other"), path("/", "spare"))),
    )
    assert (pod(mesh), pod(mesh, where="/deep/x")) == ("api", "other")
    assert address(mesh) == address(mesh, "j")


def test_tls(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        secret("one", "a.example"),
        secret("two", "fallback.example"),
        ingress(
            "i",
            rule("a.example", path("/", "api")),
            rule("b.example", path("/", "other")),
            tls=[{"hosts": ["a.example"], "secretName": "one"}, {"secretName": "two"}],
        ),
    )
    assert over_tls(mesh, "a.example") == (200, "a.example")
    assert over_tls(mesh, "b.example") == (200, "fallback.example")
    # A host that the connection's certificate is not for.
    assert over_tls(mesh, "a.example", "b.example") == (421, "a.example")
    assert pod(mesh) == "api"


def test_a_secret_that_comes_later(mesh: Mesh) -> None:
    made = ingress(
        "i", rule("a.example", path("/", "api")), tls=[{"hosts": ["a.example"], "secretName": "later"}]
    )
    mesh.apply(*SERVICES, made)
    (told,) = [o for o in mesh.on("client").status()["objects"] if o["kind"] == "Ingress"]
    assert (told["state"], "later" in told["message"]) == ("pending", True)
    assert pod(mesh) == "api"
    with pytest.raises(OSError), connect(mesh["client"], address(mesh), 443, timeout=0.5):
        pass
    mesh.apply(*SERVICES, secret("later", "a.example"), made)
    assert over_tls(mesh, "a.example") == (200, "a.example")


def test_classes(mesh: Mesh) -> None:
    mine = "penstock.dev/ingress-controller"
    rules = rule("a.example", path("/", "api"))

    def served(*objects: dict[str, Any]) -> bool:
        mesh.apply(*SERVICES, *objects)
        return bool(shown(mesh, "ingress", "i")["status"]["loadBalancer"])

    assert served(ingress("i", rules))
    assert not served(ingress("i", rules, class_name=None))
    assert served(ingress_class("x", mine, default=True), ingress("i", rules, class_name=None))
    assert not served(ingress_class("x", "other.io/c", default=True), ingress("i", rules, class_name=None))
    assert served(ingress_class("x", mine), ingress("i", rules, class_name="x"))
    assert not served(ingress("i", rules, class_name="nobody"))
    old = ingress("i", rules, class_name=None)
    old["metadata"]["annotations"] = {"kubernetes.io/ingress.class": "penstock"}
    assert served(old)


def test_a_backend_that_is_not_there(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES, ingress("i", rule("a.example", path("/", "nobody"), path("/port", "api", port="nope")))
    )
    assert (pod(mesh), pod(mesh, where="/port")) == ("500", "500")


def test_a_resource_as_a_backend_is_refused_by_name(mesh: Mesh) -> None:
    """The last good version stays in force."""
    good = ingress("i", rule("a.example", path("/", "api")))
    mesh.apply(*SERVICES, good)
    bucket = {"resource": {"kind": "Bucket", "name": "b"}}
    mesh.apply(*SERVICES, {**good, "spec": {**good["spec"], "defaultBackend": bucket}})
    (problem,) = [p for p in mesh.on("client").status()["problems"] if p["severity"] == "error"]
    assert problem["field"] == "spec.defaultBackend.resource" and problem["line"]
    assert "is not supported" in problem["message"]
    assert pod(mesh) == "api"


def test_policy_judges_the_front_door_as_ingress(mesh: Mesh) -> None:
    made = ingress("i", rule("a.example", path("/", "api")))

    def apply(*peers: dict[str, Any]) -> None:
        mesh.apply(*SERVICES, made, policy("in", select(app="api"), ingress=list(peers)))

    apply({"fromEndpoints": [select(app="client")]})
    assert get(mesh).status == 403
    apply({"fromEntities": ["ingress"]})
    assert get(mesh).status == 200
    apply({"fromEntities": ["ingress"], "toPorts": [ports(8080, http=[{"path": "/open"}])]})
    assert (get(mesh, where="/open").status, get(mesh, where="/closed").status) == (200, 403)
    # Who may not reach the front door does not.
    out = policy("out", select(app="client"), egress=[{"toEndpoints": [select(app="api")]}])
    where = address(mesh)
    mesh.apply(*SERVICES, made, out)
    with pytest.raises(OSError), connect(mesh["client"], where, 80, timeout=0.6) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
        sock.settimeout(0.6)
        if sock.recv(10) == b"":
            raise TimeoutError
