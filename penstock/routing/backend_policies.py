"""BackendPolicy and XBackendTrafficPolicy → how requests are sent to the endpoints of Services, and status.

A policy means a Service of its own namespace, or one of its ports. The port's own policy comes before the
Service's, and takes its place as a whole; of several for one target the oldest counts, then the first by name
(GEP-713), and the others say Conflicted. It holds wherever the proxy sends requests to that port: from routes
of the mesh, from Gateways and from Ingresses.

A port that a BackendPolicy means goes through the proxy from now on also without a route, if it is known to
speak HTTP: by its appProtocol, or because the policy names just that port. Others stay in the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.shared_kinds import SessionPersistence
from penstock.manifests.traffic_kinds import (
    BackendPolicy,
    BackendPolicySpec,
    HealthCheck,
    LoadBalancer,
    RetryConstraint,
    XBackendTrafficPolicy,
)
from penstock.plan import Condition, ObjectStatus
from penstock.routing.filters import milliseconds
from penstock.routing.services import ServedPort
from penstock.routing.traffic import Breaker, HashOn, Outliers, Probe, RetryBudget, Traffic
from penstock.routing.treatment import Session
from penstock.world import World

KINDS = (BackendPolicy, XBackendTrafficPolicy)

SESSION = "penstock-session"

HTTP_PROTOCOLS = ("http", "grpc", "kubernetes.io/h2c", "kubernetes.io/ws")
"""appProtocols by which a port is known to speak HTTP."""

Target = tuple[str, str, int | str | None]
"""Namespace and name of a Service, and the number or name of one of its ports (None: all)."""

_ACCEPTED = Condition("Accepted", True, "Accepted")


@dataclass(slots=True)
class _Policy:
    document: Document
    targets: tuple[Target, ...]
    traffic: Traffic
    ancestors: dict[ObjectKey, Condition] = field(default_factory=dict)
    session: SessionPersistence | None = None


class _Attached:
    """The policies of one kind by what they mean, the winner of each target."""

    def __init__(self, policies: list[_Policy], served: Mapping[tuple[str, str], tuple[ServedPort, ...]]):
        self.policies = sorted(
            policies, key=lambda p: (p.document.since, p.document.key.namespace, p.document.key.name)
        )
        self._by_target: dict[Target, _Policy] = {}
        for each in self.policies:
            for target in each.targets:
                each.ancestors.setdefault(*self._placed(each, target, served))

    def _placed(
        self, each: _Policy, target: Target, served: Mapping[tuple[str, str], tuple[ServedPort, ...]]
    ) -> tuple[ObjectKey, Condition]:
        namespace, name, port = target
        key = ObjectKey("Service", namespace, name)
        ports = [s.port for s in served.get((namespace, name), ())]
        if not ports:
            return key, Condition("Accepted", False, "TargetNotFound", f"there is no {key}")
        if port is not None:
            numbers = [p.port for p in ports if port in (p.port, p.name)]
            if not numbers:
                return key, Condition("Accepted", False, "TargetNotFound", f"{key} has no port {port}")
            target = (namespace, name, numbers[0])
        winner = self._by_target.setdefault(target, each)
        if winner is not each:
            why = f"{winner.document.key} means the same target and is older"
            return key, Condition("Accepted", False, "Conflicted", why)
        return key, _ACCEPTED

    def of(self, served: ServedPort) -> tuple[_Policy | None, bool]:
        """The policy about a port, and whether it names just that port."""
        key = served.document.key
        own = self._by_target.get((key.namespace, key.name, served.port.port))
        return (own, True) if own else (self._by_target.get((key.namespace, key.name, None)), False)


class BackendPolicies:
    """Those of one World."""

    def __init__(self, world: World, served: Mapping[tuple[str, str], tuple[ServedPort, ...]]) -> None:
        self._probes = world.settings.host_access
        self._backend = _Attached(
            [
                _Policy(
                    d,
                    tuple((d.key.namespace, t.name, t.port or t.section_name) for t in p.spec.target_refs),
                    _traffic(p.spec, d),
                )
                for d, p in world.of_kind(BackendPolicy)
            ],
            served,
        )
        self._retries = _Attached(
            [
                _Policy(
                    d,
                    tuple(
                        (d.key.namespace, t.name, None)
                        for t in p.spec.target_refs
                        if (t.group, t.kind) == ("", "Service")
                    ),
                    Traffic(retries=_budget(p.spec.retry_constraint)),
                    session=p.spec.session_persistence,
                )
                for d, p in world.of_kind(XBackendTrafficPolicy)
            ],
            served,
        )

    def of(self, served: ServedPort) -> Traffic | None:
        """What is said about a port; None is nothing."""
        policy, _ = self._backend.of(served)
        budget, _ = self._retries.of(served)
        traffic = policy.traffic if policy is not None else None
        if budget is not None and budget.traffic.retries is not None:
            traffic = replace(traffic or Traffic(), retries=budget.traffic.retries)
        if traffic is not None and traffic.probe is not None:
            traffic = replace(traffic, probe=self._probe(traffic.probe, served))
        return traffic

    def owner(self, served: ServedPort) -> ObjectKey | None:
        """The BackendPolicy about a port."""
        policy, _ = self._backend.of(served)
        return policy.document.key if policy is not None else None

    def session_of(self, served: ServedPort) -> Session | None:
        """How clients of a port get their endpoint again, where their route does not say."""
        policy, _ = self._retries.of(served)
        return session(policy.session) if policy is not None else None

    def _probe(self, probe: Probe, served: ServedPort) -> Probe | None:
        """gRPC is HTTP/2, so a port that speaks none is only connected to; without host access there is
        nobody who may ask."""
        if not self._probes:
            return None
        if probe.kind == "grpc" and not served.http2:
            return replace(probe, kind="tcp")
        if probe.kind == "http" and not probe.name:
            return replace(probe, name=f"{served.document.key.name}.{served.document.key.namespace}")
        return probe

    def steers(self, served: ServedPort) -> bool:
        """Whether requests to a port go through the proxy even without a route."""
        policy, named = self._backend.of(served)
        if policy is None or served.port.protocol != "TCP":
            return False
        return named or served.port.app_protocol in HTTP_PROTOCOLS

    def statuses(self) -> Iterator[tuple[ObjectKey, ObjectStatus]]:
        for each in (*self._backend.policies, *self._retries.policies):
            pending = next((c.message for c in each.ancestors.values() if not c.status), "")
            if not each.ancestors:
                pending = "it means no Service"
            elif each.traffic.probe is not None and not self._probes and not pending:
                pending = "health checks are the node's own requests, and host access is off: none is made"
            ancestors = tuple((key, (condition,)) for key, condition in each.ancestors.items())
            yield each.document.key, ObjectStatus(pending=pending, extra={"ancestors": ancestors})


def session(rules: SessionPersistence | None) -> Session | None:
    if rules is None:
        return None
    permanent = rules.cookie_config.lifetime_type == "Permanent"
    ttl = (milliseconds(rules.absolute_timeout) or 0) if permanent else 0
    return Session(rules.type, rules.session_name or SESSION, ttl)


def _traffic(spec: BackendPolicySpec, document: Document) -> Traffic:
    breaker, outliers = spec.circuit_breaker, spec.outlier_detection
    balancer = spec.load_balancer or LoadBalancer()
    return Traffic(
        balancer.type,
        tuple(HashOn(k.type, k.name or "", milliseconds(k.ttl)) for k in balancer.hash_on),
        Breaker(breaker.max_connections, breaker.max_pending_requests, breaker.max_requests)
        if breaker is not None
        else Breaker(),
        Outliers(
            outliers.consecutive_errors,
            milliseconds(outliers.interval) or 1,
            milliseconds(outliers.base_ejection_time) or 1,
            outliers.max_ejection_percent,
        )
        if outliers is not None
        else None,
        _probe(spec.health_check) if spec.health_check is not None else None,
        milliseconds(spec.connect_timeout),
        spec.locality_failover.mode if spec.locality_failover is not None else None,
    )


def _probe(check: HealthCheck) -> Probe:
    times = (milliseconds(check.interval) or 1, milliseconds(check.timeout) or 1)
    counts = (check.healthy_threshold, check.unhealthy_threshold)
    if check.http is not None:
        host = check.http.host or ""
        return Probe("http", *times, *counts, check.http.path, host, tuple(check.http.expected_statuses))
    if check.grpc is not None:
        return Probe("grpc", *times, *counts, name=check.grpc.service)
    return Probe("tcp", *times, *counts)


def _budget(constraint: RetryConstraint | None) -> RetryBudget | None:
    if constraint is None:
        return None
    rate = constraint.min_retry_rate
    each_second = rate.count * 1000 // (milliseconds(rate.interval) or 1000)
    return RetryBudget(constraint.budget.percent, max(each_second, 1))
