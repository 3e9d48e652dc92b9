"""Clients that ask for too much, are gone, or meet an error of ours: that costs nothing to others."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.status.v3 import csds_pb2
from xds_dialogue import CDS, EDS, RDS, Dialogue, StateDialogue, cds, snap

from penstock.xds.errors import ProtocolError
from penstock.xds.limits import UNLIMITED, Limits
from penstock.xds.server import XdsServer
from penstock.xds.snapshot import Snapshot

SOON = 30.0
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
FETCH = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus"


@pytest.fixture
def path() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="xds-"))
    yield directory / "xds.sock"
    shutil.rmtree(directory)


@asynccontextmanager
async def serving(path: Path, limits: Limits = UNLIMITED) -> AsyncIterator[XdsServer]:
    server = XdsServer(path, limits=limits)
    server.publish(snap(*cds("a")))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def stream(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(
        ADS,
        request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
        response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
    )()


async def ask(client: Any, kind: str, *names: str) -> Any:
    await client.write(discovery_pb2.DeltaDiscoveryRequest(type_url=kind, resource_names_subscribe=names))
    return await asyncio.wait_for(client.read(), SOON)


async def refused(client: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await asyncio.wait_for(client.read(), SOON) is not grpc.aio.EOF:
            pass
    return caught.value.code(), str(caught.value.details())


@pytest.mark.parametrize("dialogue", [Dialogue, StateDialogue])
def test_a_stream_has_so_many_names_and_types(dialogue: type[Dialogue] | type[StateDialogue]) -> None:
    d = dialogue(snap())
    d.session.most_names = 5
    d.ask(EDS, "a", "b")
    d.ask(EDS, "a", "b")
    d.ask(RDS, "a")
    with pytest.raises(ProtocolError, match="may ask for 5 names and types"):
        d.ask(RDS, "a", "b")
    with pytest.raises(ProtocolError, match="may ask for 5 names and types"):
        d.ask(CDS)


def test_names_brought_along_count_and_names_given_up_do_not() -> None:
    d = Dialogue(snap())
    d.session.most_names = 4
    with pytest.raises(ProtocolError):
        d.ask(EDS, "a", "b", held={"c": "1", "d": "1"})
    d.ask(EDS, "a", "b", "c")
    d.ask(EDS, drop=["a"])
    d.ask(EDS, "d")


async def test_too_much_at_once_ends_the_stream_and_no_other(path: Path) -> None:
    async with (
        serving(path, Limits(request=1000, names=10)) as server,
        grpc.aio.insecure_channel(f"unix:{path}") as channel,
    ):
        good, many, large = (stream(channel) for _ in range(3))
        assert len((await ask(good, CDS)).resources) == 1
        # Where the refusal is here before the last of them is written, that is what fails.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for name in range(12):
                await many.write(
                    discovery_pb2.DeltaDiscoveryRequest(type_url=EDS, resource_names_subscribe=[str(name)])
                )
        code, why = await refused(many)
        assert (code, "10 names and types" in why) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await large.write(discovery_pb2.DeltaDiscoveryRequest(type_url="x" * 1000))
        assert (await refused(large))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        server.publish(snap(*cds("a", "b")))
        await good.write(discovery_pb2.DeltaDiscoveryRequest(type_url=CDS, response_nonce="1"))
        assert [r.name for r in (await asyncio.wait_for(good.read(), SOON)).resources] == ["b"]


@pytest.mark.parametrize("field", ["resource_locators_subscribe", "resource_locators_unsubscribe"])
async def test_what_is_not_supported_is_refused_by_name(path: Path, field: str) -> None:
    async with (
        serving(path),
        grpc.aio.insecure_channel(f"unix:{path}") as channel,
    ):
        client = stream(channel)
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=CDS)
        getattr(request, field).add(name="a")
        await client.write(request)
        code, why = await refused(client)
        assert (code, "resource_locators" in why) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        fetch = channel.unary_unary(
            FETCH,
            request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
            response_deserializer=csds_pb2.ClientStatusResponse.FromString,
        )
        await ask(stream(channel), CDS)
        matched = csds_pb2.ClientStatusRequest()
        matched.node_matchers.add().node_id.safe_regex.regex = "(a+)+$"
        other = stream(channel)
        await other.write(discovery_pb2.DeltaDiscoveryRequest(type_url=CDS, node={"id": "a" * 64 + "b"}))
        await asyncio.wait_for(other.read(), SOON)
        with pytest.raises(grpc.aio.AioRpcError, match="safe_regex"):
            await fetch(matched, timeout=SOON)


async def test_an_error_of_ours_with_one_client_costs_the_others_nothing(path: Path) -> None:
    async with (
        serving(path) as server,
        grpc.aio.insecure_channel(f"unix:{path}") as channel,
    ):
        unlucky = stream(channel)
        await ask(unlucky, CDS)
        (broken,) = server.streams
        lucky = stream(channel)

        def fail(_: Snapshot) -> Any:
            raise RuntimeError("a fault of ours")

        broken.session.publish = fail  # type: ignore[method-assign]
        said = await ask(lucky, CDS)
        await lucky.write(discovery_pb2.DeltaDiscoveryRequest(type_url=CDS, response_nonce=said.nonce))
        server.publish(snap(*cds("a", "b")))
        assert [r.name for r in (await asyncio.wait_for(lucky.read(), SOON)).resources] == ["b"]
        assert (await refused(unlucky))[0] is grpc.StatusCode.INTERNAL
        assert {r.name for r in (await ask(stream(channel), CDS)).resources} == {"a", "b"}


SILENT = f"""
import sys, grpc
from envoy.service.discovery.v3 import discovery_pb2
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    call = channel.stream_stream(
        "{ADS}",
        request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
        response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
    )
    def requests():
        yield discovery_pb2.DeltaDiscoveryRequest(type_url="{CDS}")
        sys.stdin.read()
    for _ in call(requests()):
        print("heard", flush=True)
"""


async def test_who_gives_no_sign_of_life_is_gone(path: Path) -> None:
    """Its machine has vanished, say: nobody tells us that the connection is over."""
    async with serving(path, Limits(silence=0.5)) as server:
        argv = [sys.executable, "-c", SILENT, str(path)]
        pipe = asyncio.subprocess.PIPE
        client = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
        try:
            assert client.stdout is not None
            assert await asyncio.wait_for(client.stdout.readline(), SOON)
            # Alive it may be silent for as long as it likes.
            await asyncio.sleep(1.2)
            assert server.connected == 1
            client.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(SOON):
                while server.streams:
                    await server._progress.wait()
        finally:
            client.kill()
            await client.communicate()
