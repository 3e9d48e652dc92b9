"""What the tests that are named after the conformance suite's have in common."""

from __future__ import annotations

from typing import Any

from clients import Answer, ask
from objects import service
from rig import Mesh
from test_gateway_http import address, conditions, shown
from test_gateway_tls import Pair

WEB = {"name": "http", "port": 80, "targetPort": 8080}
SERVICES = tuple(service(n, WEB, selector={"app": n}) for n in ("api", "other", "third"))
API = "gateway.networking.k8s.io/v1"
CERTIFICATE = Pair("example.org", "second-example.org", "*.wildcard.org", "unknown-example.org")


def get(mesh: Mesh, host: str = "example.com", path: str = "/", *, port: int = 80, **how: Any) -> Answer:
    headers = {"Host": host, **how.pop("headers", {})}
    return ask(mesh["client"], address(mesh, how.pop("gw", "gw")), port, path, headers=headers, **how)


def at(path: str, *refs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"matches": [{"path": {"type": "PathPrefix", "value": path}}], "backendRefs": list(refs), **more}


def listeners(mesh: Mesh, kind: str, name: str, ns: str = "default") -> dict[str, dict[str, tuple[str, str]]]:
    status = shown(mesh, kind, name, ns)["status"]
    return {each["name"]: conditions(each["conditions"]) for each in status["listeners"]}


def accepted(mesh: Mesh, name: str, kind: str = "httproute", ns: str = "default") -> list[tuple[str, str]]:
    parents = shown(mesh, kind, name, ns)["status"]["parents"]
    return [conditions(parent["conditions"])["Accepted"] for parent in parents]


def resolved(mesh: Mesh, name: str) -> tuple[str, str]:
    (parent,) = shown(mesh, "httproute", name)["status"]["parents"]
    return conditions(parent["conditions"])["ResolvedRefs"]


def grant(
    ns: str, name: str | None = None, *, kind: str = "HTTPRoute", to_kind: str = "Service"
) -> dict[str, Any]:
    target = {"group": "", "kind": to_kind, **({"name": name} if name else {})}
    return {
        "apiVersion": API,
        "kind": "ReferenceGrant",
        "metadata": {"name": "g", "namespace": ns},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": "default"}],
            "to": [target],
        },
    }
