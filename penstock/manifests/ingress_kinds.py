"""Kinds of networking.k8s.io/v1 for HTTP from outside: Ingress and IngressClass.

Source: Kubernetes API v1.31, Ingress v1, IngressClass v1.
"""

from __future__ import annotations

from typing import Any, Literal

from penstock.manifests.base import Kind, ObjectMeta


class ServiceBackendPort(Kind, frozen=True):
    """Exactly one of the two."""

    name: str = ""
    number: int = 0


class IngressServiceBackend(Kind, frozen=True):
    name: str
    port: ServiceBackendPort = ServiceBackendPort()


class IngressBackend(Kind, frozen=True):
    service: IngressServiceBackend | None = None


class HTTPIngressPath(Kind, frozen=True):
    path_type: Literal["Exact", "Prefix", "ImplementationSpecific"]
    backend: IngressBackend
    path: str = ""


class HTTPIngressRule(Kind, frozen=True):
    paths: list[HTTPIngressPath]


class IngressRule(Kind, frozen=True):
    host: str = ""
    http: HTTPIngressRule | None = None


class IngressTLS(Kind, frozen=True):
    hosts: list[str] = []
    secret_name: str = ""


class IngressSpec(Kind, frozen=True):
    ingress_class_name: str | None = None
    default_backend: IngressBackend | None = None
    rules: list[IngressRule] = []
    tls: list[IngressTLS] = []


class Ingress(Kind, frozen=True):
    api_version: str
    kind: Literal["Ingress"]
    metadata: ObjectMeta
    spec: IngressSpec = IngressSpec()
    status: Any = None


class IngressClassSpec(Kind, frozen=True):
    controller: str = ""
    parameters: Any = None


class IngressClass(Kind, frozen=True):
    api_version: str
    kind: Literal["IngressClass"]
    metadata: ObjectMeta
    spec: IngressClassSpec = IngressClassSpec()
