"""Warnings about what stands at the edge, each with its code; and every code is documented."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import get_args

from test_routing_ingresses import ingress, path, rule
from test_routing_mesh import PEOPLE, route
from test_routing_services import service
from test_routing_streams import route as l4_route

from penstock.lab.echo_tls import self_signed
from penstock.manifests.loader import load
from penstock.manifests.problem import Code
from penstock.routing.review_edge import review_edge

EMPTY = service("empty", "{selector: {app: nobody}, ports: [{port: 80}]}")


def secret(name: str, *hosts: str, namespace: str = "default") -> str:
    pem = textwrap.indent(self_signed(hosts)[0].decode(), "    ")
    return f"""
apiVersion: v1
kind: Secret
metadata: {{name: {name}, namespace: {namespace}}}
stringData:
  tls.crt: |
{pem}
---"""


def gateway(tls: str, hostname: str = "a.example") -> str:
    listener = f"{{name: l, port: 443, protocol: HTTPS, hostname: '{hostname}', tls: {{{tls}}}}}"
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: gw}}
spec: {{gatewayClassName: penstock, listeners: [{listener}]}}
---"""


def said(text: str) -> list[str]:
    loaded = load(PEOPLE + EMPTY + text, "f")
    assert not [p for p in loaded.problems if p.severity == "error"], loaded.problems
    found = review_edge(loaded.documents)
    assert all(p.severity == "warning" and p.line > 1 for p in found)
    return [f"{p.name} {p.field} {p.code}" for p in found]


def test_a_certificate_for_another_name() -> None:
    refs = "certificateRefs: [{name: s}]"
    assert said(secret("s", "a.example") + gateway(refs)) == []
    assert said(secret("s", "*.example") + gateway(refs)) == []
    assert said(secret("s", "*.example") + gateway(refs, "*.example")) == []
    wrong = ["gw spec.listeners[0].hostname certificate"]
    assert said(secret("s", "b.example") + gateway(refs)) == wrong
    assert said(secret("s", "*.example") + gateway(refs, "x.a.example")) == wrong
    assert said(secret("s", "a.example") + gateway(refs, "*.example")) == wrong
    both = "certificateRefs: [{name: s}, {name: t}]"
    assert said(secret("s", "b.example") + secret("t", "a.example") + gateway(both)) == []


def test_a_secret_that_is_not_there_or_not_granted() -> None:
    assert said(gateway("certificateRefs: [{name: s}]")) == [
        "gw spec.listeners[0].tls.certificateRefs[0].name reference"
    ]
    far = secret("s", "a.example", namespace="other")
    assert said(far + gateway("certificateRefs: [{name: s, namespace: other}]")) == [
        "gw spec.listeners[0].tls.certificateRefs[0].namespace grant"
    ]


def test_streams() -> None:
    none = l4_route("TCPRoute", "r", refs="{name: v1, port: 80, weight: 0}")
    assert said(none) == ["r spec.rules[0].backendRefs weights"]
    empty = l4_route("TCPRoute", "r", refs="{name: empty, port: 80}")
    assert said(empty) == ["r spec.rules[0].backendRefs[0].name endpoints"]
    for kind, backend, field in (
        ("UDPRoute", "{name: v1, port: 80}", "port"),
        ("TCPRoute", "{name: v1, port: 99}", "port"),
        ("TCPRoute", "{name: nobody, port: 81}", "name"),
    ):
        found = said(l4_route(kind, "r", refs=backend))
        assert found == [f"r spec.rules[0].backendRefs[0].{field} reference"]
    away = l4_route("TCPRoute", "r", refs="{name: away, namespace: other, port: 80}")
    there = service("away", "{ports: [{port: 80}]}").replace("namespace: default", "namespace: other")
    assert said(there + away) == ["r spec.rules[0].backendRefs[0].namespace grant"]


def test_what_a_gateways_own_tls_names() -> None:
    tls = "backend: {clientCertificateRef: {name: s}}, frontend: {default: {validation: {caCertificateRefs: "
    tls += "[{name: ca}]}}, perPort: [{port: 443, tls: {validation: {caCertificateRefs: [{name: s, kind: "
    tls += "Secret, namespace: far}]}}}]}"
    text = f"""
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: gw}}
spec: {{gatewayClassName: penstock, listeners: [{{name: l, port: 80, protocol: HTTP}}], tls: {{{tls}}}}}
---
"""
    assert sorted(said(text)) == [
        "gw spec.tls.backend.clientCertificateRef.name reference",
        "gw spec.tls.frontend.default.validation.caCertificateRefs[0].name reference",
        "gw spec.tls.frontend.perPort[0].tls.validation.caCertificateRefs[0].namespace grant",
    ]


def test_mirrors() -> None:
    mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: empty, port: 80}}}"
    assert said(route(f"[{{filters: [{mirror}], backendRefs: [{{name: v1, port: 80}}]}}]")) == [
        "r spec.rules[0].filters[0].requestMirror.backendRef.name endpoints"
    ]


def test_ingresses() -> None:
    good = rule("a.example", path("/"))
    assert said(ingress(f"rules: [{good}]")) == []
    assert said(ingress(f"rules: [{rule('a.example', path('/', to='empty'))}]")) == [
        "i spec.rules[0].http.paths[0].backend.service.name endpoints"
    ]
    tls = "tls: [{hosts: [a.example, b.example], secretName: s}]"
    assert said(secret("s", "a.example") + ingress(f"rules: [{good}], {tls}")) == [
        "i spec.tls[0].hosts[1] certificate",
        "i spec.tls[0].hosts[1] reference",
    ]
    assert said(ingress(f"rules: [{good}]", "a") + ingress(f"rules: [{good}]", "b")) == [
        "b spec.rules[0].http.paths[0] shadowed"
    ]


def test_ports_and_classes_of_ingresses() -> None:
    for backend in ("{name: v1, port: {number: 99}}", "{name: v1, port: {name: web}}"):
        found = said(ingress(f"defaultBackend: {{service: {backend}}}"))
        assert found == ["i spec.defaultBackend.service.port reference"]
    good = rule("a.example", path("/"))
    other = ingress(f"rules: [{good}]").replace("ingressClassName: penstock", "ingressClassName: nginx")
    assert said(other) == ["i spec.ingressClassName reference"]
    none = ingress(f"rules: [{good}]").replace("ingressClassName: penstock, ", "")
    assert said(none) == ["i spec reference"]
    default = """
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: mine, annotations: {ingressclass.kubernetes.io/is-default-class: "true"}}
spec: {controller: penstock.dev/ingress-controller}
---
"""
    assert said(default + none) == []


def test_every_code_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text()
    told = set(re.findall(r"^\| `([A-Za-z-]+)` \|", page, re.MULTILINE))
    assert told == set(get_args(Code))
