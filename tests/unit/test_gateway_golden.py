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

CASES = {
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
            if key.startswith(("gateway/", "class-")) or "/edge" in key or key == "mirrors"
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
