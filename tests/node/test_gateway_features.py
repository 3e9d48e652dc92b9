"""The features of GATEWAY-HTTP and GATEWAY-GRPC, each by its name in the conformance suite, through the
real Envoy."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from threading import Event
from time import monotonic
from typing import Any

import aiohttp
import pytest
from clients import Answer, ask, connect
from conftest import MeshFactory
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded
from objects import gateway, http_route, listener, service, to
from rig import PENSTOCK, Mesh, workload
from scripted import Scripted
from test_gateway_http import address, get
from test_routes_grpc import CLIENT

from penstock import lab

WEB = {"port": 80, "targetPort": 8080}
SERVICES = tuple(service(n, WEB, selector={"app": n}) for n in ("api", "other", "shadow", "second"))
CALLS = tuple(
    service(f"{n}-grpc", {"port": 80, "targetPort": 50051}, selector={"app": n}) for n in ("api", "other")
)


def serving(name: str) -> dict[str, Any]:
    listening = [{"name": "http", "containerPort": 8080}, {"name": "grpc", "containerPort": 50051}]
    made = workload(name, "node-a", ports=listening)
    made["run"] = [[*PENSTOCK, "lab", "echo", "--name", name, "--http", "8080", "--grpc", "50051"]]
    return made


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    listening = [{"name": "http", "containerPort": 8080}]
    return make_mesh(
        workload("client", "node-a"),
        serving("api"),
        serving("other"),
        workload("shadow", "node-a", ports=listening),
        workload("second", "node-a", ports=listening),
    )


def rule(*filters: dict[str, Any], match: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    made = {"filters": list(filters), "backendRefs": [to("api")], **more}
    return {**made, "matches": [match]} if match else made


def prefix(value: str, **more: Any) -> dict[str, Any]:
    return {"path": {"type": "PathPrefix", "value": value}, **more}


def apply(mesh: Mesh, *rules: dict[str, Any], more: tuple[dict[str, Any], ...] = ()) -> None:
    ports = (listener(), listener("alt", 8080))
    mesh.apply(*SERVICES, gateway("gw", *ports), http_route("r", "gw", *rules), *more)


def header(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}


def changes(kind: str, **what: Any) -> dict[str, Any]:
    return {"type": kind, kind[0].lower() + kind[1:]: what}


def redirect(**what: Any) -> dict[str, Any]:
    return {"filters": [{"type": "RequestRedirect", "requestRedirect": what}]}


def test_HTTPRouteMatching_and_precedence_across_routes(mesh: Mesh) -> None:
    def goes(name: str, *matches: dict[str, Any]) -> dict[str, Any]:
        return {"matches": list(matches), "backendRefs": [to(name)]}

    one = http_route("one", "gw", goes("api", prefix("/"), prefix("/v2", headers=[header("version", "2")])))
    two = http_route(
        "two", "gw", goes("other", prefix("/v2"), {"path": {"type": "Exact", "value": "/exact"}})
    )
    mesh.apply(*SERVICES, gateway("gw"), one, two)
    assert get(mesh, path="/anything").pod == "api"
    assert get(mesh, path="/v2/x").pod == "other"
    assert get(mesh, path="/v2/x", headers={"version": "2"}).pod == "api"
    assert get(mesh, path="/v2example").pod == "api"
    assert get(mesh, path="/exact").pod == "other"
    assert get(mesh, path="/exact/not").pod == "api"


def test_HTTPRouteQueryParamMatching(mesh: Mesh) -> None:
    apply(mesh, rule(match=prefix("/", queryParams=[header("animal", "whale")])))
    assert get(mesh, path="/?animal=whale&x=1").status == 200
    assert get(mesh, path="/?animal=dolphin").status == 404


def test_HTTPRouteMethodMatching(mesh: Mesh) -> None:
    apply(mesh, rule(match={"method": "POST"}), rule(match={"method": "DELETE"}))
    assert [get(mesh, method=m).status for m in ("POST", "DELETE", "GET")] == [200, 200, 404]


def test_HTTPRouteResponseHeaderModification(mesh: Mesh) -> None:
    apply(
        mesh, rule(changes("ResponseHeaderModifier", set=[header("X-Set", "s")], add=[header("x-add", "a")]))
    )
    answer = get(mesh)
    assert (answer.headers["x-set"], answer.headers["x-add"]) == ("s", "a")


def test_HTTPRouteRequestHeaderModification_of_rules_and_backends(mesh: Mesh) -> None:
    mine = changes("RequestHeaderModifier", set=[header("X-Backend", "mine")], remove=["x-gone"])
    asks = changes("RequestHeaderModifier", add=[header("X-Rule", "r")])
    apply(mesh, rule(asks, backendRefs=[{**to("api"), "filters": [mine]}]))
    got = get(mesh, headers={"x-gone": "1", "x-rule": "q"}).json["headers"]
    assert got["X-Backend"] == ["mine"] and ",".join(got["X-Rule"]) == "q,r" and "X-Gone" not in got


@pytest.mark.parametrize(
    ("what", "port", "location"),
    [
        ({"hostname": "example.org"}, 80, "http://example.org/x"),
        ({"hostname": "example.org"}, 8080, "http://example.org:8080/x"),
        ({"port": 8083}, 80, "http://example.com:8083/x"),
        ({"hostname": "example.org", "port": 80}, 8080, "http://example.org/x"),
        ({"scheme": "https"}, 80, "https://example.com/x"),
        ({"hostname": "example.org", "scheme": "https"}, 8080, "https://example.org/x"),
        ({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/full"}}, 80, "http://example.com/full"),
    ],
)
def test_HTTPRoutePortRedirect_SchemeRedirect_PathRedirect(
    mesh: Mesh, what: dict[str, Any], port: int, location: str
) -> None:
    apply(mesh, redirect(**what))
    host = "example.com" if port == 80 else f"example.com:{port}"
    answer = get(mesh, host, "/x", port=port)
    assert (answer.status, answer.headers["location"]) == (302, location)


@pytest.mark.parametrize("code", [301, 303, 307, 308])
def test_HTTPRoute303_307_308RedirectStatusCode(mesh: Mesh, code: int) -> None:
    apply(mesh, redirect(hostname="example.org", statusCode=code))
    assert get(mesh).status == code


def test_HTTPRouteHostRewrite_PathRewrite(mesh: Mesh) -> None:
    cut = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}
    rewrite = {"type": "URLRewrite", "urlRewrite": {"hostname": "one.example.org", "path": cut}}
    apply(mesh, rule(rewrite, match=prefix("/old")))
    answer = get(mesh, path="/old/x").json
    assert (answer["host"], answer["path"]) == ("one.example.org", "/new/x")


def mirror(name: str, **share: Any) -> dict[str, Any]:
    return {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": name, "port": 80}, **share}}


def test_HTTPRouteRequestMirror_MultipleMirrors_PercentageMirror(mesh: Mesh) -> None:
    with Scripted(mesh["shadow"], 8080) as shadow, Scripted(mesh["second"], 8080) as second:
        apply(mesh, rule(mirror("shadow"), mirror("second", percent=50)))
        for _ in range(60):
            assert get(mesh, path="/copied").pod == "api"
        assert shadow.wait(60)
        assert second.wait(10)
        assert len(second.heads) < 55
        assert shadow.heads[0].startswith("GET /copied HTTP/1.1\r\n")
        assert "host: example.com\r\n" in shadow.heads[0].lower()


def test_a_mirror_is_no_way_around_policy(mesh: Mesh) -> None:
    closed = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "shadow"}},
            "ingress": [
                {
                    "fromEntities": ["ingress"],
                    "toPorts": [
                        {"ports": [{"port": "8080", "protocol": "TCP"}], "rules": {"http": [{"path": "/ok"}]}}
                    ],
                }
            ],
        },
    }
    with Scripted(mesh["shadow"], 8080) as shadow:
        apply(mesh, rule(mirror("shadow")), more=(closed,))
        for path in ("/secret", "/ok", "/secret", "/ok"):
            assert get(mesh, path=path).status == 200
        assert shadow.wait(2)
        assert {head.split()[1] for head in shadow.heads} == {"/ok"}


def test_HTTPRouteRequestTimeout_BackendTimeout(mesh: Mesh) -> None:
    for timeouts in ({"request": "200ms"}, {"request": "5s", "backendRequest": "200ms"}):
        apply(mesh, rule(timeouts=timeouts))
        began = monotonic()
        assert get(mesh, path="/?delay=2000").status == 504
        assert monotonic() - began < 1.8
    apply(mesh, rule(timeouts={"request": "0s"}))
    assert get(mesh, path="/?delay=300").status == 200


def test_HTTPRouteRetry(mesh: Mesh) -> None:
    with Scripted(mesh["shadow"], 8080, lambda n: 503 if n < 2 else 200) as shadow:
        retry = {"codes": [503], "attempts": 3, "backoff": "10ms"}
        apply(mesh, rule(backendRefs=[to("shadow")], retry=retry))
        assert get(mesh).status == 200
        assert len(shadow.heads) == 3


def test_HTTPRouteRetryConnectionError(mesh: Mesh) -> None:
    """A connection that is closed without an answer is tried again, also without any code."""
    with Scripted(mesh["shadow"], 8080, lambda n: 0 if n < 2 else 200) as shadow:
        apply(mesh, rule(backendRefs=[to("shadow")], retry={"attempts": 3, "backoff": "10ms"}))
        assert get(mesh).status == 200
        assert len(shadow.heads) == 3
    with Scripted(mesh["shadow"], 8080, lambda _: 0) as shadow:
        assert get(mesh).status == 503
        assert len(shadow.heads) == 4


def test_HTTPRouteRetryBackendTimeout(mesh: Mesh) -> None:
    def slow_at_first(number: int) -> int:
        if number < 2:
            late.wait(5)
        return 200

    late = Event()
    with Scripted(mesh["shadow"], 8080, slow_at_first) as shadow:
        timeouts = {"request": "4s", "backendRequest": "250ms"}
        retry = {"attempts": 3, "codes": [504], "backoff": "10ms"}
        apply(mesh, rule(backendRefs=[to("shadow")], retry=retry, timeouts=timeouts))
        assert get(mesh).status == 200
        assert len(shadow.heads) == 3
        late.set()


def test_HTTPRouteParentRefPort(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        gateway("gw", listener(), listener("alt", 8080)),
        http_route("r", {"name": "gw", "port": 8080}, rule()),
    )
    assert (get(mesh, port=8080).status, get(mesh).status) == (200, 404)


def test_HTTPRouteNamedRouteRule(mesh: Mesh) -> None:
    apply(mesh, rule(name="first", match=prefix("/a")), rule(name="second", match=prefix("/b")))
    assert [get(mesh, path=path).status for path in ("/a", "/b", "/c")] == [200, 200, 404]


def test_HTTPRouteCORS(mesh: Mesh) -> None:
    cors = {
        "allowOrigins": ["https://www.foo.com", "https://*.bar.com"],
        "allowMethods": ["GET", "OPTIONS"],
        "allowHeaders": ["x-header"],
        "maxAge": 3600,
    }
    apply(mesh, rule({"type": "CORS", "cors": cors}))
    asked = {"Access-Control-Request-Method": "GET"}
    good = get(mesh, method="OPTIONS", headers={**asked, "Origin": "https://www.foo.com"})
    assert good.headers["access-control-allow-origin"] == "https://www.foo.com"
    assert good.headers["access-control-max-age"] == "3600"
    bad = get(mesh, method="OPTIONS", headers={**asked, "Origin": "https://foreign.org"})
    assert "access-control-allow-origin" not in bad.headers


def test_HTTPRouteWeight(mesh: Mesh) -> None:
    apply(mesh, rule(backendRefs=[to("api", 7), to("other", 3), to("shadow", 0)]))
    pods = [get(mesh).pod for _ in range(100)]
    assert set(pods) == {"api", "other"} and 50 <= pods.count("api") <= 88


def h2(mesh: Mesh, port: int = 80) -> Answer:
    """One GET over HTTP/2 with prior knowledge."""
    connection = H2Connection(H2Configuration(client_side=True))
    status, body = 0, b""
    with connect(mesh["client"], address(mesh), port) as sock:
        connection.initiate_connection()
        asked = {":method": "GET", ":path": "/", ":scheme": "http", ":authority": "example.com"}
        connection.send_headers(1, list(asked.items()), end_stream=True)
        ended = False
        while not ended:
            sock.sendall(connection.data_to_send())
            received = sock.recv(65536)
            assert received, "the connection was closed"
            for event in connection.receive_data(received):
                if isinstance(event, ResponseReceived):
                    status = int({bytes(k): bytes(v) for k, v in event.headers}[b":status"])
                elif isinstance(event, DataReceived):
                    body += event.data
                ended = ended or isinstance(event, StreamEnded)
    return Answer(status, body, {})


def speaks(name: str, protocol: str) -> dict[str, Any]:
    return service(name, {**WEB, "appProtocol": protocol}, selector={"app": "api"})


def test_HTTPRouteBackendProtocolH2C(mesh: Mesh) -> None:
    apply(mesh, rule(backendRefs=[to("h2")]), more=(speaks("h2", "kubernetes.io/h2c"),))
    assert get(mesh).json["proto"].startswith("HTTP/2")
    apply(mesh, rule())
    assert get(mesh).json["proto"] == "HTTP/1.1"
    answer = h2(mesh)
    assert (answer.status, answer.pod) == (200, "api")


def test_HTTPRouteBackendProtocolWebSocket(mesh: Mesh) -> None:
    apply(mesh, rule(backendRefs=[to("ws")]), more=(speaks("ws", "kubernetes.io/ws"),))

    async def talk() -> Any:
        with lab.entered(mesh["client"].netns):
            session = aiohttp.ClientSession()
            async with session, session.ws_connect(f"http://{address(mesh)}/ws") as socket:
                told = json.loads((await socket.receive(timeout=5)).data)
                await socket.send_str("hello")
                return told["pod"], (await socket.receive(timeout=5)).data

    assert asyncio.run(talk()) == ("api", "hello")


# --- gRPC ------------------------------------------------------------------------------------------------


def call(mesh: Mesh, method: str, host: str = "", **metadata: str) -> tuple[str, Any]:
    source = CLIENT
    if host:
        source = source.replace("(target)", f'(target, options=[("grpc.default_authority", "{host}")])')
    process = lab.run_in(
        mesh["client"].netns,
        [sys.executable, "-c", source, f"{address(mesh)}:80", method, json.dumps(list(metadata.items()))],
        stdout=subprocess.PIPE,
        text=True,
    )
    code, answer, _ = json.loads(process.communicate(timeout=20)[0])
    return code, answer


def method(service: str, name: str | None = None) -> dict[str, Any]:
    return {"method": {"service": service, **({"method": name} if name else {})}}


def grpc_rule(to_name: str, *matches: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"matches": list(matches), "backendRefs": [to(f"{to_name}-grpc")], **more}


def test_GRPCRoute(mesh: Mesh) -> None:
    asked = changes("RequestHeaderModifier", set=[header("x-ask", "1")])
    mesh.apply(
        *SERVICES,
        *CALLS,
        gateway("gw", listener("one", hostname="*.example.com"), listener("two", hostname="foo.org")),
        http_route(
            "g",
            {"name": "gw", "sectionName": "one"},
            grpc_rule("api", method("a.B", "One"), filters=[asked], name="named"),
            grpc_rule("other", method("a.B"), {"headers": [header("to", "other")]}),
            kind="GRPCRoute",
        ),
    )
    code, answer = call(mesh, "/a.B/One", "x.example.com")
    assert (code, answer["pod"], answer["headers"]["X-Ask"]) == ("OK", "api", ["1"])
    assert call(mesh, "/a.B/Two", "x.example.com")[1]["pod"] == "other"
    assert call(mesh, "/x.Y/Any", "x.example.com", to="other")[1]["pod"] == "other"
    assert call(mesh, "/x.Y/Any", "x.example.com")[0] == "UNIMPLEMENTED"
    assert call(mesh, "/a.B/One", "foo.org")[0] == "UNIMPLEMENTED"


def test_GRPCRouteWeight(mesh: Mesh) -> None:
    shares = [{**to("api-grpc"), "weight": 1}, {**to("other-grpc"), "weight": 0}]
    mesh.apply(
        *SERVICES, *CALLS, gateway("gw"), http_route("g", "gw", {"backendRefs": shares}, kind="GRPCRoute")
    )
    assert {call(mesh, "/a.B/C")[1]["pod"] for _ in range(3)} == {"api"}


def test_HTTPRoutes_and_GRPCRoutes_share_a_listener(mesh: Mesh) -> None:
    mesh.apply(
        *SERVICES,
        *CALLS,
        gateway("gw"),
        http_route("r", "gw", rule(match=prefix("/web"))),
        http_route("g", "gw", grpc_rule("other", method("a.B")), kind="GRPCRoute"),
    )
    assert get(mesh, path="/web").pod == "api"
    assert call(mesh, "/a.B/C")[1]["pod"] == "other"


def test_a_route_of_the_mesh_and_of_a_gateway(mesh: Mesh) -> None:
    both = http_route("r", "gw", rule(match=prefix("/x")))
    both["spec"]["parentRefs"].append({"group": "", "kind": "Service", "name": "api"})
    mesh.apply(*SERVICES, gateway("gw"), both)
    assert (get(mesh, path="/x").status, get(mesh, path="/y").status) == (200, 404)
    assert ask(mesh["client"], mesh.vip("api"), 80, "/x").status == 200
    assert ask(mesh["client"], mesh.vip("api"), 80, "/y").status == 404
