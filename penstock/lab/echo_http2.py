"""HTTP/2 for the echo backend: h2 keeps the protocol, this feeds it and answers each request.

gRPC calls that come here are answered as gRPC (length-prefixed message, trailers): one port serves both.

Source: RFC 9113; gRPC over HTTP/2.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from penstock.lab.echo_tls import tls_of


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    host: str
    headers: tuple[tuple[str, str], ...]

    @property
    def query(self) -> Mapping[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query))

    @property
    def grpc(self) -> bool:
        return dict(self.headers).get("content-type", "").startswith("application/grpc")


def told(request: Request, proto: str, who: Mapping[str, str], tls: Any) -> dict[str, Any]:
    """What the answer says. Header names are in canonical case, each with the list of its values."""
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        headers.setdefault(name.title(), []).append(value)
    return {
        "path": request.path,
        "host": request.host,
        "method": request.method,
        "proto": proto,
        "headers": headers,
        **who,
        "tls": tls,
    }


Answer = Callable[[Request, Any], Awaitable[tuple[int, bytes]]]
"""(request, what is known of TLS) → status and JSON."""


@dataclass(slots=True)
class _Outgoing:
    """What the windows have not let out yet, and the trailers after it."""

    data: bytes
    trailers: list[tuple[str, str]] = field(default_factory=list)


class Http2(asyncio.Protocol):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._requests: dict[int, Request] = {}
        self._outgoing: dict[int, _Outgoing] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._h2.initiate_connection()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        for task in self._tasks.values():
            task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except ProtocolError:
            self._flush()
            self._transport.close()
            return
        for event in events:
            self._take(event)
        self._flush()

    def _take(self, event: object) -> None:
        if isinstance(event, RequestReceived):
            self._requests[event.stream_id] = _request(event.headers)
        elif isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            number = event.stream_id
            task = asyncio.ensure_future(self._respond(number, self._requests.pop(number)))
            self._tasks[number] = task
            task.add_done_callback(lambda _: self._tasks.pop(number, None))
        elif isinstance(event, StreamReset):
            self._requests.pop(event.stream_id, None)
            self._outgoing.pop(event.stream_id, None)
            if event.stream_id in self._tasks:
                self._tasks[event.stream_id].cancel()
        elif isinstance(event, WindowUpdated):
            for number in list(self._outgoing):
                self._send(number)

    async def _respond(self, number: int, request: Request) -> None:
        status, body = await self._answer(request, tls_of(self._transport))
        headers = [(":status", str(status)), ("content-type", "application/json")]
        outgoing = _Outgoing(body)
        if request.grpc:
            headers[1] = ("content-type", "application/grpc")
            outgoing = _Outgoing(struct.pack(">BI", 0, len(body)) + body, [("grpc-status", "0")])
        self._h2.send_headers(number, headers)
        self._outgoing[number] = outgoing
        self._send(number)
        self._flush()

    def _send(self, number: int) -> None:
        """As much as the windows let out."""
        outgoing = self._outgoing[number]
        while outgoing.data and (room := self._h2.local_flow_control_window(number)) > 0:
            size = min(room, self._h2.max_outbound_frame_size)
            piece, outgoing.data = outgoing.data[:size], outgoing.data[size:]
            self._h2.send_data(number, piece, end_stream=not outgoing.data and not outgoing.trailers)
        if not outgoing.data:
            del self._outgoing[number]
            if outgoing.trailers:
                self._h2.send_headers(number, outgoing.trailers, end_stream=True)

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._transport.write(data)


def _request(headers: Any) -> Request:
    pseudo = {name: value for name, value in headers if name.startswith(":")}
    rest = tuple((name, value) for name, value in headers if not name.startswith(":"))
    host = pseudo.get(":authority") or dict(rest).get("host", "")
    return Request(pseudo[":method"], pseudo.get(":path", ""), host, rest)
