"""The core of GATEWAY-HTTP that no feature is named after, through the real Envoy: what changes, what counts,
generations, kinds of Services, weights that sum to zero."""

from __future__ import annotations

from typing import Any

import pytest
from clients import ask
from conftest import MeshFactory
from objects import gateway, http_route, listener, service, to
from rig import Mesh, workload
from test_gateway_http import address, conditions, get, shown

WEB = {"name": "http", "port": 80, "targetPort": 8080}
SERVICES = tuple(service(n, WEB, selector={"app": n}) for n in ("api", "other"))


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        workload("other", "node-a", serves=True),
    )


def goes(name: str, **match: Any) -> dict[str, Any]:
    return {"matches": [match], "backendRefs": [to(name)]}


def path(kind: str, value: str) -> dict[str, Any]:
    return {"type": kind, "value": value}


def test_HTTPRouteExactPathMatching_and_PathMatchOrder(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        gateway("gw"),
        http_route(
            "r",
            "gw",
            goes("other", path=path("PathPrefix", "/match")),
            goes("api", path=path("Exact", "/match/exact")),
            goes("api", path=path("PathPrefix", "/match/prefix")),
            goes("other", path=path("PathPrefix", "/match/prefix/one/")),
            goes("api", path=path("Exact", "/only")),
        ),
    )
    asked = {
        "/match/exact": "api",
        "/match/exact/": "other",
        "/match/prefix": "api",
        "/match/prefixed": "other",
        "/match/prefix/one": "other",
        "/match/prefix/one/any": "other",
        "/match/any": "other",
        "/only": "api",
    }
    assert {each: get(mesh, path=each).pod for each in asked} == asked
    assert [get(mesh, path=each).status for each in ("/", "/only/", "/ONLY", "/matched")] == [404] * 4


def test_HTTPRouteHeaderMatching(mesh: Mesh) -> None:
    def header(name: str, value: str) -> dict[str, str]:
        return {"name": name, "value": value}

    mesh.apply(
        *SERVICES,
        gateway("gw"),
        http_route(
            "r",
            "gw",
            goes("api", headers=[header("version", "one")]),
            goes("other", headers=[header("Version", "two")]),
            goes("api", headers=[header("version", "two"), header("color", "orange")]),
            {
                "matches": [{"headers": [header("color", c)]} for c in ("blue", "green")],
                "backendRefs": [to("other")],
            },
        ),
    )
    asked: list[tuple[dict[str, str], str]] = [
        ({"version": "one"}, "api"),
        ({"VERSION": "two"}, "other"),
        ({"version": "two", "color": "orange"}, "api"),
        ({"color": "green"}, "other"),
        # More headers come before fewer, and of as many the first rule.
        ({"color": "blue", "version": "one"}, "api"),
    ]
    for headers, pod in asked:
        assert get(mesh, headers=headers).pod == pod, headers
    for headers in ({}, {"color": "orange"}, {"version": "One"}):
        assert get(mesh, headers=headers).status == 404, headers


def test_HTTPRouteServiceTypes(mesh: Mesh) -> None:
    """Headless, and without a selector: endpoints count, not how a Service is found by others."""
    address = str(mesh["other"].addresses[0])
    by_hand = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "hand-1", "labels": {"kubernetes.io/service-name": "hand"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]}],
        "ports": [{"name": "http", "port": 8080}],
    }
    older = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "older"},
        "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "http", "port": 8080}]}],
    }
    mesh.apply(
        service("headless", WEB, selector={"app": "api"}, clusterIP="None"),
        service("hand", WEB),
        by_hand,
        service("older", WEB),
        older,
        gateway("gw"),
        http_route(
            "r",
            "gw",
            goes("headless", path=path("Exact", "/headless")),
            goes("hand", path=path("Exact", "/hand")),
            goes("older", path=path("Exact", "/older")),
        ),
    )
    found = [get(mesh, path=p).pod for p in ("/headless", "/hand", "/older")]
    assert found == ["api", "other", "other"]
    older["subsets"] = []
    mesh.apply(service("older", WEB), older, gateway("gw"), http_route("r", "gw", goes("older")))
    assert get(mesh).status == 503


def test_HTTPRouteAllBackendsWeightZero(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES, gateway("gw"), http_route("r", "gw", {"backendRefs": [to("api", 0), to("other", 0)]})
    )
    assert [get(mesh).status for _ in range(3)] == [500] * 3


def listeners(mesh: Mesh) -> dict[str, tuple[int, str]]:
    status = shown(mesh, "gateway", "gw")["status"]["listeners"]
    return {x["name"]: (x["attachedRoutes"], conditions(x["conditions"])["Programmed"][0]) for x in status}


def test_GatewayModifyListeners_and_attached_routes(mesh: Mesh) -> None:
    one = http_route("one", {"name": "gw", "sectionName": "http"}, goes("api"))
    two = http_route("two", "gw", goes("other", path=path("Exact", "/two")), hostnames=["two.example"])
    http, more = listener(), listener("more", 8080, hostname="elsewhere.example")

    def why() -> tuple[str, str]:
        (parent,) = shown(mesh, "httproute", "two")["status"]["parents"]
        return conditions(parent["conditions"])["Accepted"]

    mesh.apply(*SERVICES, gateway("gw", more), two)
    assert (why(), listeners(mesh)) == (("False", "NoMatchingListenerHostname"), {"more": (0, "True")})
    mesh.apply(*SERVICES, gateway("gw", http, more), one, two)
    assert listeners(mesh) == {"http": (2, "True"), "more": (0, "True")}
    assert get(mesh, "two.example", "/two").pod == "other"
    mesh.apply(*SERVICES, gateway("gw", http, {**more, "hostname": "*.example"}), one, two)
    assert listeners(mesh) == {"http": (2, "True"), "more": (1, "True")}
    assert get(mesh, "two.example", "/two", port=8080).pod == "other"
    mesh.apply(*SERVICES, gateway("gw", http), one)
    assert (listeners(mesh), get(mesh).pod) == ({"http": (1, "True")}, "api")
    with pytest.raises(ConnectionRefusedError):
        get(mesh, port=8080)


def generations(status: Any) -> set[int]:
    """Of every condition, wherever it is."""
    if isinstance(status, dict):
        own = {status["observedGeneration"]} if "observedGeneration" in status else set()
        return own.union(*(generations(value) for value in status.values()))
    return set().union(*(generations(each) for each in status)) if isinstance(status, list) else set()


def test_ObservedGenerationBump(mesh: Mesh) -> None:
    """Each change counts one; an object that did not change keeps its number, and so do its conditions."""

    def apply(version: int) -> None:
        route_of_version = http_route("r", "gw", {"name": f"v{version}", **goes("api")})
        ours = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": {"name": "ours"},
            "spec": {"controllerName": "penstock.dev/gateway-controller", "description": f"v{version}"},
        }
        more = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "ListenerSet",
            "metadata": {"name": "set"},
            "spec": {"parentRef": {"name": "gw"}, "listeners": [listener("set", 8100 + version)]},
        }
        trust = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "BackendTLSPolicy",
            "metadata": {"name": "tls"},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": "other"}],
                "validation": {"hostname": f"v{version}.example", "wellKnownCACertificates": "System"},
            },
        }
        gateway_of_version = gateway(
            "gw", listener(), listener("v", 8200 + version), allowedListeners={"namespaces": {"from": "Same"}}
        )
        beside = http_route("beside", "gw", goes("other", path=path("Exact", "/beside")))
        mesh.apply(*SERVICES, ours, gateway_of_version, more, trust, route_of_version, beside)

    objects = [
        ("gatewayclass", "ours"),
        ("gateway", "gw"),
        ("listenerset", "set"),
        ("httproute", "r"),
        ("backendtlspolicy", "tls"),
    ]
    mesh.apply(*SERVICES)
    for version in (1, 2, 3):
        apply(version)
        for kind, name in objects:
            found = shown(mesh, kind, name)
            assert found["metadata"]["generation"] == version, (kind, version)
            assert generations(found["status"]) == {version}, (kind, version)
        assert generations(shown(mesh, "httproute", "beside")["status"]) == {1}


def test_names_as_long_as_they_may_be(mesh: Mesh) -> None:
    name = ".".join(["g" * 62, "a" * 62, "t" * 62, "e" * 60])
    mesh.apply(*SERVICES, gateway(name, listener("l" * 63)), http_route(name, {"name": name}, goes("api")))
    status = shown(mesh, "gateway", name)["status"]
    assert conditions(status["conditions"])["Programmed"] == ("True", "Programmed")
    assert status["listeners"][0]["attachedRoutes"] == 1


def test_default_gateways(mesh: Mesh) -> None:
    """A route that names no parent goes to every Gateway that wants such routes, and to no other."""
    wants = http_route("r", "gw", goes("api"))
    del wants["spec"]["parentRefs"]
    wants["spec"]["useDefaultGateways"] = "All"
    mesh.apply(*SERVICES, gateway("gw", defaultScope="All"), gateway("apart"), wants)
    assert get(mesh).pod == "api"
    assert ask(mesh["client"], address(mesh, "apart"), 80).status == 404
    (parent,) = shown(mesh, "httproute", "r")["status"]["parents"]
    assert parent["parentRef"]["name"] == "gw"
    assert conditions(parent["conditions"])["Accepted"] == ("True", "Accepted")
    found = conditions(shown(mesh, "gateway", "gw")["status"]["conditions"])
    assert found["DefaultGateway"] == ("True", "DefaultGateway")
    mesh.apply(*SERVICES, gateway("gw"), gateway("apart", defaultScope="All"), wants)
    assert get(mesh).status == 404
    assert ask(mesh["client"], address(mesh, "apart"), 80).pod == "api"
