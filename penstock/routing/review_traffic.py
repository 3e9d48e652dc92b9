"""What will surprise in policies about traffic that are valid: targets that are not there, that another
policy has already, or that nothing sends through the proxy.

Warnings all; docs/findings.md tells of each code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import Gateway
from penstock.manifests.http_policy_kinds import HTTPPolicy, HTTPPolicyTarget
from penstock.manifests.ingress_kinds import Ingress
from penstock.manifests.kinds import Service
from penstock.manifests.problem import Finding, Path, Problem, did_you_mean
from penstock.manifests.review import problem
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute
from penstock.manifests.traffic_kinds import (
    BackendPolicy,
    LocalTarget,
    ServiceReference,
    XBackendTrafficPolicy,
)
from penstock.routing.backend_policies import HTTP_PROTOCOLS

_POLICIES = (BackendPolicy, HTTPPolicy, XBackendTrafficPolicy)
_Policy = BackendPolicy | HTTPPolicy | XBackendTrafficPolicy


@dataclass(frozen=True, slots=True)
class _Target:
    """What one reference of a policy means: all of an object, or what it calls `section`."""

    key: ObjectKey
    section: int | str | None
    path: Path


def review_traffic(documents: Iterable[Document]) -> list[Problem]:
    """Every warning about policies among `documents`, in the order of files and lines."""
    everything = list(documents)
    policies = [d for d in everything if isinstance(d.value, _POLICIES)]
    if not policies:
        return []
    known = {d.key: d for d in everything}
    reached = set(_reached(everything))
    found = []
    owners: dict[tuple[str, ObjectKey, int | str | None], Document] = {}
    for document in sorted(policies, key=lambda d: (d.since, d.key.namespace, d.key.name)):
        for target in _targets(document):
            finding = _missing(target, known) or _untouched(document, target, known, reached)
            owner = owners.setdefault((document.key.kind, target.key, _number(target, known)), document)
            if finding is None and owner is not document:
                message = f"{owner.key} ({owner.file}:{owner.line}) means {target.key} too and is older"
                finding = Finding(target.path, message, "only that one counts there", "conflict")
            if finding is not None:
                found.append(problem(document, finding))
    return sorted(found, key=lambda p: (p.file, p.line))


def _targets(document: Document) -> Iterator[_Target]:
    policy = document.value
    assert isinstance(policy, _Policy)
    refs: Sequence[ServiceReference | HTTPPolicyTarget | LocalTarget] = policy.spec.target_refs
    for i, ref in enumerate(refs):
        key = ObjectKey(ref.kind, document.key.namespace, ref.name)
        port = getattr(ref, "port", None) or getattr(ref, "section_name", None)
        yield _Target(key, port, ("spec", "targetRefs", i))


def _missing(target: _Target, known: Mapping[ObjectKey, Document]) -> Finding | None:
    document = known.get(target.key)
    if document is None:
        alike = [k for k in known if (k.kind, k.namespace) == (target.key.kind, target.key.namespace)]
        hint = did_you_mean(target.key.name, [k.name for k in alike])
        return Finding((*target.path, "name"), f"there is no {target.key}", hint)
    if target.section is None:
        return None
    value, names = document.value, list[str]()
    if isinstance(value, Service):
        if any(target.section in (p.port, p.name) for p in value.spec.ports):
            return None
        names = [str(p.port) for p in value.spec.ports]
    elif isinstance(value, Gateway):
        names = [each.name for each in value.spec.listeners]
    elif isinstance(value, HTTPRoute | GRPCRoute):
        names = [rule.name for rule in value.spec.rules if rule.name is not None]
    if target.section in names:
        return None
    hint = f"it has {', '.join(names)}" if names else "none of its parts has a name"
    return Finding(target.path, f"{target.key} has nothing called {target.section}", hint)


def _number(target: _Target, known: Mapping[ObjectKey, Document]) -> int | str | None:
    """A port by its number, however it is called."""
    document = known.get(target.key)
    if document is not None and isinstance(document.value, Service):
        for port in document.value.spec.ports:
            if target.section in (port.port, port.name) and target.section is not None:
                return port.port
    return target.section


def _untouched(
    document: Document, target: _Target, known: Mapping[ObjectKey, Document], reached: set[ObjectKey]
) -> Finding | None:
    if target.section is not None or isinstance(document.value, XBackendTrafficPolicy):
        return None
    service = known[target.key].value
    if not isinstance(service, Service) or target.key in reached:
        return None
    if any(port.app_protocol in HTTP_PROTOCOLS for port in service.spec.ports):
        return None
    message = f"changes nothing: no port of {target.key} is known to speak HTTP, and no route leads to it"
    return Finding(target.path, message, "name the port, or give it appProtocol: http", "untouched")


def _reached(documents: Iterable[Document]) -> Iterator[ObjectKey]:
    """Services that routes and Ingresses name, as parents or as backends."""
    for document in documents:
        value, own = document.value, document.key.namespace
        if isinstance(value, HTTPRoute | GRPCRoute):
            for parent in value.spec.parent_refs:
                if parent.kind == "Service":
                    yield ObjectKey("Service", parent.namespace or own, parent.name)
            for rule in value.spec.rules:
                for ref in rule.backend_refs:
                    yield ObjectKey("Service", ref.namespace or own, ref.name)
        elif isinstance(value, Ingress):
            backends = [value.spec.default_backend] if value.spec.default_backend else []
            backends += [p.backend for r in value.spec.rules if r.http for p in r.http.paths]
            for backend in backends:
                if backend.service is not None:
                    yield ObjectKey("Service", own, backend.service.name)
