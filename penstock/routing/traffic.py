"""How requests are sent to the endpoints of a Service, said without a word of Envoy.

None of it decides who may do what: the endpoint that is chosen is judged whatever chose it. Durations are
milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Balancer = Literal["LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"]


@dataclass(frozen=True, slots=True)
class HashOn:
    """What of a request chooses its endpoint. A missing cookie is given to the client, for `ttl` (None: for
    as long as its session)."""

    kind: Literal["Header", "Cookie", "SourceAddress"]
    name: str = ""
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Breaker:
    """How much there may be at once; None is no limit."""

    connections: int | None = None
    pending: int | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Outliers:
    """After so many errors in a row (5xx, or no answer) an endpoint gets nothing for `ejection`, times the
    number of its ejections; of all endpoints at most a share is out."""

    errors: int
    interval: int
    ejection: int
    most_percent: int


@dataclass(frozen=True, slots=True)
class Probe:
    """A request of the node's own to each endpoint, every `interval`. `name` is the Host of an HTTP probe or
    the service of a gRPC one."""

    kind: Literal["http", "grpc", "tcp"]
    interval: int
    timeout: int
    healthy: int
    unhealthy: int
    path: str = "/"
    name: str = ""
    statuses: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Retries may be `percent` of what is under way, and in any case `least` at once."""

    percent: int
    least: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """All that is said about one port of a Service. `failover` is what counts as near."""

    balancer: Balancer = "LeastRequest"
    hashes: tuple[HashOn, ...] = ()
    breaker: Breaker = Breaker()
    outliers: Outliers | None = None
    probe: Probe | None = None
    connect_timeout: int | None = None
    failover: Literal["Zone", "Node"] | None = None
    retries: RetryBudget | None = None
