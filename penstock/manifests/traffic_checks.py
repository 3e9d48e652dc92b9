"""The rules of one BackendPolicy or XBackendTrafficPolicy that its types cannot say.

Source: docs/traffic.md; the validation rules of Gateway API v1.6's schema (XBackendTrafficPolicy).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from penstock.manifests import http_policy_checks, syntax
from penstock.manifests.measures import between, duration, interval, ms
from penstock.manifests.problem import Finding, Path
from penstock.manifests.traffic_kinds import (
    BackendPolicy,
    HashKey,
    HealthCheck,
    LoadBalancer,
    OutlierDetection,
    RequestRate,
    RetryBudget,
    ServiceReference,
    XBackendTrafficPolicy,
)

_QUERY = re.compile(r"[!-~]*")

MAX_TARGETS = 16
HASHING = ("RingHash", "Maglev")
MOST_PROBE_MS = 4000
"""Envoy takes a cluster when its endpoints have been probed once, and a change waits 5 s for that."""

MOST = 1 << 31


def check_backend(policy: BackendPolicy) -> Iterator[Finding]:
    spec = policy.spec
    at: Path = ("spec",)
    yield from targets([(t, t.name, t.port, t.section_name) for t in spec.target_refs])
    for i, target in enumerate(spec.target_refs):
        yield from _target(target, (*at, "targetRefs", i))
    if spec.connect_timeout is not None:
        yield from interval(spec.connect_timeout, (*at, "connectTimeout"))
    if spec.load_balancer is not None:
        yield from _balancer(spec.load_balancer, (*at, "loadBalancer"))
    if (breaker := spec.circuit_breaker) is not None:
        for name, value in (
            ("maxConnections", breaker.max_connections),
            ("maxPendingRequests", breaker.max_pending_requests),
            ("maxRequests", breaker.max_requests),
        ):
            if value is not None:
                yield from between(value, 0, MOST, (*at, "circuitBreaker", name))
    if spec.outlier_detection is not None:
        yield from _outliers(spec.outlier_detection, (*at, "outlierDetection"))
    if spec.health_check is not None:
        yield from _probe(spec.health_check, (*at, "healthCheck"))
    if spec == type(spec)(target_refs=spec.target_refs):
        yield Finding(at, "says nothing besides its targets", severity="warning")


def check_retries(policy: XBackendTrafficPolicy) -> Iterator[Finding]:
    at: Path = ("spec",)
    refs = policy.spec.target_refs
    yield from targets([(t, t.name, t.kind) for t in refs])
    for i, target in enumerate(refs):
        if wrong := syntax.service_name(target.name):
            yield Finding((*at, "targetRefs", i, "name"), f'"{target.name}" {wrong}')
    if (limit := policy.spec.retry_constraint) is not None:
        here = (*at, "retryConstraint")
        yield from _budget(limit.budget, (*here, "budget"))
        yield from _rate(limit.min_retry_rate, (*here, "minRetryRate"))
    if (rules := policy.spec.session_persistence) is not None:
        yield from http_policy_checks.session(rules, (*at, "sessionPersistence"))


def targets(refs: list[tuple[object, ...]]) -> Iterator[Finding]:
    """`refs` are what tells targets apart, behind the references themselves."""
    at: Path = ("spec", "targetRefs")
    if not 1 <= len(refs) <= MAX_TARGETS:
        yield Finding(at, f"holds {len(refs)} entries; it must be 1 to {MAX_TARGETS}")
    seen: set[tuple[object, ...]] = set()
    for i, (_, *what) in enumerate(refs):
        if tuple(what) in seen:
            yield Finding((*at, i), "names the same target twice", code="duplicate")
        seen.add(tuple(what))


def _target(target: ServiceReference, path: Path) -> Iterator[Finding]:
    if (target.group, target.kind) != ("", "Service"):
        message = f'a target of kind "{target.kind}" (group "{target.group}") is not for this policy'
        yield Finding((*path, "kind"), message, "it knows Service")
        return
    if wrong := syntax.service_name(target.name):
        yield Finding((*path, "name"), f'"{target.name}" {wrong}')
    if target.port is not None and target.section_name is not None:
        yield Finding(path, "holds both port and sectionName, of which it can have one")
    if target.port is not None and (wrong := syntax.port_number(target.port)):
        yield Finding((*path, "port"), wrong)
    if target.section_name is not None and (wrong := syntax.dns_label(target.section_name)):
        yield Finding((*path, "sectionName"), f'"{target.section_name}" {wrong}')


def _balancer(balancer: LoadBalancer, path: Path) -> Iterator[Finding]:
    hashing = balancer.type in HASHING
    if hashing and not balancer.hash_on:
        yield Finding((*path, "hashOn"), f'is missing: "{balancer.type}" chooses by the hash of something')
    if not hashing and balancer.hash_on:
        yield Finding((*path, "hashOn"), f'"{balancer.type}" hashes nothing', f"use {' or '.join(HASHING)}")
    for i, key in enumerate(balancer.hash_on):
        yield from _hash_key(key, (*path, "hashOn", i))


def _hash_key(key: HashKey, path: Path) -> Iterator[Finding]:
    if key.type == "SourceAddress":
        if key.name is not None:
            yield Finding((*path, "name"), "does not belong to the source address")
    elif key.name is None:
        yield Finding((*path, "name"), f'is missing: the type is "{key.type}"')
    elif wrong := syntax.field_name(key.name):
        yield Finding((*path, "name"), wrong)
    if key.ttl is not None:
        if key.type != "Cookie":
            yield Finding((*path, "ttl"), "is only for cookies")
        else:
            yield from duration(key.ttl, (*path, "ttl"))


def _outliers(outliers: OutlierDetection, path: Path) -> Iterator[Finding]:
    yield from between(outliers.consecutive_errors, 1, MOST, (*path, "consecutiveErrors"))
    yield from interval(outliers.interval, (*path, "interval"))
    yield from interval(outliers.base_ejection_time, (*path, "baseEjectionTime"))
    yield from between(outliers.max_ejection_percent, 1, 100, (*path, "maxEjectionPercent"))


def _probe(probe: HealthCheck, path: Path) -> Iterator[Finding]:
    given = [n for n, p in (("http", probe.http), ("grpc", probe.grpc), ("tcp", probe.tcp)) if p is not None]
    if len(given) != 1:
        yield Finding(path, f"needs exactly one of http, grpc and tcp, and has {len(given)}")
    yield from interval(probe.interval, (*path, "interval"))
    yield from interval(probe.timeout, (*path, "timeout"))
    if ms(probe.timeout) > MOST_PROBE_MS:
        yield Finding((*path, "timeout"), f"is more than {MOST_PROBE_MS // 1000} s")
    yield from between(probe.healthy_threshold, 1, 100, (*path, "healthyThreshold"))
    yield from between(probe.unhealthy_threshold, 1, 100, (*path, "unhealthyThreshold"))
    if probe.http is not None:
        here = (*path, "http")
        path_, _, query = probe.http.path.partition("?")
        if not path_.startswith("/") or syntax.url_path(path_) or not _QUERY.fullmatch(query):
            yield Finding((*here, "path"), f'"{probe.http.path}" is no path')
        if probe.http.host is not None and (wrong := syntax.hostname(probe.http.host)):
            yield Finding((*here, "host"), f'"{probe.http.host}" {wrong}')
        if not probe.http.expected_statuses:
            yield Finding((*here, "expectedStatuses"), "is empty")
        for i, status in enumerate(probe.http.expected_statuses):
            yield from between(status, 100, 599, (*here, "expectedStatuses", i))


def _budget(budget: RetryBudget, path: Path) -> Iterator[Finding]:
    yield from between(budget.percent, 0, 100, (*path, "percent"))
    yield from interval(budget.interval, (*path, "interval"))


def _rate(rate: RequestRate, path: Path) -> Iterator[Finding]:
    yield from between(rate.count, 1, 1_000_000, (*path, "count"))
    yield from interval(rate.interval, (*path, "interval"))
