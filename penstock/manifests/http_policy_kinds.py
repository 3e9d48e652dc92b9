"""HTTPPolicy: what the proxy does with requests besides routing them, where Gateway API has no field for it.

Source: docs/traffic.md; Gateway API v1.6, HTTPExternalAuthFilter (GEP-1494), SessionPersistence (GEP-1619);
durations: GEP-2257.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from penstock.manifests.base import Kind, ObjectMeta
from penstock.manifests.shared_kinds import HTTPExternalAuth, ServiceBackend


class HTTPPolicyTarget(Kind, frozen=True):
    """A route or one of its rules by name, a Service or one of its ports, a Gateway or one of its listeners.

    Of the policy's own namespace; the group is that of the kind.
    """

    kind: Literal["HTTPRoute", "GRPCRoute", "Service", "Gateway"]
    name: str
    group: str | None = None
    section_name: str | None = None
    port: int | None = None


class RateLimit(Kind, frozen=True):
    """So many requests in an interval, for all clients together or for each by itself."""

    requests: int
    interval: str = "1s"
    burst: int | None = None
    per: Literal["Target", "Identity", "Address"] = "Target"


class FaultDelay(Kind, frozen=True):
    duration: str
    percent: int = 100


class FaultAbort(Kind, frozen=True):
    """Exactly one of the two statuses."""

    http_status: int | None = None
    grpc_status: int | None = None
    percent: int = 100


class Fault(Kind, frozen=True):
    delay: FaultDelay | None = None
    abort: FaultAbort | None = None


class JwksReference(Kind, frozen=True):
    """A key of a ConfigMap or Secret of the policy's own namespace."""

    name: str
    kind: Literal["ConfigMap", "Secret"] = "ConfigMap"
    key: str = "jwks"


class RemoteJwks(Kind, frozen=True):
    """Fetched from a Service by the node itself, in plain HTTP."""

    backend_ref: ServiceBackend
    path: str = "/.well-known/jwks.json"
    cache: str = "5m"


class Jwks(Kind, frozen=True):
    """The keys that tokens are signed with (RFC 7517). Exactly one of the three."""

    inline: str | None = None
    ref: JwksReference | None = None
    remote: RemoteJwks | None = None


class ClaimHeader(Kind, frozen=True):
    claim: str
    header: str


class JwtProvider(Kind, frozen=True):
    """One issuer. The token is in Authorization: Bearer, or in the header that is named."""

    name: str
    issuer: str
    jwks: Jwks
    audiences: list[str] = []
    header: str | None = None
    forward: bool = False
    claims_to_headers: list[ClaimHeader] = []


class Jwt(Kind, frozen=True):
    """A token of any one of the providers; `optional` lets requests without any token pass."""

    providers: list[JwtProvider]
    optional: bool = False


class Compression(Kind, frozen=True):
    """Of answers to clients that accept it. Without `content_types`, what is text."""

    types: list[Literal["gzip", "brotli", "zstd"]] = msgspec.field(
        default_factory=lambda: ["gzip", "brotli", "zstd"]
    )
    min_size: int = 1024
    content_types: list[str] = []


class HTTPPolicySpec(Kind, frozen=True):
    target_refs: list[HTTPPolicyTarget]
    rate_limit: RateLimit | None = None
    fault: Fault | None = None
    jwt: Jwt | None = None
    ext_auth: HTTPExternalAuth | None = None
    compression: Compression | None = None


class HTTPPolicy(Kind, frozen=True):
    """What the proxy does with requests besides routing them."""

    api_version: str
    kind: Literal["HTTPPolicy"]
    metadata: ObjectMeta
    spec: HTTPPolicySpec
    status: Any = None
