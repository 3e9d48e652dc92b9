"""Policies about traffic: what is refused, what they mean for clusters and routes, and whose counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import worlds

from penstock.manifests import jwks
from penstock.manifests.document import ObjectKey
from penstock.manifests.loader import load
from penstock.plan import ObjectStatus, Plan
from penstock.routing.traffic import Breaker, HashOn, RetryBudget, Traffic
from penstock.routing.treatment import Compression, Fault, Jwt, RateLimit, Treatment
from penstock.world import Settings

WORKLOADS = worlds.workload("web", "10.244.1.2") + worlds.workload("far", "10.244.2.2", node="node-b")


def service(name: str = "web", port: str = "{port: 80, targetPort: 8080}") -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{port}]}}
---"""


def backend_policy(spec: str, name: str = "p", kind: str = "BackendPolicy") -> str:
    version = "penstock.dev" if kind == "BackendPolicy" else "gateway.networking.x-k8s.io"
    return f"""
apiVersion: {version}/v1alpha1
kind: {kind}
metadata: {{name: {name}}}
spec: {spec}
---"""


HTTP_PORT = "{name: web, port: 80, targetPort: 8080, appProtocol: http}"
ROUND = "{targetRefs: [{name: web}], loadBalancer: {type: RoundRobin}}"


def status(plan: Plan, name: str = "p", kind: str = "BackendPolicy") -> ObjectStatus:
    return plan.statuses[ObjectKey(kind, "default", name)]


def accepted(plan: Plan, name: str = "p") -> list[tuple[str, str]]:
    listed = status(plan, name).extra["ancestors"]
    return [(key.name, conditions[0].reason) for key, conditions in listed]  # type: ignore[attr-defined]


def traffic_of(plan: Plan) -> Traffic | None:
    return next(c.traffic for c in plan.proxy.clusters if c.name == "default/web:80/4")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{targetRefs: []}", "spec.targetRefs: holds 0 entries"),
        ("{targetRefs: [{name: a}, {name: a}], connectTimeout: 1s}", "targetRefs[1]: names the same target"),
        ("{targetRefs: [{name: a, kind: Gateway}]}", 'a target of kind "Gateway"'),
        ("{targetRefs: [{name: a, port: 1, sectionName: b}]}", "holds both port and sectionName"),
        ("{targetRefs: [{name: a}], connectTimeout: 0s}", "is no time at all"),
        ("{targetRefs: [{name: a}], connectTimeout: soon}", "is no duration"),
        ("{targetRefs: [{name: a}], loadBalancer: {type: RingHash}}", "loadBalancer.hashOn: is missing"),
        ("{targetRefs: [{name: a}], loadBalancer: {hashOn: [{type: SourceAddress}]}}", "hashes nothing"),
        ("{targetRefs: [{name: a}], loadBalancer: {type: Maglev, hashOn: [{type: Header}]}}", "is missing"),
        ("{targetRefs: [{name: a}], loadBalancer: {type: Mglev}}", 'did you mean "Maglev"'),
        ("{targetRefs: [{name: a}], circuitBreaker: {maxRequests: -1}}", "maxRequests: -1 is not between"),
        ("{targetRefs: [{name: a}], outlierDetection: {maxEjectionPercent: 101}}", "101 is not between"),
        ("{targetRefs: [{name: a}], healthCheck: {}}", "needs exactly one of http, grpc and tcp"),
        ("{targetRefs: [{name: a}], healthCheck: {tcp: {}, timeout: 5s}}", "timeout: is more than 4 s"),
        ("{targetRefs: [{name: a}], healthCheck: {http: {path: healthz}}}", "is no path"),
        ("{targetRefs: [{name: a}], healthCheck: {http: {expectedStatuses: []}}}", "is empty"),
    ],
)
def test_what_is_refused(spec: str, said: str) -> None:
    problems = [str(p) for p in load(backend_policy(spec), "p.yaml").problems if p.severity == "error"]
    assert any(said in p for p in problems), problems


def test_a_budget_is_checked() -> None:
    spec = '{targetRefs: [{group: "", kind: Service, name: a}], retryConstraint: {budget: {percent: 101}}}'
    found = load(backend_policy(spec, kind="XBackendTrafficPolicy"), "p.yaml").problems
    assert "spec.retryConstraint.budget.percent: 101 is not between 0 and 100" in str(found[0])


def test_a_port_that_speaks_http_goes_through_the_proxy() -> None:
    _, plan = worlds.make(WORKLOADS + service(port=HTTP_PORT) + backend_policy(ROUND))
    assert [t.name for t in plan.proxy.services] == ["default/web:80/4"]
    assert traffic_of(plan) == Traffic("RoundRobin")
    assert [e.http for e in plan.kernel.services.values()] == [True]
    assert accepted(plan) == [("web", "Accepted")]


@pytest.mark.parametrize(
    ("port", "target", "steered"),
    [
        ("{port: 80, targetPort: 8080}", "{name: web}", False),
        ("{port: 80, targetPort: 8080}", "{name: web, port: 80}", True),
        ("{name: x, port: 80, targetPort: 8080}", "{name: web, sectionName: x}", True),
        ("{port: 80, targetPort: 8080, appProtocol: mysql}", "{name: web}", False),
        ("{port: 80, targetPort: 8080, protocol: UDP}", "{name: web, port: 80}", False),
        ("{port: 80, targetPort: 8080, appProtocol: grpc}", "{name: web}", True),
    ],
)
def test_other_ports_stay_in_the_kernel(port: str, target: str, steered: bool) -> None:
    spec = f"{{targetRefs: [{target}], loadBalancer: {{type: Random}}}}"
    _, plan = worlds.make(WORKLOADS + service(port=port) + backend_policy(spec))
    assert bool(plan.proxy.services) is steered


def test_the_older_policy_counts_and_the_other_says_so() -> None:
    other = "{targetRefs: [{name: web}, {name: gone}], loadBalancer: {type: Random}}"
    text = WORKLOADS + service(port=HTTP_PORT) + backend_policy(other, "b") + backend_policy(ROUND, "a")
    _, plan = worlds.make(text)
    assert traffic_of(plan) == Traffic("RoundRobin")
    assert accepted(plan, "a") == [("web", "Accepted")]
    assert accepted(plan, "b") == [("web", "Conflicted"), ("gone", "TargetNotFound")]
    assert "BackendPolicy default/a means the same target" in status(plan, "b").pending


def test_the_policy_of_a_port_takes_the_place_of_the_services() -> None:
    own = "{targetRefs: [{name: web, sectionName: web}], circuitBreaker: {maxRequests: 5}}"
    _, plan = worlds.make(
        WORKLOADS + service(port=HTTP_PORT) + backend_policy(ROUND, "a") + backend_policy(own, "b")
    )
    assert traffic_of(plan) == Traffic(breaker=Breaker(requests=5))
    assert (accepted(plan, "a"), accepted(plan, "b")) == ([("web", "Accepted")], [("web", "Accepted")])


def test_hashing_stands_on_the_routes_that_lead_there() -> None:
    hashed = "{type: RingHash, hashOn: [{type: Cookie, name: pin, ttl: 1m}, {type: SourceAddress}]}"
    spec = f"{{targetRefs: [{{name: web}}], loadBalancer: {hashed}}}"
    front = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{group: "", kind: Service, name: far}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---"""
    _, plan = worlds.make(WORKLOADS + service() + service("far") + front + backend_policy(spec))
    (table,) = plan.proxy.services
    assert table.name == "default/far:80/4"
    keys = (HashOn("Cookie", "pin", 60_000), HashOn("SourceAddress"))
    assert [r.actions.hashes for r in table.routes] == [keys]


def test_a_budget_alone_steers_nothing_and_joins_a_policy() -> None:
    spec = """{targetRefs: [{group: "", kind: Service, name: web}],
 retryConstraint: {budget: {percent: 30}, minRetryRate: {count: 4, interval: 2s}}}"""
    budget = backend_policy(spec, "r", "XBackendTrafficPolicy")
    _, plan = worlds.make(WORKLOADS + service(port=HTTP_PORT) + budget)
    assert not plan.proxy.services
    _, plan = worlds.make(WORKLOADS + service(port=HTTP_PORT) + budget + backend_policy(ROUND))
    assert traffic_of(plan) == Traffic("RoundRobin", retries=RetryBudget(30, 2))


def test_a_grpc_probe_needs_http2_and_probes_need_host_access() -> None:
    spec = "{targetRefs: [{name: web}], healthCheck: {grpc: {}}}"
    text = WORKLOADS + service(port=HTTP_PORT) + backend_policy(spec)
    _, plan = worlds.make(text)
    found = traffic_of(plan)
    assert found is not None
    assert found.probe is not None
    assert found.probe.kind == "tcp"
    _, plan = worlds.make(text, settings=Settings(host_access=False))
    found = traffic_of(plan)
    assert found is not None
    assert found.probe is None
    assert "host access is off" in status(plan).pending


NODES = """
apiVersion: v1
kind: Node
metadata: {{name: node-a, labels: {{topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}}}}
---
apiVersion: v1
kind: Node
metadata: {{name: node-b, labels: {{topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: {zone}}}}}
---"""


@pytest.mark.parametrize(
    ("mode", "zone", "ranks"),
    [("Zone", "z1", [0, 0]), ("Node", "z1", [0, 1]), ("Zone", "z2", [0, 1]), ("Node", "z2", [0, 1])],
)
def test_near_endpoints_come_first(mode: str, zone: str, ranks: list[int]) -> None:
    both = worlds.workload("a", "10.244.1.3", labels="app: web")
    both += worlds.workload("b", "10.244.2.3", node="node-b", labels="app: web")
    spec = f"{{targetRefs: [{{name: web}}], localityFailover: {{mode: {mode}}}}}"
    text = both + NODES.format(zone=zone) + service(port=HTTP_PORT) + backend_policy(spec)
    _, plan = worlds.make(text)
    (cluster,) = plan.proxy.clusters
    assert [e.priority for e in cluster.endpoints] == ranks


# --- HTTPPolicy ----------------------------------------------------------------------------------------


def http_policy(spec: str, name: str = "h") -> str:
    return f"""
apiVersion: penstock.dev/v1alpha1
kind: HTTPPolicy
metadata: {{name: {name}}}
spec: {spec}
---"""


ON_WEB = "targetRefs: [{kind: Service, name: web, port: 80}]"
KEYS = '{inline: \'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}\'}'


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{targetRefs: []}", "spec.targetRefs: holds 0 entries"),
        ("{targetRefs: [{kind: Ingress, name: a}]}", '"Ingress" is not one of'),
        (
            "{targetRefs: [{kind: Gateway, name: a, port: 80}], fault: {abort: {httpStatus: 500}}}",
            "is not for",
        ),
        ("{targetRefs: [{kind: Service, group: x, name: a}]}", 'not of the group "x"'),
        (f"{{{ON_WEB}, rateLimit: {{requests: 0}}}}", "requests: 0 is not between"),
        (f"{{{ON_WEB}, rateLimit: {{requests: 9, burst: 3}}}}", "burst: 3 is not between"),
        (f"{{{ON_WEB}, rateLimit: {{requests: 1, interval: 10ms}}}}", "is less than 50 ms"),
        (f"{{{ON_WEB}, fault: {{}}}}", "needs a delay or an abort"),
        (f"{{{ON_WEB}, fault: {{abort: {{}}}}}}", "exactly one of httpStatus and grpcStatus"),
        (f"{{{ON_WEB}, fault: {{delay: {{duration: 20m}}}}}}", "more than 10 minutes"),
        (f"{{{ON_WEB}, jwt: {{providers: []}}}}", "providers: holds 0 entries"),
        (f"{{{ON_WEB}, jwt: {{providers: [{{name: a, issuer: b, jwks: {{}}}}]}}}}", "exactly one of inline"),
        (
            f"{{{ON_WEB}, jwt: {{providers: [{{name: a, issuer: b, jwks: {{inline: '{{}}'}}}}]}}}}",
            "is no JWKS",
        ),
        (f"{{{ON_WEB}, extAuth: {{protocol: HTTP, backendRef: {{name: a}}}}}}", "port: is missing"),
        (
            f"{{{ON_WEB}, extAuth: {{protocol: HTTP, grpc: {{}}, backendRef: {{name: a, port: 1}}}}}}",
            "does not belong to the protocol",
        ),
        (f"{{{ON_WEB}, compression: {{types: [lzw]}}}}", '"lzw" is not one of'),
        (f"{{{ON_WEB}, compression: {{minSize: 1}}}}", "minSize: 1 is not between"),
    ],
)
def test_what_is_refused_of_http(spec: str, said: str) -> None:
    problems = [str(p) for p in load(http_policy(spec), "p.yaml").problems if p.severity == "error"]
    assert any(said in p for p in problems), problems


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is no JWKS"),
        ('{"keys": []}', "holds no keys"),
        ('{"keys": [{"kty": "XYZ"}]}', 'of the type "XYZ"'),
        ('{"keys": [{"kty": "RSA", "n": "ab"}]}', 'without a right "e"'),
        ('{"keys": [{"kty": "EC", "crv": "P-1", "x": "a", "y": "b"}]}', 'of the curve "P-1"'),
        ('{"keys": [{"kty": "oct", "k": "a+b"}]}', 'without a right "k"'),
        ('{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "ab"}]}', ""),
    ],
)
def test_keys_are_looked_at_before_envoy_is(text: str, said: str) -> None:
    assert (said in jwks.fault(text)) if said else jwks.fault(text) == ""


ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - {name: one, matches: [{path: {value: /one}}], backendRefs: [{name: web, port: 80}]}
  - {name: two, backendRefs: [{name: web, port: 80}]}
---"""


def test_the_nearest_policy_counts_part_by_part() -> None:
    """A rule's parts before its route's; the Service's are on the table, where Envoy looks last."""
    text = WORKLOADS + service() + ROUTE
    text += http_policy(f"{{{ON_WEB}, compression: {{minSize: 500}}}}", "a")
    text += http_policy(
        "{targetRefs: [{kind: HTTPRoute, name: r}], rateLimit: {requests: 5}, "
        "fault: {abort: {httpStatus: 500}}}",
        "b",
    )
    text += http_policy(
        "{targetRefs: [{kind: HTTPRoute, name: r, sectionName: one}], rateLimit: {requests: 9, burst: 20}}",
        "c",
    )
    _, plan = worlds.make(text)
    (table,) = plan.proxy.services
    fault = Fault(http_status=500)
    assert [r.actions.treatment for r in table.routes] == [
        Treatment(fault, RateLimit(9, 1000, 20)),
        Treatment(fault, RateLimit(5, 1000, 5)),
    ]
    assert table.treatment == Treatment(compression=Compression(("gzip", "brotli", "zstd"), 500))


def test_what_cannot_be_checked_is_closed() -> None:
    asks = "extAuth: {protocol: GRPC, backendRef: {name: gone, port: 9}}"
    provider = "{name: a, issuer: b, jwks: {ref: {name: keys}}}"
    spec = f"{{{ON_WEB}, {asks}, jwt: {{optional: true, providers: [{provider}]}}}}"
    _, plan = worlds.make(WORKLOADS + service() + http_policy(spec))
    (table,) = plan.proxy.services
    assert table.treatment is not None
    assert table.treatment.jwt == Jwt(())
    assert table.treatment.auth is not None
    assert table.treatment.auth.cluster is None
    (_, conditions), *_ = status(plan, "h", "HTTPPolicy").extra["ancestors"]  # type: ignore[misc]
    assert [c.reason for c in conditions] == ["Accepted", "BackendNotFound"]


def test_who_is_asked_is_asked_in_plain_text_by_the_node() -> None:
    asks = "extAuth: {protocol: GRPC, backendRef: {name: far, port: 80}}"
    _, plan = worlds.make(WORKLOADS + service() + service("far") + http_policy(f"{{{ON_WEB}, {asks}}}"))
    helper = next(c for c in plan.proxy.clusters if c.helper)
    assert (helper.name, helper.http2, helper.source) == ("default/far:80/4/grpc/helper", True, None)
    assert [e.server_id for e in helper.endpoints] == [None]


def test_a_policy_about_what_is_not_there() -> None:
    targets = "targetRefs: [{kind: Gateway, name: gw}, {kind: HTTPRoute, name: r, sectionName: six}]"
    spec = f"{{{targets}, rateLimit: {{requests: 1}}}}"
    _, plan = worlds.make(WORKLOADS + service() + ROUTE + http_policy(spec))
    listed = status(plan, "h", "HTTPPolicy").extra["ancestors"]
    assert [c[0].reason for _, c in listed] == ["TargetNotFound", "TargetNotFound"]  # type: ignore[attr-defined]
    assert "there is no Gateway default/gw" in status(plan, "h", "HTTPPolicy").pending


def test_the_examples_of_the_docs_are_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "traffic.md").read_text()
    blocks = [part.partition("```")[0] for part in page.split("```yaml\n")[1:]]
    assert len(blocks) == 3
    for block in blocks:
        result = load(block, "traffic.md")
        assert [d.key.kind for d in result.documents]
        assert not [str(p) for p in result.problems]
