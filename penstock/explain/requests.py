"""Whether a request meets a match, and if not, what about it does not.

Says what Envoy does with what penstock.envoy makes of these matches: regular expressions are RE2 and match in
full; paths are normalised first (`penstock.envoy.http`); a prefix means whole segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl

import re2

from penstock.explain.model import Request
from penstock.routing.model import RequestMatch, RouteMatch, StringMatch

T = TypeVar("T")


def normalized(target: str) -> str:
    """A path as the proxy reads it: no dot segments, no doubled slashes, no slash in disguise (RFC 3986)."""
    path, mark, query = target.partition("?")
    for disguised, slash in (("%2f", "/"), ("%2F", "/"), ("%5c", "/"), ("%5C", "/"), ("\\", "/")):
        path = path.replace(disguised, slash)
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        plain = segment.replace("%2e", ".").replace("%2E", ".")
        if plain == "..":
            kept = kept[:-1]
        elif plain not in ("", "."):
            kept.append(segment)
    trailing = "/" if kept and segments[-1].replace("%2e", ".") in ("", ".", "..") else ""
    return "/" + "/".join(kept) + trailing + mark + query


def _full(pattern: str, value: str) -> bool:
    return re2.fullmatch(pattern, value) is not None


def differences(match: RequestMatch, request: Request) -> list[str]:
    """What of `request` does not meet one entry of rules.http; nothing if it matches."""
    found = []
    for name, pattern, value in (
        ("method", match.method, request.method),
        ("path", match.path, request.path),
        ("host", match.host, request.headers[":authority"]),
    ):
        if pattern is not None and not _full(pattern, value):
            found.append(f"{name} {value} is not {pattern}")
    for name, wanted in match.headers:
        got = request.headers.get(name)
        if got is None:
            found.append(f"header {name} is absent")
        elif wanted is not None and got != wanted:
            found.append(f"header {name} is {got!r}, not {wanted!r}")
    return found


def shown(match: RequestMatch) -> str:
    """One entry of rules.http in words."""
    parts = [
        f"{n} {v}" for n, v in (("method", match.method), ("path", match.path), ("host", match.host)) if v
    ]
    parts += [f"header {n}" + (f": {v}" if v is not None else "") for n, v in match.headers]
    return ", ".join(parts) or "any request"


def _meets(match: StringMatch, value: str) -> bool:
    if match.kind == "exact":
        return value == match.value
    if match.kind == "regex":
        return _full(match.value, value)
    segments = match.value.rstrip("/")
    return value == segments or value.startswith(segments + "/")


def route_differences(match: RouteMatch, request: Request, namespace: str = "") -> list[str]:
    """What of `request`, by a client of `namespace`, does not meet one match of a route."""
    path, _, query = request.path.partition("?")
    found = []
    if match.namespace not in (None, namespace):
        found.append(f"it is for clients of namespace {match.namespace}")
    if not _meets(match.path, path):
        found.append(f"path {path} is not {match.path.kind} {match.path.value}")
    if match.method is not None and match.method != request.method:
        found.append(f"method {request.method} is not {match.method}")
    sent = dict(reversed(parse_qsl(query, keep_blank_values=True)))
    for what, wanted, got in (("header", match.headers, request.headers), ("query", match.query, sent)):
        for name, value in wanted:
            if name not in got:
                found.append(f"{what} {name} is absent")
            elif not _meets(value, got[name]):
                found.append(f"{what} {name} is {got[name]!r}, not {value.kind} {value.value!r}")
    return found


def nearest(tried: Iterable[tuple[T, Sequence[str]]]) -> tuple[T, Sequence[str]] | None:
    """The one with the fewest differences."""
    return min(tried, key=lambda pair: len(pair[1]), default=None)
