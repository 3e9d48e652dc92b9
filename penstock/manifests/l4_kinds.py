"""Kinds of gateway.networking.k8s.io for what is not HTTP, and for TLS to backends.

Source: Gateway API v1.6, both channels.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from penstock.manifests.base import Kind, Labels, ObjectMeta
from penstock.manifests.route_kinds import ParentReference


class BackendRef(Kind, frozen=True):
    """A backend that bytes or datagrams go to."""

    name: str
    group: str = ""
    kind: str = "Service"
    namespace: str | None = None
    port: int | None = None
    weight: int = 1


class L4Rule(Kind, frozen=True):
    name: str | None = None
    backend_refs: list[BackendRef] = []


class TLSRouteSpec(Kind, frozen=True):
    rules: list[L4Rule]
    hostnames: list[str] = []
    parent_refs: list[ParentReference] = []
    use_default_gateways: Literal["All", "None"] = "None"


class TLSRoute(Kind, frozen=True):
    """TLS by the name that the client asks for (SNI), with the certificate at the Gateway or behind it."""

    api_version: str
    kind: Literal["TLSRoute"]
    metadata: ObjectMeta
    spec: TLSRouteSpec
    status: Any = None


class L4RouteSpec(Kind, frozen=True):
    rules: list[L4Rule]
    parent_refs: list[ParentReference] = []
    use_default_gateways: Literal["All", "None"] = "None"


class TCPRoute(Kind, frozen=True):
    api_version: str
    kind: Literal["TCPRoute"]
    metadata: ObjectMeta
    spec: L4RouteSpec
    status: Any = None


class UDPRoute(Kind, frozen=True):
    api_version: str
    kind: Literal["UDPRoute"]
    metadata: ObjectMeta
    spec: L4RouteSpec
    status: Any = None


class PolicyTargetReference(Kind, frozen=True):
    """A Service of the policy's own namespace, or one port of it by name."""

    group: str
    kind: str
    name: str
    section_name: str | None = None


class LocalReference(Kind, frozen=True):
    """Names an object of the policy's own namespace."""

    group: str
    kind: str
    name: str


class SubjectAltName(Kind, frozen=True):
    type: Literal["Hostname", "URI"]
    hostname: str | None = None
    uri: str | None = None


class BackendTLSPolicyValidation(Kind, frozen=True):
    """Whose certificate a backend must show; exactly one of the two ways to say by which authorities."""

    hostname: str
    ca_certificate_refs: list[LocalReference] = []
    well_known_ca_certificates: str | None = msgspec.field(default=None, name="wellKnownCACertificates")
    subject_alt_names: list[SubjectAltName] = []


class BackendTLSPolicySpec(Kind, frozen=True):
    target_refs: list[PolicyTargetReference]
    validation: BackendTLSPolicyValidation
    options: Labels = {}


class BackendTLSPolicy(Kind, frozen=True):
    """TLS to the backends of a Service."""

    api_version: str
    kind: Literal["BackendTLSPolicy"]
    metadata: ObjectMeta
    spec: BackendTLSPolicySpec
    status: Any = None
