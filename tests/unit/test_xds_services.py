"""Every service of the server over gRPC: variants, streams of one type, status; and who may come in."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.status.v3 import csds_pb2
from xds_dialogue import CDS, EDS, LDS, RDS, SDS, SRDS, cds, res, snap

from penstock.xds.server import XdsServer
from penstock.xds.snapshot import TypeUrl
from penstock.xds.stream import MOST_WAITING

SOON = 30.0
CSDS = "/envoy.service.status.v3.ClientStatusDiscoveryService"
SERVICES = {
    CDS: "cluster.v3.ClusterDiscoveryService/{}Clusters",
    EDS: "endpoint.v3.EndpointDiscoveryService/{}Endpoints",
    LDS: "listener.v3.ListenerDiscoveryService/{}Listeners",
    RDS: "route.v3.RouteDiscoveryService/{}Routes",
    SRDS: "route.v3.ScopedRoutesDiscoveryService/{}ScopedRoutes",
    SDS: "secret.v3.SecretDiscoveryService/{}Secrets",
}


@pytest.fixture
def path() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="xds-"))
    yield directory / "xds.sock"
    shutil.rmtree(directory)


def stream(channel: grpc.aio.Channel, method: str, *, delta: bool) -> Any:
    sent = discovery_pb2.DeltaDiscoveryRequest if delta else discovery_pb2.DiscoveryRequest
    heard = discovery_pb2.DeltaDiscoveryResponse if delta else discovery_pb2.DiscoveryResponse
    return channel.stream_stream(
        method, request_serializer=sent.SerializeToString, response_deserializer=heard.FromString
    )()


@pytest.mark.parametrize("kind", list(SERVICES))
async def test_each_type_has_streams_of_its_own(path: Path, kind: TypeUrl) -> None:
    server = XdsServer(path)
    server.publish(snap(*(res(each, "a") for each in TypeUrl)))
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        method = f"/envoy.service.{SERVICES[kind]}"
        state = stream(channel, method.format("Stream"), delta=False)
        await state.write(discovery_pb2.DiscoveryRequest(resource_names=["a"]))
        answer = await asyncio.wait_for(state.read(), SOON)
        assert (answer.type_url, len(answer.resources)) == (kind, 1)
        delta = stream(channel, method.format("Delta"), delta=True)
        await delta.write(discovery_pb2.DeltaDiscoveryRequest(resource_names_subscribe=["a"]))
        said = await asyncio.wait_for(delta.read(), SOON)
        assert [item.name for item in said.resources] == ["a"]
        assert said.resources[0].resource == answer.resources[0]
        other = LDS if kind == CDS else CDS
        await delta.write(discovery_pb2.DeltaDiscoveryRequest(type_url=other))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(delta.read(), SOON)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        state.cancel()
    await server.stop()


async def test_who_breaks_the_protocol_in_the_middle_of_an_answer_is_told_so(path: Path) -> None:
    """A call cannot end before the message that is on its way: it would never end for the client."""
    server = XdsServer(path)
    server.publish(snap(*(res(EDS, f"e{i}", "x" * 200_000) for i in range(8))))
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        for _ in range(30):
            client = stream(channel, f"/envoy.service.{SERVICES[EDS].format('Delta')}", delta=True)
            await client.write(discovery_pb2.DeltaDiscoveryRequest(resource_names_subscribe=["e1", "e2"]))
            await client.write(discovery_pb2.DeltaDiscoveryRequest(type_url=CDS))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while True:
                    await asyncio.wait_for(client.read(), SOON)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await server.stop()


async def test_status_of_all_clients_once_and_as_a_stream(path: Path) -> None:
    server = XdsServer(path)
    server.publish(snap(*cds("a")))
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        ads = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
        client = stream(channel, ads, delta=False)
        await client.write(discovery_pb2.DiscoveryRequest(type_url=CDS, node={"id": "me"}))
        said = await asyncio.wait_for(client.read(), SOON)
        shapes = {
            "request_serializer": csds_pb2.ClientStatusRequest.SerializeToString,
            "response_deserializer": csds_pb2.ClientStatusResponse.FromString,
        }
        fetch = channel.unary_unary(f"{CSDS}/FetchClientStatus", **shapes)
        told = await fetch(csds_pb2.ClientStatusRequest(), timeout=SOON)
        (item,) = told.config[0].generic_xds_configs
        assert (told.config[0].node.id, item.config_status) == ("me", csds_pb2.ConfigStatus.STALE)
        await client.write(
            discovery_pb2.DiscoveryRequest(
                type_url=CDS, response_nonce=said.nonce, version_info=said.version_info
            )
        )
        assert (await server.wait_acked([CDS], SOON)).ok
        follow = channel.stream_stream(f"{CSDS}/StreamClientStatus", **shapes)()
        for _ in range(2):
            await follow.write(csds_pb2.ClientStatusRequest())
            told = await asyncio.wait_for(follow.read(), SOON)
            assert told.config[0].generic_xds_configs[0].config_status == csds_pb2.ConfigStatus.SYNCED
        follow.cancel()
        client.cancel()
    await server.stop()


@pytest.mark.parametrize("method", ["StreamAggregatedResources", "status"])
async def test_other_users_are_turned_away(path: Path, method: str) -> None:
    server = XdsServer(path, users=frozenset({os.getuid() + 1}))
    server.publish(snap(*cds("a")))
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if method == "status":
                fetch = channel.unary_unary(
                    f"{CSDS}/FetchClientStatus",
                    request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
                    response_deserializer=csds_pb2.ClientStatusResponse.FromString,
                )
                await fetch(csds_pb2.ClientStatusRequest(), timeout=SOON)
            else:
                ads = f"/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}"
                client = stream(channel, ads, delta=False)
                await client.write(discovery_pb2.DiscoveryRequest(type_url=CDS))
                await asyncio.wait_for(client.read(), SOON)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop()


async def test_our_own_user_is_not(path: Path) -> None:
    server = XdsServer(path, users=frozenset({os.getuid()}))
    server.publish(snap(*cds("a")))
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        ads = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
        for _ in range(2):
            client = stream(channel, ads, delta=False)
            await client.write(discovery_pb2.DiscoveryRequest(type_url=CDS))
            assert len((await asyncio.wait_for(client.read(), SOON)).resources) == 1
            client.cancel()
    await server.stop()


async def test_nobody_waits_for_another_than_the_client_that_counts(path: Path) -> None:
    server = XdsServer(path, awaits="envoy")
    server.publish(snap(*cds("a")))
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        ads = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
        silent, envoy = stream(channel, ads, delta=False), stream(channel, ads, delta=False)
        await silent.write(discovery_pb2.DiscoveryRequest(type_url=CDS, node={"id": "silent"}))
        await asyncio.wait_for(silent.read(), SOON)
        assert not (await server.wait_acked([CDS], 0.01)).done
        assert server.connected == 0
        await envoy.write(discovery_pb2.DiscoveryRequest(type_url=CDS, node={"id": "envoy"}))
        said = await asyncio.wait_for(envoy.read(), SOON)
        await envoy.write(discovery_pb2.DiscoveryRequest(type_url=CDS, response_nonce=said.nonce))
        assert (await server.wait_acked([CDS], SOON)).ok
        assert server.connected == 1
        silent.cancel()
        envoy.cancel()
    await server.stop()


async def test_who_asks_and_does_not_listen_is_not_read_on_and_others_are_served(path: Path) -> None:
    big = res(EDS, "big", "1" * 200_000)
    server = XdsServer(path)
    server.publish(snap(big, res(EDS, "e")))
    await server.start()
    ads = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    async with (
        grpc.aio.insecure_channel(f"unix:{path}") as deaf_channel,
        grpc.aio.insecure_channel(f"unix:{path}") as channel,
    ):
        deaf = stream(deaf_channel, ads, delta=True)
        for _ in range(2 * MOST_WAITING):
            await deaf.write(
                discovery_pb2.DeltaDiscoveryRequest(type_url=EDS, resource_names_subscribe=["big"])
            )
        client = stream(channel, ads, delta=True)
        await client.write(discovery_pb2.DeltaDiscoveryRequest(type_url=EDS, resource_names_subscribe=["e"]))
        said = await asyncio.wait_for(client.read(), SOON)
        for version in range(2, 20):
            await client.write(discovery_pb2.DeltaDiscoveryRequest(type_url=EDS, response_nonce=said.nonce))
            server.publish(snap(big, res(EDS, "e", str(version))))
            said = await asyncio.wait_for(client.read(), SOON)
            assert said.resources[0].version == str(version)
        deepest = max(stream.waiting for stream in server.streams)
        assert MOST_WAITING < deepest <= MOST_WAITING + 2
        deaf.cancel()
        client.cancel()
    await server.stop()
