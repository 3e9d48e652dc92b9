"""Kinds of what stands at the edge: Gateways, the classes and sets of listeners around them, and the
certificates that they show.

A listener that makes no sense is not refused with its whole Gateway: its own status says so (the API wants it
that way), so most words here are free strings.

Source: Gateway API v1.6, both channels; Kubernetes API v1.31 (Secret, ConfigMap).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from penstock.manifests.base import Kind, Labels, ObjectMeta

GROUP = "gateway.networking.k8s.io"


class GatewayLabelRequirement(Kind, frozen=True):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = []


class GatewayLabelSelector(Kind, frozen=True):
    """Selects namespaces by their labels."""

    match_labels: Labels = {}
    match_expressions: list[GatewayLabelRequirement] = []


class ParametersReference(Kind, frozen=True):
    group: str
    kind: str
    name: str
    namespace: str | None = None


class GatewayClassSpec(Kind, frozen=True):
    controller_name: str
    parameters_ref: ParametersReference | None = None
    description: str = ""


class GatewayClass(Kind, frozen=True):
    api_version: str
    kind: Literal["GatewayClass"]
    metadata: ObjectMeta
    spec: GatewayClassSpec
    status: Any = None


class ObjectReference(Kind, frozen=True):
    """Names a Secret or a ConfigMap, perhaps of another namespace."""

    name: str
    group: str = ""
    kind: str = "Secret"
    namespace: str | None = None


class ListenerTLS(Kind, frozen=True):
    mode: Literal["Terminate", "Passthrough"] = "Terminate"
    certificate_refs: list[ObjectReference] = []
    options: Labels = {}


class RouteGroupKind(Kind, frozen=True):
    kind: str
    group: str = GROUP


class RouteNamespaces(Kind, frozen=True):
    from_: Literal["All", "Selector", "Same", "None"] = msgspec.field(default="Same", name="from")
    selector: GatewayLabelSelector | None = None


class AllowedRoutes(Kind, frozen=True):
    namespaces: RouteNamespaces = RouteNamespaces()
    kinds: list[RouteGroupKind] = []


class Listener(Kind, frozen=True):
    name: str
    port: int
    protocol: str
    hostname: str | None = None
    tls: ListenerTLS | None = None
    allowed_routes: AllowedRoutes = AllowedRoutes()


class GatewayAddress(Kind, frozen=True):
    type: str = "IPAddress"
    value: str = ""


class GatewayInfrastructure(Kind, frozen=True):
    """Labels and annotations of the Service that stands for a Gateway (generated.py)."""

    labels: Labels = {}
    annotations: Labels = {}
    parameters_ref: ParametersReference | None = None


class ListenerNamespaces(Kind, frozen=True):
    from_: Literal["All", "Selector", "Same", "None"] = msgspec.field(default="None", name="from")
    selector: GatewayLabelSelector | None = None


class AllowedListeners(Kind, frozen=True):
    namespaces: ListenerNamespaces = ListenerNamespaces()


class BackendTLSConfig(Kind, frozen=True):
    """The certificate that a Gateway shows to backends that ask for one."""

    client_certificate_ref: ObjectReference | None = None


class CertificateReference(Kind, frozen=True):
    """Names the certificates of authorities: a ConfigMap or a Secret with the key ca.crt."""

    name: str
    group: str = ""
    kind: str = "ConfigMap"
    namespace: str | None = None


class FrontendTLSValidation(Kind, frozen=True):
    ca_certificate_refs: list[CertificateReference] = []
    mode: Literal["AllowValidOnly", "AllowInsecureFallback"] = "AllowValidOnly"


class FrontendTLSConfig(Kind, frozen=True):
    validation: FrontendTLSValidation | None = None


class FrontendTLSPort(Kind, frozen=True):
    port: int
    tls: FrontendTLSConfig = FrontendTLSConfig()


class FrontendTLS(Kind, frozen=True):
    default: FrontendTLSConfig = FrontendTLSConfig()
    per_port: list[FrontendTLSPort] = []


class GatewayTLS(Kind, frozen=True):
    backend: BackendTLSConfig | None = None
    frontend: FrontendTLS | None = None


class GatewaySpec(Kind, frozen=True):
    gateway_class_name: str
    listeners: list[Listener] = []
    addresses: list[GatewayAddress] = []
    infrastructure: GatewayInfrastructure | None = None
    allowed_listeners: AllowedListeners = AllowedListeners()
    tls: GatewayTLS | None = None


class Gateway(Kind, frozen=True):
    api_version: str
    kind: Literal["Gateway"]
    metadata: ObjectMeta
    spec: GatewaySpec
    status: Any = None


class ParentGateway(Kind, frozen=True):
    name: str
    group: str = GROUP
    kind: str = "Gateway"
    namespace: str | None = None


class ListenerSetSpec(Kind, frozen=True):
    parent_ref: ParentGateway
    listeners: list[Listener] = []


class ListenerSet(Kind, frozen=True):
    api_version: str
    kind: Literal["ListenerSet"]
    metadata: ObjectMeta
    spec: ListenerSetSpec
    status: Any = None


class Secret(Kind, frozen=True):
    """Certificates come from those of type kubernetes.io/tls and Opaque; other types are of no use here."""

    api_version: str
    kind: Literal["Secret"]
    metadata: ObjectMeta
    type: str = "Opaque"
    data: dict[str, str] = {}
    string_data: dict[str, str] = {}
    immutable: bool | None = None

    def __repr__(self) -> str:
        return f"Secret({self.metadata.namespace}/{self.metadata.name})"


class ConfigMap(Kind, frozen=True):
    """Only the key ca.crt is of use: the authorities that certificates are checked against."""

    api_version: str
    kind: Literal["ConfigMap"]
    metadata: ObjectMeta
    data: dict[str, str] = {}
    binary_data: dict[str, str] = {}
    immutable: bool | None = None
