"""HTTP listeners as a client sees them: routes, shares, rights, and changes under open connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

import pytest
import pytest_asyncio
from envoy_rig import GATEWAY, PREFIX, Node, Steer, Workload, nodes, run

from penstock.envoy import marks
from penstock.envoy.resources import LISTENER, ROUTE
from penstock.routing.model import (
    ListenerKind,
    ProxyCluster,
    ProxyEndpoint,
    ProxyListener,
    ProxyModel,
    RequestMatch,
    Rights,
    Route,
    RouteBackend,
    RouteMatch,
    ServiceTable,
    StringMatch,
)
from penstock.xds.snapshot import Snapshot

VIP4, VIP6 = IPv4Address("10.96.0.10"), IPv6Address("fd00:10:96::10")
SERVICE, SERVICE_OTHER, WORKLOAD = 15001, 15002, 15003
OPEN = Rights(None, ("web",))
EVERYTHING = RouteMatch(StringMatch("prefix", "/"))


@dataclass
class Mesh:
    """Clients a (class 7) and b (class 8), servers one and two, all on one node."""

    node: Node
    a: Workload
    b: Workload
    one: Workload
    two: Workload

    def model(self, *routes: Route, rights: tuple[Rights, ...] = (OPEN,)) -> ProxyModel:
        table = ServiceTable("default/web:80/4", VIP4, 80, routes, rights)
        workloads = tuple(
            ProxyEndpoint(address, 8080, "web")
            for server in (self.one, self.two)
            for address in (server.v4, server.v6)
        )
        return ProxyModel(
            listeners=(
                ProxyListener("http-service/7", ListenerKind.HTTP_SERVICE, 7, SERVICE),
                ProxyListener("http-service/8", ListenerKind.HTTP_SERVICE, 8, SERVICE_OTHER),
                ProxyListener("http-workload/7", ListenerKind.HTTP_WORKLOAD, 7, WORKLOAD),
            ),
            services=(
                table,
                replace(
                    table,
                    name="default/web:80/6",
                    address=VIP6,
                    routes=(route("six", EVERYTHING, ("six", 1)),),
                ),
            ),
            clusters=(
                ProxyCluster("one", 4, (ProxyEndpoint(self.one.v4, 8080, "web"),)),
                ProxyCluster("two", 4, (ProxyEndpoint(self.two.v4, 8080, "guarded"),)),
                ProxyCluster("six", 6, (ProxyEndpoint(self.one.v6, 8080, "web"),)),
                ProxyCluster("empty", 4, ()),
            ),
            workloads=workloads,
            workload_rights=rights,
        )


def route(name: str, match: RouteMatch, *backends: tuple[str | None, int]) -> Route:
    return Route(name, match, tuple(RouteBackend(cluster, weight) for cluster, weight in backends))


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with nodes("n1") as [node], contextlib.AsyncExitStack() as stack:
        made = Mesh(node, *(node.workload(name) for name in ("a", "b", "one", "two")))
        for server in (made.one, made.two):
            await server.serve(8080, stack)
            node.steer(f"v-{server.namespace.removeprefix('n1-')}")
        workloads = [
            Steer(address, port, WORKLOAD)
            for server in (made.one, made.two)
            for address in (server.v4, server.v6)
            for port in (8080, 9090)
        ]
        node.steer("v-a", Steer(VIP4, 80, SERVICE), Steer(VIP6, 80, SERVICE), *workloads)
        node.steer("v-b", Steer(VIP4, 80, SERVICE_OTHER))
        await node.start()
        yield made


async def test_a_split_follows_the_weights_and_keeps_the_client_address(mesh: Mesh) -> None:
    both = Rights(None, ("web", "guarded"))
    await mesh.node.apply(mesh.model(route("split", EVERYTHING, ("one", 3), ("two", 1)), rights=(both,)))
    connection = await mesh.a.connect(VIP4, 80)
    answers = [(await connection.request()).json() for _ in range(400)]
    connection.close()
    served = Counter(answer["backend"] for answer in answers)
    assert 250 < served["n1-one"] < 350, served
    assert {answer["peer"][0] for answer in answers} == {f"::ffff:{mesh.a.v4}"}
    assert all(20000 <= answer["peer"][1] <= 31999 for answer in answers)


async def test_ipv6_is_routed_by_its_own_table(mesh: Mesh) -> None:
    await mesh.node.apply(mesh.model())
    answer = (await mesh.a.get(VIP6, 80)).json()
    assert (answer["backend"], answer["peer"][0]) == ("n1-one", str(mesh.a.v6))
    assert 20000 <= answer["peer"][1] <= 31999


async def test_matches_are_tried_in_order(mesh: Mesh) -> None:
    def match(kind: str, path: str, **others: object) -> RouteMatch:
        return RouteMatch(StringMatch(kind, path), **others)  # type: ignore[arg-type]

    await mesh.node.apply(
        mesh.model(
            route("exact", match("exact", "/exact"), ("one", 1)),
            route("prefix", match("prefix", "/v2/"), ("one", 1)),
            route("regex", match("regex", "/item/[0-9]+"), ("one", 1)),
            route("method", match("prefix", "/", method="POST"), ("one", 1)),
            route(
                "header", match("prefix", "/", headers=(("x-env", StringMatch("exact", "one")),)), ("one", 1)
            ),
            route("query", match("prefix", "/", query=(("env", StringMatch("regex", "o.e")),)), ("one", 1)),
            route("broken", match("prefix", "/broken"), (None, 1)),
            route("nothing", match("prefix", "/nothing")),
            route("zero", match("prefix", "/zero"), ("one", 0)),
            route("empty", match("prefix", "/empty"), ("empty", 1)),
        )
    )
    expected = {
        ("/exact", "GET", ""): 200,
        ("/exact?query=1", "GET", ""): 200,
        ("/exact/more", "GET", ""): 404,
        ("/v2", "GET", ""): 200,
        ("/v2/more", "GET", ""): 200,
        ("/v2more", "GET", ""): 404,
        ("/item/12", "GET", ""): 200,
        ("/item/12a", "GET", ""): 404,
        ("/any", "POST", ""): 200,
        ("/any", "GET", "one"): 200,
        ("/any", "GET", "two"): 404,
        ("/any?env=one", "GET", ""): 200,
        ("/any?env=none", "GET", ""): 404,
        ("/broken", "GET", ""): 500,
        ("/nothing", "GET", ""): 500,
        ("/zero", "GET", ""): 500,
        ("/empty", "GET", ""): 503,
    }
    connection = await mesh.a.connect(VIP4, 80)
    answers = {
        (path, method, env): (await connection.request(path, method, x_env=env)).status
        for path, method, env in expected
    }
    connection.close()
    assert answers == expected


async def test_only_the_share_of_a_bad_reference_answers_500(mesh: Mesh) -> None:
    await mesh.node.apply(mesh.model(route("mixed", EVERYTHING, ("one", 3), (None, 1))))
    connection = await mesh.a.connect(VIP4, 80)
    statuses = Counter([(await connection.request()).status for _ in range(400)])
    connection.close()
    assert statuses.keys() == {200, 500}
    assert 50 < statuses[500] < 150, statuses


async def test_rights_are_judged_for_the_source_class_and_the_chosen_endpoint(mesh: Mesh) -> None:
    rights = (
        Rights((7,), ("guarded",), ((RequestMatch(method="GET"),), (RequestMatch(path="/public/.*"),))),
        Rights((8,), ("guarded",), ((RequestMatch(headers=(("x-token", None), ("x-env", "test"))),),)),
        Rights((8,), ("guarded",), ((RequestMatch(host="admin\\..*"), RequestMatch(path="/either")),)),
        Rights((7, 8), ("guarded",), ((),)),
        Rights((), ("guarded",)),
    )
    to_two = route("two", RouteMatch(StringMatch("prefix", "/")), ("two", 1))
    await mesh.node.apply(mesh.model(to_two, rights=rights))
    a, b = await mesh.a.connect(VIP4, 80), await mesh.b.connect(VIP4, 80)
    assert (await a.request("/public/x")).status == 200
    assert (await a.request("/public/x", "POST")).status == 403
    assert (await a.request("/private")).status == 403
    assert (await a.request("/public/../private")).status == 403
    assert (await a.request("/public%2F..%2fprivate")).status == 403
    assert (await a.request("//public///x?a=b")).status == 200
    assert (await b.request("/public/x")).status == 403
    assert (await b.request("/x", x_token="1", x_env="test")).status == 200
    assert (await b.request("/x", x_token="1", x_env="testing")).status == 403
    assert (await b.request("/x", host="admin.example")).status == 200
    assert (await b.request("/either", host="web")).status == 200
    a.close()
    b.close()


async def test_a_denial_says_what_a_policy_says_and_a_backends_own_is_left_alone(mesh: Mesh) -> None:
    await mesh.node.apply(
        mesh.model(
            route("denied", RouteMatch(StringMatch("prefix", "/two")), ("two", 1)),
            route("open", EVERYTHING, ("one", 1)),
        )
    )
    connection = await mesh.a.connect(VIP4, 80)
    denied = await connection.request("/two")
    assert (denied.status, denied.body) == (403, b"Access denied\r\n")
    grpc = await connection.request("/two", "POST", content_type="application/grpc")
    assert (grpc.status, grpc.headers["grpc-status"]) == (200, "7")
    assert (grpc.headers["grpc-message"], grpc.body) == ("Access denied", b"")
    own = await connection.request("/", x_status="403")
    assert (own.status, own.json()["backend"]) == (403, "n1-one")
    connection.close()


async def test_denied_requests_are_neither_retried_nor_reweighted(mesh: Mesh) -> None:
    await mesh.node.apply(mesh.model(route("split", EVERYTHING, ("one", 1), ("two", 1))))
    connection = await mesh.a.connect(VIP4, 80)
    retry = {
        "x_envoy_retry_on": "5xx,retriable-status-codes",
        "x_envoy_retriable_status_codes": "403",
        "x_envoy_max_retries": "9",
        # Makes Envoy believe that the request comes from a trusted network.
        "x_forwarded_for": "10.0.0.1",
    }
    statuses = Counter([(await connection.request(**retry)).status for _ in range(200)])
    connection.close()
    assert statuses.keys() == {200, 403}
    assert 60 < statuses[403] < 140, statuses


async def test_each_request_is_logged_with_what_became_of_it(mesh: Mesh) -> None:
    routes = (
        route("default/denied/0/0", RouteMatch(StringMatch("prefix", "/two")), ("two", 1)),
        route("default/open/0/0", EVERYTHING, ("one", 1)),
    )
    await mesh.node.apply(mesh.model(*routes))
    async with asyncio.timeout(5):
        await mesh.a.get(VIP4, 80, "/x?y=z")
        served = await mesh.node.log.get()
        await mesh.b.get(VIP4, 80, "/two")
        denied = await mesh.node.log.get()
    assert (served.log_name, served.route_name, served.code) == ("http-service/7", "default/open/0/0", 200)
    assert (served.source[0], served.destination) == (str(mesh.a.v4), (str(VIP4), 80))
    assert (served.upstream, served.path) == ((str(mesh.one.v4), 8080), "/x?y=z")
    assert (denied.log_name, denied.route_name, denied.code) == ("http-service/8", "default/denied/0/0", 403)
    assert (denied.upstream[0], denied.details) == (
        str(mesh.two.v4),
        "rbac_access_denied_matched_policy[none]",
    )


async def test_a_listener_without_its_routes_is_told_as_warming(mesh: Mesh) -> None:
    types = dict(mesh.node.builder.build(mesh.model()))
    del types[ROUTE]
    mesh.node.xds.publish(Snapshot(types))
    assert (await mesh.node.xds.wait_acked([LISTENER], 5)).ok
    states = await mesh.node.envoy.admin.listeners()
    assert states["http-workload/7"].active is None
    assert states["http-workload/7"].warming == types[LISTENER]["http-workload/7"].version
    await mesh.node.apply(mesh.model())
    states = await mesh.node.envoy.admin.listeners()
    assert states["http-workload/7"].active == types[LISTENER]["http-workload/7"].version


async def test_long_regular_expressions_are_taken(mesh: Mesh) -> None:
    long = "|".join(f"/tenant-{number}/[a-z0-9-]+/(items|orders)" for number in range(60))
    await mesh.node.apply(
        mesh.model(
            route("long", RouteMatch(StringMatch("regex", long)), ("one", 1)),
            rights=(Rights((7,), ("web",), ((RequestMatch(path=long),),)),),
        )
    )
    assert (await mesh.a.get(VIP4, 80, "/tenant-59/a-b/orders")).status == 200


async def test_no_rights_deny_everything(mesh: Mesh) -> None:
    await mesh.node.apply(mesh.model(route("all", EVERYTHING, ("one", 1)), rights=()))
    assert (await mesh.a.get(VIP4, 80)).status == 403
    assert (await mesh.a.get(mesh.one.v4, 8080)).status == 403


async def test_rules_and_routes_change_under_an_open_connection(mesh: Mesh) -> None:
    everything = route("all", EVERYTHING, ("one", 1))
    await mesh.node.apply(mesh.model(everything))
    service, workload = await mesh.a.connect(VIP4, 80), await mesh.a.connect(mesh.one.v4, 8080)
    assert (await service.request("/admin")).status == (await workload.request("/admin")).status == 200
    narrow = Rights((7,), ("web", "guarded"), ((RequestMatch(path="/public"),),))
    await mesh.node.apply(mesh.model(everything, rights=(narrow,)))
    assert (await service.request("/admin")).status == (await workload.request("/admin")).status == 403
    assert (await service.request("/public")).status == (await workload.request("/public")).status == 200
    await mesh.node.apply(mesh.model(route("all", EVERYTHING, ("two", 1)), rights=(narrow,)))
    assert (await service.request("/public")).json()["backend"] == "n1-two"
    service.close()
    workload.close()


async def test_an_endpoint_that_changes_its_class_is_judged_anew(mesh: Mesh) -> None:
    model = mesh.model(route("all", EVERYTHING, ("one", 1)))
    await mesh.node.apply(model)
    service, workload = await mesh.a.connect(VIP4, 80), await mesh.a.connect(mesh.one.v4, 8080)
    assert (await service.request()).status == (await workload.request()).status == 200

    def guarded(endpoints: tuple[ProxyEndpoint, ...]) -> tuple[ProxyEndpoint, ...]:
        return tuple(replace(endpoint, policy_class="guarded") for endpoint in endpoints)

    clusters = tuple(replace(cluster, endpoints=guarded(cluster.endpoints)) for cluster in model.clusters)
    await mesh.node.apply(replace(model, clusters=clusters, workloads=guarded(model.workloads)))
    assert (await service.request()).status == (await workload.request()).status == 403


async def test_the_sockets_of_both_sides_are_marked(mesh: Mesh) -> None:
    await mesh.node.apply(mesh.model(route("all", EVERYTHING, ("one", 1))))
    for vip, backend in ((VIP4, str(mesh.one.v4)), (VIP6, f"[{mesh.one.v6}]")):
        connection = await mesh.a.connect(vip, 80)
        assert (await connection.request()).status == 200
        lines = mesh.node.sh("ss -tnHOe state established").splitlines()
        downstream = [line for line in lines if "10:96::10]:80 " in line or "10.96.0.10:80 " in line]
        upstream = [line for line in lines if f"{backend}:8080 " in line]
        assert len(downstream) == len(upstream) == 1, lines
        assert f"fwmark:{marks.DOWNSTREAM:#x} " in downstream[0]
        assert f"fwmark:{marks.UPSTREAM:#x} " in upstream[0]
        connection.close()


async def test_a_listener_serves_before_there_is_any_service(mesh: Mesh) -> None:
    full = mesh.model()
    await mesh.node.apply(replace(full, services=()))
    states = await mesh.node.envoy.admin.listeners()
    assert all(states[item.name].active and not states[item.name].warming for item in full.listeners)
    assert (await mesh.a.get(VIP4, 80)).status == 404


async def test_a_backend_that_speaks_http2_is_spoken_to_in_http2(mesh: Mesh) -> None:
    preface: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        preface.put_nowait(await reader.readexactly(24))
        writer.close()

    async with contextlib.AsyncExitStack() as stack:
        await mesh.one.listen(9000, listen, stack)
        model = mesh.model(route("all", EVERYTHING, ("h2", 1)))
        endpoint = ProxyEndpoint(mesh.one.v4, 9000, "web")
        await mesh.node.apply(
            replace(model, clusters=(*model.clusters, ProxyCluster("h2", 4, (endpoint,), http2=True)))
        )
        assert (await mesh.a.get(VIP4, 80)).status == 503
        assert await asyncio.wait_for(preface.get(), 2) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


async def test_the_ack_of_a_new_service_means_that_its_routes_are_usable(mesh: Mesh) -> None:
    full = mesh.model(route("all", EVERYTHING, ("one", 1)))
    await mesh.node.apply(replace(full, services=full.services[1:]))
    connection = await mesh.a.connect(VIP4, 80)
    assert (await connection.request()).status == 404
    for _ in range(10):
        await mesh.node.apply(full)
        assert (await connection.request()).status == 200
        await mesh.node.apply(replace(full, services=full.services[1:]))
        assert (await connection.request()).status == 404
    connection.close()


async def test_a_workloads_own_address_is_served_by_nobody_else(mesh: Mesh) -> None:
    full = mesh.model()
    await mesh.node.apply(full)
    for server in (mesh.one, mesh.two):
        for address in (server.v4, server.v6):
            connection = await mesh.a.connect(address, 8080)
            lies = {"x_penstock_destination": f"{mesh.one.v4}:8080", "host": "n1-one"}
            answers = [(await connection.request(**lies)).json() for _ in range(10)]
            assert {answer["backend"] for answer in answers} == {server.namespace}
            assert all("x-penstock-destination" not in answer["headers"] for answer in answers)
            connection.close()
    assert (await mesh.a.get(mesh.one.v4, 9090)).status == 503
    await mesh.node.apply(replace(full, workloads=full.workloads[2:]))
    assert (await mesh.a.get(mesh.one.v4, 8080)).status == 503
    assert (await mesh.a.get(mesh.two.v4, 8080)).status == 200


async def test_a_backend_that_is_a_proxy_port_makes_no_loop(mesh: Mesh) -> None:
    model = mesh.model(route("loop", EVERYTHING, ("loop", 1)))
    endpoints = tuple(ProxyEndpoint(IPv4Address("127.0.0.1"), port, "web") for port in (SERVICE, WORKLOAD))
    await mesh.node.apply(replace(model, clusters=(*model.clusters, ProxyCluster("loop", 4, endpoints))))
    assert (await mesh.a.get(VIP4, 80)).status == 503
    served = await mesh.node.envoy.admin.stats("http.http_service.downstream_rq_total")
    assert served == {"http.http_service.downstream_rq_total": 1}


async def test_what_a_client_sends_reaches_the_backend_unchanged(mesh: Mesh) -> None:
    await mesh.node.apply(mesh.model(route("all", EVERYTHING, ("one", 1))))
    answer = await mesh.a.get(VIP4, 80, "/a?b=c", x_request_id="mine", x_forwarded_for="198.51.100.1",
                              server="x", x_custom="y", user_agent="z")  # fmt: skip
    saw = answer.json()
    assert saw["path"] == "/a?b=c"
    assert saw["headers"] == {
        "host": "web", "x-request-id": "mine", "x-forwarded-for": "198.51.100.1", "server": "x",
        "x-custom": "y", "user-agent": "z", "x-forwarded-proto": "http",
    }  # fmt: skip


async def test_http2_with_prior_knowledge(mesh: Mesh) -> None:
    await mesh.node.apply(mesh.model(route("all", EVERYTHING, ("one", 1))))
    command = [
        "nsenter",
        f"--net=/run/netns/{PREFIX}{mesh.a.namespace}",
        "curl",
        "-s",
        "--http2-prior-knowledge",
    ]
    text = await asyncio.to_thread(run, *command, "-w", "%{http_version}", f"http://{VIP4}/")
    assert json.loads(text[:-1])["backend"] == "n1-one"
    assert text[-1] == "2"


async def test_websocket_upgrades_pass(mesh: Mesh) -> None:
    await mesh.node.apply(mesh.model(route("all", EVERYTHING, ("one", 1))))
    connection = await mesh.a.connect(VIP4, 80)
    asked = {"connection": "upgrade", "upgrade": "websocket", "sec_websocket_version": "13"}
    assert (await connection.request(**asked)).status == 101
    connection.writer.write(b"ping")
    assert await asyncio.wait_for(connection.reader.readexactly(4), 5) == b"PING"
    connection.close()


@pytest.mark.parametrize("port", [SERVICE, SERVICE_OTHER, WORKLOAD])
async def test_a_proxy_port_dialled_directly_is_closed_at_once(mesh: Mesh, port: int) -> None:
    await mesh.node.apply(mesh.model(route("all", EVERYTHING, ("one", 1))))
    host = Workload("n1", mesh.one.v4, mesh.one.v6, mesh.node)
    for address in ("127.0.0.1", "::1"):
        connection = await host.connect(address, port)
        # Without a byte sent: it does not wait for a request.
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(connection.reader.read(), 2) == b""
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        await mesh.a.connect(GATEWAY, port)
