"""A BackendTLSPolicy towards another node, where an L7 rule sees nothing: told with its line."""

from __future__ import annotations

import pytest
from test_gateway_golden import gateway, route, rule
from test_routing_gateways import NODES
from worlds import policy, workload

from penstock.explain.unreached import review_unreached
from penstock.manifests.store import Store

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {selector: {app: far}, ports: [{port: 443, targetPort: 8443}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: ca}
data: {ca.crt: x}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: p}
spec:
  targetRefs:
  - {group: "", kind: Service, name: far}
  validation: {hostname: far.example, wellKnownCACertificates: System}
---
"""
MESH = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: m}
spec:
  parentRefs: [{group: "", kind: Service, name: far}]
  rules: [{backendRefs: [{name: far, port: 443}]}]
---
"""
EDGE = gateway() + route(rule(backends="{name: far, port: 443}"))


def mode(text: str) -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: m}}
spec: {{mtls: {{mode: {text}}}}}
---
"""


TO_FAR = "{endpointSelector: {matchLabels: {app: far}}, ingress: [{%s, toPorts: [%s]}]}"
ONLY_A = '{ports: [{port: "8443", protocol: TCP}], rules: {http: [{path: /a}]}}'
JUDGED = policy(TO_FAR % ("fromEndpoints: [{}]", ONLY_A))
OF_GATEWAYS = policy(TO_FAR % ("fromEntities: [ingress]", ONLY_A))


def said(text: str, nodes: str = NODES) -> list[str]:
    client = workload("client", "10.244.1.11", node="node-a")
    far = workload("far", "10.244.2.11", node="node-b").replace("---", "  netns: /run/netns/far\n---")
    result = Store().apply({"f.yaml": nodes + client + far + SERVICE + text})
    assert not [p for p in result.problems if p.severity == "error"]
    found = review_unreached(result.documents.values())
    assert {(p.code, p.severity, p.field) for p in found} <= {("mesh-tls", "warning", "spec.targetRefs[0]")}
    assert all(p.line for p in found)
    return [p.message for p in found]


@pytest.mark.parametrize(
    ("text", "who"),
    [
        (MESH + mode("STRICT"), []),
        (EDGE + mode("STRICT"), []),
        (MESH + JUDGED, ["of the mesh"]),
        (MESH + JUDGED + mode("DISABLE"), ["of the mesh"]),
        (EDGE + JUDGED, []),
        (EDGE + OF_GATEWAYS, ["through Gateways"]),
        (MESH + EDGE + OF_GATEWAYS, ["of the mesh", "through Gateways"]),
        (JUDGED, []),
    ],
)
def test_who_does_not_reach_it(text: str, who: list[str]) -> None:
    found = said(text)
    assert len(found) == len(who)
    for message, words in zip(sorted(found), who, strict=True):
        assert message.startswith("Workload default/far is on another node") and words in message


def test_one_node_has_no_other() -> None:
    assert said(MESH, NODES.partition("---")[0] + "---\n") == []
