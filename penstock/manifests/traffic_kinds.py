"""Kinds for what users expect of a mesh beyond routes, and what Gateway API has no field for.

BackendPolicy (penstock.dev) says how requests are sent to the endpoints of a Service; XBackendTrafficPolicy
(Gateway API's experimental channel) limits retries towards it. Neither says anything of who may do what.

Source: docs/traffic.md; Gateway API v1.6, XBackendTrafficPolicy; durations: GEP-2257.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from penstock.manifests.base import Kind, ObjectMeta
from penstock.manifests.shared_kinds import SessionPersistence


class ServiceReference(Kind, frozen=True):
    """A Service of the policy's own namespace, or one port of it: by number, or by name as a section."""

    name: str
    group: str = ""
    kind: str = "Service"
    port: int | None = None
    section_name: str | None = None


class HashKey(Kind, frozen=True):
    """What of a request chooses its endpoint. A cookie that is missing is given to the client, for `ttl`."""

    type: Literal["Header", "Cookie", "SourceAddress"]
    name: str | None = None
    ttl: str | None = None


class LoadBalancer(Kind, frozen=True):
    type: Literal["LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"] = "LeastRequest"
    hash_on: list[HashKey] = []


class CircuitBreaker(Kind, frozen=True):
    """At most so many at once from one node, and 503 beyond; what is absent is not limited."""

    max_connections: int | None = None
    max_pending_requests: int | None = None
    max_requests: int | None = None


class OutlierDetection(Kind, frozen=True):
    """An endpoint that fails so often in a row gets nothing for a while, longer each time."""

    consecutive_errors: int = 5
    interval: str = "10s"
    base_ejection_time: str = "30s"
    max_ejection_percent: int = 50


class HttpProbe(Kind, frozen=True):
    path: str = "/"
    host: str | None = None
    expected_statuses: list[int] = msgspec.field(default_factory=lambda: [200])


class GrpcProbe(Kind, frozen=True):
    service: str = ""


class TcpProbe(Kind, frozen=True):
    """The connection alone tells."""


class HealthCheck(Kind, frozen=True):
    """Requests of the node's own, by which it finds endpoints that do not answer. Exactly one probe."""

    http: HttpProbe | None = None
    grpc: GrpcProbe | None = None
    tcp: TcpProbe | None = None
    interval: str = "10s"
    timeout: str = "1s"
    healthy_threshold: int = 2
    unhealthy_threshold: int = 3


class LocalityFailover(Kind, frozen=True):
    """Endpoints of the own zone first, then of the own region, then the others."""

    mode: Literal["Zone", "Node"] = "Zone"


class BackendPolicySpec(Kind, frozen=True):
    target_refs: list[ServiceReference]
    connect_timeout: str | None = None
    load_balancer: LoadBalancer | None = None
    circuit_breaker: CircuitBreaker | None = None
    outlier_detection: OutlierDetection | None = None
    health_check: HealthCheck | None = None
    locality_failover: LocalityFailover | None = None


class BackendPolicy(Kind, frozen=True):
    """How requests are sent to the endpoints of a Service."""

    api_version: str
    kind: Literal["BackendPolicy"]
    metadata: ObjectMeta
    spec: BackendPolicySpec
    status: Any = None


class LocalTarget(Kind, frozen=True):
    """Names an object of the policy's own namespace."""

    name: str
    group: str
    kind: str


class RetryBudget(Kind, frozen=True):
    """Retries may be this share of the requests of an interval."""

    percent: int = 20
    interval: str = "10s"


class RequestRate(Kind, frozen=True):
    count: int = 10
    interval: str = "1s"


class RetryConstraint(Kind, frozen=True):
    budget: RetryBudget = RetryBudget()
    min_retry_rate: RequestRate = RequestRate()


class XBackendTrafficPolicySpec(Kind, frozen=True):
    target_refs: list[LocalTarget]
    retry_constraint: RetryConstraint | None = None
    session_persistence: SessionPersistence | None = None


class XBackendTrafficPolicy(Kind, frozen=True):
    """A budget for the retries towards a Service, and who had an endpoint of it gets it again."""

    api_version: str
    kind: Literal["XBackendTrafficPolicy"]
    metadata: ObjectMeta
    spec: XBackendTrafficPolicySpec
    status: Any = None
