"""Matches of routes as the neutral model says them, the order in which they are tried, and who may name whom.

A gRPC call is a POST to /service/method, so one order holds for both.

Source: Gateway API v1.6, HTTPRouteRule and GRPCRouteRule (precedence); gRPC over HTTP/2 (Path).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.route_kinds import GRPCMethodMatch, GRPCRouteMatch, HTTPRouteMatch, ReferenceGrant
from penstock.routing.model import RouteMatch, StringMatch

GROUP = "gateway.networking.k8s.io"
_GROUPS = {"HTTPPolicy": "penstock.dev"}
"""Of kinds that name what is in other namespaces, and are not Gateway API's."""


def _string(kind: str, value: str) -> StringMatch:
    return StringMatch("regex" if kind == "RegularExpression" else "exact", value)


def http_match(match: HTTPRouteMatch) -> RouteMatch:
    kinds = {"Exact": "exact", "PathPrefix": "prefix", "RegularExpression": "regex"}
    return RouteMatch(
        path=StringMatch(kinds[match.path.type], match.path.value),  # type: ignore[arg-type]
        method=match.method,
        headers=tuple((h.name.lower(), _string(h.type, h.value)) for h in match.headers),
        query=tuple((q.name, _string(q.type, q.value)) for q in match.query_params),
    )


def precedence(document: Document, match: RouteMatch, position: tuple[int, ...]) -> tuple[object, ...]:
    """Sorts ascending: exact, longest prefix, regex; method; headers; query; age; name; place."""
    rank = {"exact": 0, "prefix": 1, "regex": 2}[match.path.kind]
    return (
        rank,
        -len(match.path.value.rstrip("/") if match.path.kind == "prefix" else match.path.value),
        match.method is None,
        -len(match.headers),
        -len(match.query),
        document.since,
        (document.key.namespace, document.key.name, document.key.kind),
        position,
    )


def _call(method: GRPCMethodMatch | None) -> StringMatch:
    """The path of the calls that are meant."""
    if method is None or not (method.service or method.method):
        return StringMatch("prefix", "/")
    if method.type == "RegularExpression":
        return StringMatch("regex", f"/(?:{method.service or '[^/]+'})/(?:{method.method or '[^/]+'})")
    if not method.service:
        return StringMatch("regex", f"/[^/]+/{re.escape(method.method or '')}")
    if not method.method:
        return StringMatch("prefix", f"/{method.service}")
    return StringMatch("exact", f"/{method.service}/{method.method}")


def grpc_match(match: GRPCRouteMatch) -> RouteMatch:
    return RouteMatch(
        path=_call(match.method),
        headers=tuple((h.name.lower(), _string(h.type, h.value)) for h in match.headers),
    )


def permitted(
    source: ObjectKey, namespace: str, name: str, grants: Iterable[ReferenceGrant], kind: str = "Service"
) -> bool:
    """Whether `source` may name `kind` (of the core group) `name` of `namespace`, which has `grants`."""
    if namespace == source.namespace:
        return True
    wanted = (_GROUPS.get(source.kind, GROUP), source.kind, source.namespace)
    return any(
        any((f.group, f.kind, f.namespace) == wanted for f in grant.spec.from_)
        and any((t.group, t.kind) == ("", kind) and t.name in (None, name) for t in grant.spec.to)
        for grant in grants
    )
