"""The gRPC shell, with a plain gRPC client at the other end of its socket."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.discovery.v3 import discovery_pb2
from xds_dialogue import CDS, EDS, LDS, RDS, cds, res, snap

from penstock.errors import HostError
from penstock.observe.als import RequestRecord, access_log_service
from penstock.xds.delta import DeltaSession
from penstock.xds.order import Rollout
from penstock.xds.server import XdsServer
from penstock.xds.stream import Stream
from penstock.xds.watch import Refusal

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
LOG_METHOD = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
SOON = 30.0


class Client:
    def __init__(self, path: Path) -> None:
        self.channel = grpc.aio.insecure_channel(f"unix:{path}")
        self.stream = self.channel.stream_stream(
            METHOD,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )()

    async def say(self, kind: str, **fields: Any) -> None:
        await self.stream.write(discovery_pb2.DeltaDiscoveryRequest(type_url=kind, **fields))

    async def hear(self) -> Any:
        return await asyncio.wait_for(self.stream.read(), SOON)

    async def ask(self, kind: str, **fields: Any) -> Any:
        await self.say(kind, **fields)
        return await self.hear()

    async def ack(self, response: Any) -> None:
        await self.say(response.type_url, response_nonce=response.nonce)

    async def close(self) -> None:
        self.stream.cancel()
        await self.channel.close()


@pytest.fixture
def path() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="xds-"))
    yield directory / "xds.sock"
    shutil.rmtree(directory)


@pytest.fixture
async def server(path: Path) -> AsyncIterator[XdsServer]:
    server = XdsServer(path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server: XdsServer, path: Path) -> AsyncIterator[Client]:
    client = Client(path)
    yield client
    await client.close()


async def test_a_stage_ends_with_its_acknowledgement(server: XdsServer, client: Client) -> None:
    server.publish(snap(*cds("a")))
    await client.ack(await client.ask(CDS))
    (stage,) = Rollout(server.published, snap(*cds("a", version="2"))).stages()
    rolling = asyncio.create_task(server.roll_to(stage, SOON))
    response = await client.hear()
    assert [item.version for item in response.resources] == ["2"]
    assert not rolling.done()
    await client.ack(response)
    assert (await rolling).ok


async def test_a_refusal_is_an_answer_and_told(server: XdsServer, client: Client) -> None:
    server.publish(snap(res(RDS, "r")))
    response = await client.ask(RDS, resource_names_subscribe=["r"], node={"id": "me"})
    await client.say(RDS, response_nonce=response.nonce, error_detail={"code": 3, "message": "bad"})
    outcome = await server.wait_acked([RDS], SOON)
    assert outcome.done
    assert not outcome.ok
    assert outcome.errors == (Refusal(RDS, "r", "1", "bad"),)
    (state,) = server.state()
    assert (state.node_id, state.nacks) == ("me", 1)


async def test_nobody_there_is_no_acknowledgement(server: XdsServer) -> None:
    server.publish(snap(*cds("a")))
    outcome = await server.wait_acked([CDS, EDS], 0.01)
    assert (outcome.done, outcome.waiting) == (False, (CDS, EDS))


async def test_the_wait_tells_which_types_are_missing(server: XdsServer, client: Client) -> None:
    server.publish(snap(*cds("a"), res(LDS, "l")))
    await client.ack(await client.ask(CDS))
    assert (await server.wait_acked([CDS], SOON)).ok
    outcome = await server.wait_acked([CDS, LDS], 0.01)
    assert (outcome.done, outcome.waiting) == (False, (LDS,))


async def test_all_clients_are_waited_for(server: XdsServer, client: Client, path: Path) -> None:
    server.publish(snap(*cds("a")))
    other = Client(path)
    await client.ack(await client.ask(CDS))
    response = await other.ask(CDS)
    assert server.connected == 2
    assert not (await server.wait_acked([CDS], 0.01)).done
    waiting = asyncio.create_task(server.wait_acked([CDS], SOON))
    await other.ack(response)
    assert (await waiting).ok
    await other.close()


async def test_a_client_that_leaves_is_waited_for_no_more(
    server: XdsServer, client: Client, path: Path
) -> None:
    server.publish(snap(*cds("a")))
    other = Client(path)
    await other.ask(CDS)
    await client.ack(await client.ask(CDS))
    waiting = asyncio.create_task(server.wait_acked([CDS], SOON))
    await other.close()
    assert (await waiting).ok
    assert server.connected == 1


async def test_a_request_without_type_ends_its_own_stream_only(
    server: XdsServer, client: Client, path: Path
) -> None:
    server.publish(snap(*cds("a")))
    other = Client(path)
    await other.say("")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await other.hear()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [item.name for item in (await client.ask(CDS)).resources] == ["a"]
    await other.close()


async def test_stop_ends_streams_at_once_and_the_next_server_takes_over(path: Path) -> None:
    first = XdsServer(path)
    first.publish(snap(*cds("a")))
    await first.start()
    client = Client(path)
    await client.ask(CDS)
    await asyncio.wait_for(first.stop(), SOON)
    assert first.connected == 0
    with pytest.raises(grpc.aio.AioRpcError):
        await client.hear()
    await client.close()
    second = XdsServer(path)
    second.publish(snap(*cds("a", "b")))
    await second.start()
    again = Client(path)
    response = await again.ask(CDS, initial_resource_versions={"a": "1"})
    assert [item.name for item in response.resources] == ["b"]
    await again.close()
    await second.stop()


async def test_a_path_that_cannot_be_used_is_told(path: Path) -> None:
    with pytest.raises(HostError, match="cannot listen"):
        await XdsServer(path.parent / "missing" / "xds.sock").start()


async def test_a_failing_callback_costs_its_own_entry_only(path: Path) -> None:
    heard: list[str] = []

    def take(record: RequestRecord) -> None:
        heard.append(f"{record.log_name} {record.path}")
        if record.path == "/1":
            raise ValueError(record.path)

    server = XdsServer(path, services=[access_log_service(take)])
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = channel.stream_unary(
            LOG_METHOD,
            request_serializer=als_pb2.StreamAccessLogsMessage.SerializeToString,
            response_deserializer=als_pb2.StreamAccessLogsResponse.FromString,
        )()
        for number in range(2):
            message = als_pb2.StreamAccessLogsMessage()
            if number == 0:
                message.identifier.log_name = "l"
            for path_ in (f"/{number}", f"/{number + 2}"):
                message.http_logs.log_entry.add().request.path = path_
            await call.write(message)
        await call.done_writing()
        await asyncio.wait_for(call, SOON)
    await server.stop()
    assert heard == ["l /0", "l /2", "l /1", "l /3"]


async def test_who_may_not_stay_goes_even_if_that_turns_out_while_an_answer_is_written() -> None:
    """Nothing more is sent to a client that owes an answer, so nothing else would look at it again."""
    why = ""
    ended = asyncio.Event()

    class Call:
        async def write(self, _: Any) -> None:
            nonlocal why
            why = "revoked"
            stream.push([])

        async def abort(self, *_: Any) -> None:
            ended.set()

    stream = Stream(DeltaSession(), lambda: why)
    stream.session.publish(snap(*cds("a")))
    stream.push(stream.session.receive(discovery_pb2.DeltaDiscoveryRequest(type_url=CDS)))
    writer = asyncio.create_task(stream.write(Call()))
    await asyncio.wait_for(ended.wait(), SOON)
    await writer
