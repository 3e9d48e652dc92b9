"""Policies about traffic together: several parts on one Service, in the mesh and behind a Gateway, with a
backend's own TLS and a second node, and each part's order beside the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from clients import Answer, Http, ask, until
from conftest import MeshFactory
from objects import (
    backend_policy,
    gateway,
    http_policy,
    http_route,
    policy,
    ports,
    route,
    select,
    service,
    to,
)
from rig import PENSTOCK, Mesh, workload
from scripted import Scripted
from test_backend_tls import backend_tls, certificate, config_map
from test_traffic_http import provider, token

SERVED = {"name": "http", "port": 80, "targetPort": 8080}
TLS = {"name": "https", "port": 443, "targetPort": 8443}
SERVICES = (
    service("api", SERVED, TLS, selector={"tier": "api"}),
    service("moody", SERVED, selector={"app": "moody"}),
    service("asked", {"name": "http", "port": 80, "targetPort": 8080}, selector={"app": "asked"}),
)
API = {"kind": "Service", "name": "api", "port": 80}
HASHED = {"type": "RingHash", "hashOn": [{"type": "Header", "name": "x-user"}]}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    chain, key = certificate()
    file = tmp_path_factory.mktemp("pem") / "backend.pem"
    file.write_bytes(chain + key)
    return file, chain.decode()


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory, authority: tuple[Path, str]) -> Mesh:
    def serving(name: str, node: str) -> dict[str, Any]:
        more = ["--http", "8080", "--https", "8443", "--certificate", str(authority[0])]
        made = workload(name, node, labels={"app": name, "tier": "api"})
        made["run"] = [[*PENSTOCK, "lab", "echo", "--name", name, *more]]
        return made

    return make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a"),
        workload("moody", "node-a"),
        workload("asked", "node-a"),
        serving("near", "node-a"),
        serving("far", "node-b"),
    )


def apply(mesh: Mesh, *more: dict[str, Any]) -> None:
    mesh.apply(*SERVICES, *more)
    assert not [o for o in mesh.on("client").status()["objects"] if o["state"] == "refused"]


def get(mesh: Mesh, path: str = "/", client: str = "client", port: int = 80, **how: Any) -> Answer:
    return ask(mesh[client], mesh.vip("api"), port, path, **how)


def retrying(**more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.x-k8s.io/v1alpha1",
        "kind": "XBackendTrafficPolicy",
        "metadata": {"name": "budget"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "api"}], **more},
    }


EVERYTHING = (
    backend_policy(
        "b",
        "api",
        connectTimeout="1s",
        loadBalancer=HASHED,
        circuitBreaker={"maxRequests": 100, "maxConnections": 100},
        outlierDetection={"consecutiveErrors": 5},
        healthCheck={"http": {"path": "/"}, "interval": "1s"},
        localityFailover={"mode": "Node"},
    ),
    retrying(retryConstraint={"budget": {"percent": 20}}),
    http_policy(
        "h",
        API,
        fault={"delay": {"duration": "10ms"}},
        rateLimit={"requests": 4, "interval": "60s", "per": "Identity"},
        jwt={"providers": [provider(claimsToHeaders=[{"claim": "sub", "header": "x-user"}])]},
        compression={"minSize": 100},
    ),
    policy(
        "in",
        select(tier="api"),
        ingress=[{"toPorts": [ports(8080, http=[{"path": "/open", "headers": ["x-user: me"]}])]}],
    ),
)


def test_all_of_it_in_the_mesh(mesh: Mesh) -> None:
    """What comes first decides: the limit, then the token, then policy, which sees the claim's header."""
    rule = {
        "backendRefs": [to("api")],
        "timeouts": {"request": "5s", "backendRequest": "2s"},
        "retry": {"attempts": 2, "codes": [503]},
    }
    apply(mesh, route("r", "api", rule), *EVERYTHING)
    answer = get(mesh, "/open", headers={**token(), "accept-encoding": "gzip", "x-user": "forged"})
    assert (answer.status, answer.headers.get("content-encoding")) == (200, "gzip")
    assert get(mesh, "/shut", headers=token()).status == 403
    assert get(mesh, "/open", headers=token(sub="you")).status == 403
    assert get(mesh, "/open").status == 401
    # The fifth, whoever it is, and each identity for itself.
    assert get(mesh, "/open", headers=token()).status == 429
    assert get(mesh, "/open", "other", headers=token()).status == 200


def test_all_of_it_behind_a_gateway(mesh: Mesh) -> None:
    """The Service's own parts are for clients of the mesh; the Gateway's listener says its own, and policy
    judges the Gateway."""
    whole = dict(
        EVERYTHING[2], spec={**EVERYTHING[2]["spec"], "targetRefs": [{"kind": "Gateway", "name": "gw"}]}
    )
    only = policy(
        "in",
        select(tier="api"),
        ingress=[{"fromEntities": ["ingress"], "toPorts": [ports(8080, http=[{"path": "/open"}])]}],
    )
    apply(
        mesh, gateway("gw"), http_route("r", "gw", {"backendRefs": [to("api")]}), *EVERYTHING[:2], whole, only
    )
    shown = mesh.on("client").call(
        "get", kind="gateway", object_name="gw", namespace="default", all_namespaces=False
    )
    where = shown["status"]["addresses"][0]["value"]

    def through(path: str, **headers: str) -> int:
        return ask(mesh["client"], where, 80, path, headers=headers).status

    assert (through("/open", **token()), through("/open"), through("/shut", **token())) == (200, 401, 403)
    assert (through("/open", **token()), through("/open", **token())) == (200, 429)
    assert get(mesh, "/open").status == 403


def test_retries_limits_and_faults(mesh: Mesh) -> None:
    """A retry is no request of the client's: it counts for no limit, and no fault meets it again."""
    rule = {"backendRefs": [to("moody")], "retry": {"attempts": 3, "codes": [503], "backoff": "10ms"}}
    limit = http_policy(
        "h",
        {"kind": "Service", "name": "moody", "port": 80},
        rateLimit={"requests": 2, "interval": "60s"},
        fault={"delay": {"duration": "1ms"}},
    )
    with Scripted(mesh["moody"], 8080, lambda n: 503 if n < 3 else 200) as backend:
        apply(mesh, route("r", "moody", rule), limit)
        vip = mesh.vip("moody")
        found = [ask(mesh["client"], vip, 80).status for _ in range(3)]
        assert (found[0], found[2]) == (200, 429)
        assert len(backend.heads) >= 4


def test_sessions_and_hashes_over_a_backends_own_tls(mesh: Mesh, authority: tuple[Path, str]) -> None:
    """One endpoint is here and one on another node, inside mesh TLS: who had it gets it again."""
    shared = [config_map(authority[1]), backend_tls()]
    rule = {"backendRefs": [to("api", port=443)], "sessionPersistence": {"sessionName": "seat"}}
    apply(mesh, *shared, route("r", "api", rule))
    seats = {}

    def all_seats() -> bool:
        answer = get(mesh, port=443)
        seats[answer.pod] = answer.headers["set-cookie"].partition(";")[0]
        return set(seats) == {"near", "far"}

    until("both have been chosen", all_seats)
    for pod, cookie in seats.items():
        answers = [get(mesh, port=443, headers={"cookie": cookie}) for _ in range(6)]
        assert {(a.status, a.pod, a.json["tls"]["serverName"]) for a in answers} == {
            (200, pod, "api.example")
        }
    apply(
        mesh,
        *shared,
        route("r", "api", {"backendRefs": [to("api", port=443)]}),
        backend_policy("b", "api", 443, loadBalancer=HASHED),
    )
    by_user: dict[str, set[str]] = {}
    for user in [f"user-{n}" for n in range(12)] * 2:
        by_user.setdefault(user, set()).add(get(mesh, port=443, headers={"x-user": user}).pod)
    assert all(len(found) == 1 for found in by_user.values())
    assert set().union(*by_user.values()) == {"near", "far"}


def test_health_and_failover_with_a_backends_own_tls(mesh: Mesh, authority: tuple[Path, str]) -> None:
    """Near ones first; what is asked for its health is asked in the backend's own TLS, too."""
    near = backend_policy(
        "b",
        "api",
        443,
        healthCheck={"http": {"path": "/"}, "interval": "100ms", "unhealthyThreshold": 1},
        localityFailover={"mode": "Node"},
    )
    apply(
        mesh,
        config_map(authority[1]),
        backend_tls(),
        route("r", "api", {"backendRefs": [to("api", port=443)]}),
        near,
    )
    until("the near one is healthy", lambda: {get(mesh, port=443).pod for _ in range(5)} == {"near"})


def test_parts_of_several_policies(mesh: Mesh) -> None:
    """Each part by itself: the rule's, else the route's, else the Service's, on one connection throughout."""
    rules = [
        {"name": "slow", "matches": [{"path": {"value": "/slow"}}], "backendRefs": [to("api")]},
        {"name": "rest", "backendRefs": [to("api")]},
    ]
    of_route = {"kind": "HTTPRoute", "name": "r"}
    with_ = [route("r", "api", *rules)]
    apply(mesh, *with_)
    with Http(mesh["client"], mesh.vip("api"), 80) as open_:
        assert [open_.ask(p).status for p in ("/slow", "/")] == [200, 200]
        with_ += [http_policy("s", API, fault={"abort": {"httpStatus": 418}})]
        apply(mesh, *with_)
        assert [open_.ask(p).status for p in ("/slow", "/")] == [418, 418]
        with_ += [http_policy("r", of_route, fault={"abort": {"httpStatus": 419}})]
        apply(mesh, *with_)
        assert [open_.ask(p).status for p in ("/slow", "/")] == [419, 419]
        with_ += [http_policy("t", {**of_route, "sectionName": "slow"}, jwt={"providers": [provider()]})]
        apply(mesh, *with_)
        assert [open_.ask(p).status for p in ("/slow", "/")] == [419, 419]
        with_ += [http_policy("u", {**of_route, "sectionName": "slow"}, fault={"abort": {"httpStatus": 420}})]
        apply(mesh, *with_)
        # The older policy of the rule has the target; of equal age it is the first by name.
        assert [open_.ask(p).status for p in ("/slow", "/")] == [419, 419]


def test_who_is_asked_is_behind_the_limit_and_the_token(mesh: Mesh) -> None:
    asked = {"protocol": "HTTP", "backendRef": {"name": "asked", "port": 80}}
    whole = http_policy(
        "h",
        API,
        rateLimit={"requests": 3, "interval": "60s"},
        jwt={"providers": [provider()]},
        extAuth=asked,
    )
    with Scripted(mesh["asked"], 8080) as service_:
        apply(mesh, whole)
        assert get(mesh).status == 401
        assert not service_.heads
        assert get(mesh, headers=token()).status == 200
        before = len(service_.heads)
        assert before == 1
        assert (get(mesh).status, get(mesh, headers=token()).status) == (401, 429)
        assert len(service_.heads) == before
