"""Filters, timeouts and retries of a rule, as manifests say them → `Actions`.

Source: Gateway API v1.6, HTTPRouteRule, HTTPRouteFilter; GEP-2257 (durations), GEP-1731 (retries).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from penstock.manifests.route_kinds import (
    GRPCRouteRule,
    HTTPBackendRef,
    HTTPCORSFilter,
    HTTPHeaderFilter,
    HTTPPathModifier,
    HTTPRequestRedirectFilter,
    HTTPRouteFilter,
    HTTPRouteRetry,
    HTTPRouteRule,
)
from penstock.routing.actions import Actions, Cors, HeaderChanges, Mirror, PathChange, Redirect, Retry

T = TypeVar("T")

_PART = re.compile(r"([0-9]+)(ms|h|m|s)")
_UNITS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}

DEFAULT_ATTEMPTS = 1
"""How often a request is tried again where the route does not say (the API leaves it open)."""


def milliseconds(text: str | None) -> int | None:
    """A valid duration of GEP-2257; none and nought are no limit."""
    return sum(int(n) * _UNITS[unit] for n, unit in _PART.findall(text or "")) or None


def header_changes(modifier: HTTPHeaderFilter | None) -> HeaderChanges:
    if modifier is None:
        return HeaderChanges()
    return HeaderChanges(
        tuple((h.name.lower(), h.value) for h in modifier.set),
        tuple((h.name.lower(), h.value) for h in modifier.add),
        tuple(name.lower() for name in modifier.remove),
    )


def _path(modifier: HTTPPathModifier | None) -> PathChange | None:
    if modifier is None:
        return None
    if modifier.type == "ReplaceFullPath":
        return PathChange("full", modifier.replace_full_path or "/")
    return PathChange("prefix", modifier.replace_prefix_match or "")


def _redirect(redirect: HTTPRequestRedirectFilter, parent_port: int, secure: bool) -> Redirect:
    """Without a port in it, the scheme's own; without a scheme, the port that the client dialled."""
    port = redirect.port
    if port is None:
        port = parent_port if redirect.scheme is None else {"http": 80, "https": 443}[redirect.scheme]
    hostname = redirect.hostname or None
    return Redirect(redirect.status_code, port, redirect.scheme, hostname, _path(redirect.path), secure)


def _cors(cors: HTTPCORSFilter) -> Cors:
    return Cors(
        tuple(cors.allow_origins),
        tuple(cors.allow_methods),
        tuple(cors.allow_headers),
        tuple(cors.expose_headers),
        cors.max_age,
        cors.allow_credentials,
    )


def _retry(retry: HTTPRouteRetry | None) -> Retry | None:
    if retry is None:
        return None
    attempts = DEFAULT_ATTEMPTS if retry.attempts is None else retry.attempts
    return Retry(tuple(retry.codes), attempts, milliseconds(retry.backoff))


def mirrors(
    filters: Iterable[HTTPRouteFilter], resolve: Callable[[HTTPBackendRef], str | None]
) -> tuple[Mirror, ...]:
    """Where copies of the requests go. `resolve` gives a reference's cluster, None if it cannot be used."""
    found = []
    for mirror in (f.request_mirror for f in filters):
        if mirror is None:
            continue
        ref = mirror.backend_ref
        cluster = resolve(
            HTTPBackendRef(
                name=ref.name, group=ref.group, kind=ref.kind, namespace=ref.namespace, port=ref.port
            )
        )
        share = (1, 1)
        if mirror.fraction is not None:
            share = mirror.fraction.numerator, mirror.fraction.denominator
        elif mirror.percent is not None:
            share = mirror.percent, 100
        if cluster is not None and share[0]:
            found.append(Mirror(cluster, *share))
    return tuple(found)


def _one(found: Iterable[T | None]) -> T | None:
    return next((item for item in found if item is not None), None)


def filter_actions(filters: Sequence[HTTPRouteFilter], parent_port: int, *, secure: bool = False) -> Actions:
    """What filters do (but for copies, and for asking a service), on a parent dialled at `parent_port`."""
    redirect = _one(f.request_redirect for f in filters)
    rewrite = _one(f.url_rewrite for f in filters)
    cors = _one(f.cors for f in filters)
    return Actions(
        request=header_changes(_one(f.request_header_modifier for f in filters)),
        response=header_changes(_one(f.response_header_modifier for f in filters)),
        redirect=_redirect(redirect, parent_port, secure) if redirect is not None else None,
        hostname=rewrite.hostname or None if rewrite is not None else None,
        path=_path(rewrite.path) if rewrite is not None else None,
        cors=_cors(cors) if cors is not None else None,
    )


def actions(rule: HTTPRouteRule | GRPCRouteRule, parent_port: int, *, secure: bool = False) -> Actions:
    """What `rule` does, on a parent that was dialled at `parent_port`; `secure`: over TLS."""
    done = filter_actions(rule.filters, parent_port, secure=secure)
    if isinstance(rule, GRPCRouteRule):
        return done
    return replace(
        done,
        timeout=milliseconds(rule.timeouts.request),
        try_timeout=milliseconds(rule.timeouts.backend_request),
        retry=_retry(rule.retry),
    )
