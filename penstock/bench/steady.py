"""`python -m penstock.bench.steady serve|load`: traffic that notices every failure, at a rate that leaves
room for others.

A line on standard input is answered with what was counted so far, as JSON; at its end the process ends. Five
kinds go on all the time to each server: requests on one kept-alive connection, requests with a connection of
their own, the same where no L7 rule stands (one TLS handshake each), a gRPC stream, and a TCP connection.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

HTTP_PORT, PLAIN_PORT, GRPC_PORT, TCP_PORT = 8080, 8081, 8082, 7000
PAUSE = 0.02
"""Seconds between two requests of one kind."""
PATIENCE = 10.0
"""Seconds after which a request has failed."""
METHOD = "/penstock.bench.Steady/Echo"
_REQUEST = b"GET / HTTP/1.1\r\nHost: steady\r\n\r\n"
_BODY = b"steady"
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


@dataclass(slots=True)
class Count:
    """`closed` are connections that ended though nobody here ended them."""

    done: int = 0
    failed: int = 0
    closed: int = 0
    opened: int = 0
    errors: list[str] = field(default_factory=list)

    def wrong(self, error: BaseException, *, closed: bool) -> None:
        self.failed += 1
        self.closed += closed
        if len(self.errors) < 10:
            self.errors.append(repr(error)[:200])


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _http(streams: Streams) -> None:
    reader, writer = streams
    writer.write(_REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(head.decode(errors="replace"))
    await reader.readexactly(len(_BODY))


async def _echo(streams: Streams) -> None:
    reader, writer = streams
    writer.write(b"there?")
    await reader.readexactly(6)


async def _kept(count: Count, target: str, port: int, ask: Callable[[Streams], Awaitable[None]]) -> None:
    """On one connection, and on another only when it broke."""
    streams: Streams | None = None
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                if streams is None:
                    streams = await asyncio.open_connection(target, port)
                    count.opened += 1
                await ask(streams)
            count.done += 1
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            count.wrong(error, closed=streams is not None)
            if streams is not None:
                streams[1].close()
            streams = None
        await asyncio.sleep(PAUSE)


async def _anew(count: Count, target: str, port: int) -> None:
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                streams = await asyncio.open_connection(target, port)
                count.opened += 1
                await _http(streams)
            streams[1].close()
            count.done += 1
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            count.wrong(error, closed=False)
        await asyncio.sleep(PAUSE)


async def _streamed(count: Count, target: str) -> None:
    while True:
        async with grpc.aio.insecure_channel(f"{target}:{GRPC_PORT}") as channel:
            call = channel.stream_stream(METHOD)()
            count.opened += 1
            try:
                while True:
                    async with asyncio.timeout(PATIENCE):
                        await call.write(b"there?")
                        if await call.read() != b"there?":
                            raise ValueError("the stream has ended")
                    count.done += 1
                    await asyncio.sleep(PAUSE)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError, ValueError) as error:
                count.wrong(error, closed=True)
        await asyncio.sleep(PAUSE)


async def load(targets: list[str]) -> None:
    counts: dict[str, Count] = {}
    tasks = []
    for target in targets:
        kinds: dict[str, Callable[[Count], Awaitable[None]]] = {
            "keep-alive": lambda c, t=target: _kept(c, t, HTTP_PORT, _http),  # type: ignore[misc]
            "connection each": lambda c, t=target: _anew(c, t, HTTP_PORT),  # type: ignore[misc]
            "handshake each": lambda c, t=target: _anew(c, t, PLAIN_PORT),  # type: ignore[misc]
            "gRPC stream": lambda c, t=target: _streamed(c, t),  # type: ignore[misc]
            "TCP": lambda c, t=target: _kept(c, t, TCP_PORT, _echo),  # type: ignore[misc]
        }
        for kind, run in kinds.items():
            count = counts[f"{kind} {target}"] = Count()
            tasks.append(asyncio.ensure_future(run(count)))

    def told() -> dict[str, Any]:
        return {name: {k: getattr(c, k) for k in Count.__slots__} for name, c in counts.items()}

    await _until_told(told)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def serve() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(_ANSWER)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(4096):
                writer.write(data)
        except OSError:
            pass
        writer.close()

    async def stream(requests: Any, _: Any) -> Any:
        async for request in requests:
            yield request

    server = grpc.aio.server()
    service, _, method = METHOD[1:].partition("/")
    handlers = {method: grpc.stream_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"[::]:{GRPC_PORT}")
    await server.start()
    for port, answer in ((HTTP_PORT, http), (PLAIN_PORT, http), (TCP_PORT, echo)):
        await asyncio.start_server(answer, None, port)
    await server.wait_for_termination()


async def _until_told(told: Callable[[], dict[str, Any]]) -> None:
    """Answer each line; return at the end of input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.readline():
        print(json.dumps(told()), flush=True)


if __name__ == "__main__":
    asyncio.run(serve() if sys.argv[1] == "serve" else load(sys.argv[2:]))
