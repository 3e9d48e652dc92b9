"""Filters that stand at a backend, of every type, for clients of the mesh and behind a Gateway, through the
real Envoy: each holds for the requests that fall to its backend, and for no other."""

from __future__ import annotations

from typing import Any

import pytest
from clients import Answer, ask
from conftest import MeshFactory
from objects import gateway, http_route, policy, ports, select, service, to
from rig import Mesh, workload
from scripted import Scripted
from test_gateway_http import address

WEB = {"name": "http", "port": 80, "targetPort": 8080}
SERVICES = tuple(service(n, WEB, selector={"app": n}) for n in ("api", "other", "shadow"))


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        workload("other", "node-a", serves=True),
        workload("shadow", "node-a"),
    )


def shares(*refs: dict[str, Any], more: tuple[dict[str, Any], ...] = ()) -> tuple[dict[str, Any], ...]:
    """One rule for /old, at a Gateway and at the Service api."""
    made = http_route(
        "r", "gw", {"matches": [{"path": {"type": "PathPrefix", "value": "/old"}}], "backendRefs": list(refs)}
    )
    made["spec"]["parentRefs"].append({"group": "", "kind": "Service", "name": "api"})
    return (*SERVICES, gateway("gw"), made, *more)


def goes(name: str, *filters: dict[str, Any], weight: int = 1) -> dict[str, Any]:
    return {**to(name, weight), "filters": list(filters)}


def of(kind: str, **what: Any) -> dict[str, Any]:
    return {"type": kind, ("cors" if kind == "CORS" else kind[0].lower() + kind[1:]): what}


@pytest.fixture(params=["mesh", "gateway"])
def get(mesh: Mesh, request: pytest.FixtureRequest) -> Any:
    def sent(path: str = "/old/x", **how: Any) -> Answer:
        where = mesh.vip("api") if request.param == "mesh" else address(mesh)
        headers = {"Host": "example.com", **how.pop("headers", {})}
        return ask(mesh["client"], where, 80, path, headers=headers, **how)

    return sent


NEW_PATH = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}


def test_a_path_is_rewritten_for_one_backend_alone(mesh: Mesh, get: Any) -> None:
    rewrite = {"type": "URLRewrite", "urlRewrite": {"hostname": "api.example", "path": NEW_PATH}}
    mesh.apply(*shares(goes("api", rewrite), goes("other")))
    seen = [get().json for _ in range(60)]
    found = {(each["pod"], each["host"], each["path"]) for each in seen}
    assert found == {("api", "api.example", "/new/x"), ("other", "example.com", "/old/x")}
    # Each has its half, but for what chance does in one of a million runs.
    assert 10 <= sum(each["pod"] == "api" for each in seen) <= 50


def test_headers_are_changed_beside_it(mesh: Mesh, get: Any) -> None:
    header = [{"name": "x-own", "value": "1"}]
    mesh.apply(
        *shares(
            goes(
                "api",
                {"type": "URLRewrite", "urlRewrite": {"path": NEW_PATH}},
                of("RequestHeaderModifier", set=header),
                of("ResponseHeaderModifier", set=header),
            ),
            goes("other", of("ResponseHeaderModifier", set=[{"name": "x-own", "value": "2"}])),
        )
    )
    found = {
        (a.pod, str(a.json["headers"].get("X-Own")), a.headers["x-own"]) for a in map(get, ["/old"] * 60)
    }
    assert found == {("api", "['1']", "1"), ("other", "None", "2")}


def test_a_redirect_of_one_backend(mesh: Mesh, get: Any) -> None:
    mesh.apply(
        *shares(
            goes(
                "api", {"type": "RequestRedirect", "requestRedirect": {"hostname": "x.y", "path": NEW_PATH}}
            ),
            goes("other", weight=3),
        )
    )
    answers = [get() for _ in range(60)]
    assert {a.headers.get("location", a.status) for a in answers} == {"http://x.y/new/x", 200}
    assert {a.pod for a in answers if a.status == 200} == {"other"}


def test_cors_of_one_backend(mesh: Mesh, get: Any) -> None:
    mesh.apply(*shares(goes("api", of("CORS", allowOrigins=["https://a.example"])), goes("other")))
    found = {
        (a.pod, a.headers.get("access-control-allow-origin"))
        for a in (get(headers={"Origin": "https://a.example"}) for _ in range(60))
    }
    assert found == {("api", "https://a.example"), ("other", None)}


def test_copies_of_what_one_backend_gets_are_no_way_around_policy(mesh: Mesh, get: Any) -> None:
    closed = policy(
        "p",
        select(app="shadow"),
        ingress=[
            {"fromEntities": ["ingress"], "toPorts": [ports(8080, http=[{"path": "/old/ok"}])]},
            {"fromEndpoints": [select(app="client")], "toPorts": [ports(8080, http=[{"path": "/old/ok"}])]},
        ],
    )
    copied = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "shadow", "port": 80}}}
    with Scripted(mesh["shadow"], 8080) as shadow:
        mesh.apply(*shares(goes("api", copied), goes("other"), more=(closed,)))
        answers = [get(path) for _ in range(40) for path in ("/old/secret", "/old/ok")]
        assert {a.status for a in answers} == {200}
        wanted = sum(a.pod == "api" and a.json["path"] == "/old/ok" for a in answers)
        assert wanted and shadow.wait(wanted)
        assert {head.split()[1] for head in shadow.heads} == {"/old/ok"}
        assert len(shadow.heads) == wanted


def test_an_authorization_service_of_one_backend(mesh: Mesh, get: Any) -> None:
    asks = {
        "type": "ExternalAuth",
        "externalAuth": {
            "protocol": "HTTP",
            "backendRef": {"name": "shadow", "port": 80},
            "http": {"path": "/may"},
        },
    }
    with Scripted(mesh["shadow"], 8080, lambda _: 403) as shadow:
        mesh.apply(*shares(goes("api", asks), goes("other")))
        answers = [get() for _ in range(60)]
        assert {a.status for a in answers} == {200, 403}
        assert {a.pod for a in answers if a.status == 200} == {"other"}
        assert all(" /may/old/x " in head.partition("\r\n")[0] for head in shadow.heads)


def test_a_backend_that_cannot_be_used_keeps_its_share(mesh: Mesh, get: Any) -> None:
    redirect = {"type": "RequestRedirect", "requestRedirect": {"hostname": "x.y"}}
    mesh.apply(*shares(goes("nobody", redirect), goes("api")))
    assert {get().status for _ in range(60)} == {500, 200}


def test_policy_judges_the_request_as_the_backend_gets_it(mesh: Mesh, get: Any) -> None:
    """The rewritten path is what a rule sees: neither way leads around it."""
    closed = policy(
        "p",
        select(app="api"),
        ingress=[
            {"fromEntities": ["ingress"], "toPorts": [ports(8080, http=[{"path": "/new/x"}])]},
            {"fromEndpoints": [select(app="client")], "toPorts": [ports(8080, http=[{"path": "/new/x"}])]},
        ],
    )
    rewrite = {"type": "URLRewrite", "urlRewrite": {"path": NEW_PATH}}
    mesh.apply(*shares(goes("api", rewrite), goes("api"), more=(closed,)))
    answers = [get() for _ in range(60)]
    assert {(a.status, a.json["path"] if a.status == 200 else "") for a in answers} == {
        (200, "/new/x"),
        (403, ""),
    }
    assert {get("/old/y").status for _ in range(20)} == {403}
