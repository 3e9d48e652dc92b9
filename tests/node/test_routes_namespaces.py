"""Routes across namespaces, through the real Envoy: consumer routes and ReferenceGrants."""

from __future__ import annotations

from typing import Any

import pytest
from clients import Http, ask
from conftest import MeshFactory
from objects import policy, route, select, service, to
from rig import Mesh, workload

API = service("api", {"port": 80, "targetPort": 8080}, selector={"app": "api"})


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("home", "node-a"),
        workload("shopper", "node-a", namespace="shop"),
        workload("api", "node-a", serves=True),
        workload("own", "node-a", serves=True, namespace="shop"),
    )


def within(namespace: str, document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "metadata": {**document["metadata"], "namespace": namespace}}


def consumer(*rules: dict[str, Any]) -> dict[str, Any]:
    made = within("shop", route("c", "api", *rules))
    made["spec"]["parentRefs"][0]["namespace"] = "default"
    return made


def marked(text: str, *refs: dict[str, Any]) -> dict[str, Any]:
    modifier = {"set": [{"name": "x-by", "value": text}]}
    return {
        "matches": [{"path": {"type": "PathPrefix", "value": f"/{text}"}}],
        "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": modifier}],
        "backendRefs": list(refs),
    }


OWN = within("shop", service("own", {"port": 80, "targetPort": 8080}, selector={"app": "own"}))
SECOND = service("second", {"port": 80, "targetPort": 8080}, selector={"app": "api"})
FOREIGN = {"name": "second", "namespace": "default", "port": 80}
"""Not the one that is dialled: that needs no grant."""
GRANT = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "ReferenceGrant",
    "metadata": {"name": "g", "namespace": "default"},
    "spec": {
        "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}],
        "to": [{"group": "", "kind": "Service"}],
    },
}


def seen(mesh: Mesh, who: str, path: str) -> tuple[int, str]:
    answer = ask(mesh[who], mesh.vip("api"), 80, path)
    return answer.status, answer.headers.get("x-by", "")


def test_each_namespace_sees_its_own_routes(mesh: Mesh) -> None:
    mesh.apply(
        API, OWN, route("p", "api", marked("producer", to("api"))), consumer(marked("consumer", to("own")))
    )
    assert seen(mesh, "home", "/producer") == (200, "producer")
    assert seen(mesh, "home", "/consumer") == (404, "")
    assert seen(mesh, "shopper", "/consumer") == (200, "consumer")
    assert seen(mesh, "shopper", "/producer") == (404, "")
    # No header makes a client one of another namespace.
    claimed = {"penstock.source_namespace": "shop", "x-penstock-source": "shop"}
    assert ask(mesh["home"], mesh.vip("api"), 80, "/consumer", headers=claimed).status == 404


def test_the_next_request_on_an_open_connection_takes_the_routes_of_now(mesh: Mesh) -> None:
    mesh.apply(API, OWN, route("p", "api", marked("a", to("api"))))
    with Http(mesh["shopper"], mesh.vip("api"), 80) as connection:
        assert connection.ask("/a").pod == "api"
        mesh.apply(API, OWN, route("p", "api", marked("a", to("api"))), consumer(marked("a", to("own"))))
        assert connection.ask("/a").pod == "own"
        mesh.apply(API, OWN, consumer(marked("b", to("own"))))
        assert [connection.ask(path).status for path in ("/a", "/b")] == [404, 200]
        assert ask(mesh["home"], mesh.vip("api"), 80, "/a").pod == "api"
        mesh.apply(API, OWN, route("p", "api", marked("a", to("api"))))
        assert connection.ask("/a").pod == "api"


def test_a_grant_comes_and_goes(mesh: Mesh) -> None:
    asked = consumer(marked("x", FOREIGN))
    mesh.apply(API, SECOND, OWN, asked)
    assert seen(mesh, "shopper", "/x")[0] == 500
    mesh.apply(API, SECOND, OWN, asked, GRANT)
    assert seen(mesh, "shopper", "/x")[0] == 200
    mesh.apply(API, SECOND, OWN, asked)
    assert seen(mesh, "shopper", "/x")[0] == 500


def test_policy_holds_whoever_wrote_the_route(mesh: Mesh) -> None:
    """The receiver's policy names clients of its own namespace only."""
    closed = policy("in", select(app="api"), ingress=[{"fromEndpoints": [select(app="home")]}])
    mesh.apply(API, SECOND, OWN, closed, GRANT, consumer(marked("x", FOREIGN)))
    assert seen(mesh, "shopper", "/x")[0] == 403
    assert seen(mesh, "home", "/x")[0] == 200
