"""Gateways over plain HTTP, through the real Envoy: two hops, both judged; routes, hosts, statuses."""

from __future__ import annotations

from typing import Any

import pytest
from clients import Answer, ask
from conftest import MeshFactory
from objects import gateway, http_route, listener, service, to
from rig import Mesh, workload

WEB = {"port": 80, "targetPort": 8080}
SERVICES = tuple(service(n, WEB, selector={"app": n}) for n in ("api", "other"))


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        workload("other", "node-a", serves=True),
    )


def shown(mesh: Mesh, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
    daemon = next(iter(mesh.daemons.values()))
    return dict(daemon.call("get", kind=kind, object_name=name, namespace=namespace, all_namespaces=False))


def address(mesh: Mesh, name: str = "gw") -> str:
    return str(shown(mesh, "gateway", name)["status"]["addresses"][0]["value"])


def conditions(listed: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in listed}


def get(mesh: Mesh, host: str = "example.com", path: str = "/", *, port: int = 80, **how: Any) -> Answer:
    headers = {"Host": host, **how.pop("headers", {})}
    return ask(mesh["client"], address(mesh), port, path, headers=headers, **how)


def test_a_gateway_serves_a_route(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        gateway("gw"),
        http_route("r", "gw", {"backendRefs": [to("api")]}, hostnames=["example.com"]),
    )
    status = shown(mesh, "gateway", "gw")["status"]
    assert conditions(status["conditions"]) == {
        "Accepted": ("True", "Accepted"),
        "Programmed": ("True", "Programmed"),
    }
    assert status["listeners"][0]["attachedRoutes"] == 1
    answer = get(mesh, "example.com:8000")
    assert (answer.status, answer.pod) == (200, "api")
    assert answer.json["headers"]["X-Forwarded-For"] == [str(mesh["client"].addresses[0])]
    assert get(mesh, "elsewhere.com").status == 404


def test_the_class_is_there_by_itself(mesh: Mesh) -> None:
    status = shown(mesh, "gatewayclass", "penstock")["status"]
    assert conditions(status["conditions"])["Accepted"] == ("True", "Accepted")
    names = [each["name"] for each in status["supportedFeatures"]]
    assert names == sorted(names) and "HTTPRoute" in names


def test_GatewayHTTPListenerIsolation(mesh: Mesh) -> None:
    def host(name: str, hostname: str) -> dict[str, Any]:
        return listener(name, hostname=hostname) if hostname else listener(name)

    hosts = {
        "empty": "",
        "wild": "*.example.com",
        "deep": "*.foo.example.com",
        "exact": "abc.foo.example.com",
    }
    routes = [
        http_route(
            f"to-{name}",
            {"name": "gw", "sectionName": name},
            {
                "matches": [{"path": {"type": "PathPrefix", "value": f"/{name}"}}],
                "backendRefs": [to("api")],
            },
        )
        for name in hosts
    ]
    mesh.apply(*SERVICES, gateway("gw", *(host(n, h) for n, h in hosts.items())), *routes)
    asked = {
        "bar.com": "empty",
        "bar.example.com": "wild",
        "bar.foo.example.com": "deep",
        "abc.foo.example.com": "exact",
    }
    for name, own in asked.items():
        for path in hosts:
            assert get(mesh, name, f"/{path}").status == (200 if path == own else 404), (name, path)


def test_hosts_of_listeners_and_routes_meet(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        gateway("gw", listener("one", hostname="very.specific.com"), listener("wild", hostname="*.wild.io")),
        http_route(
            "mixed",
            "gw",
            {"backendRefs": [to("api")]},
            hostnames=["*.specific.com", "foo.wild.io", "*.bar.wild.io", "none.net"],
        ),
        http_route(
            "more",
            "gw",
            {"matches": [{"path": {"value": "/other"}}], "backendRefs": [to("other")]},
            hostnames=["*.wild.io"],
        ),
        http_route("apart", "gw", {"backendRefs": [to("api")]}, hostnames=["nothing.net"]),
    )
    for host in ("very.specific.com", "VERY.specific.com", "foo.wild.io", "a.b.bar.wild.io"):
        assert get(mesh, host).pod == "api", host
    for host in ("other.specific.com", "wild.io", "bar.wild.io", "none.net", "nothing.net"):
        assert get(mesh, host).status == 404, host
    # What the more specific name has no rule for, the less specific one may have.
    assert get(mesh, "foo.wild.io", "/other").pod == "api"
    assert get(mesh, "elsewhere.wild.io", "/other").pod == "other"
    parent = shown(mesh, "httproute", "apart")["status"]["parents"][0]
    assert conditions(parent["conditions"])["Accepted"] == ("False", "NoMatchingListenerHostname")
    counts = {x["name"]: x["attachedRoutes"] for x in shown(mesh, "gateway", "gw")["status"]["listeners"]}
    assert counts == {"one": 1, "wild": 2}


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def accepted(mesh: Mesh, name: str, namespace: str = "default", index: int = 0) -> tuple[str, str]:
    parent = shown(mesh, "httproute", name, namespace)["status"]["parents"][index]
    assert parent["controllerName"] == "penstock.dev/gateway-controller"
    return conditions(parent["conditions"])["Accepted"]


def test_which_routes_a_listener_takes(mesh: Mesh) -> None:
    def takes(name: str, port: int, **namespaces: Any) -> dict[str, Any]:
        return listener(name, port, allowedRoutes={"namespaces": namespaces})

    chosen = {"matchExpressions": [{"key": "team", "operator": "In", "values": ["blue"]}]}
    grpc_only = listener("grpc", 84, allowedRoutes={"kinds": [{"kind": "GRPCRoute"}]})
    parents = [
        {"name": "gw", "namespace": "default", "sectionName": s}
        for s in ("same", "all", "some", "none", "grpc")
    ]
    elsewhere = http_route("r", parents[0], {}, namespace="blue")
    elsewhere["spec"]["parentRefs"] = parents
    odd = http_route("odd", {"name": "gw", "port": 99}, {})
    odd["spec"]["parentRefs"] += [{"name": "gw", "sectionName": "absent"}, {"name": "absent"}]
    mesh.apply(
        *SERVICES,
        namespace("blue", team="blue"),
        gateway(
            "gw",
            takes("same", 80, **{"from": "Same"}),
            takes("all", 81, **{"from": "All"}),
            takes("some", 82, **{"from": "Selector", "selector": chosen}),
            takes("none", 83, **{"from": "None"}),
            grpc_only,
        ),
        elsewhere,
        odd,
    )
    found = [accepted(mesh, "r", "blue", index) for index in range(5)]
    refused = ("False", "NotAllowedByListeners")
    assert found == [refused, ("True", "Accepted"), ("True", "Accepted"), refused, refused]
    assert [accepted(mesh, "odd", index=i) for i in range(3)] == [("False", "NoMatchingParent")] * 3
    assert (get(mesh, port=81).status, get(mesh, port=80).status) == (500, 404)


def test_what_is_wrong_with_a_listener_is_told_and_takes_nothing_from_the_others(mesh: Mesh) -> None:
    kinds = {"kinds": [{"kind": "HTTPRoute"}, {"kind": "NoSuchRoute"}]}
    mesh.apply(
        *SERVICES,
        gateway(
            "gw",
            listener("good"),
            listener("odd", 81, "example.com/SSH"),
            listener("kinds", 82, allowedRoutes=kinds),
            listener("kindless", 83, allowedRoutes={"kinds": [{"kind": "NoSuchRoute"}]}),
            listener("clash-a", 84),
            listener("clash-b", 84, "HTTPS", tls={"certificateRefs": [{"name": "absent"}]}),
        ),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    )
    status = shown(mesh, "gateway", "gw")["status"]
    assert conditions(status["conditions"])["Accepted"] == ("True", "ListenersNotValid")
    found = {each["name"]: conditions(each["conditions"]) for each in status["listeners"]}
    kinds_of = {each["name"]: [k["kind"] for k in each["supportedKinds"]] for each in status["listeners"]}
    assert found["good"]["Programmed"] == ("True", "Programmed")
    assert found["odd"]["Accepted"] == ("False", "UnsupportedProtocol")
    assert kinds_of["odd"] == []
    assert found["kinds"]["ResolvedRefs"] == ("False", "InvalidRouteKinds")
    assert found["kinds"]["Programmed"] == ("True", "Programmed")
    assert kinds_of["kinds"] == ["HTTPRoute"]
    assert found["kindless"]["Programmed"][0] == "False"
    for name in ("clash-a", "clash-b"):
        assert found[name]["Conflicted"] == ("True", "ProtocolConflict")
        assert found[name]["Accepted"] == ("False", "Invalid")
    assert get(mesh).pod == "api"
    with pytest.raises(ConnectionRefusedError):
        get(mesh, port=84)


def test_backends_that_are_not_there(mesh: Mesh) -> None:
    def at(path: str, *refs: dict[str, Any]) -> dict[str, Any]:
        return {"matches": [{"path": {"value": path}}], "backendRefs": list(refs)}

    far = {**service("far", WEB, selector={"app": "far"}), "metadata": {"name": "far", "namespace": "blue"}}
    there = {"name": "far", "namespace": "blue", "port": 80}
    grant = {
        "apiVersion": "gateway.networking.k8s.io/v1beta1",
        "kind": "ReferenceGrant",
        "metadata": {"name": "g", "namespace": "blue"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "default"}],
            "to": [{"group": "", "kind": "Service"}],
        },
    }
    documents = [
        *SERVICES,
        far,
        gateway("gw"),
        http_route(
            "r",
            "gw",
            at("/absent", to("absent")),
            at("/kind", {"name": "api", "group": "example.com", "kind": "Nonsense", "port": 80}),
            at("/none"),
            at("/nought", to("api", weight=0)),
            at("/half", to("api"), to("absent")),
            at("/far", there),
        ),
    ]
    mesh.apply(*documents)
    for path in ("/absent", "/kind", "/none", "/nought", "/far"):
        assert get(mesh, path=path).status == 500, path
    codes = {get(mesh, path="/half").status for _ in range(30)}
    assert codes == {200, 500}
    parent = shown(mesh, "httproute", "r")["status"]["parents"][0]
    assert conditions(parent["conditions"])["ResolvedRefs"] == ("False", "BackendNotFound")
    mesh.apply(*documents, grant)
    assert get(mesh, path="/far").status == 503


def test_GatewayStaticAddresses(mesh: Mesh) -> None:
    spare, taken = "10.98.0.7", str(mesh["api"].address())

    def at(*values: str, kind: str = "IPAddress") -> dict[str, Any]:
        return gateway("gw", addresses=[{"type": kind, "value": v} for v in values])

    route = http_route("r", "gw", {"backendRefs": [to("api")]})
    mesh.apply(*SERVICES, at(spare), route)
    assert address(mesh) == spare
    assert get(mesh).pod == "api"
    mesh.apply(*SERVICES, at(taken, spare), route)
    found = conditions(shown(mesh, "gateway", "gw")["status"]["conditions"])
    assert found == {"Accepted": ("True", "Accepted"), "Programmed": ("False", "AddressNotUsable")}
    mesh.apply(*SERVICES, at("some.name", kind="Hostname"), route)
    found = conditions(shown(mesh, "gateway", "gw")["status"]["conditions"])
    assert found["Accepted"] == ("False", "UnsupportedAddress")
    with pytest.raises(OSError):
        ask(mesh["client"], spare, 80, timeout=1)


def test_GatewayAddressEmpty(mesh: Mesh) -> None:
    mesh.apply(*SERVICES, gateway("gw", addresses=[{"type": "IPAddress"}, {"value": ""}]))
    found = shown(mesh, "gateway", "gw")["status"]["addresses"]
    assert len({each["value"] for each in found}) == 2
    assert {each["type"] for each in found} == {"IPAddress"}


def test_a_gateway_at_an_ipv6_address(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        gateway("gw", addresses=[{"value": "fd00:98::7"}]),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    )
    assert get(mesh).pod == "api"


def test_gateways_have_addresses_of_their_own(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        gateway("gw"),
        gateway("second"),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
        http_route("s", "second", {"backendRefs": [to("other")]}),
    )
    assert get(mesh).pod == "api"
    assert ask(mesh["client"], address(mesh, "second"), 80).pod == "other"
    mesh.apply(*SERVICES, gateway("second"), http_route("s", "second", {"backendRefs": [to("other")]}))
    assert ask(mesh["client"], address(mesh, "second"), 80).pod == "other"


def test_a_class_of_others_is_left_alone(mesh: Mesh) -> None:
    foreign = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": "foreign"},
        "spec": {"controllerName": "example.com/other"},
    }
    ours = {**foreign, "metadata": {"name": "ours"}}
    ours["spec"] = {"controllerName": "penstock.dev/gateway-controller"}
    theirs = gateway("gw", gatewayClassName="foreign")
    mesh.apply(*SERVICES, foreign, ours, theirs, gateway("mine", gatewayClassName="ours"))
    assert shown(mesh, "gateway", "gw")["status"]["conditions"] == []
    assert conditions(shown(mesh, "gateway", "mine")["status"]["conditions"])["Programmed"][0] == "True"
    assert conditions(shown(mesh, "gatewayclass", "ours")["status"]["conditions"])["Accepted"][0] == "True"


def test_GatewayInfrastructurePropagation(mesh: Mesh) -> None:
    made_for = {"labels": {"team": "shop"}, "annotations": {"example.com/cost": "7"}}
    mesh.apply(gateway("gw", listener(), listener("dns", 53, "UDP"), infrastructure=made_for))
    found = shown(mesh, "service", "gw-penstock")
    labels = found["metadata"]["labels"]
    assert labels["team"] == "shop" and labels["gateway.networking.k8s.io/gateway-name"] == "gw"
    assert found["metadata"]["annotations"] == {"example.com/cost": "7"}
    assert found["status"]["loadBalancer"]["ingress"] == [{"ip": address(mesh)}]
    assert [(p["port"], p["protocol"]) for p in found["spec"]["ports"]] == [(53, "UDP"), (80, "TCP")]


def test_ListenerSet(mesh: Mesh) -> None:
    def listeners(name: str, namespace: str, *listed: dict[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "ListenerSet",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"parentRef": {"name": "gw", "namespace": "default"}, "listeners": list(listed)},
        }

    on_set = http_route("s", {"kind": "ListenerSet", "name": "more"}, {"backendRefs": [to("other")]})
    mesh.apply(
        *SERVICES,
        gateway("gw", allowedListeners={"namespaces": {"from": "Same"}}),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
        listeners("more", "default", listener("http", 8090), listener("clash", 80)),
        listeners("lost", "default", listener("clash", 80)),
        listeners("far", "blue", listener("http", 8091)),
        on_set,
    )
    assert get(mesh).pod == "api"
    assert get(mesh, port=8090).pod == "other"
    status = shown(mesh, "listenerset", "more")["status"]
    found = {each["name"]: conditions(each["conditions"]) for each in status["listeners"]}
    assert found["http"]["Programmed"] == ("True", "Programmed")
    assert found["clash"] == {
        "Accepted": ("False", "HostnameConflict"),
        "Programmed": ("False", "HostnameConflict"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
        "Conflicted": ("True", "HostnameConflict"),
    }
    assert shown(mesh, "gateway", "gw")["status"]["attachedListenerSets"] == 1
    assert conditions(status["conditions"]) == {
        "Accepted": ("True", "ListenersNotValid"),
        "Programmed": ("True", "Programmed"),
    }
    for name, namespace, reason in (("far", "blue", "NotAllowed"), ("lost", "default", "ListenersNotValid")):
        refused = conditions(shown(mesh, "listenerset", name, namespace)["status"]["conditions"])
        assert refused == {"Accepted": ("False", reason), "Programmed": ("False", reason)}
    with pytest.raises(ConnectionRefusedError):
        get(mesh, port=8091)
