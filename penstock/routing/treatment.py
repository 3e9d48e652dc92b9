"""What a proxy does with requests besides routing them, said without a word of Envoy.

A part that is None is left to whoever is asked next: a rule's parts come before its route's, and those before
the Service's or the Gateway listener's. Durations are milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`requests` in each `interval`, `burst` at once; for all clients together or for each by itself."""

    requests: int
    interval: int
    burst: int
    per: Literal["Target", "Identity", "Address"] = "Target"


@dataclass(frozen=True, slots=True)
class Fault:
    """Percent of requests that wait, and percent that are answered at once with a status."""

    delay: int = 0
    delay_percent: int = 100
    http_status: int | None = None
    grpc_status: int | None = None
    abort_percent: int = 100


@dataclass(frozen=True, slots=True)
class JwtProvider:
    """`keys` is a JWKS as text; None is fetched from `uri` by way of `cluster`, and kept for `cache`."""

    name: str
    issuer: str
    audiences: tuple[str, ...] = ()
    keys: str | None = None
    cluster: str = ""
    uri: str = ""
    cache: int = 0
    header: str | None = None
    forward: bool = False
    claims: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Jwt:
    """A token of any of the providers. Without providers nobody's can be checked: all is refused."""

    providers: tuple[JwtProvider, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ExternalAuth:
    """Who is asked whether a request may pass. `cluster` None cannot be asked: all is refused."""

    cluster: str | None
    authority: str = ""
    grpc: bool = False
    path: str = ""
    headers: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    """Headers of the answer that the request gets."""
    body: int = 0


@dataclass(frozen=True, slots=True)
class Compression:
    types: tuple[Literal["gzip", "brotli", "zstd"], ...]
    min_size: int
    content_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """By what a client gets its endpoint again; `ttl` 0 is a cookie of the session."""

    kind: Literal["Cookie", "Header"]
    name: str
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class Treatment:
    fault: Fault | None = None
    limit: RateLimit | None = None
    jwt: Jwt | None = None
    auth: ExternalAuth | None = None
    compression: Compression | None = None
    session: Session | None = None

    def over(self, under: Treatment | None) -> Treatment:
        """This, and what `under` says where this says nothing."""
        if under is None:
            return self
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(under, **{name: value for name, value in mine.items() if value is not None})


NO_TREATMENT = Treatment()
