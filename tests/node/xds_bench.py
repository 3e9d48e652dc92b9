"""A bench for the xDS server and the real Envoy: everything on loopback, Envoy's admin on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, config_source_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2 as grpc_log_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from google.protobuf import any_pb2

from penstock.observe.als import RequestRecord, access_log_service
from penstock.xds.order import Rollout
from penstock.xds.server import XdsServer
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl, resource

BACKEND_A, BACKEND_B, LISTENER, OTHER_LISTENER = 11001, 11002, 11100, 11101
ALL = tuple(TypeUrl)
PATIENCE = 10.0
"""Seconds for what takes milliseconds. Less than the 15 s after which Envoy stops waiting by itself."""

BOOTSTRAP = {
    # Envoy drops resources by their time to live only where its bootstrap says so.
    "node": {
        "id": "xds-test",
        "cluster": "test",
        "client_features": ["xds.config.supports-resource-ttl"],
    },
    "dynamic_resources": {
        "ads_config": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "grpc_services": [
                {
                    "envoy_grpc": {
                        "cluster_name": "ads",
                        "retry_policy": {
                            "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"}
                        },
                    }
                }
            ],
        },
        "cds_config": {"ads": {}, "resource_api_version": "V3"},
        "lds_config": {"ads": {}, "resource_api_version": "V3"},
    },
}


def any_of(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def tcp(port: int) -> address_pb2.Address:
    socket = address_pb2.SocketAddress(address="127.0.0.1", port_value=port)
    return address_pb2.Address(socket_address=socket)


def ads() -> config_source_pb2.ConfigSource:
    source = config_source_pb2.ConfigSource(resource_api_version=config_source_pb2.V3)
    source.ads.SetInParent()
    return source


def cluster(name: str, timeout: int = 1) -> Resource:
    message = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.EDS)
    message.eds_cluster_config.eds_config.CopyFrom(ads())
    message.connect_timeout.seconds = timeout
    return resource(name, message)


def endpoints(name: str, *ports: int) -> Resource:
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    locality = message.endpoints.add()
    for port in ports:
        locality.lb_endpoints.append(
            endpoint_components_pb2.LbEndpoint(endpoint=endpoint_components_pb2.Endpoint(address=tcp(port)))
        )
    return resource(name, message)


def listener(name: str, port: int, routes: str) -> Resource:
    log = grpc_log_pb2.HttpGrpcAccessLogConfig()
    log.common_config.log_name = name
    log.common_config.transport_api_version = config_source_pb2.V3
    log.common_config.grpc_service.envoy_grpc.cluster_name = "ads"
    log.common_config.buffer_flush_interval.nanos = 1_000_000
    manager = hcm_pb2.HttpConnectionManager(
        stat_prefix=name,
        rds=hcm_pb2.Rds(config_source=ads(), route_config_name=routes),
        http_filters=[hcm_pb2.HttpFilter(name="router", typed_config=any_of(router_pb2.Router()))],
        access_log=[accesslog_pb2.AccessLog(name="log", typed_config=any_of(log))],
    )
    chain = listener_components_pb2.FilterChain(
        filters=[listener_components_pb2.Filter(name="http", typed_config=any_of(manager))]
    )
    return resource(name, listener_pb2.Listener(name=name, address=tcp(port), filter_chains=[chain]))


def routes(name: str, to: str, regex: str = "") -> Resource:
    route = route_components_pb2.Route(
        match=route_components_pb2.RouteMatch(prefix="/"), route=route_components_pb2.RouteAction(cluster=to)
    )
    if regex:
        route.match.safe_regex.regex = regex
    host = route_components_pb2.VirtualHost(name="all", domains=["*"], routes=[route])
    message = route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])
    message.validate_clusters.value = False
    return resource(name, message)


def web_of(to: str, port: int) -> tuple[Resource, ...]:
    """A listener whose route leads to one cluster with one endpoint."""
    return cluster(to), endpoints(to, port), listener("web", LISTENER, "web"), routes("web", to)


def snap(*resources: Resource) -> Snapshot:
    return Snapshot.of_resources(resources)


@dataclass
class Bench:
    """A directory with a server socket, an Envoy that dials it, two backends and a client."""

    directory: Path
    envoy: asyncio.subprocess.Process
    client: aiohttp.ClientSession
    admin: aiohttp.ClientSession
    records: asyncio.Queue[RequestRecord] = field(default_factory=asyncio.Queue)
    server: XdsServer | None = None

    async def serve(self, snapshot: Snapshot, **more: Any) -> XdsServer:
        """Start a server (a later one takes the place of the one before) that has this snapshot."""
        service = access_log_service(self.records.put_nowait)
        self.server = XdsServer(self.directory / "xds.sock", services=[service], **more)
        self.server.publish(snapshot)
        await self.server.start()
        return self.server

    async def get(self, port: int = LISTENER) -> tuple[int, str]:
        async with self.client.get(f"http://127.0.0.1:{port}/") as response:
            return response.status, await response.text()

    async def reaches(self, name: str) -> None:
        """Ask until this backend answers: Envoy's workers learn of a change a moment after its ACK."""
        async with asyncio.timeout(PATIENCE):
            while (answer := await self.get()) != (200, name):
                assert answer[0] == 200

    async def stats(self, *names: str) -> dict[str, int]:
        async with self.admin.get("http://envoy/stats?format=json") as response:
            stats = json.loads(await response.text())["stats"]
        return {stat["name"]: stat["value"] for stat in stats if stat.get("name") in names}

    async def clusters(self) -> set[str]:
        async with self.admin.get("http://envoy/clusters?format=json") as response:
            found = json.loads(await response.text()).get("cluster_statuses", [])
        return {item["name"] for item in found} - {"ads"}

    @contextlib.asynccontextmanager
    async def steady(self) -> AsyncIterator[Counter[tuple[int, str]]]:
        """A client that asks without pause; gives the count of each answer, complete after the block."""
        answers: Counter[tuple[int, str]] = Counter()
        enough = asyncio.Event()

        async def run() -> None:
            while not enough.is_set():
                answers[await self.get()] += 1

        task = asyncio.create_task(run())
        try:
            yield answers
        finally:
            enough.set()
            await task


async def backend(port: int, name: str) -> web.AppRunner:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=name)

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


@contextlib.asynccontextmanager
async def envoy(
    directory: Path, dynamic: dict[str, Any] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running Envoy that dials `xds.sock` in the directory, its admin at `admin.sock`.

    `dynamic` says how it asks; incremental ADS by itself.
    """
    h2 = {"explicit_http_config": {"http2_protocol_options": {}}}
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    pipe = {"endpoint": {"address": {"pipe": {"path": str(directory / "xds.sock")}}}}
    server = {
        "name": "ads",
        "typed_extension_protocol_options": {options: {"@type": f"type.googleapis.com/{options}", **h2}},
        "load_assignment": {"cluster_name": "ads", "endpoints": [{"lb_endpoints": [pipe]}]},
    }
    config = {
        **BOOTSTRAP,
        **({"dynamic_resources": dynamic} if dynamic else {}),
        "admin": {"address": {"pipe": {"path": str(directory / "admin.sock")}}},
        "static_resources": {"clusters": [server]},
    }
    (directory / "envoy.json").write_text(json.dumps(config))
    binary = Path(sys.executable).with_name("envoy")
    command = [binary, "-c", directory / "envoy.json", "--disable-hot-restart", "--concurrency", "1"]
    with (directory / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 15)
        await process.wait()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with open_bench() as made:
        yield made


@contextlib.asynccontextmanager
async def open_bench(dynamic: dict[str, Any] | None = None) -> AsyncIterator[Bench]:
    directory = Path(tempfile.mkdtemp(prefix="xds-"))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        for port, name in ((BACKEND_A, "a"), (BACKEND_B, "b")):
            stack.push_async_callback((await backend(port, name)).cleanup)
        process = await stack.enter_async_context(envoy(directory, dynamic))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        connector = aiohttp.UnixConnector(str(directory / "admin.sock"))
        admin = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        bench = Bench(directory, process, client, admin)
        yield bench
        if bench.server is not None:
            await bench.server.stop()


async def roll(server: XdsServer, wanted: Snapshot) -> None:
    for stage in Rollout(server.published, wanted).stages():
        outcome = await server.roll_to(stage, PATIENCE)
        assert outcome.ok, (stage, outcome)
