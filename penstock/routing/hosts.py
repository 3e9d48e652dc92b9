"""Host names of listeners and routes: where they meet, and whose a request is.

``*.x`` stands for one or more labels before x (in Ingress for exactly one: that is its compiler's affair),
and the empty name for every host. Names are compared without regard to case.

Source: Gateway API v1.6, Hostname; HTTPRouteSpec.hostnames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

ANY = ""


def covers(pattern: str, name: str) -> bool:
    """Whether every host that `name` means is meant by `pattern` too."""
    pattern, name = pattern.lower(), name.lower()
    if pattern in (ANY, name):
        return True
    return pattern.startswith("*.") and name.removeprefix("*").endswith(pattern[1:])


def meet(listener: str, route: str) -> str | None:
    """The hosts that both mean; None if there is none."""
    if covers(listener, route):
        return route.lower()
    return listener.lower() if covers(route, listener) else None


def intersections(listener: str, routes: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(host name, the route's own name that gave it) of each meeting; a route without names means every
    host."""
    found: dict[str, str] = {}
    for name in routes or (ANY,):
        both = meet(listener, name)
        if both is not None and specific(name) > specific(found.get(both, ANY)):
            found[both] = name
        elif both is not None:
            found.setdefault(both, name)
    return tuple(found.items())


def covering(name: str) -> Iterator[str]:
    """Every name that covers `name`, the most specific first."""
    yield name
    rest = name.removeprefix("*.")
    if name and not name.startswith("*."):
        rest = name
    while "." in rest:
        rest = rest.partition(".")[2]
        yield f"*.{rest}"
    if name:
        yield ANY


def specific(name: str) -> tuple[bool, int]:
    """Sorts names: one host is more than many, a longer name more than a shorter one."""
    return bool(name) and not name.startswith("*"), len(name)


def owner(name: str, among: Iterable[str]) -> str | None:
    """Of the names that cover `name` the most specific one: the listener that its requests belong to."""
    return max((each for each in among if covers(each, name)), key=specific, default=None)
