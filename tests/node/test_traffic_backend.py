"""BackendPolicy and XBackendTrafficPolicy through the real Envoy, in the mesh and behind a Gateway.

Whatever chooses an endpoint (a hash, health, ejection, failover), policy judges the one that was chosen.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from clients import Http, ask, until
from conftest import MeshFactory
from objects import backend_policy, gateway, http_route, policy, ports, route, select, service, to
from rig import Mesh, workload
from scripted import Scripted

WEB = {"port": 80, "targetPort": 8080}
API = service("api", WEB, selector={"tier": "api"})
PODS = ("near-1", "near-2", "far")


def backend(name: str, node: str, **more: Any) -> dict[str, Any]:
    return workload(name, node, serves=True, labels={"app": name, "tier": "api"}, **more)


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("shadow", "node-a", ports=[{"name": "http", "containerPort": 8080}]),
        backend("near-1", "node-a"),
        backend("near-2", "node-a"),
        backend("far", "node-b"),
    )


def apply(mesh: Mesh, *more: dict[str, Any], **spec: Any) -> None:
    """The policy for Service api, which has no route."""
    mesh.apply(API, service("shadow", WEB, selector={"app": "shadow"}), *more, *_policies(spec))


def _policies(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [backend_policy("api", "api", **spec)] if spec else []


def pods(mesh: Mesh, count: int, **how: Any) -> Counter[str]:
    """Who answers `count` requests, each on a connection of its own."""
    vip = mesh.vip("api")
    return Counter(ask(mesh["client"], vip, 80, **how).pod for _ in range(count))


def hashing(kind: str, *keys: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "hashOn": list(keys)}


@pytest.mark.parametrize("kind", ["RingHash", "Maglev"])
def test_a_header_chooses_the_endpoint(mesh: Mesh, kind: str) -> None:
    apply(mesh, loadBalancer=hashing(kind, {"type": "Header", "name": "X-User"}))
    seen = [pods(mesh, 3, headers={"x-user": f"u{n}"}) for n in range(12)]
    assert all(len(each) == 1 for each in seen)
    assert len({pod for each in seen for pod in each}) > 1


def test_a_cookie_is_given_and_chooses(mesh: Mesh) -> None:
    key = {"type": "Cookie", "name": "pin", "ttl": "60s"}
    apply(mesh, loadBalancer=hashing("RingHash", key))
    for _ in range(4):
        first = ask(mesh["client"], mesh.vip("api"), 80)
        cookie = first.headers["set-cookie"]
        assert cookie.startswith("pin=")
        assert "Max-Age=60" in cookie
        assert pods(mesh, 5, headers={"cookie": cookie.partition(";")[0]}) == {first.pod: 5}


def test_the_source_address_chooses(mesh: Mesh) -> None:
    apply(mesh, loadBalancer=hashing("Maglev", {"type": "SourceAddress"}))
    assert len(pods(mesh, 10)) == 1


def test_round_robin_and_random_take_all(mesh: Mesh) -> None:
    for kind in ("RoundRobin", "Random", "LeastRequest"):
        apply(mesh, loadBalancer={"type": kind})
        assert set(pods(mesh, 40)) == set(PODS), kind
    # The policy goes, the kernel balances again: nothing new comes to Envoy.
    apply(mesh)
    before = mesh.on("client").downstream()
    pods(mesh, 5)
    assert mesh.on("client").downstream() == before


def test_a_hash_leads_around_no_policy(mesh: Mesh) -> None:
    """Who picks the forbidden endpoint by his header is refused there, and nowhere else."""
    closed = policy("closed", select(app="near-2"), ingress=[{}])
    apply(mesh, closed, loadBalancer=hashing("Maglev", {"type": "Header", "name": "x-user"}))
    vip = mesh.vip("api")
    answers = {n: ask(mesh["client"], vip, 80, headers={"x-user": f"u{n}"}) for n in range(30)}
    refused = {n for n, answer in answers.items() if answer.status == 403}
    assert refused
    assert {a.pod for n, a in answers.items() if n not in refused} == {"near-1", "far"}
    for n in refused:
        assert ask(mesh["client"], vip, 80, headers={"x-user": f"u{n}"}).body == b"Access denied\r\n"


def test_a_circuit_breaker_answers_503(mesh: Mesh) -> None:
    apply(mesh, circuitBreaker={"maxRequests": 1})
    vip = mesh.vip("api")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(mesh["client"], vip, 80, "/?delay=700").status, range(8)))
    assert Counter(answers) == {200: 1, 503: 7}
    assert ask(mesh["client"], vip, 80).status == 200


def both(mesh: Mesh, *names: str, **spec: Any) -> list[dict[str, Any]]:
    """Service `both` of just these workloads, with a policy."""
    ends = [{"addresses": [str(mesh[name].address())]} for name in names]
    members = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "both", "labels": {"kubernetes.io/service-name": "both"}},
        "addressType": "IPv4",
        "endpoints": ends,
        "ports": [{"port": 8080}],
    }
    return [service("both", WEB), members, backend_policy("both", "both", **spec)]


OUTLIERS = {"consecutiveErrors": 2, "interval": "1s", "baseEjectionTime": "60s", "maxEjectionPercent": 100}


def test_outliers_are_ejected(mesh: Mesh) -> None:
    """One of two that only fails gets nothing more."""
    with Scripted(mesh["shadow"], 8080, lambda _: 500) as bad:
        mesh.apply(*both(mesh, "near-1", "shadow", outlierDetection=OUTLIERS))
        vip = mesh.vip("both")

        def met() -> bool:
            ask(mesh["client"], vip, 80)
            return len(bad.heads) >= 2

        def spared() -> bool:
            return {ask(mesh["client"], vip, 80).status for _ in range(20)} == {200}

        until("the outlier was met", met)
        # An error becomes an ejection on another thread.
        until("the outlier is out", spared)
        count = len(bad.heads)
        assert spared()
        assert len(bad.heads) == count


PROBE = {"http": {"path": "/healthz"}, "interval": "100ms", "unhealthyThreshold": 1, "healthyThreshold": 1}


def test_where_nobody_is_healthy_policy_still_judges(mesh: Mesh) -> None:
    """Then any endpoint is taken rather than none: a forbidden one refuses as ever."""
    closed = policy("closed", select(app="near-1"), ingress=[{}])
    probe = {**PROBE, "http": {"path": "/?status=503"}}
    with Scripted(mesh["shadow"], 8080, lambda _: 500):
        mesh.apply(*both(mesh, "near-1", "shadow", healthCheck=probe), closed)
        vip = mesh.vip("both")

        def unhealthy() -> bool:
            hosts = asyncio.run(mesh.on("client").admin.clusters())["default/both:80/4"]["host_statuses"]
            return all(host["health_status"].get("failed_active_health_check") for host in hosts)

        until("nobody is healthy", unhealthy)
        answers = Counter(ask(mesh["client"], vip, 80).status for _ in range(40))
        assert set(answers) == {403, 500}


def test_health_checks_take_an_endpoint_out_and_back(mesh: Mesh) -> None:
    """Policy treats them as the node's own requests, as a kubelet's: also where only others are let in."""
    well = [True]
    http = ports(8080, http=[{"path": "/x.*"}])
    guarded = policy(
        "in", select(app="shadow"), ingress=[{"fromEndpoints": [select(app="client")], "toPorts": [http]}]
    )
    with Scripted(mesh["shadow"], 8080, lambda _: 200 if well[0] else 503) as checked:
        mesh.apply(*both(mesh, "near-1", "shadow", healthCheck=PROBE), guarded)
        vip = mesh.vip("both")

        def asked() -> int:
            return sum(head.startswith("GET /x") for head in checked.heads)

        def reaches() -> bool:
            before = asked()
            return [ask(mesh["client"], vip, 80, "/x").status for _ in range(8)] == [200] * 8 and (
                asked() > before
            )

        until("both are healthy", reaches)
        probes = [head for head in checked.heads if head.startswith("GET /healthz")]
        assert probes
        assert "host: both.default\r\n" in probes[0].lower()
        assert str(mesh["client"].address()) not in {
            peer for head, peer in zip(checked.heads, checked.peers, strict=True) if "/healthz" in head
        }
        # What the node may do the client may not: the probe's path is closed to him.
        assert 403 in {ask(mesh["client"], vip, 80, "/healthz").status for _ in range(20)}
        well[0] = False
        until("it is out", lambda: _statuses(mesh, vip) == {200})
        before = asked()
        assert {ask(mesh["client"], vip, 80, "/x").pod for _ in range(10)} == {"near-1"}
        assert asked() == before
        well[0] = True
        until("it is back", lambda: 200 in _statuses(mesh, vip) and asked() > before)


def _statuses(mesh: Mesh, vip: str) -> set[int]:
    return {ask(mesh["client"], vip, 80, "/x").status for _ in range(8)}


def test_an_endpoint_that_goes_is_gone_however_healthy(mesh: Mesh) -> None:
    mesh.apply(*both(mesh, "near-1", "near-2", healthCheck=PROBE))
    vip = mesh.vip("both")
    until("both are taken", lambda: len({ask(mesh["client"], vip, 80).pod for _ in range(8)}) == 2)
    mesh.apply(*both(mesh, "near-2", healthCheck=PROBE))
    assert {ask(mesh["client"], vip, 80).pod for _ in range(10)} == {"near-2"}


def test_failover_by_locality(mesh: Mesh) -> None:
    """What is on the other node is taken when nothing near is healthy; mesh TLS goes there as ever."""
    probe = {**PROBE, "http": {"path": "/?status=200"}}
    mesh.apply(*both(mesh, "near-1", "far", healthCheck=probe, localityFailover={"mode": "Node"}))
    vip = mesh.vip("both")

    until("near is healthy", lambda: {ask(mesh["client"], vip, 80).pod for _ in range(10)} == {"near-1"})
    probe = {**PROBE, "http": {"path": "/?status=503"}}
    mesh.apply(*both(mesh, "near-1", "far", healthCheck=probe, localityFailover={"mode": "Node"}))
    until("it fails over", lambda: {ask(mesh["client"], vip, 80).pod for _ in range(10)} == {"far"})


def test_a_budget_limits_retries(mesh: Mesh) -> None:
    budget = {
        "apiVersion": "gateway.networking.x-k8s.io/v1alpha1",
        "kind": "XBackendTrafficPolicy",
        "metadata": {"name": "budget"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "shadow"}],
            "retryConstraint": {"budget": {"percent": 0}, "minRetryRate": {"count": 1}},
        },
    }
    retry = {"codes": [503], "attempts": 3, "backoff": "300ms"}
    retrying = route("r", "api", {"backendRefs": [to("shadow")], "retry": retry})
    with Scripted(mesh["shadow"], 8080, lambda _: 503) as backend:
        apply(mesh, retrying, budget)
        vip = mesh.vip("api")
        with ThreadPoolExecutor(10) as pool:
            assert set(pool.map(lambda _: ask(mesh["client"], vip, 80).status, range(10))) == {503}
        assert 10 < len(backend.heads) <= 14
        apply(mesh, retrying)
        before = len(backend.heads)
        assert ask(mesh["client"], vip, 80).status == 503
        assert len(backend.heads) - before == 4


def test_gateways_obey_too(mesh: Mesh) -> None:
    """The same policy on the way through a Gateway: hashing, and health."""
    edge = (gateway("gw"), http_route("r", "gw", {"backendRefs": [to("api")]}))
    apply(mesh, *edge, loadBalancer=hashing("RingHash", {"type": "Header", "name": "x-user"}))
    shown = mesh.on("client").call(
        "get", kind="gateway", object_name="gw", namespace="default", all_namespaces=False
    )
    address = shown["status"]["addresses"][0]["value"]

    def asked(user: str) -> set[str]:
        return {ask(mesh["client"], address, 80, headers={"x-user": user}).pod for _ in range(3)}

    seen = [asked(f"u{n}") for n in range(12)]
    assert all(len(each) == 1 for each in seen)
    assert len(set().union(*seen)) > 1
    with Scripted(mesh["shadow"], 8080, lambda _: 503) as sick:
        more = both(mesh, "near-1", "shadow", healthCheck=PROBE)
        mesh.apply(*more, gateway("gw"), http_route("r", "gw", {"backendRefs": [to("both")]}))
        until("it was probed", lambda: sick.wait(1))
        assert {ask(mesh["client"], address, 80).pod for _ in range(10)} == {"near-1"}


def test_requests_go_on_while_the_policy_changes(mesh: Mesh) -> None:
    """Clusters are made anew under way: nothing is lost on a kept-alive connection, and none breaks."""
    kinds = [{"type": "RoundRobin"}, {"type": "LeastRequest"}, hashing("Maglev", {"type": "SourceAddress"})]
    apply(mesh, loadBalancer=kinds[0])
    with Http(mesh["client"], mesh.vip("api"), 80) as connection:
        for n in range(6):
            apply(mesh, loadBalancer=kinds[n % 3], healthCheck=PROBE | {"http": {"path": "/"}})
            assert [connection.ask().status for _ in range(10)] == [200] * 10
