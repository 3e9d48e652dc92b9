"""`penstock observe` says why the proxy answered a request itself, and by which line of which object."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from clients import Answer, ask, until
from conftest import MeshFactory
from objects import (
    backend_policy,
    gateway,
    http_policy,
    http_route,
    listener,
    policy,
    ports,
    route,
    select,
    service,
    to,
)
from rig import Mesh, workload
from scripted import Scripted
from test_gateway_http import address
from test_traffic_http import provider

from penstock.cli.observe import line

WEB = {"name": "http", "port": 80, "targetPort": 8080}
SERVICES = tuple(service(n, WEB, selector={"app": n}) for n in ("api", "asked", "gone"))
API = {"kind": "Service", "name": "api", "port": 80}
KEYS = {"providers": [provider()]}
ABORT = {"abort": {"httpStatus": 418}}
LIMIT = {"requests": 1, "interval": "300s"}


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"), workload("api", "node-a", serves=True), workload("asked", "node-a")
    )


def get(mesh: Mesh, path: str, **how: Any) -> Answer:
    return ask(mesh["client"], mesh.vip("api"), 80, path, **how)


def said(mesh: Mesh, path: str, code: int) -> dict[str, Any]:
    """What `observe` tells of the request for `path` that was answered with `code`."""

    def found() -> dict[str, Any] | None:
        records = mesh.on("client").observed(400)
        return next((r for r in records if r.get("path") == path and r["code"] == code), None)

    record = until(f"observe tells of {path}", found)
    assert record is not None
    return record


def rule_of(mesh: Mesh, record: dict[str, Any]) -> str:
    """Which object, and what stands in the line that is named."""
    assert record["rule"] and record["rule"] in line(record)
    what, _, origin = str(record["rule"]).rstrip(")").partition(" (")
    file, number = origin.split(" ")[0].rsplit(":", 1)
    text = (mesh.on("client").config / file).read_text().splitlines()[int(number) - 1]
    return f"{what}: {text.strip().partition(':')[0]}"


def test_policies_about_traffic_are_named(mesh: Mesh) -> None:
    cases = {
        "/limit": ({"rateLimit": LIMIT}, 429, "RATE_LIMITED", "DENIED", "rateLimit"),
        "/jwt": ({"jwt": KEYS}, 401, "NOT_AUTHENTICATED", "DENIED", "jwt"),
        "/fault": ({"fault": ABORT}, 418, "FAULT", "SERVED", "fault"),
        "/late": ({"fault": {"delay": {"duration": "20ms"}}}, 200, "DELAYED", "SERVED", "fault"),
        "/ask": (
            {"extAuth": {"protocol": "HTTP", "backendRef": {"name": "asked", "port": 80}}},
            403,
            "NOT_AUTHORIZED",
            "DENIED",
            "extAuth",
        ),
    }
    rules = [
        {"name": path[1:], "matches": [{"path": {"value": path}}], "backendRefs": [to("api")]}
        for path in cases
    ]
    policies = [
        http_policy(f"of-{path[1:]}", {"kind": "HTTPRoute", "name": "r", "sectionName": path[1:]}, **spec)
        for path, (spec, *_) in cases.items()
    ]
    with Scripted(mesh["asked"], 8080, lambda _: 403):
        mesh.apply(*SERVICES, route("r", "api", *rules), *policies)
        get(mesh, "/limit")
        for path, (_, code, reason, verdict, field) in cases.items():
            assert get(mesh, path).status == code, path
            record = said(mesh, path, code)
            assert (record["reason"], record["verdict"]) == (reason, verdict), path
            assert rule_of(mesh, record) == f"HTTPPolicy default/of-{path[1:]}: {field}"


def test_policies_of_services_and_gateways_are_named(mesh: Mesh) -> None:
    """The Service has no route; of a Gateway's listeners on one port the one for the host counts."""
    mesh.apply(
        *SERVICES,
        http_policy("of-service", API, fault=ABORT),
        gateway("gw", listener("wide"), listener("one", hostname="one.example")),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
        http_policy("of-listener", {"kind": "Gateway", "name": "gw", "sectionName": "one"}, fault=ABORT),
        http_policy("of-gateway", {"kind": "Gateway", "name": "gw"}, rateLimit=LIMIT),
    )
    assert get(mesh, "/service").status == 418
    assert rule_of(mesh, said(mesh, "/service", 418)) == "HTTPPolicy default/of-service: fault"
    at = address(mesh)
    assert ask(mesh["client"], at, 80, "/one", headers={"Host": "one.example"}).status == 418
    assert rule_of(mesh, said(mesh, "/one", 418)) == "HTTPPolicy default/of-listener: fault"
    codes = [ask(mesh["client"], at, 80, "/any", headers={"Host": "any.example"}).status for _ in range(2)]
    assert codes == [200, 429]
    assert rule_of(mesh, said(mesh, "/any", 429)) == "HTTPPolicy default/of-gateway: rateLimit"


def test_timeouts_circuit_breakers_and_what_goes_wrong(mesh: Mesh) -> None:
    def at(path: str, *refs: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"matches": [{"path": {"value": path}}], "backendRefs": list(refs), **more}

    mesh.apply(
        *SERVICES,
        route(
            "r",
            "api",
            at("/slow", to("api"), timeouts={"request": "100ms"}),
            at("/nobody", to("nobody")),
            at("/gone", to("gone")),
            at("/asked", to("asked")),
            at("/held", to("api")),
        ),
        backend_policy("narrow", "api", circuitBreaker={"maxRequests": 1, "maxPendingRequests": 1}),
    )
    assert get(mesh, "/slow?delay=2000").status == 504
    record = said(mesh, "/slow?delay=2000", 504)
    assert (record["reason"], record["verdict"]) == ("TIMEOUT", "SERVED")
    assert rule_of(mesh, record) == "HTTPRoute default/r: timeouts"
    for path, code, reason in (
        ("/nobody", 500, "NO_USABLE_BACKEND"),
        ("/gone", 503, "NO_HEALTHY_BACKEND"),
        ("/asked", 503, "BACKEND_UNREACHABLE"),
        ("/none", 404, "NO_ROUTE"),
    ):
        assert get(mesh, path).status == code
        record = said(mesh, path, code)
        assert (record["reason"], record["rule"]) == (reason, ""), path

    def held(_: int) -> int:
        return get(mesh, "/held?delay=700").status

    with ThreadPoolExecutor(8) as many:
        assert set(many.map(held, range(8))) == {200, 503}
    record = said(mesh, "/held?delay=700", 503)
    assert (record["reason"], record["verdict"]) == ("CIRCUIT_OPEN", "SERVED")
    assert rule_of(mesh, record) == "BackendPolicy default/narrow: circuitBreaker"
    # What a backend answers itself has no reason here.
    assert said(mesh, "/held?delay=700", 200)["reason"] == ""


def test_denials_stay_what_they_are(mesh: Mesh) -> None:
    closed = policy(
        "closed",
        select(app="api"),
        ingress=[{"fromEndpoints": [select(app="client")], "toPorts": [ports(8080, http=[{"path": "/ok"}])]}],
    )
    mesh.apply(*SERVICES, route("r", "api", {"backendRefs": [to("api")]}), closed)
    assert get(mesh, "/shut").status == 403
    record = said(mesh, "/shut", 403)
    assert (record["reason"], record["verdict"]) == ("REQUEST_DENIED", "DENIED")
