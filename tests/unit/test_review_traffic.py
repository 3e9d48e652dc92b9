"""What `penstock validate` says of policies about traffic that are valid and will surprise."""

from __future__ import annotations

from pathlib import Path

from penstock.manifests.loader import load
from penstock.routing.review_traffic import review_traffic

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{name: x, port: 80}]}
---"""


def policy(name: str, *targets: str, kind: str = "BackendPolicy") -> str:
    said = "fault: {abort: {httpStatus: 500}}" if kind == "HTTPPolicy" else "connectTimeout: 1s"
    return f"""
apiVersion: penstock.dev/v1alpha1
kind: {kind}
metadata: {{name: {name}}}
spec: {{targetRefs: [{", ".join(targets)}], {said}}}
---"""


def said(*texts: str) -> list[tuple[str, str, str]]:
    result = load("".join(texts), "p.yaml")
    assert not [p for p in result.problems if p.severity == "error"]
    return [(p.code, p.field, p.message) for p in review_traffic(result.documents)]


def test_a_target_that_is_not_there() -> None:
    ((code, field, message),) = said(SERVICE, policy("p", "{name: wbe}"))
    assert (code, field, message) == (
        "reference",
        "spec.targetRefs[0].name",
        "there is no Service default/wbe",
    )
    ((code, _, message),) = said(SERVICE, policy("p", "{name: web, sectionName: y}"))
    assert (code, message) == ("reference", "Service default/web has nothing called y")
    assert not said(SERVICE, policy("p", "{name: web, sectionName: x}"))


def test_a_target_that_another_policy_has() -> None:
    """By name or by number it is the same port; policies of another kind are no matter."""
    older, younger = policy("a", "{name: web, port: 80}"), policy("b", "{name: web, sectionName: x}")
    ((code, field, message),) = said(SERVICE, older, younger)
    assert (code, field) == ("conflict", "spec.targetRefs[0]")
    assert "BackendPolicy default/a" in message
    assert not said(SERVICE, older, policy("b", "{kind: Service, name: web, port: 80}", kind="HTTPPolicy"))


def test_a_policy_that_changes_nothing() -> None:
    ((code, _, _),) = said(SERVICE, policy("p", "{name: web}"))
    assert code == "untouched"
    assert not said(SERVICE.replace("port: 80", "port: 80, appProtocol: http"), policy("p", "{name: web}"))
    route = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---"""
    assert not said(SERVICE, route, policy("p", "{name: web}"))


def test_the_codes_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text()
    assert "| `conflict` |" in page
    assert "| `untouched` |" in page
