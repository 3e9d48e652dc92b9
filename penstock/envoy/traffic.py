"""What a BackendPolicy says, on a cluster and on the routes that lead to it.

Nothing here decides who may do what: an endpoint is judged after it was chosen, whatever chose it. So also
where none is healthy and any is taken rather than none (Envoy's panic): policy holds there as everywhere.

Health checks are the node's own requests. They take no part in mesh TLS, for they speak for no workload:
endpoints that are reached by it are not probed from here.
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import health_check_pb2
from envoy.config.route.v3 import route_components_pb2 as components
from envoy.type.v3 import http_pb2, percent_pb2, range_pb2
from google.protobuf import wrappers_pb2

from penstock.envoy.protos import seconds
from penstock.routing.traffic import Breaker, HashOn, Outliers, Probe, RetryBudget, Traffic

_Cluster = cluster_pb2.Cluster
_Number = wrappers_pb2.UInt32Value

_BALANCERS = {
    "LeastRequest": _Cluster.LbPolicy.LEAST_REQUEST,
    "RoundRobin": _Cluster.LbPolicy.ROUND_ROBIN,
    "Random": _Cluster.LbPolicy.RANDOM,
    "RingHash": _Cluster.LbPolicy.RING_HASH,
    "Maglev": _Cluster.LbPolicy.MAGLEV,
}

_LAST_RESORT = 1.0
"""Percent of endpoints that are healthy below which health is not looked at: when next to none is."""


def _limit(
    threshold: circuit_breaker_pb2.CircuitBreakers.Thresholds, breaker: Breaker, retries: RetryBudget | None
) -> None:
    if breaker.connections is not None:
        threshold.max_connections.value = breaker.connections
    if breaker.pending is not None:
        threshold.max_pending_requests.value = breaker.pending
    if breaker.requests is not None:
        threshold.max_requests.value = breaker.requests
    if retries is not None:
        threshold.retry_budget.budget_percent.value = retries.percent
        threshold.retry_budget.min_retry_concurrency.value = retries.least


def _outliers(outliers: Outliers) -> outlier_detection_pb2.OutlierDetection:
    """Only rows of errors: Envoy's statistics over all endpoints would eject by surprise."""
    nothing = _Number(value=0)
    return outlier_detection_pb2.OutlierDetection(
        consecutive_5xx=_Number(value=outliers.errors),
        enforcing_consecutive_5xx=_Number(value=100),
        enforcing_success_rate=nothing,
        enforcing_consecutive_gateway_failure=nothing,
        interval=seconds(outliers.interval / 1000),
        base_ejection_time=seconds(outliers.ejection / 1000),
        max_ejection_time=seconds(max(300.0, outliers.ejection / 1000)),
        max_ejection_percent=_Number(value=outliers.most_percent),
    )


def _check(probe: Probe, *, http2: bool) -> health_check_pb2.HealthCheck:
    made = health_check_pb2.HealthCheck(
        timeout=seconds(probe.timeout / 1000),
        interval=seconds(probe.interval / 1000),
        # An endpoint without traffic is probed as often: it may get some at any time.
        no_traffic_interval=seconds(probe.interval / 1000),
        healthy_threshold=_Number(value=probe.healthy),
        unhealthy_threshold=_Number(value=probe.unhealthy),
    )
    if probe.kind == "http":
        made.http_health_check.path = probe.path
        made.http_health_check.host = probe.name
        made.http_health_check.expected_statuses.extend(
            range_pb2.Int64Range(start=status, end=status + 1) for status in probe.statuses
        )
        codec = http_pb2.CodecClientType
        made.http_health_check.codec_client_type = codec.HTTP2 if http2 else codec.HTTP1
    elif probe.kind == "grpc":
        made.grpc_health_check.service_name = probe.name
    else:
        made.tcp_health_check.SetInParent()
    return made


def apply(cluster: cluster_pb2.Cluster, traffic: Traffic, *, http2: bool) -> None:
    """Changes a cluster as `traffic` says."""
    cluster.lb_policy = _BALANCERS[traffic.balancer]
    if traffic.connect_timeout is not None:
        cluster.connect_timeout.CopyFrom(seconds(traffic.connect_timeout / 1000))
    _limit(cluster.circuit_breakers.thresholds[0], traffic.breaker, traffic.retries)
    if traffic.outliers is not None:
        cluster.outlier_detection.CopyFrom(_outliers(traffic.outliers))
    if traffic.probe is not None:
        cluster.health_checks.append(_check(traffic.probe, http2=http2))
        # Else Envoy would keep an endpoint that is gone while its address still answers.
        cluster.ignore_health_on_host_removal = True
    if traffic.outliers is not None or traffic.probe is not None:
        cluster.common_lb_config.healthy_panic_threshold.CopyFrom(percent_pb2.Percent(value=_LAST_RESORT))


def hash_policies(keys: Iterable[HashOn]) -> list[components.RouteAction.HashPolicy]:
    """What of a request is hashed: all of `keys` that it has, together."""
    made = []
    for key in keys:
        policy = components.RouteAction.HashPolicy()
        if key.kind == "Header":
            policy.header.header_name = key.name
        elif key.kind == "Cookie":
            policy.cookie.name = key.name
            policy.cookie.path = "/"
            policy.cookie.ttl.CopyFrom(seconds((key.ttl or 0) / 1000))
        else:
            policy.connection_properties.source_ip = True
        made.append(policy)
    return made
