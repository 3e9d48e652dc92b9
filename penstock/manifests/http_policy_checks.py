"""The rules of one HTTPPolicy, of external authorization and of session persistence that types cannot say.

Source: docs/traffic.md; the validation rules of Gateway API v1.6's schema; RFC 7519 (JWT).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from penstock.manifests import jwks, syntax
from penstock.manifests.http_policy_kinds import (
    Compression,
    Fault,
    HTTPPolicy,
    HTTPPolicyTarget,
    Jwt,
    JwtProvider,
    RateLimit,
)
from penstock.manifests.measures import between, duration, interval, ms
from penstock.manifests.problem import Finding, Path
from penstock.manifests.shared_kinds import HTTPExternalAuth, ServiceBackend, SessionPersistence

GATEWAY_API = "gateway.networking.k8s.io"
MAX_TARGETS = 16
MAX_PROVIDERS = 8
MOST_TOKENS = 1 << 31
SHORTEST_MS = 50
"""Envoy's token buckets are not filled more often."""
MOST_DELAY_MS = 600_000


def check(policy: HTTPPolicy) -> Iterator[Finding]:
    spec = policy.spec
    at: Path = ("spec",)
    count = len(spec.target_refs)
    if not 1 <= count <= MAX_TARGETS:
        yield Finding((*at, "targetRefs"), f"holds {count} entries; it must be 1 to {MAX_TARGETS}")
    seen = set()
    for i, target in enumerate(spec.target_refs):
        here = (*at, "targetRefs", i)
        what = (target.kind, target.name, target.section_name, target.port)
        if what in seen:
            yield Finding(here, "names the same target twice", code="duplicate")
        seen.add(what)
        yield from _target(target, here)
    if spec.rate_limit is not None:
        yield from _limit(spec.rate_limit, (*at, "rateLimit"))
    if spec.fault is not None:
        yield from _fault(spec.fault, (*at, "fault"))
    if spec.jwt is not None:
        yield from _jwt(spec.jwt, (*at, "jwt"))
    if spec.ext_auth is not None:
        yield from external_auth(spec.ext_auth, (*at, "extAuth"))
    if spec.compression is not None:
        yield from _compression(spec.compression, (*at, "compression"))
    if spec == type(spec)(target_refs=spec.target_refs):
        yield Finding(at, "says nothing besides its targets", severity="warning")


def _target(target: HTTPPolicyTarget, path: Path) -> Iterator[Finding]:
    service = target.kind == "Service"
    right = "" if service else GATEWAY_API
    if target.group is not None and target.group != right:
        yield Finding((*path, "group"), f'a {target.kind} is not of the group "{target.group}"')
    wrong = syntax.service_name(target.name) if service else syntax.dns_subdomain(target.name)
    if wrong:
        yield Finding((*path, "name"), f'"{target.name}" {wrong}')
    if target.port is not None:
        if not service:
            yield Finding((*path, "port"), f"is not for a {target.kind}")
        elif wrong := syntax.port_number(target.port):
            yield Finding((*path, "port"), wrong)
        if target.section_name is not None:
            yield Finding(path, "holds both port and sectionName, of which it can have one")
    if target.section_name is not None and (wrong := syntax.dns_subdomain(target.section_name)):
        yield Finding((*path, "sectionName"), f'"{target.section_name}" {wrong}')


def _limit(limit: RateLimit, path: Path) -> Iterator[Finding]:
    yield from between(limit.requests, 1, MOST_TOKENS, (*path, "requests"))
    wrong = list(interval(limit.interval, (*path, "interval")))
    yield from wrong
    if not wrong and ms(limit.interval) < SHORTEST_MS:
        yield Finding((*path, "interval"), f"is less than {SHORTEST_MS} ms")
    if limit.burst is not None:
        yield from between(limit.burst, limit.requests, MOST_TOKENS, (*path, "burst"))


def _fault(fault: Fault, path: Path) -> Iterator[Finding]:
    if fault.delay is None and fault.abort is None:
        yield Finding(path, "needs a delay or an abort")
    if fault.delay is not None:
        here = (*path, "delay")
        yield from interval(fault.delay.duration, (*here, "duration"))
        if ms(fault.delay.duration) > MOST_DELAY_MS:
            yield Finding((*here, "duration"), "is more than 10 minutes")
        yield from between(fault.delay.percent, 0, 100, (*here, "percent"))
    if fault.abort is not None:
        here, abort = (*path, "abort"), fault.abort
        if (abort.http_status is None) == (abort.grpc_status is None):
            yield Finding(here, "needs exactly one of httpStatus and grpcStatus")
        if abort.http_status is not None:
            yield from between(abort.http_status, 200, 599, (*here, "httpStatus"))
        if abort.grpc_status is not None:
            yield from between(abort.grpc_status, 1, 16, (*here, "grpcStatus"))
        yield from between(abort.percent, 0, 100, (*here, "percent"))


def _jwt(rules: Jwt, path: Path) -> Iterator[Finding]:
    at = (*path, "providers")
    if not 1 <= len(rules.providers) <= MAX_PROVIDERS:
        yield Finding(at, f"holds {len(rules.providers)} entries; it must be 1 to {MAX_PROVIDERS}")
    seen = set()
    for i, provider in enumerate(rules.providers):
        if provider.name in seen:
            yield Finding((*at, i, "name"), f'"{provider.name}" is given twice', code="duplicate")
        seen.add(provider.name)
        yield from _provider(provider, (*at, i))


def _provider(provider: JwtProvider, path: Path) -> Iterator[Finding]:
    if wrong := syntax.dns_label(provider.name):
        yield Finding((*path, "name"), f'"{provider.name}" {wrong}')
    if not provider.issuer:
        yield Finding((*path, "issuer"), "is empty")
    here, keys = (*path, "jwks"), provider.jwks
    given = [n for n, k in (("inline", keys.inline), ("ref", keys.ref), ("remote", keys.remote)) if k]
    if len(given) != 1:
        yield Finding(here, f"needs exactly one of inline, ref and remote, and has {len(given)}")
    if keys.inline and (wrong := jwks.fault(keys.inline)):
        yield Finding((*here, "inline"), wrong)
    if keys.remote is not None:
        yield from _service(keys.remote.backend_ref, (*here, "remote", "backendRef"))
        yield from interval(keys.remote.cache, (*here, "remote", "cache"))
        if wrong := syntax.url_path(keys.remote.path):
            yield Finding((*here, "remote", "path"), f'"{keys.remote.path}" {wrong}')
    yield from _headers([provider.header] if provider.header is not None else [], (*path, "header"))
    for i, each in enumerate(provider.claims_to_headers):
        place = (*path, "claimsToHeaders", i)
        if not each.claim:
            yield Finding((*place, "claim"), "is empty")
        yield from _header(each.header, (*place, "header"))


def external_auth(auth: HTTPExternalAuth, path: Path) -> Iterator[Finding]:
    """Also of the filter ExternalAuth of an HTTPRoute."""
    yield from _service(auth.backend_ref, (*path, "backendRef"))
    other = "http" if auth.protocol == "GRPC" else "grpc"
    if getattr(auth, other) is not None:
        yield Finding((*path, other), f'does not belong to the protocol "{auth.protocol}"')
    if auth.grpc is not None:
        yield from _headers(auth.grpc.allowed_headers, (*path, "grpc", "allowedHeaders"))
    if auth.http is not None:
        here = (*path, "http")
        if auth.http.path and (wrong := syntax.url_path(auth.http.path)):
            yield Finding((*here, "path"), f'"{auth.http.path}" {wrong}')
        yield from _headers(auth.http.allowed_headers, (*here, "allowedHeaders"))
        yield from _headers(auth.http.allowed_response_headers, (*here, "allowedResponseHeaders"))
    if auth.forward_body is not None:
        yield from between(auth.forward_body.max_size, 0, 1 << 20, (*path, "forwardBody", "maxSize"))


def session(rules: SessionPersistence, path: Path) -> Iterator[Finding]:
    if rules.session_name is not None and (wrong := syntax.field_name(rules.session_name)):
        yield Finding((*path, "sessionName"), wrong)
    yield from duration(rules.absolute_timeout, (*path, "absoluteTimeout"))
    if rules.cookie_config.lifetime_type == "Permanent":
        if rules.type == "Header":
            yield Finding((*path, "cookieConfig"), "does not belong to a header")
        elif rules.absolute_timeout is None:
            yield Finding((*path, "absoluteTimeout"), "is missing: a permanent cookie needs it")


def _service(ref: ServiceBackend, path: Path) -> Iterator[Finding]:
    if (ref.group, ref.kind) != ("", "Service"):
        yield Finding((*path, "kind"), f'"{ref.kind}" (group "{ref.group}") is no Service')
        return
    if wrong := syntax.service_name(ref.name):
        yield Finding((*path, "name"), f'"{ref.name}" {wrong}')
    if ref.namespace is not None and (wrong := syntax.dns_label(ref.namespace)):
        yield Finding((*path, "namespace"), f'"{ref.namespace}" {wrong}')
    if ref.port is None:
        yield Finding((*path, "port"), "is missing: a Service backend needs a port")
    elif wrong := syntax.port_number(ref.port):
        yield Finding((*path, "port"), wrong)


def _compression(compression: Compression, path: Path) -> Iterator[Finding]:
    if not compression.types:
        yield Finding((*path, "types"), "is empty")
    if len(set(compression.types)) < len(compression.types):
        yield Finding((*path, "types"), "holds the same type twice", code="duplicate")
    yield from between(compression.min_size, 30, 1 << 30, (*path, "minSize"))


def _headers(names: Iterable[str], path: Path) -> Iterator[Finding]:
    for name in names:
        yield from _header(name, path)


def _header(name: str, path: Path) -> Iterator[Finding]:
    if wrong := syntax.field_name(name):
        yield Finding(path, wrong)
    elif name.lower().startswith("x-penstock-") or name.lower() in ("host", "content-length", "connection"):
        yield Finding(path, f'"{name}" cannot be used here')
