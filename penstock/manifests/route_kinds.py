"""Kinds of gateway.networking.k8s.io as far as routes of a mesh (GAMMA) need them.

Source: Gateway API v1.6, both channels; durations: GEP-2257.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from penstock.manifests.base import Kind, ObjectMeta
from penstock.manifests.shared_kinds import HTTPExternalAuth, SessionPersistence


class ParentReference(Kind, frozen=True):
    name: str
    group: str = "gateway.networking.k8s.io"
    kind: str = "Gateway"
    namespace: str | None = None
    section_name: str | None = None
    port: int | None = None


class HTTPPathMatch(Kind, frozen=True):
    type: Literal["Exact", "PathPrefix", "RegularExpression"] = "PathPrefix"
    value: str = "/"


class HTTPHeaderMatch(Kind, frozen=True):
    name: str
    value: str
    type: Literal["Exact", "RegularExpression"] = "Exact"


class HTTPQueryParamMatch(Kind, frozen=True):
    name: str
    value: str
    type: Literal["Exact", "RegularExpression"] = "Exact"


HTTPMethod = Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]


class HTTPRouteMatch(Kind, frozen=True):
    path: HTTPPathMatch = HTTPPathMatch()
    headers: list[HTTPHeaderMatch] = []
    query_params: list[HTTPQueryParamMatch] = []
    method: HTTPMethod | None = None


class HTTPHeader(Kind, frozen=True):
    name: str
    value: str


class HTTPHeaderFilter(Kind, frozen=True):
    """What happens to headers: names are case-insensitive, `add` joins to what is there."""

    set: list[HTTPHeader] = []
    add: list[HTTPHeader] = []
    remove: list[str] = []


class HTTPPathModifier(Kind, frozen=True):
    type: Literal["ReplaceFullPath", "ReplacePrefixMatch"]
    replace_full_path: str | None = None
    replace_prefix_match: str | None = None


class HTTPRequestRedirectFilter(Kind, frozen=True):
    scheme: Literal["http", "https"] | None = None
    hostname: str | None = None
    path: HTTPPathModifier | None = None
    port: int | None = None
    status_code: int = 302


class HTTPURLRewriteFilter(Kind, frozen=True):
    hostname: str | None = None
    path: HTTPPathModifier | None = None


class HTTPCORSFilter(Kind, frozen=True):
    allow_origins: list[str] = []
    allow_credentials: bool = False
    allow_methods: list[str] = []
    allow_headers: list[str] = []
    expose_headers: list[str] = []
    max_age: int = 5


class Fraction(Kind, frozen=True):
    numerator: int
    denominator: int = 100


class BackendObjectReference(Kind, frozen=True):
    name: str
    group: str = ""
    kind: str = "Service"
    namespace: str | None = None
    port: int | None = None


class HTTPRequestMirrorFilter(Kind, frozen=True):
    """A copy of each request, or of a share of them, by percent or by fraction."""

    backend_ref: BackendObjectReference
    percent: int | None = None
    fraction: Fraction | None = None


class HTTPRouteFilter(Kind, frozen=True):
    """One filter: the field that carries its parameters is named after its type."""

    type: Literal[
        "RequestHeaderModifier",
        "ResponseHeaderModifier",
        "RequestRedirect",
        "URLRewrite",
        "CORS",
        "RequestMirror",
        "ExternalAuth",
    ]
    request_header_modifier: HTTPHeaderFilter | None = None
    response_header_modifier: HTTPHeaderFilter | None = None
    request_redirect: HTTPRequestRedirectFilter | None = None
    url_rewrite: HTTPURLRewriteFilter | None = None
    cors: HTTPCORSFilter | None = None
    request_mirror: HTTPRequestMirrorFilter | None = None
    external_auth: HTTPExternalAuth | None = None


class HTTPRouteTimeouts(Kind, frozen=True):
    """Durations as GEP-2257 writes them; "0s" is none."""

    request: str | None = None
    backend_request: str | None = None


class HTTPRouteRetry(Kind, frozen=True):
    codes: list[int] = []
    attempts: int | None = None
    backoff: str | None = None


class HTTPBackendRef(Kind, frozen=True):
    name: str
    group: str = ""
    kind: str = "Service"
    namespace: str | None = None
    port: int | None = None
    weight: int = 1
    filters: list[HTTPRouteFilter] = []


class HTTPRouteRule(Kind, frozen=True):
    name: str | None = None
    matches: list[HTTPRouteMatch] = msgspec.field(default_factory=lambda: [HTTPRouteMatch()])
    filters: list[HTTPRouteFilter] = []
    backend_refs: list[HTTPBackendRef] = []
    timeouts: HTTPRouteTimeouts = HTTPRouteTimeouts()
    retry: HTTPRouteRetry | None = None
    session_persistence: SessionPersistence | None = None


class HTTPRouteSpec(Kind, frozen=True):
    parent_refs: list[ParentReference] = []
    use_default_gateways: Literal["All", "None"] = "None"
    hostnames: list[str] = []
    rules: list[HTTPRouteRule] = msgspec.field(default_factory=lambda: [HTTPRouteRule()])


class HTTPRoute(Kind, frozen=True):
    api_version: str
    kind: Literal["HTTPRoute"]
    metadata: ObjectMeta
    spec: HTTPRouteSpec
    status: Any = None


class GRPCMethodMatch(Kind, frozen=True):
    """At least one of service and method."""

    type: Literal["Exact", "RegularExpression"] = "Exact"
    service: str | None = None
    method: str | None = None


class GRPCRouteMatch(Kind, frozen=True):
    method: GRPCMethodMatch | None = None
    headers: list[HTTPHeaderMatch] = []


class GRPCRouteRule(Kind, frozen=True):
    """Filters have the shape of an HTTPRoute's; only those that change headers are for gRPC."""

    name: str | None = None
    matches: list[GRPCRouteMatch] = msgspec.field(default_factory=lambda: [GRPCRouteMatch()])
    filters: list[HTTPRouteFilter] = []
    backend_refs: list[HTTPBackendRef] = []
    session_persistence: SessionPersistence | None = None


class GRPCRouteSpec(Kind, frozen=True):
    parent_refs: list[ParentReference] = []
    use_default_gateways: Literal["All", "None"] = "None"
    hostnames: list[str] = []
    rules: list[GRPCRouteRule] = msgspec.field(default_factory=lambda: [GRPCRouteRule()])


class GRPCRoute(Kind, frozen=True):
    api_version: str
    kind: Literal["GRPCRoute"]
    metadata: ObjectMeta
    spec: GRPCRouteSpec
    status: Any = None


class ReferenceGrantFrom(Kind, frozen=True):
    group: str
    kind: str
    namespace: str


class ReferenceGrantTo(Kind, frozen=True):
    group: str
    kind: str
    name: str | None = None


class ReferenceGrantSpec(Kind, frozen=True):
    from_: list[ReferenceGrantFrom] = msgspec.field(name="from")
    to: list[ReferenceGrantTo]


class ReferenceGrant(Kind, frozen=True):
    """Lets objects of other namespaces name objects of its own."""

    api_version: str
    kind: Literal["ReferenceGrant"]
    metadata: ObjectMeta
    spec: ReferenceGrantSpec
