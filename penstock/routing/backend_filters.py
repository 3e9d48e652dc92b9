"""Filters that stand at one backend of a rule: they hold for just the requests that fall to it.

Changes of headers and of the host travel with a share of a weighted route (`RouteBackend`). What changes the
way of a request (a redirect, another path, copies, CORS, an authorization service) does not: a rule that has
such a filter at any backend becomes one route for each of its backends, and each request draws which of them
it takes. The draw is the request's own, so it is the same for the preflight filter, the router and every try.

Source: Gateway API v1.6, HTTPBackendRef.filters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from penstock.manifests.route_kinds import HTTPBackendRef, HTTPRouteFilter
from penstock.routing.actions import Actions
from penstock.routing.filters import filter_actions
from penstock.routing.model import RouteBackend

DRAWS = 1_000_000
"""What a request draws from: shares are exact to one of a million."""


def _of_share(item: HTTPRouteFilter) -> bool:
    """Whether a weighted share can carry it."""
    if item.url_rewrite is not None:
        return item.url_rewrite.path is None
    return item.type in ("RequestHeaderModifier", "ResponseHeaderModifier")


def divides(refs: Sequence[HTTPBackendRef]) -> bool:
    """Whether the rule of these backends needs a route for each of them."""
    return any(not _of_share(item) for ref in refs if ref.weight for item in ref.filters)


def draws(refs: Sequence[HTTPBackendRef]) -> Iterator[tuple[HTTPBackendRef, int | None]]:
    """Each backend that has a share, and below which draw a request that none before it took is its own;
    None is every draw."""
    shares = [ref for ref in refs if ref.weight]
    total, before = sum(ref.weight for ref in shares), 0
    for ref in shares:
        before += ref.weight
        yield ref, None if ref is shares[-1] else max(1, before * DRAWS // total)


def with_filters(does: Actions, ref: HTTPBackendRef, parent_port: int, *, secure: bool) -> Actions:
    """What is done with the requests of `ref`: the rule's actions, and its own over them."""
    own = filter_actions(ref.filters, parent_port, secure=secure)
    return replace(
        does,
        request=does.request.then(own.request),
        response=does.response.then(own.response),
        redirect=own.redirect or does.redirect,
        hostname=own.hostname or does.hostname,
        path=own.path or does.path,
        cors=own.cors or does.cors,
    )


def plain(backend: RouteBackend) -> RouteBackend:
    """Without the changes that `with_filters` has taken into the route."""
    return RouteBackend(backend.cluster, backend.weight)
