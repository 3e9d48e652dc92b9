"""Parts that routes and policies about traffic share.

Source: Gateway API v1.6, HTTPExternalAuthFilter (GEP-1494), SessionPersistence (GEP-1619).
"""

from __future__ import annotations

from typing import Literal

from penstock.manifests.base import Kind


class ServiceBackend(Kind, frozen=True):
    """A port of a Service."""

    name: str
    group: str = ""
    kind: str = "Service"
    namespace: str | None = None
    port: int | None = None


class GRPCAuthConfig(Kind, frozen=True):
    """The headers that the authorization service is told; none: all."""

    allowed_headers: list[str] = []


class HTTPAuthConfig(Kind, frozen=True):
    """`path` comes before the request's own; headers of the answer are copied to the request."""

    path: str = ""
    allowed_headers: list[str] = []
    allowed_response_headers: list[str] = []


class ForwardBody(Kind, frozen=True):
    max_size: int = 0


class HTTPExternalAuth(Kind, frozen=True):
    """Asks a service whether a request may pass; where it does not answer, it may not."""

    protocol: Literal["HTTP", "GRPC"]
    backend_ref: ServiceBackend
    grpc: GRPCAuthConfig | None = None
    http: HTTPAuthConfig | None = None
    forward_body: ForwardBody | None = None


class CookieConfig(Kind, frozen=True):
    lifetime_type: Literal["Permanent", "Session"] = "Session"


class SessionPersistence(Kind, frozen=True):
    """Who had an endpoint gets it again, by a cookie or a header that the proxy gives him."""

    session_name: str | None = None
    absolute_timeout: str | None = None
    type: Literal["Cookie", "Header"] = "Cookie"
    cookie_config: CookieConfig = CookieConfig()
