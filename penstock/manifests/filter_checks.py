"""The rules of filters, timeouts and retries of one rule of an HTTPRoute.

Source: the validation rules of Gateway API v1.6's schema; GEP-2257 (durations). What is refused beyond
them would open a way around policy, or is a limit of this version named as such.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from penstock.manifests import http_policy_checks, syntax
from penstock.manifests.measures import duration, ms
from penstock.manifests.problem import Finding, Path
from penstock.manifests.route_kinds import (
    GRPCRouteRule,
    HTTPCORSFilter,
    HTTPHeaderFilter,
    HTTPPathModifier,
    HTTPRequestMirrorFilter,
    HTTPRequestRedirectFilter,
    HTTPRouteFilter,
    HTTPRouteRetry,
    HTTPRouteRule,
    HTTPRouteTimeouts,
)

_FIELDS = {
    "RequestHeaderModifier": "request_header_modifier",
    "ResponseHeaderModifier": "response_header_modifier",
    "RequestRedirect": "request_redirect",
    "URLRewrite": "url_rewrite",
    "CORS": "cors",
    "RequestMirror": "request_mirror",
    "ExternalAuth": "external_auth",
}
_OF_GRPC = ("RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror")
_REPEATED = ("RequestMirror",)

_FRAMING = frozenset(
    [
        "host",
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
"""Say where a message goes or where it ends: another value there is another message (RFC 9110, 7.6.1)."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9.*-]+(:([0-9]{1,5}|\*))?|\*|null")
_METHOD = re.compile(r"[A-Z]+|\*")

MAX_FILTERS = 16


def check(rule: HTTPRouteRule, path: Path) -> Iterator[Finding]:
    """Everything of a rule but its matches and its backends."""
    at = (*path, "filters")
    yield from _filters(rule.filters, rule, at)
    kinds = {f.type for f in rule.filters}
    if {"RequestRedirect", "URLRewrite"} <= kinds:
        yield Finding(at, "holds both RequestRedirect and URLRewrite, of which a rule can have one")
    if "RequestRedirect" in kinds and rule.backend_refs:
        yield Finding(
            (*path, "backendRefs"), "stands beside a RequestRedirect, which sends nothing to backends"
        )
    for i, ref in enumerate(rule.backend_refs):
        here = (*path, "backendRefs", i, "filters")
        yield from _filters(ref.filters, rule, here)
        if {"RequestRedirect", "URLRewrite"} <= {f.type for f in ref.filters}:
            yield Finding(here, "holds both RequestRedirect and URLRewrite, of which a backend can have one")
    yield from _timeouts(rule.timeouts, (*path, "timeouts"))
    if rule.retry is not None:
        yield from _retry(rule.retry, (*path, "retry"))
    if rule.session_persistence is not None:
        yield from http_policy_checks.session(rule.session_persistence, (*path, "sessionPersistence"))


def check_grpc(rule: GRPCRouteRule, path: Path) -> Iterator[Finding]:
    """Everything of a rule but its matches and its backends."""
    places: list[tuple[Path, Sequence[HTTPRouteFilter]]] = [((*path, "filters"), rule.filters)]
    places += [((*path, "backendRefs", i, "filters"), ref.filters) for i, ref in enumerate(rule.backend_refs)]
    for at, filters in places:
        yield from _filters(filters, HTTPRouteRule(), at)
        for i, item in enumerate(filters):
            if item.type not in _OF_GRPC:
                yield Finding((*at, i, "type"), f'"{item.type}" is not for a GRPCRoute')
    if rule.session_persistence is not None:
        yield from http_policy_checks.session(rule.session_persistence, (*path, "sessionPersistence"))


def _filters(filters: Sequence[HTTPRouteFilter], rule: HTTPRouteRule, path: Path) -> Iterator[Finding]:
    if len(filters) > MAX_FILTERS:
        yield Finding(path, f"holds {len(filters)} entries, at most {MAX_FILTERS} are allowed")
    for kind, count in Counter(f.type for f in filters).items():
        if count > 1 and kind not in _REPEATED:
            yield Finding(path, f'holds "{kind}" {count} times, which is allowed once', code="duplicate")
    for i, item in enumerate(filters):
        yield from _filter(item, rule, (*path, i))


def _filter(item: HTTPRouteFilter, rule: HTTPRouteRule, path: Path) -> Iterator[Finding]:
    for kind, field in _FIELDS.items():
        name = _wire(field)
        given = getattr(item, field) is not None
        if given and kind != item.type:
            yield Finding((*path, name), f'does not belong to a filter of type "{item.type}"')
        elif not given and kind == item.type:
            yield Finding((*path, name), f'is missing: the filter is of type "{item.type}"')
    if item.request_header_modifier is not None:
        yield from _headers(item.request_header_modifier, (*path, "requestHeaderModifier"))
    if item.response_header_modifier is not None:
        yield from _headers(item.response_header_modifier, (*path, "responseHeaderModifier"))
    if item.request_redirect is not None:
        yield from _redirect(item.request_redirect, rule, (*path, "requestRedirect"))
    if item.url_rewrite is not None:
        here = (*path, "urlRewrite")
        yield from _hostname(item.url_rewrite.hostname, here)
        yield from _modifier(item.url_rewrite.path, rule, (*here, "path"))
    if item.cors is not None:
        yield from _cors(item.cors, (*path, "cors"))
    if item.request_mirror is not None:
        yield from _mirror(item.request_mirror, (*path, "requestMirror"))
    if item.external_auth is not None:
        yield from http_policy_checks.external_auth(item.external_auth, (*path, "externalAuth"))


def _wire(field: str) -> str:
    first, *rest = field.split("_")
    return first + "".join(word.title() for word in rest)


def _headers(changes: HTTPHeaderFilter, path: Path) -> Iterator[Finding]:
    names = [
        *(
            ((*path, part, i, "name"), h.name)
            for part in ("set", "add")
            for i, h in enumerate(getattr(changes, part))
        ),
        *(((*path, "remove", i), name) for i, name in enumerate(changes.remove)),
    ]
    for where, name in names:
        if wrong := syntax.field_name(name):
            yield Finding(where, wrong)
        elif name.lower() in _FRAMING:
            hint = "rewrite the host by a URLRewrite filter" if name.lower() == "host" else ""
            yield Finding(where, f'"{name}" belongs to the connection, and no filter may change it', hint)
        elif name.lower().startswith("x-penstock-"):
            yield Finding(where, f'"{name}" is used by Penstock itself')
    for part in ("set", "add"):
        entries = getattr(changes, part)
        if len(entries) > MAX_FILTERS:
            yield Finding((*path, part), f"holds {len(entries)} entries, at most {MAX_FILTERS} are allowed")
        if len({h.name.lower() for h in entries}) < len(entries):
            yield Finding((*path, part), "holds the same name twice", code="duplicate")
        for i, header in enumerate(entries):
            if wrong := syntax.field_value(header.value):
                yield Finding((*path, part, i, "value"), wrong)


def _hostname(name: str | None, path: Path) -> Iterator[Finding]:
    if name is not None and (name.startswith("*") or syntax.hostname(name)):
        yield Finding((*path, "hostname"), f'"{name}" {syntax.hostname(name) or "is not one name"}')


def _modifier(change: HTTPPathModifier | None, rule: HTTPRouteRule, path: Path) -> Iterator[Finding]:
    if change is None:
        return
    full = change.type == "ReplaceFullPath"
    wanted, other = ("replaceFullPath", "replacePrefixMatch")[:: 1 if full else -1]
    value = change.replace_full_path if full else change.replace_prefix_match
    unwanted = change.replace_prefix_match if full else change.replace_full_path
    if value is None:
        yield Finding((*path, wanted), f'is missing: the type is "{change.type}"')
    elif value and (wrong := syntax.url_path(value)):
        yield Finding((*path, wanted), f'"{value}" {wrong}')
    if unwanted is not None:
        yield Finding((*path, other), f'does not belong to the type "{change.type}"')
    if not full and [m.path.type for m in rule.matches] != ["PathPrefix"]:
        message = "needs exactly one match in its rule, of type PathPrefix: it replaces what that matched"
        yield Finding((*path, "replacePrefixMatch"), message)


def _redirect(redirect: HTTPRequestRedirectFilter, rule: HTTPRouteRule, path: Path) -> Iterator[Finding]:
    yield from _hostname(redirect.hostname, path)
    yield from _modifier(redirect.path, rule, (*path, "path"))
    if redirect.port is not None and (wrong := syntax.port_number(redirect.port)):
        yield Finding((*path, "port"), wrong)
    if redirect.status_code not in (301, 302, 303, 307, 308):
        yield Finding((*path, "statusCode"), f"{redirect.status_code} is none of 301, 302, 303, 307, 308")


def _cors(cors: HTTPCORSFilter, path: Path) -> Iterator[Finding]:
    for i, origin in enumerate(cors.allow_origins):
        if not _ORIGIN.fullmatch(origin):
            yield Finding((*path, "allowOrigins", i), f'"{origin}" is not scheme://host[:port], nor "*"')
    for i, method in enumerate(cors.allow_methods):
        if not _METHOD.fullmatch(method):
            yield Finding((*path, "allowMethods", i), f'"{method}" is not a method')
    for name, entries in (("allowHeaders", cors.allow_headers), ("exposeHeaders", cors.expose_headers)):
        for i, header in enumerate(entries):
            if header != "*" and (wrong := syntax.field_name(header)):
                yield Finding((*path, name, i), wrong)
    for name, many in (
        ("allowOrigins", cors.allow_origins),
        ("allowMethods", cors.allow_methods),
        ("allowHeaders", cors.allow_headers),
    ):
        if "*" in many and len(many) > 1:
            yield Finding((*path, name), 'holds "*" and more')
    if cors.max_age < 1:
        yield Finding((*path, "maxAge"), f"{cors.max_age} is less than 1")


def _mirror(mirror: HTTPRequestMirrorFilter, path: Path) -> Iterator[Finding]:
    ref = mirror.backend_ref
    here = (*path, "backendRef")
    if (ref.group, ref.kind) == ("", "Service") and ref.port is None:
        yield Finding((*here, "port"), "is missing: a Service backend needs a port")
    if mirror.percent is not None and mirror.fraction is not None:
        yield Finding(path, "holds both percent and fraction, of which it can have one")
    if mirror.percent is not None and not 0 <= mirror.percent <= 100:
        yield Finding((*path, "percent"), f"{mirror.percent} is not between 0 and 100")
    if mirror.fraction is not None:
        numerator, denominator = mirror.fraction.numerator, mirror.fraction.denominator
        if denominator < 1:
            yield Finding((*path, "fraction", "denominator"), f"{denominator} is less than 1")
        elif not 0 <= numerator <= denominator:
            message = f"{numerator} is not between 0 and the denominator"
            yield Finding((*path, "fraction", "numerator"), message)


def _timeouts(timeouts: HTTPRouteTimeouts, path: Path) -> Iterator[Finding]:
    found = [
        *duration(timeouts.request, (*path, "request")),
        *duration(timeouts.backend_request, (*path, "backendRequest")),
    ]
    yield from found
    if found:
        return
    whole, each = ms(timeouts.request), ms(timeouts.backend_request)
    if whole and each > whole:
        yield Finding((*path, "backendRequest"), "is longer than the timeout of the whole request")


def _retry(retry: HTTPRouteRetry, path: Path) -> Iterator[Finding]:
    for i, code in enumerate(retry.codes):
        if not 400 <= code <= 599:
            yield Finding((*path, "codes", i), f"{code} is not between 400 and 599")
        elif code == 403:
            message = "403 is how a policy's denial is answered, which is never tried elsewhere"
            yield Finding((*path, "codes", i), message)
    if len(set(retry.codes)) < len(retry.codes):
        yield Finding((*path, "codes"), "holds the same code twice", code="duplicate")
    if retry.attempts is not None and retry.attempts < 0:
        yield Finding((*path, "attempts"), f"{retry.attempts} is less than 0")
    yield from duration(retry.backoff, (*path, "backoff"))
