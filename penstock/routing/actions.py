"""What a route does with a request besides choosing a backend, said without a word of Envoy.

Durations are milliseconds; None is no limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.routing.traffic import HashOn
from penstock.routing.treatment import Treatment

Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """`set` replaces, `add` joins to what is there. Names are in lower case."""

    set: tuple[Header, ...] = ()
    add: tuple[Header, ...] = ()
    remove: tuple[str, ...] = ()

    def then(self, later: HeaderChanges) -> HeaderChanges:
        """Both as one: what `later` sets or removes is not what was set or added before."""
        gone = {name for name, _ in later.set} | set(later.remove)
        return HeaderChanges(
            tuple(h for h in self.set if h[0] not in gone) + later.set,
            tuple(h for h in self.add if h[0] not in gone) + later.add,
            self.remove + later.remove,
        )


NO_CHANGES = HeaderChanges()


@dataclass(frozen=True, slots=True)
class PathChange:
    """`prefix` replaces what the route's own prefix match took; the query is kept in both."""

    kind: Literal["full", "prefix"]
    value: str


@dataclass(frozen=True, slots=True)
class Redirect:
    """The answer is a Location; what is None is taken from the request. `port` is the port to name there."""

    status: int
    port: int
    scheme: str | None = None
    hostname: str | None = None
    path: PathChange | None = None
    secure: bool = False
    """Whether clients came over TLS, which is the scheme where none is named."""

    @property
    def names_port(self) -> bool:
        """Whether the port is not the scheme's own."""
        return self.port != (443 if self.scheme == "https" or (self.secure and not self.scheme) else 80)


@dataclass(frozen=True, slots=True)
class Cors:
    """`*` in origins stands for any characters of a host; a lone `*` in the lists for everything."""

    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...]
    exposed: tuple[str, ...]
    max_age: int
    credentials: bool


@dataclass(frozen=True, slots=True)
class Retry:
    """Also on connections that fail; `backoff` is the least wait, None the proxy's own."""

    codes: tuple[int, ...]
    attempts: int
    backoff: int | None


@dataclass(frozen=True, slots=True)
class Mirror:
    """A copy of `numerator` of `denominator` requests goes to `cluster` too, and its answer to nobody."""

    cluster: str
    numerator: int = 1
    denominator: int = 1
    edge6: bool = False
    """From a Gateway to endpoints of IPv6: it leaves from the Gateways' own address of that family."""


@dataclass(frozen=True, slots=True)
class Actions:
    """All of one rule. A redirect leaves nothing to be sent anywhere."""

    request: HeaderChanges = NO_CHANGES
    response: HeaderChanges = NO_CHANGES
    redirect: Redirect | None = None
    hostname: str | None = None
    path: PathChange | None = None
    cors: Cors | None = None
    missing: bool = False
    """Answers 404 and does nothing else."""
    timeout: int | None = None
    try_timeout: int | None = None
    retry: Retry | None = None
    mirrors: tuple[Mirror, ...] = ()
    hashes: tuple[HashOn, ...] = ()
    """What chooses the endpoint, where the backends hash."""
    treatment: Treatment | None = None


NO_ACTIONS = Actions()
