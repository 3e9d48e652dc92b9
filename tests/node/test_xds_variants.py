"""The real Envoy in every variant of the protocol, and resources that die when nobody renews them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from google.protobuf import json_format
from test_xds_envoy import bad_clusters, roll_through
from xds_bench import (
    ALL,
    BACKEND_A,
    BACKEND_B,
    OTHER_LISTENER,
    PATIENCE,
    Bench,
    cluster,
    endpoints,
    listener,
    open_bench,
    roll,
    routes,
    snap,
    web_of,
)

from penstock.xds.snapshot import Resource, TypeUrl, resource

SERVER = {
    "envoy_grpc": {"cluster_name": "ads", "retry_policy": {"retry_back_off": {"base_interval": "0.05s"}}}
}


def api(kind: str) -> dict[str, Any]:
    return {"api_type": kind, "transport_api_version": "V3", "grpc_services": [SERVER]}


def own_stream(kind: str) -> dict[str, Any]:
    return {"api_config_source": api(kind), "resource_api_version": "V3"}


def aggregated(kind: str) -> dict[str, Any]:
    config = {"ads": {}, "resource_api_version": "V3"}
    return {"ads_config": api(kind), "cds_config": config, "lds_config": config}


def separate(kind: str) -> dict[str, Any]:
    return {"cds_config": own_stream(kind), "lds_config": own_stream(kind)}


class Variant:
    """How an Envoy asks, and the resources of the bench said so that it asks for all of them that way."""

    def __init__(self, kind: str, *, one_stream: bool) -> None:
        self.kind, self.one_stream = kind, one_stream
        self.dynamic = aggregated(kind) if one_stream else separate(kind)

    def __call__(self, *resources: Resource) -> tuple[Resource, ...]:
        return resources if self.one_stream else tuple(map(self._own, resources))

    def _own(self, item: Resource) -> Resource:
        source = config_source_pb2.ConfigSource()
        json_format.ParseDict(own_stream(self.kind), source)
        if item.type_url == TypeUrl.CDS:
            made = cluster_pb2.Cluster.FromString(item.body)
            made.eds_cluster_config.eds_config.CopyFrom(source)
            return resource(item.name, made)
        if item.type_url == TypeUrl.LDS:
            found = listener_pb2.Listener.FromString(item.body)
            http = found.filter_chains[0].filters[0].typed_config
            manager = hcm_pb2.HttpConnectionManager()
            assert http.Unpack(manager)
            manager.rds.config_source.CopyFrom(source)
            http.Pack(manager)
            return resource(item.name, found)
        return item


@pytest.fixture(
    params=[("GRPC", True), ("GRPC", False), ("DELTA_GRPC", False)],
    ids=["state-of-the-world", "state-of-the-world by type", "incremental by type"],
)
def variant(request: pytest.FixtureRequest) -> Variant:
    kind, one_stream = request.param
    return Variant(kind, one_stream=one_stream)


@pytest.fixture
async def bench(variant: Variant) -> AsyncIterator[Bench]:
    async with open_bench(variant.dynamic) as made:
        yield made


async def serving(bench: Bench, name: str = "a") -> None:
    """Each type has its stream: nobody knows when all of them have come, but the listener serves then."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                if await bench.get() == (200, name):
                    return
            await asyncio.sleep(0.01)


async def test_routes_move_bad_ones_are_quarantined_and_a_new_server_takes_over(
    bench: Bench, variant: Variant
) -> None:
    server = await bench.serve(snap(*variant(*web_of("one", BACKEND_A))))
    await serving(bench)
    outcome = await server.wait_acked(ALL, PATIENCE)
    assert outcome.ok, outcome
    assert {client.node_id for client in server.state()} == {"xds-test"}
    if variant.one_stream:  # a stream for each cluster's endpoints opens when it likes: no order to keep
        async with bench.steady() as answers:
            for to, port in (("two", BACKEND_B), ("one", BACKEND_A)) * 3:
                await roll(server, snap(*variant(*web_of(to, port))))
                await bench.reaches({BACKEND_A: "a", BACKEND_B: "b"}[port])
        assert set(answers) == {(200, "a"), (200, "b")}
    bad = (
        *bad_clusters()[1:],
        *variant(listener("bad", OTHER_LISTENER, "bad")),
        routes("bad", "one", regex="("),
    )
    good = variant(*web_of("one", BACKEND_A), cluster("more"), endpoints("more", BACKEND_B))
    await roll_through(server, snap(*good, *bad))
    async with asyncio.timeout(PATIENCE):
        while "bad" not in {refusal.name for refusal in server.refusals()}:
            await bench.reaches("a")  # whose routes are refused asks for them when it likes
    assert {refusal.name for refusal in server.refusals()} == {"senseless", "bad"}
    await bench.reaches("a")
    await roll_through(server, snap(*variant(*web_of("more", BACKEND_B)), *bad[:1]))
    await serving(bench, "b")
    await server.stop()
    await bench.serve(snap(*variant(*web_of("one", BACKEND_A))))
    await serving(bench)


@pytest.mark.parametrize("kind", ["GRPC", "DELTA_GRPC"])
async def test_a_listener_with_a_time_to_live_stays_while_it_is_renewed(kind: str) -> None:
    web = web_of("one", BACKEND_A)
    mortal = [replace(item, ttl=0.6) if item.type_url == TypeUrl.LDS else item for item in web]
    async with open_bench(aggregated(kind)) as bench:
        server = await bench.serve(snap(*mortal), heartbeat=0.1)
        assert (await server.wait_acked(ALL, PATIENCE)).ok
        three_lives = time.monotonic() + 3 * 0.6
        while time.monotonic() < three_lives:
            assert await bench.get() == (200, "a")
        await server.stop()
        await bench.serve(snap(*[replace(item, version="2") for item in mortal]))  # and no heartbeat
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(aiohttp.ClientError):
                while (await bench.get())[0] == 200:
                    pass
