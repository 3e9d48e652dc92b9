"""Manifests of Gateways and the Envoy resources they become, feature by feature, word for word.

`PYTHONPATH=tests python tests/unit/test_gateway_golden.py` writes the files anew; read the difference before
you commit it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from worlds import make, workload

from penstock.envoy.resources import CLUSTER, LISTENER, ROUTE, build
from penstock.lab.echo_tls import self_signed
from penstock.world import Settings

GOLDEN = Path(__file__).parent / "golden" / "gateway"

BACKENDS = (
    workload("api", "10.244.1.11", ports="{name: http, containerPort: 8080}")
    + workload("other", "10.244.1.12", ports="{name: http, containerPort: 8080}")
    + """
apiVersion: v1
kind: Service
metadata: {name: api}
spec: {selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {selector: {app: other}, ports: [{port: 80, targetPort: 8080, appProtocol: kubernetes.io/h2c}]}
---
"""
)


def gateway(*listeners: str, more: str = "") -> str:
    listed = ", ".join(listeners or ("{name: http, port: 80, protocol: HTTP}",))
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: gw}}
spec: {{gatewayClassName: penstock, addresses: [{{value: 10.98.0.1}}], listeners: [{listed}]{more}}}
---
"""


def route(rules: str, *, hosts: str = "", kind: str = "HTTPRoute", name: str = "r", parent: str = "") -> str:
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {name}}}
spec: {{parentRefs: [{{name: gw{parent}}}], hostnames: [{hosts}], rules: [{rules}]}}
---
"""


API, OTHER = "{name: api, port: 80}", "{name: other, port: 80}"


def rule(more: str = "", backends: str = API) -> str:
    return f"{{backendRefs: [{backends}]{', ' + more if more else ''}}}"


def filtered(body: str, backends: str = API, more: str = "") -> str:
    return rule(f"filters: [{body}]" + (f", {more}" if more else ""), backends)


POLICY = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {matchLabels: {"reserved:ingress": ""}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: other}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: /public}]}}]
---
"""

CHAIN, PRIVATE = self_signed(("gw.example",))
CERTIFICATE = f"""
apiVersion: v1
kind: Secret
metadata: {{name: cert}}
type: kubernetes.io/tls
stringData: {{tls.crt: {json.dumps(CHAIN.decode())}, tls.key: {json.dumps(PRIVATE.decode())}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: ca}}
data: {{ca.crt: {json.dumps(CHAIN.decode())}}}
---
"""
"""None of it is in what the resources say: they name it."""

ENDED = "tls: {certificateRefs: [{name: cert}]}"
PASSED = "tls: {mode: Passthrough}"

DATAGRAMS = """
apiVersion: v1
kind: Service
metadata: {name: dns}
spec: {selector: {app: api}, ports: [{port: 53, targetPort: 9053, protocol: UDP}]}
---
"""


def stream(kind: str, refs: str, *, name: str = "r", hosts: str = "", parent: str = "") -> str:
    names = f"hostnames: [{hosts}], " if hosts else ""
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {name}}}
spec: {{parentRefs: [{{name: gw{parent}}}], {names}rules: [{{backendRefs: [{refs}]}}]}}
---
"""


BACKEND_TLS = """
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: p}
spec:
  targetRefs: [{group: "", kind: Service, name: api}]
  validation:
    hostname: api.example
    subjectAltNames: [{type: URI, uri: "spiffe://a.example/b"}]
    caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}]
---
"""

LISTENER_SET = """
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: more}
spec: {parentRef: {name: gw}, listeners: [{name: more, port: 8090, protocol: HTTP, hostname: more.example}]}
---
"""

INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: front}
spec:
  ingressClassName: penstock
  tls: [{hosts: [gw.example], secretName: cert}]
  defaultBackend: {service: {name: other, port: {number: 80}}}
  rules:
  - host: gw.example
    http: {paths: [{path: /api, pathType: Prefix, backend: {service: {name: api, port: {number: 80}}}}]}
---
"""

CASES = {
    "tcp": gateway("{name: tcp, port: 90, protocol: TCP}")
    + stream("TCPRoute", "{name: api, port: 80, weight: 3}, {name: absent, port: 80, weight: 1}"),
    "udp": gateway("{name: udp, port: 53, protocol: UDP}")
    + DATAGRAMS
    + stream("UDPRoute", "{name: dns, port: 53, weight: 3}, {name: absent, port: 53, weight: 1}"),
    "tls-passthrough": gateway(f"{{name: tls, port: 443, protocol: TLS, {PASSED}}}")
    + stream("TLSRoute", API, hosts="a.example, '*.b.example'"),
    "tls-mixed": CERTIFICATE
    + gateway(
        f"{{name: passed, port: 443, protocol: TLS, hostname: a.example, {PASSED}}}",
        f"{{name: ended, port: 443, protocol: TLS, hostname: gw.example, {ENDED}}}",
        f"{{name: web, port: 443, protocol: HTTPS, hostname: '*.example', {ENDED}}}",
    )
    + stream("TLSRoute", API, hosts="a.example", parent=", sectionName: passed")
    + stream("TLSRoute", API, name="s", hosts="gw.example", parent=", sectionName: ended")
    + route(rule(), name="w", parent=", sectionName: web"),
    "https-and-client-certificates": CERTIFICATE
    + gateway(
        f"{{name: one, port: 443, protocol: HTTPS, hostname: gw.example, {ENDED}}}",
        f"{{name: two, port: 8443, protocol: HTTPS, {ENDED}}}",
        more=", tls: {frontend: {default: {validation: {caCertificateRefs: [{name: ca}]}}, perPort: "
        "[{port: 8443, tls: {validation: {mode: AllowInsecureFallback, caCertificateRefs: [{name: ca}]}}}]}}",
    )
    + route(rule()),
    "backend-tls": CERTIFICATE
    + gateway(more=", tls: {backend: {clientCertificateRef: {name: cert}}}")
    + route(rule())
    + BACKEND_TLS,
    "listener-set": gateway(more=", allowedListeners: {namespaces: {from: Same}}")
    + LISTENER_SET
    + route(rule(), parent=", kind: ListenerSet").replace("name: gw,", "name: more,"),
    "ingress": CERTIFICATE + INGRESS,
    "listener-isolation": gateway(
        "{name: all, port: 80, protocol: HTTP}",
        '{name: wild, port: 80, protocol: HTTP, hostname: "*.example.com"}',
        "{name: one, port: 80, protocol: HTTP, hostname: a.example.com}",
    )
    + route(rule(), hosts='"*.example.com", elsewhere.org')
    + route(rule(backends=OTHER), name="s", parent=", sectionName: one"),
    "ports": gateway("{name: http, port: 80, protocol: HTTP}", "{name: alt, port: 8080, protocol: HTTP}")
    + route(
        "{filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org}}]}",
        parent=", port: 8080",
    ),
    "matches": gateway()
    + route(
        rule("matches: [{path: {type: Exact, value: /x}, method: GET}]")
        + ", "
        + rule("matches: [{headers: [{name: A, value: b}], queryParams: [{name: q, value: '1'}]}]", OTHER)
    ),
    "weights-and-500": gateway()
    + route(rule(backends="{name: api, port: 80, weight: 3}, {name: absent, port: 80, weight: 1}")),
    "backend-filters": gateway()
    + route(
        rule(
            "matches: [{path: {type: PathPrefix, value: /old}}]",
            "{name: api, port: 80, weight: 3, filters: [{type: URLRewrite, urlRewrite: {hostname: b.example, "
            "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]}, {name: other, port: 80, "
            "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: api, port: 80}}}, "
            "{type: CORS, cors: {allowOrigins: ['https://a.example']}}]}, {name: api, port: 80, filters: ["
            "{type: RequestRedirect, requestRedirect: {scheme: https}}]}",
        )
    ),
    "headers": gateway()
    + route(
        filtered(
            "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}], "
            "remove: [c]}}, "
            "{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: D, value: e}]}}"
        )
    ),
    "rewrite": gateway()
    + route(
        filtered(
            "{type: URLRewrite, urlRewrite: {hostname: h.org, path: {type: ReplacePrefixMatch, "
            "replacePrefixMatch: /new}}}",
            more="matches: [{path: {value: /old}}]",
        )
    ),
    "mirror": gateway()
    + route(
        filtered("{type: RequestMirror, requestMirror: {backendRef: {name: other, port: 80}, percent: 10}}")
    ),
    "cors-timeouts-retry": gateway()
    + route(
        filtered(
            "{type: CORS, cors: {allowOrigins: ['https://a.org'], allowMethods: [GET]}}",
            more="timeouts: {request: 2s, backendRequest: 1s}, retry: {codes: [503], attempts: 2}",
        )
    ),
    "grpc": gateway() + route(rule("matches: [{method: {service: a.B, method: One}}]"), kind="GRPCRoute"),
    "h2c": gateway() + route(rule(backends=OTHER)),
    "requests-to-gateways": gateway() + route(rule()) + POLICY,
}


def made(name: str) -> str:
    _, plan = make(BACKENDS + CASES[name])
    resources = build(plan.proxy, Settings())
    shown = {
        kind.rpartition(".")[2]: {
            key: MessageToDict(message, preserving_proto_field_name=True)
            for key, message in sorted(resources[kind].items())
            if key.startswith(("gateway/", "ingress", "class-")) or "/edge" in key or key == "mirrors"
        }
        for kind in (LISTENER, ROUTE, CLUSTER)
    }
    return json.dumps(shown, indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_a_manifest_becomes_what_it_became(name: str) -> None:
    assert made(name) == (GOLDEN / f"{name}.json").read_text()


def test_every_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.json").write_text(made(case))
