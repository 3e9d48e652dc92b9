"""The rules of one TLSRoute, TCPRoute, UDPRoute or BackendTLSPolicy that its types cannot say.

Source: the validation rules of Gateway API v1.6's schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from penstock.manifests import route_checks, syntax
from penstock.manifests.fields import NOT_YET
from penstock.manifests.l4_kinds import (
    BackendTLSPolicy,
    L4Rule,
    SubjectAltName,
    TCPRoute,
    TLSRoute,
    UDPRoute,
)
from penstock.manifests.problem import Finding, Path
from penstock.manifests.route_kinds import ParentReference

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")

WELL_KNOWN = "System"


def check_tls_route(route: TLSRoute) -> Iterator[Finding]:
    names = route.spec.hostnames
    at: Path = ("spec", "hostnames")
    if not 1 <= len(names) <= 16:
        yield Finding(at, f"holds {len(names)} names; it must be 1 to 16")
    for i, name in enumerate(names):
        if wrong := syntax.hostname(name):
            yield Finding((*at, i), f'"{name}" {wrong}')
        elif _is_address(name):
            yield Finding((*at, i), f'"{name}" is an address, which no client asks for by name')
    yield from _route(route.spec.parent_refs, route.spec.rules)


def check_l4_route(route: TCPRoute | UDPRoute) -> Iterator[Finding]:
    yield from _route(route.spec.parent_refs, route.spec.rules)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _route(parents: Sequence[ParentReference], rules: Sequence[L4Rule]) -> Iterator[Finding]:
    for i, parent in enumerate(parents):
        if parent.kind == "Service":
            message = f"a Service as the parent of this kind of route {NOT_YET}"
            hint = "it knows Gateway and ListenerSet"
            yield Finding(("spec", "parentRefs", i, "kind"), message, hint, "unserved")
    yield from route_checks.parents(parents, ("spec", "parentRefs"))
    at: Path = ("spec", "rules")
    if len(rules) != 1:
        yield Finding(at, f"holds {len(rules)} rules; nothing in a connection would choose between them")
    for i, rule in enumerate(rules):
        here: Path = (*at, i)
        if rule.name is not None and (wrong := syntax.dns_subdomain(rule.name)):
            yield Finding((*here, "name"), f'"{rule.name}" {wrong}')
        if not 1 <= len(rule.backend_refs) <= 16:
            message = f"holds {len(rule.backend_refs)} entries; it must be 1 to 16"
            yield Finding((*here, "backendRefs"), message)
        for j, backend in enumerate(rule.backend_refs):
            yield from route_checks.backend(backend, (*here, "backendRefs", j))


def check_backend_tls(policy: BackendTLSPolicy) -> Iterator[Finding]:
    spec = policy.spec
    if not 1 <= len(spec.target_refs) <= 16:
        message = f"holds {len(spec.target_refs)} entries; it must be 1 to 16"
        yield Finding(("spec", "targetRefs"), message)
    seen = set()
    for i, target in enumerate(spec.target_refs):
        if (target.group, target.kind, target.name, target.section_name) in seen:
            yield Finding(("spec", "targetRefs", i), "names the same target twice", code="duplicate")
        seen.add((target.group, target.kind, target.name, target.section_name))
        if wrong := syntax.dns_subdomain(target.name):
            yield Finding(("spec", "targetRefs", i, "name"), f'"{target.name}" {wrong}')
    at: Path = ("spec", "validation")
    rules = spec.validation
    if rules.hostname.startswith("*") or (wrong := syntax.hostname(rules.hostname)):
        yield Finding((*at, "hostname"), f'"{rules.hostname}" is not one name')
    if bool(rules.ca_certificate_refs) == bool(rules.well_known_ca_certificates):
        yield Finding(at, "needs exactly one of caCertificateRefs and wellKnownCACertificates")
    if len(rules.ca_certificate_refs) > 8:
        message = f"holds {len(rules.ca_certificate_refs)} entries, at most 8 are allowed"
        yield Finding((*at, "caCertificateRefs"), message)
    if len(rules.subject_alt_names) > 5:
        message = f"holds {len(rules.subject_alt_names)} entries, at most 5 are allowed"
        yield Finding((*at, "subjectAltNames"), message)
    for i, name in enumerate(rules.subject_alt_names):
        yield from _alt_name(name, (*at, "subjectAltNames", i))


def _alt_name(name: SubjectAltName, path: Path) -> Iterator[Finding]:
    wanted, other = ("hostname", "uri") if name.type == "Hostname" else ("uri", "hostname")
    value = getattr(name, wanted)
    if not value:
        yield Finding((*path, wanted), f'is missing: the type is "{name.type}"')
    elif name.type == "URI" and not _URI.fullmatch(value):
        yield Finding((*path, wanted), f'"{value}" is no absolute URI')
    elif name.type == "Hostname" and (wrong := syntax.hostname(value)):
        yield Finding((*path, wanted), f'"{value}" {wrong}')
    if getattr(name, other):
        yield Finding((*path, other), f'does not belong to the type "{name.type}"')
