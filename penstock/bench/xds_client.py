"""The clients of `penstock bench streams`: a process with many xDS streams that take everything.

`python -m penstock.bench.xds_client SOCKET STREAMS` opens them, acknowledges all that comes, and prints a
line of JSON for each version of the resource `marker` that all have: the version, and when the last one had
it (CLOCK_MONOTONIC, seconds).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

import grpc
import grpc.aio
from envoy.service.discovery.v3 import discovery_pb2

from penstock.xds.snapshot import TypeUrl

MARKER = "marker"
METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


async def _stream(path: str, number: int, streams: int, seen: Counter[str]) -> None:
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        call: Any = channel.stream_stream(
            METHOD,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )()
        first = discovery_pb2.DeltaDiscoveryRequest(type_url=TypeUrl.CDS)
        first.node.id = f"client-{number}"
        await call.write(first)
        while True:
            response = await call.read()
            if response is grpc.aio.EOF:
                return
            for resource in response.resources:
                if resource.name == MARKER:
                    seen[resource.version] += 1
                    if seen[resource.version] == streams:
                        told = {"version": resource.version, "at": time.monotonic()}
                        print(json.dumps(told), flush=True)
            ack = discovery_pb2.DeltaDiscoveryRequest(type_url=TypeUrl.CDS, response_nonce=response.nonce)
            await call.write(ack)


async def main(path: str, streams: int) -> None:
    seen: Counter[str] = Counter()
    await asyncio.gather(*(_stream(path, number, streams, seen) for number in range(streams)))


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
