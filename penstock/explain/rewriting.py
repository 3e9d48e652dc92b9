"""A request as the backend gets it: what a route changes before the rights of the endpoint are judged."""

from __future__ import annotations

from dataclasses import replace

from penstock.explain.model import Request
from penstock.routing.actions import HeaderChanges, PathChange
from penstock.routing.model import Route, RouteBackend, StringMatch


def rewritten(request: Request, route: Route, share: RouteBackend) -> Request:
    """`request` after the changes of the rule and of the share that it falls to."""
    changed = _headers(_headers(request, route.actions.request), share.request)
    path = _path(request.path, route.match.path, route.actions.path)
    host = share.hostname or route.actions.hostname
    headers = {**changed.headers, ":authority": host} if host else changed.headers
    return replace(changed, path=path, headers=headers)


def _headers(request: Request, changes: HeaderChanges) -> Request:
    headers = {name: value for name, value in request.headers.items() if name not in changes.remove}
    headers.update(changes.set)
    for name, value in changes.add:
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return replace(request, headers=headers)


def _path(target: str, match: StringMatch, change: PathChange | None) -> str:
    if change is None:
        return target
    path, mark, query = target.partition("?")
    if change.kind == "full":
        return change.value + mark + query
    rest = path[len(match.value.rstrip("/")) :] if match.kind == "prefix" else ""
    joined = change.value.rstrip("/") + ("/" + rest.lstrip("/") if rest.strip("/") or rest else "")
    return (joined or "/") + mark + query
