"""Matches of HTTPRoutes and GRPCRoutes as the neutral model says them, and the order in which they are tried.

A gRPC call is a POST to /service/method, so one order holds for both.

Source: Gateway API v1.6, HTTPRouteRule and GRPCRouteRule (precedence); gRPC over HTTP/2 (Path).
"""

from __future__ import annotations

import re

from penstock.manifests.document import Document
from penstock.manifests.route_kinds import GRPCMethodMatch, GRPCRouteMatch, HTTPRouteMatch
from penstock.routing.model import RouteMatch, StringMatch


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


def precedence(document: Document, match: RouteMatch, position: tuple[int, int]) -> tuple[object, ...]:
    """Sorts ascending: exact, longest prefix, regex; method; headers; query; age; name; place."""
    rank = {"exact": 0, "prefix": 1, "regex": 2}[match.path.kind]
    return (
        rank,
        -len(match.path.value),
        match.method is None,
        -len(match.headers),
        -len(match.query),
        document.since,
        document.key,
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
