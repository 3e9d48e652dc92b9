"""The rules of one HTTPRoute or GRPCRoute that its types cannot say.

Source: the validation rules of Gateway API v1.6's schema. Limits of this version (mesh routes only) are
named as such.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from penstock.manifests import filter_checks, syntax
from penstock.manifests.fields import NOT_YET
from penstock.manifests.gateway_kinds import GROUP
from penstock.manifests.l4_kinds import BackendRef
from penstock.manifests.problem import Finding, Path
from penstock.manifests.route_kinds import (
    GRPCMethodMatch,
    GRPCRoute,
    GRPCRouteRule,
    HTTPBackendRef,
    HTTPHeaderMatch,
    HTTPPathMatch,
    HTTPQueryParamMatch,
    HTTPRoute,
    HTTPRouteMatch,
    HTTPRouteRule,
    ParentReference,
)

MAX_RULES = 16
MAX_MATCHES = 64
"""Of one rule; of one route 128."""
MAX_ROUTE_MATCHES = 128
MAX_WEIGHT = 1_000_000


def check(route: HTTPRoute) -> Iterator[Finding]:
    yield from _common(route)
    for i, rule in enumerate(route.spec.rules):
        here: Path = ("spec", "rules", i)
        for j, match in enumerate(rule.matches):
            yield from _match(match, (*here, "matches", j))
        yield from filter_checks.check(rule, here)


def check_grpc(route: GRPCRoute) -> Iterator[Finding]:
    yield from _common(route)
    for i, rule in enumerate(route.spec.rules):
        here: Path = ("spec", "rules", i)
        for j, match in enumerate(rule.matches):
            if match.method is not None:
                yield from _method(match.method, (*here, "matches", j, "method"))
            yield from _pairs(match.headers, (*here, "matches", j, "headers"))
        yield from filter_checks.check_grpc(rule, here)


def _common(route: HTTPRoute | GRPCRoute) -> Iterator[Finding]:
    spec = route.spec
    at: Path = ("spec",)
    rules: Sequence[HTTPRouteRule | GRPCRouteRule] = spec.rules
    if not spec.parent_refs and spec.use_default_gateways == "None":
        message = "is empty: the route is attached to nothing"
        yield Finding((*at, "parentRefs"), message, code="reference", severity="warning")
    yield from parents(spec.parent_refs, (*at, "parentRefs"))
    yield from _twice(
        ((p.kind, p.namespace, p.name, p.section_name, p.port) for p in spec.parent_refs), (*at, "parentRefs")
    )
    yield from _at_most(spec.hostnames, 16, (*at, "hostnames"))
    for i, hostname in enumerate(spec.hostnames):
        if wrong := syntax.hostname(hostname):
            yield Finding((*at, "hostnames", i), f'"{hostname}" {wrong}')
    yield from _at_most(rules, MAX_RULES, (*at, "rules"))
    if sum(len(rule.matches) for rule in rules) > MAX_ROUTE_MATCHES:
        yield Finding((*at, "rules"), f"holds more than {MAX_ROUTE_MATCHES} matches")
    yield from _twice((r.name for r in rules if r.name is not None), (*at, "rules"))
    for i, rule in enumerate(rules):
        here = (*at, "rules", i)
        if rule.name is not None and (wrong := syntax.dns_subdomain(rule.name)):
            yield Finding((*here, "name"), f'"{rule.name}" {wrong}')
        yield from _at_most(rule.matches, MAX_MATCHES, (*here, "matches"))
        yield from _at_most(rule.backend_refs, 16, (*here, "backendRefs"))
        for j, ref in enumerate(rule.backend_refs):
            yield from backend(ref, (*here, "backendRefs", j))


_GRPC_NAMES = {
    "service": re.compile(r"(?i:\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*)"),
    "method": re.compile(r"[A-Za-z_][A-Za-z_0-9]*"),
}


def _method(match: GRPCMethodMatch, path: Path) -> Iterator[Finding]:
    if not match.service and not match.method:
        yield Finding(path, "names neither a service nor a method")
    for name, value in (("service", match.service), ("method", match.method)):
        if not value:
            continue
        if match.type == "RegularExpression":
            if wrong := syntax.regex(value):
                yield Finding((*path, name), wrong)
        elif len(value) > 1024 or not _GRPC_NAMES[name].fullmatch(value):
            yield Finding((*path, name), f'"{value}" is not the name of a gRPC {name}')


def _at_most(items: Sequence[object], limit: int, path: Path) -> Iterator[Finding]:
    count = len(items)
    if count > limit:
        yield Finding(path, f"holds {count} entries, at most {limit} are allowed")


def _twice(items: Iterable[object], path: Path) -> Iterator[Finding]:
    if any(count > 1 for count in Counter(items).values()):
        yield Finding(path, "holds the same entry twice", code="duplicate")


def parents(refs: Sequence[ParentReference], path: Path) -> Iterator[Finding]:
    yield from _at_most(refs, 32, path)
    for i, parent in enumerate(refs):
        yield from _parent(parent, (*path, i))


def _parent(parent: ParentReference, path: Path) -> Iterator[Finding]:
    if (parent.group, parent.kind) in ((GROUP, "Gateway"), (GROUP, "ListenerSet")):
        if wrong := syntax.dns_subdomain(parent.name):
            yield Finding((*path, "name"), f'"{parent.name}" {wrong}')
        if parent.namespace is not None and (wrong := syntax.dns_label(parent.namespace)):
            yield Finding((*path, "namespace"), f'"{parent.namespace}" {wrong}')
        if parent.port is not None and (wrong := syntax.port_number(parent.port)):
            yield Finding((*path, "port"), wrong)
        if parent.section_name is not None and (wrong := syntax.dns_subdomain(parent.section_name)):
            yield Finding((*path, "sectionName"), f'"{parent.section_name}" {wrong}')
        return
    if parent.kind != "Service":
        known = "it knows Gateway, ListenerSet and Service"
        yield Finding((*path, "kind"), f'a parent of kind "{parent.kind}" {NOT_YET}', known, "unserved")
        return
    if parent.group != "":
        yield Finding((*path, "group"), f'a Service is not of the group "{parent.group}"', 'write group: ""')
    yield from _reference(parent.name, parent.namespace, parent.port, path)
    if parent.section_name is not None and (wrong := syntax.dns_label(parent.section_name)):
        yield Finding((*path, "sectionName"), f'"{parent.section_name}" {wrong}')


def backend(ref: HTTPBackendRef | BackendRef, path: Path) -> Iterator[Finding]:
    if not 0 <= ref.weight <= MAX_WEIGHT:
        yield Finding((*path, "weight"), f"{ref.weight} is not between 0 and {MAX_WEIGHT}")
    if (ref.group, ref.kind) != ("", "Service"):
        # Gateway API takes the route all the same: the share of an unknown kind fails.
        fate = "requests get 500" if isinstance(ref, HTTPBackendRef) else "connections are closed"
        message = f'"{ref.kind}" (group "{ref.group}") is no backend: its {fate}'
        yield Finding((*path, "kind"), message, "it knows Service", "reference", "warning")
        return
    yield from _reference(ref.name, ref.namespace, ref.port, path)
    if ref.port is None:
        yield Finding((*path, "port"), "is missing: a Service backend needs a port")


def _reference(name: str, namespace: str | None, port: int | None, path: Path) -> Iterator[Finding]:
    if wrong := syntax.service_name(name):
        yield Finding((*path, "name"), f'"{name}" {wrong}')
    if namespace is not None and (wrong := syntax.dns_label(namespace)):
        yield Finding((*path, "namespace"), f'"{namespace}" {wrong}')
    if port is not None and (wrong := syntax.port_number(port)):
        yield Finding((*path, "port"), wrong)


def _match(match: HTTPRouteMatch, path: Path) -> Iterator[Finding]:
    yield from _path(match.path, (*path, "path"))
    sections: tuple[tuple[str, Sequence[HTTPHeaderMatch | HTTPQueryParamMatch]], ...] = (
        ("headers", match.headers),
        ("queryParams", match.query_params),
    )
    for name, entries in sections:
        yield from _pairs(entries, (*path, name))


def _pairs(entries: Sequence[HTTPHeaderMatch | HTTPQueryParamMatch], path: Path) -> Iterator[Finding]:
    yield from _at_most(entries, 16, path)
    names = (e.name.lower() if isinstance(e, HTTPHeaderMatch) else e.name for e in entries)
    yield from _twice(names, path)
    for i, entry in enumerate(entries):
        yield from _pair(entry, (*path, i))


def _pair(entry: HTTPHeaderMatch | HTTPQueryParamMatch, path: Path) -> Iterator[Finding]:
    if isinstance(entry, HTTPHeaderMatch) and (wrong := syntax.field_name(entry.name)):
        yield Finding((*path, "name"), wrong)
    if not entry.name:
        yield Finding((*path, "name"), "is empty")
    if not entry.value:
        yield Finding((*path, "value"), "is empty")
    if entry.type == "RegularExpression" and (wrong := syntax.regex(entry.value)):
        yield Finding((*path, "value"), wrong)


def _path(match: HTTPPathMatch, path: Path) -> Iterator[Finding]:
    here = (*path, "value")
    value = match.value
    if match.type == "RegularExpression":
        if wrong := syntax.regex(value):
            yield Finding(here, wrong)
    elif not value.startswith("/"):
        yield Finding(here, f'"{value}" does not begin with "/"', f'write "/{value}"')
    elif wrong := syntax.url_path(value):
        yield Finding(here, f'"{value}" {wrong}')
