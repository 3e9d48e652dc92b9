"""What no request can have: paths and methods of routes and of policies' L7 rules that match nothing at all.

A request's path begins with a slash and has been normalised before anything looks at it; methods are told
apart by case (RFC 9110, 9.1). Regular expressions match in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from penstock.manifests.document import Document
from penstock.manifests.policy_kinds import (
    CiliumClusterwideNetworkPolicy,
    CiliumNetworkPolicy,
    EgressRule,
    IngressRule,
    PolicyRule,
    PortHTTP,
)
from penstock.manifests.problem import Finding, Path, Problem
from penstock.manifests.review import problem
from penstock.manifests.route_kinds import HTTPRoute
from penstock.routing import patterns


def review_never(documents: Iterable[Document]) -> list[Problem]:
    """Every warning, in the order of files and lines."""
    found = [problem(document, finding) for document in documents for finding in _findings(document)]
    return sorted(found, key=lambda p: (p.file, p.line))


def _findings(document: Document) -> Iterator[Finding]:
    value = document.value
    if isinstance(value, HTTPRoute):
        for i, rule in enumerate(value.spec.rules):
            for j, match in enumerate(rule.matches):
                if match.path.type == "RegularExpression" and patterns.never(match.path.value):
                    yield _path(match.path.value, ("spec", "rules", i, "matches", j, "path", "value"))
    elif isinstance(value, CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy):
        if value.spec is not None:
            yield from _policy(value.spec, ("spec",))
        for i, spec in enumerate(value.specs or ()):
            yield from _policy(spec, ("specs", i))


def _policy(spec: PolicyRule, at: Path) -> Iterator[Finding]:
    sides: tuple[tuple[str, Sequence[IngressRule | EgressRule]], ...] = (
        ("ingress", spec.ingress or ()),
        ("egress", spec.egress or ()),
    )
    for side, rules in sides:
        for i, rule in enumerate(rules):
            for j, ports in enumerate(rule.to_ports or ()):
                for k, each in enumerate(ports.rules.http if ports.rules else ()):
                    yield from _http(each, (*at, side, i, "toPorts", j, "rules", "http", k))


def _http(rule: PortHTTP, at: Path) -> Iterator[Finding]:
    if rule.path and patterns.never(rule.path):
        yield _path(rule.path, (*at, "path"))
    if rule.method:
        known = patterns.heads(rule.method)
        if known and all(head.text and head.text != head.text.upper() for head in known):
            message = f'no request has a method that matches "{rule.method}": methods are in capitals'
            yield Finding((*at, "method"), message, f'such as "{rule.method.upper()}"', "never", "warning")


def _path(pattern: str, at: Path) -> Finding:
    message = f'no path matches "{pattern}": each begins with "/", and has no empty segments'
    hint = f'such as "/{pattern}"' if not pattern.startswith("/") else ""
    return Finding(at, message, hint, "never", "warning")
