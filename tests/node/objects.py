"""Manifests as tests write them: one short function for each kind."""

from __future__ import annotations

from typing import Any


def select(**labels: str) -> dict[str, Any]:
    return {"matchLabels": labels}


def ports(*numbers: int, http: list[dict[str, Any]] | None = None, protocol: str = "TCP") -> dict[str, Any]:
    found: dict[str, Any] = {"ports": [{"port": str(n), "protocol": protocol} for n in numbers]}
    if http is not None:
        found["rules"] = {"http": http}
    return found


def policy(name: str, selector: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"endpointSelector": selector, **spec},
    }


def service(name: str, *served: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": list(served), **spec},
    }


def route(name: str, parent: str, *rules: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": parent}], "rules": list(rules)},
    }


def to(name: str, weight: int = 1, port: int = 80) -> dict[str, Any]:
    return {"name": name, "port": port, "weight": weight}


def peer_authentication(name: str, mode: str, **labels: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"mtls": {"mode": mode}}
    if labels:
        spec["selector"] = select(**labels)
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name},
        "spec": spec,
    }


GATEWAY_API = "gateway.networking.k8s.io/v1"


def listener(name: str = "http", port: int = 80, protocol: str = "HTTP", **more: Any) -> dict[str, Any]:
    return {"name": name, "port": port, "protocol": protocol, **more}


def gateway(name: str, *listeners: dict[str, Any], namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": GATEWAY_API,
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"gatewayClassName": "penstock", "listeners": list(listeners) or [listener()], **spec},
    }


def http_route(
    name: str,
    parent: str | dict[str, Any],
    *rules: dict[str, Any],
    hostnames: list[str] | None = None,
    namespace: str = "default",
    kind: str = "HTTPRoute",
) -> dict[str, Any]:
    """A route on a Gateway; the parent is its name or the whole reference."""
    spec: dict[str, Any] = {"parentRefs": [{"name": parent} if isinstance(parent, str) else parent]}
    if hostnames:
        spec["hostnames"] = hostnames
    return {
        "apiVersion": GATEWAY_API,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**spec, "rules": list(rules)},
    }


def backend_policy(name: str, target: str, port: int | None = 80, **spec: Any) -> dict[str, Any]:
    """A BackendPolicy for one port of a Service; without a port, for all of it."""
    ref: dict[str, Any] = {"name": target, **({"port": port} if port else {})}
    return {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "BackendPolicy",
        "metadata": {"name": name},
        "spec": {"targetRefs": [ref], **spec},
    }


def http_policy(name: str, *targets: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "HTTPPolicy",
        "metadata": {"name": name},
        "spec": {"targetRefs": list(targets), **spec},
    }
