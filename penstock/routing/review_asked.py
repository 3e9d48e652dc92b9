"""What the proxy itself is to ask, or to check by, and cannot: all of that is closed, which surprises.

Services that are asked (ExternalAuth, extAuth, keys of tokens) and copied to (mirrors of single backends),
keys of tokens in ConfigMaps and Secrets; and parts of policies about traffic that do nothing by themselves.
Warnings all; docs/findings.md tells of each code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import ConfigMap, Gateway, Secret
from penstock.manifests.http_policy_kinds import HTTPPolicy, JwksReference
from penstock.manifests.problem import Finding, Path, Problem
from penstock.manifests.review import problem
from penstock.manifests.route_kinds import GRPCRoute, GRPCRouteRule, HTTPRoute, HTTPRouteRule
from penstock.manifests.shared_kinds import ServiceBackend
from penstock.manifests.traffic_kinds import BackendPolicy, BackendPolicySpec
from penstock.routing.review_edge import Known, backend, known_of, port_of

_UNASKED = "its requests get 500"
_ALONE = "403 after 2 s"


def review_asked(documents: Iterable[Document]) -> list[Problem]:
    """Every warning, in the order of files and lines."""
    everything = list(documents)
    kinds = HTTPRoute | GRPCRoute | HTTPPolicy | BackendPolicy
    if not any(isinstance(d.value, kinds) for d in everything):
        return []
    known, by_key = known_of(everything), {d.key: d for d in everything}
    found = []
    for document in everything:
        value = document.value
        if isinstance(value, HTTPRoute | GRPCRoute):
            found += [problem(document, f) for f in _filters(document, value.spec.rules, known)]
        elif isinstance(value, HTTPPolicy):
            found += [problem(document, f) for f in _http(document, value, known, by_key)]
        elif isinstance(value, BackendPolicy):
            found += [problem(document, f) for f in _backends(value.spec)]
    return sorted(found, key=lambda p: (p.file, p.line))


def _filters(
    document: Document, rules: Sequence[HTTPRouteRule | GRPCRouteRule], known: Known
) -> Iterator[Finding]:
    for i, rule in enumerate(rules):
        at: Path = ("spec", "rules", i)
        places = [((*at, "filters", j), each, True) for j, each in enumerate(rule.filters)]
        for k, ref in enumerate(rule.backend_refs):
            places += [((*at, "backendRefs", k, "filters", j), x, False) for j, x in enumerate(ref.filters)]
        for path, each, of_rule in places:
            auth = getattr(each, "external_auth", None)
            if auth is not None:
                here = (*path, "externalAuth", "backendRef")
                yield from _asked(document, auth.backend_ref, here, _ALONE, known)
            # Those of rules are told of with the rest of the edge.
            if each.request_mirror is not None and not of_rule:
                mirrored = each.request_mirror.backend_ref
                here = (*path, "requestMirror", "backendRef")
                if (mirrored.group, mirrored.kind) == ("", "Service"):
                    name, namespace = mirrored.name, mirrored.namespace
                    yield from backend(document, name, namespace, here, "no copy is sent", known)


def _asked(
    document: Document, ref: ServiceBackend, path: Path, silent: str, known: Known
) -> Iterator[Finding]:
    """`silent` is what happens where nobody answers."""
    namespace = ref.namespace or document.key.namespace
    if not known.allows(document.key, "Service", namespace, ref.name):
        yield from backend(document, ref.name, ref.namespace, path, _UNASKED, known)
        return
    missing = list(port_of((namespace, ref.name), ref.port, path, known))
    for each in missing:
        yield Finding(each.path, f"{each.message}: {_UNASKED}", each.hint, each.code, each.severity)
    if not missing:
        yield from backend(
            document, ref.name, ref.namespace, path, f"its requests get {silent}", known, ref.port
        )


def _http(
    document: Document, policy: HTTPPolicy, known: Known, by_key: dict[ObjectKey, Document]
) -> Iterator[Finding]:
    spec = policy.spec
    if spec.ext_auth is not None:
        at: Path = ("spec", "extAuth", "backendRef")
        yield from _asked(document, spec.ext_auth.backend_ref, at, _ALONE, known)
    for i, provider in enumerate(spec.jwt.providers if spec.jwt is not None else ()):
        at = ("spec", "jwt", "providers", i, "jwks")
        if provider.jwks.remote is not None:
            here = (*at, "remote", "backendRef")
            yield from _asked(document, provider.jwks.remote.backend_ref, here, "401", known)
        if provider.jwks.ref is not None:
            yield from _keys(document, provider.jwks.ref, (*at, "ref"), by_key)
    for i, target in enumerate(spec.target_refs):
        gateway = by_key.get(ObjectKey(target.kind, document.key.namespace, target.name))
        if gateway is None or not isinstance(gateway.value, Gateway) or target.section_name is None:
            continue
        for listener in gateway.value.spec.listeners:
            if listener.name == target.section_name and listener.protocol.upper() not in ("HTTP", "HTTPS"):
                message = f"changes nothing: listener {listener.name} speaks {listener.protocol}"
                yield _warning(("spec", "targetRefs", i, "sectionName"), message, code="untouched")


def _keys(
    document: Document, ref: JwksReference, path: Path, by_key: dict[ObjectKey, Document]
) -> Iterator[Finding]:
    key = ObjectKey(ref.kind, document.key.namespace, ref.name)
    there = by_key.get(key)
    if there is None:
        yield _warning((*path, "name"), f"there is no {key}: {_UNASKED}", code="reference")
        return
    value = there.value
    held = dict(value.data) if isinstance(value, ConfigMap | Secret) else {}
    if isinstance(value, Secret):
        held |= value.string_data
    if ref.key not in held:
        hint = f"it has {', '.join(sorted(held))}" if held else "it is empty"
        yield _warning((*path, "key"), f"{key} has no {ref.key}: {_UNASKED}", hint, "reference")


def _backends(spec: BackendPolicySpec) -> Iterator[Finding]:
    if spec.locality_failover is not None and spec.health_check is None and spec.outlier_detection is None:
        message = "changes nothing when near endpoints fail: nothing tells that they do"
        hint = "add healthCheck or outlierDetection"
        yield _warning(("spec", "localityFailover"), message, hint, "untouched")
    breaker = spec.circuit_breaker
    if breaker is not None:
        limits = {
            "maxConnections": breaker.max_connections,
            "maxPendingRequests": breaker.max_pending_requests,
            "maxRequests": breaker.max_requests,
        }
        if all(value is None for value in limits.values()):
            yield _warning(("spec", "circuitBreaker"), "says nothing: it has no limit", code="untouched")
        for name in ("maxPendingRequests", "maxRequests"):
            if limits[name] == 0:
                yield _warning(("spec", "circuitBreaker", name), "is 0: every request gets 503", code="never")


def _warning(path: Path, message: str, hint: str = "", code: str = "value") -> Finding:
    return Finding(path, message, hint, code, "warning")  # type: ignore[arg-type]
