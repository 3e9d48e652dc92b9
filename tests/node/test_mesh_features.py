"""The features of the profiles MESH-HTTP and MESH-GRPC, one test for each name, through the real Envoy.

RequestMirror is in test_routes_mirror.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from clients import REFUSED, Answer, Http, ask, connect, extra_address, until
from conftest import MeshFactory
from objects import policy, route, select, service, to
from rig import Mesh, workload

from penstock import lab

PORTS = ({"name": "http", "port": 80, "targetPort": 8080}, {"name": "alt", "port": 81, "targetPort": 8081})
ALL = service("echo", *PORTS, selector={"tier": "echo"})
V1 = service("v1", *PORTS, selector={"app": "v1"})
V2 = service("v2", *PORTS, selector={"app": "v2"})

GRPC_CLIENT = """
import grpc, json, sys
target, method, count = sys.argv[1:]
with grpc.insecure_channel(target) as channel:
    ask = channel.unary_unary(method)
    found = []
    for _ in range(int(count)):
        try:
            answer, call = ask.with_call(b"", timeout=5, metadata=[("x-asked", "yes")])
            found.append([*map(json.loads, [answer])])
        except grpc.RpcError as error:
            found.append([f"{error.code().name} {error.details()}"])
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("shopper", "node-a", namespace="shop"),
        workload("v1", "node-a", serves=True, labels={"app": "v1", "tier": "echo"}),
        workload("v2", "node-a", serves=True, labels={"app": "v2", "tier": "echo"}),
    )


def apply(mesh: Mesh, *rules: dict[str, Any], parent: str = "echo", **more: Any) -> None:
    made = route("r", parent, *rules)
    made["spec"]["parentRefs"][0].update(more)
    mesh.apply(ALL, V1, V2, made)


def get(mesh: Mesh, path: str = "/", *, who: str = "client", port: int = 80, **headers: str) -> Answer:
    return ask(mesh[who], mesh.vip("echo"), port, path, headers=headers)


def matches(**match: Any) -> list[dict[str, Any]]:
    return [match]


def path(value: str, kind: str = "PathPrefix") -> dict[str, str]:
    return {"type": kind, "value": value}


def logged(mesh: Mesh, **what: Any) -> bool:
    return any(what.items() <= record.items() for record in mesh.on("client").observed())


def statuses(mesh: Mesh, name: str = "r", namespace: str = "default") -> dict[str, str]:
    found = mesh.on("client").call(
        "get", kind="httproute", object_name=name, namespace=namespace, all_namespaces=False
    )
    (parent,) = found["status"]["parents"]
    assert {c["observedGeneration"] for c in parent["conditions"]} == {found["metadata"]["generation"]}
    return {c["type"]: f"{c['status']} {c['reason']}" for c in parent["conditions"]}


def test_Mesh(mesh: Mesh) -> None:
    """Without a route the Service's own endpoints answer; with one, its backends do, or nobody."""
    mesh.apply(ALL, V1, V2)
    assert {get(mesh).pod for _ in range(40)} == {"v1", "v2"}
    apply(mesh, {"matches": matches(path=path("/v1")), "backendRefs": [to("v1")]})
    assert get(mesh, "/v1/a", host="anything.example").pod == "v1"
    assert get(mesh, "/other").status == 404
    assert statuses(mesh) == {
        "Accepted": "True Accepted",
        "ResolvedRefs": "True ResolvedRefs",
        "Programmed": "True Programmed",
    }


def test_MeshPorts(mesh: Mesh) -> None:
    marked = {
        "type": "ResponseHeaderModifier",
        "responseHeaderModifier": {"set": [{"name": "x-by", "value": "r"}]},
    }
    apply(mesh, {"filters": [marked], "backendRefs": [to("v1")]}, port=80)
    assert (get(mesh).pod, get(mesh).headers.get("x-by")) == ("v1", "r")
    assert {get(mesh, port=81).headers.get("x-by") for _ in range(5)} == {None}
    assert {get(mesh, port=81).pod for _ in range(40)} == {"v1", "v2"}


def test_MeshHTTPRouteMatching(mesh: Mesh) -> None:
    apply(
        mesh,
        {
            "matches": [
                {"path": path("/")},
                {"headers": [{"name": "Version", "value": "one"}]},
            ],
            "backendRefs": [to("v1")],
        },
        {
            "matches": [
                {"path": path("/v2")},
                {"headers": [{"name": "version", "value": "two"}]},
            ],
            "backendRefs": [to("v2")],
        },
    )
    assert get(mesh, "/").pod == "v1"
    assert get(mesh, "/example").pod == "v1"
    assert get(mesh, "/", version="one").pod == "v1"
    assert get(mesh, "/v2").pod == "v2"
    assert get(mesh, "/v2/example").pod == "v2"
    assert get(mesh, "/", version="two").pod == "v2"
    assert get(mesh, "/v2example").pod == "v1"
    assert get(mesh, "/foo/v2/example").pod == "v1"


def test_MeshHTTPRouteWeight(mesh: Mesh) -> None:
    apply(mesh, {"backendRefs": [to("v1", weight=7), to("v2", weight=3)]})
    seen = Counter(get(mesh).pod for _ in range(300))
    assert 170 < seen["v1"] < 250


def test_MeshClusterIPMatching(mesh: Mesh) -> None:
    """A route of one Service leaves another with the same endpoints, and the endpoints themselves, alone."""
    apply(
        mesh,
        {"matches": matches(path=path("/only")), "backendRefs": [to("v2")]},
        parent="v1",
    )
    assert ask(mesh["client"], mesh.vip("v1"), 80, "/x").status == 404
    assert get(mesh, "/x", host="v1").status == 200
    assert ask(mesh["client"], mesh["v1"].address(), 8080, "/x").pod == "v1"


def test_MeshConsumerRoute(mesh: Mesh) -> None:
    mine = route(
        "c",
        "v1",
        {
            "matches": matches(path=path("/")),
            "filters": [
                {
                    "type": "ResponseHeaderModifier",
                    "responseHeaderModifier": {"set": [{"name": "x-by", "value": "consumer"}]},
                }
            ],
            "backendRefs": [{"name": "v1", "namespace": "default", "port": 80}],
        },
    )
    mine["metadata"]["namespace"] = "shop"
    mine["spec"]["parentRefs"][0]["namespace"] = "default"
    mesh.apply(ALL, V1, V2, mine)

    def seen(who: str) -> tuple[int, str | None]:
        answer = ask(mesh[who], mesh.vip("v1"), 80, "/")
        return answer.status, answer.headers.get("x-by")

    # What a client dials is its own choice: no ReferenceGrant is asked for it, but for any other Service.
    assert (seen("shopper"), seen("client")) == ((200, "consumer"), (200, None))
    mine["spec"]["rules"][0]["backendRefs"][0]["name"] = "v2"
    mesh.apply(ALL, V1, V2, mine)
    assert (seen("shopper")[0], seen("client")) == (500, (200, None))


def test_a_client_may_be_the_backend_that_is_chosen(mesh: Mesh) -> None:
    """Behind a route a workload reaches itself, in both families, and is judged like anybody else."""
    both = service("both", *PORTS, selector={"app": "v1"}, ipFamilyPolicy="RequireDualStack")
    routed = route("r", "both", {"backendRefs": [to("both")]})
    mesh.apply(ALL, V1, V2, both, routed)
    for version in (4, 6):
        with Http(mesh["v1"], mesh.vip("both", version), 80) as kept:
            assert [kept.ask("/").pod for _ in range(3)] == ["v1"] * 3
        assert ask(mesh["v2"], mesh.vip("both", version), 80, "/").pod == "v1"
    closed = policy("p", select(app="v1"), ingress=[{"fromEndpoints": [select(app="v2")]}])
    mesh.apply(ALL, V1, V2, both, routed, closed)
    for version in (4, 6):
        assert ask(mesh["v1"], mesh.vip("both", version), 80, "/").status == 403
        assert ask(mesh["v2"], mesh.vip("both", version), 80, "/").status == 200


@pytest.mark.parametrize("itself", ["169.254.80.101", "fd50:656e:7374:6f63:6b::1"], ids=["v4", "v6"])
def test_nobody_else_calls_from_where_a_workload_seems_to_call_itself(mesh: Mesh, itself: str) -> None:
    mesh.apply(ALL, V1, V2)
    target = mesh["v1"].address(6 if ":" in itself else 4)
    before = mesh.on("v2").counter("SPOOFED_SOURCE")
    with extra_address(mesh["v2"], itself), pytest.raises(OSError):
        connect(mesh["v2"], target, 8080, source=itself, timeout=REFUSED)
    assert mesh.on("v2").counter("SPOOFED_SOURCE") > before


def test_MeshHTTPRouteRewritePath(mesh: Mesh) -> None:
    def rewritten(**change: str) -> list[dict[str, Any]]:
        return [{"type": "URLRewrite", "urlRewrite": {"path": change}}]

    full = rewritten(type="ReplaceFullPath", replaceFullPath="/one")
    apply(
        mesh,
        {
            "matches": matches(path=path("/prefix/one")),
            "filters": rewritten(type="ReplacePrefixMatch", replacePrefixMatch="/one"),
            "backendRefs": [to("v1")],
        },
        {"matches": matches(path=path("/full/one")), "filters": full, "backendRefs": [to("v1")]},
    )
    assert get(mesh, "/prefix/one/two").json["path"] == "/one/two"
    assert get(mesh, "/full/one/two?q=1").json["path"] == "/one?q=1"


def redirect(match: str, **what: Any) -> dict[str, Any]:
    return {
        "matches": matches(path=path(match)),
        "filters": [{"type": "RequestRedirect", "requestRedirect": what}],
    }


def location(mesh: Mesh, where: str) -> tuple[int, str]:
    answer = get(mesh, where, host="echo")
    return answer.status, answer.headers["location"]


def test_MeshHTTPRouteSchemeRedirect(mesh: Mesh) -> None:
    apply(
        mesh, redirect("/scheme", scheme="https"), redirect("/both", scheme="https", hostname="example.org")
    )
    assert location(mesh, "/scheme") == (302, "https://echo/scheme")
    assert location(mesh, "/both") == (302, "https://example.org/both")


def test_MeshHTTPRouteRedirectPort(mesh: Mesh) -> None:
    apply(mesh, redirect("/port", port=8083), redirect("/host", port=8083, hostname="example.org"))
    assert location(mesh, "/port") == (302, "http://echo:8083/port")
    assert location(mesh, "/host") == (302, "http://example.org:8083/host")


def test_MeshHTTPRouteRedirectPath(mesh: Mesh) -> None:
    prefix = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}
    full = {"type": "ReplaceFullPath", "replaceFullPath": "/all"}
    apply(
        mesh,
        redirect("/old", path=prefix),
        redirect("/full", path=full),
        redirect("/host", path=prefix, hostname="example.org"),
    )
    assert location(mesh, "/old/lemon") == (302, "http://echo/new/lemon")
    assert location(mesh, "/full/path") == (302, "http://echo/all")
    assert location(mesh, "/host/lemon") == (302, "http://example.org/new/lemon")


@pytest.mark.parametrize("code", [301, 303, 307, 308])
def test_MeshHTTPRouteRedirectStatusCode(mesh: Mesh, code: int) -> None:
    apply(mesh, redirect("/", hostname="example.org", statusCode=code))
    assert location(mesh, "/x") == (code, "http://example.org/x")


def test_MeshHTTPRouteRequestHeaderModifier(mesh: Mesh) -> None:
    changes = {
        "set": [{"name": "X-Set", "value": "s"}],
        "add": [{"name": "X-Add", "value": "a"}],
        "remove": ["X-Gone"],
    }
    modifier = {"type": "RequestHeaderModifier", "requestHeaderModifier": changes}
    apply(mesh, {"filters": [modifier], "backendRefs": [to("v1")]})
    headers = get(mesh, **{"x-set": "o", "x-add": "o", "x-gone": "o"}).json["headers"]
    assert (headers["X-Set"], ",".join(headers["X-Add"]), "X-Gone" in headers) == (["s"], "o,a", False)


def test_MeshHTTPRouteBackendRequestHeaderModification(mesh: Mesh) -> None:
    def only(name: str) -> dict[str, Any]:
        changes = {"set": [{"name": "x-only", "value": name}], "remove": ["x-gone"]}
        return {**to(name), "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": changes}]}

    apply(mesh, {"backendRefs": [only("v1"), to("v2")]})
    for _ in range(30):
        answer = get(mesh, **{"x-gone": "1"})
        headers = answer.json["headers"]
        assert headers.get("X-Only") == (["v1"] if answer.pod == "v1" else None)
        assert ("X-Gone" in headers) is (answer.pod == "v2")


def test_MeshHTTPRouteQueryParamMatching(mesh: Mesh) -> None:
    def query(**values: str) -> list[dict[str, Any]]:
        return [{"name": k, "value": v} for k, v in values.items()]

    apply(
        mesh,
        {"matches": matches(queryParams=query(animal="whale")), "backendRefs": [to("v1")]},
        {"matches": matches(queryParams=query(animal="whale", color="blue")), "backendRefs": [to("v2")]},
    )
    assert get(mesh, "/?animal=whale").pod == "v1"
    assert get(mesh, "/?color=blue&animal=whale").pod == "v2"
    assert get(mesh, "/?animal=whale&color=red").pod == "v1"
    assert get(mesh, "/?animal=dog").status == 404
    assert get(mesh, "/?animal=WHALE").status == 404


def test_MeshHTTPRouteNamedRouteRule(mesh: Mesh) -> None:
    apply(
        mesh,
        {"name": "named", "matches": matches(path=path("/named")), "backendRefs": [to("v1")]},
        {"matches": matches(path=path("/unnamed")), "backendRefs": [to("v2")]},
    )
    assert (get(mesh, "/named").pod, get(mesh, "/unnamed").pod) == ("v1", "v2")
    until("the rule is named in the log", lambda: logged(mesh, route="default/r/named/0"))


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ({"name": "nobody", "port": 80}, "BackendNotFound"),
        ({"name": "v1", "port": 80, "namespace": "shop"}, "RefNotPermitted"),
        ({"name": "v1", "kind": "Fancy", "group": "x.example"}, "InvalidKind"),
    ],
)
def test_MeshHTTPRouteInvalidBackendRef(mesh: Mesh, ref: dict[str, Any], reason: str) -> None:
    mesh.apply(ALL, V1, V2, route("r", "echo", {"backendRefs": [ref]}))
    assert get(mesh).status == 500
    assert statuses(mesh)["ResolvedRefs"] == f"False {reason}"


def test_a_parent_that_is_not_there(mesh: Mesh) -> None:
    mesh.apply(ALL, V1, V2, route("r", "nobody", {"backendRefs": [to("v1")]}))
    found = statuses(mesh)
    assert found["Accepted"] == "False NoMatchingParent"
    assert found["Programmed"].startswith("False ")


# --- MESH-GRPC ------------------------------------------------------------------------------------------


def calls(mesh: Mesh, method: str, count: int = 1) -> list[Any]:
    process = lab.run_in(
        mesh["client"].netns,
        [sys.executable, "-c", GRPC_CLIENT, f"{mesh.vip('echo')}:80", method, str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )
    return [found[0] for found in json.loads(process.communicate(timeout=30)[0])]


def grpc_route(*rules: dict[str, Any]) -> dict[str, Any]:
    return {**route("g", "echo", *rules), "kind": "GRPCRoute"}


def test_GRPCRoute(mesh: Mesh) -> None:
    """The backends' port says nothing of HTTP/2: a GRPCRoute does."""
    modifier = {
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {
            "set": [{"name": "x-asked", "value": "again"}],
            "add": [{"name": "x-more", "value": "1"}],
        },
    }
    mesh.apply(
        ALL,
        V1,
        V2,
        grpc_route(
            {
                "matches": [{"method": {"service": "a.B", "method": "One"}}],
                "filters": [modifier],
                "backendRefs": [to("v1")],
            },
            {"matches": [{"method": {"service": "a.B"}}], "backendRefs": [to("v2")]},
        ),
    )
    (found,) = calls(mesh, "/a.B/One")
    assert (found["pod"], found["headers"]["X-Asked"], found["headers"]["X-More"]) == ("v1", ["again"], ["1"])
    assert calls(mesh, "/a.B/Two")[0]["pod"] == "v2"
    assert calls(mesh, "/c.D/Two")[0].startswith("UNIMPLEMENTED")


def test_GRPCRouteWeight(mesh: Mesh) -> None:
    mesh.apply(ALL, V1, V2, grpc_route({"backendRefs": [to("v1", weight=7), to("v2", weight=3)]}))
    seen = Counter(found["pod"] for found in calls(mesh, "/a.B/One", 200))
    assert 110 < seen["v1"] < 170


def test_GRPCRouteRequestMirror(mesh: Mesh) -> None:
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "v2", "port": 80}}}
    mesh.apply(ALL, V1, V2, grpc_route({"filters": [mirror], "backendRefs": [to("v1")]}))
    assert calls(mesh, "/a.B/Copied")[0]["pod"] == "v1"

    served = {"listener": "mirrors", "path": "/a.B/Copied", "code": 200}
    until("the copy is served", lambda: logged(mesh, **served))


def test_GRPCRouteNamedRouteRule(mesh: Mesh) -> None:
    mesh.apply(ALL, V1, V2, grpc_route({"name": "named", "backendRefs": [to("v1")]}))
    (found,) = calls(mesh, "/a.B/Named")
    assert found["pod"] == "v1", found
    until("the rule is named in the log", lambda: logged(mesh, route="default/g/named/0"))
