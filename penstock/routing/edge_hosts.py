"""The hosts of one listener of a Gateway and the routes of each, followed from one World to the next.

A listener may have thousands of routes, most of them for a host of their own. When one of them changes, only
the hosts that it has a part in are put together anew; a name that stands for many hosts concerns all of them.

Source: Gateway API v1.6, Listener (hostnames, isolation), HTTPRoute (hostnames and precedence).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from penstock.differing import replaced
from penstock.manifests.document import Document, ObjectKey
from penstock.routing import hosts
from penstock.routing.model import HostRoutes, Route
from penstock.routing.rules import Compiled, Ranked
from penstock.routing.services import ServedPort

_Routes = dict[ObjectKey, tuple[Document, tuple[tuple[str, str], ...]]]


@dataclass(slots=True)
class ListenerHosts:
    """Never changed once `follow` has given it back. `hostname` is the listener's, `beside` are those of all
    listeners that share its port."""

    hostname: str
    beside: tuple[str, ...]
    routes: _Routes = field(default_factory=dict)
    compiled: dict[ObjectKey, Compiled] = field(default_factory=dict)
    by_name: dict[str, dict[ObjectKey, list[Ranked]]] = field(default_factory=dict)
    """By the routes' own host names."""
    wanted: dict[str, int] = field(default_factory=dict)
    """How many routes have a host. The listener's own has one more."""
    clusters: dict[str, tuple[ServedPort, int]] = field(default_factory=dict)
    """Those that routes name, and how many routes do."""
    helpers: dict[str, tuple[ServedPort, int]] = field(default_factory=dict)
    """What the proxy asks for routes, and for how many."""
    made: dict[str, HostRoutes | None] = field(default_factory=dict)
    """By host, in order; None belongs to another listener."""


def listener_hosts(
    hostname: str,
    beside: tuple[str, ...],
    routes: _Routes,
    rules: Callable[[Document], Compiled],
    before: ListenerHosts | None,
) -> ListenerHosts:
    """The hosts of a listener with these `routes`. `before` never changes the result."""
    if before is None or (before.hostname, before.beside) != (hostname, beside):
        before = ListenerHosts(hostname, beside)
    now = ListenerHosts(
        hostname,
        beside,
        routes,
        dict(before.compiled),
        dict(before.by_name),
        dict(before.wanted) or {hostname: 1},
        dict(before.clusters),
        dict(before.helpers),
    )
    touched = set() if before.made else {hostname}
    for key in replaced(before.routes, routes):
        if key in before.routes:
            _count(now, before.routes[key][1], now.compiled.pop(key), -1)
            for own in _own_names(before.routes[key][1]):
                now.by_name[own] = {k: v for k, v in now.by_name[own].items() if k != key}
                touched.add(own)
        if key in routes:
            document, pairs = routes[key]
            now.compiled[key] = made = rules(document)
            _count(now, pairs, made, 1)
            for own in _own_names(pairs):
                now.by_name[own] = {**now.by_name.get(own, {}), key: made.routes}
                touched.add(own)
    _order(now, touched)
    known = {} if any(not name or name.startswith("*") for name in touched) else before.made
    now.made = {
        host: known[host] if host in known and host not in touched else _host(host, now)
        for host in sorted(now.wanted)
    }
    return now


def _own_names(pairs: Iterable[tuple[str, str]]) -> set[str]:
    return {own.lower() for _, own in pairs}


def _count(now: ListenerHosts, pairs: Iterable[tuple[str, str]], compiled: Compiled, step: int) -> None:
    for host in {host for host, _ in pairs}:
        now.wanted[host] = now.wanted.get(host, 0) + step
        if not now.wanted[host]:
            del now.wanted[host]
    for known, named in ((now.clusters, compiled.clusters), (now.helpers, compiled.helpers)):
        for name, cluster in {c.name: c for c in named}.items():
            _, count = known.get(name, (cluster, 0))
            known[name] = (cluster, count + step)
            if not count + step:
                del known[name]


def _order(now: ListenerHosts, names: Iterable[str]) -> None:
    """Routes of a name in the order of all; without any the name goes."""
    places: dict[ObjectKey, int] = {}
    for name in names:
        routes = now.by_name.get(name)
        if not routes:
            now.by_name.pop(name, None)
        elif len(routes) > 1:
            places = places or {key: place for place, key in enumerate(now.routes)}
            now.by_name[name] = dict(sorted(routes.items(), key=lambda item: places[item[0]]))


def _host(host: str, now: ListenerHosts) -> HostRoutes | None:
    """The routes for one host, by their own host names: those of the most specific one first."""
    if hosts.owner(host, now.beside) != now.hostname:
        return None
    found: list[Route] = []
    seen: set[ObjectKey] = set()
    for name in hosts.covering(host):
        listed = {k: routes for k, routes in now.by_name.get(name, {}).items() if k not in seen}
        seen.update(listed)
        found += [route for _, route in sorted(_all(listed), key=_rank)]
    return HostRoutes(host, tuple(found))


def _all(listed: Mapping[ObjectKey, list[Ranked]]) -> Iterable[Ranked]:
    return (ranked for routes in listed.values() for ranked in routes)


def _rank(ranked: Ranked) -> tuple[object, ...]:
    return ranked[0]
