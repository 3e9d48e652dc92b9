"""The backend that demo, tests and bench talk to: it answers with what it received and who it is.

The fields of the HTTP answer are those that Gateway API's conformance tests expect of their backend. HTTP/1.1
(with WebSocket) and HTTP/2 are told apart on one port by the first bytes, with TLS or without.
"""

from __future__ import annotations

import asyncio
import functools
import json
import signal
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from aiohttp import WSMsgType, web

from penstock.lab.echo_http2 import Http2, Request, told
from penstock.lab.echo_tls import server_context, tls_of

MAX_DELAY_MS = 600_000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client with prior knowledge of HTTP/2 begins with (RFC 9113, 3.4)."""

WHO = b"who?"
"""A segment or a datagram that is just this is answered with who the backend is; all else comes back."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Who the backend says it is, and the ports it serves. `name` is the answer's `pod`.

    `https` and `tls` (TCP in TLS) have the certificate and key of the PEM files that are named, or one of
    their own for `hostnames`; with `client_ca` a client must show a certificate of that.
    """

    name: str
    namespace: str = "default"
    service: str = ""
    http: tuple[int, ...] = ()
    tcp: tuple[int, ...] = ()
    udp: tuple[int, ...] = ()
    grpc: tuple[int, ...] = ()
    https: tuple[int, ...] = ()
    tls: tuple[int, ...] = ()
    hostnames: tuple[str, ...] = field(default=("localhost",))
    certificate: str = ""
    key: str = ""
    client_ca: str = ""

    @property
    def who(self) -> dict[str, str]:
        return {"namespace": self.namespace, "service": self.service, "pod": self.name}


def serve(backend: Backend) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError if a port is taken or a PEM file cannot be read."""
    asyncio.run(_serve(backend))


async def _serve(backend: Backend) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    http1 = web.Server(_http_handler(backend), access_log=None)
    either = functools.partial(_Either, backend, http1)
    inside = server_context(backend, ("h2", "http/1.1")) if backend.https else None
    plain = server_context(backend, ()) if backend.tls else None
    servers = [await loop.create_server(either, sock=_listen(p, socket.SOCK_STREAM)) for p in backend.http]
    servers += [
        await loop.create_server(either, sock=_listen(port, socket.SOCK_STREAM), ssl=inside)
        for port in backend.https
    ]
    echo = functools.partial(_tcp_echo, backend)
    for ports, context in ((backend.tcp, None), (backend.tls, plain)):
        servers += [
            await asyncio.start_server(echo, sock=_listen(port, socket.SOCK_STREAM), ssl=context)
            for port in ports
        ]
    udp = functools.partial(_UdpEcho, backend)
    datagrams = [
        (await loop.create_datagram_endpoint(udp, sock=_listen(port, socket.SOCK_DGRAM)))[0]
        for port in backend.udp
    ]
    calls = await _serve_grpc(backend)
    print("ready", flush=True)
    await ended.wait()
    await calls.stop(None)
    for server in servers:
        server.close()
    for transport in datagrams:
        transport.close()
    await http1.shutdown(0.1)


def _listen(port: int, kind: socket.SocketKind) -> socket.socket:
    """Bound to [::], which takes IPv4 too."""
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if kind is socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", port))
    if kind is socket.SOCK_STREAM:
        sock.listen(4096)
    sock.setblocking(False)
    return sock


class _Either(asyncio.Protocol):
    """Waits for the first bytes, and hands the connection to HTTP/1.1 or to HTTP/2."""

    def __init__(self, backend: Backend, http1: web.Server) -> None:
        self._backend, self._http1 = backend, http1
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if len(self._seen) < len(PREFACE) and PREFACE.startswith(self._seen):
            return
        protocol: Any
        if self._seen.startswith(PREFACE):
            protocol = Http2(functools.partial(_answer_http2, self._backend))
        else:
            protocol = self._http1()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._seen)


class _Wrong(Exception):
    """What the client asked of the backend makes no sense."""


async def _wish(query: Any) -> int:
    """The status that was asked for, after the delay that was. Raises _Wrong."""
    try:
        status, delay = int(query.get("status", 200)), int(query.get("delay", 0))
    except ValueError as error:
        raise _Wrong(str(error)) from error
    if not (200 <= status <= 599 and 0 <= delay <= MAX_DELAY_MS):
        raise _Wrong("status or delay out of range")
    if delay:
        await asyncio.sleep(delay / 1000)
    return status


def _http_handler(backend: Backend) -> Any:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("upgrade", "").lower() == "websocket":
            return await _websocket(backend, request)
        await request.read()
        try:
            status = await _wish(request.query)
        except _Wrong as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(describe(backend, request), status=status)

    return handle


async def _websocket(backend: Backend, request: web.BaseRequest) -> web.StreamResponse:
    """Says who it is at once, then sends back each message."""
    socket_ = web.WebSocketResponse()
    await socket_.prepare(request)
    await socket_.send_json(describe(backend, request))
    async for message in socket_:
        if message.type is WSMsgType.TEXT:
            await socket_.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket_.send_bytes(message.data)
    return socket_


def describe(backend: Backend, request: web.BaseRequest) -> dict[str, Any]:
    """What the answer says. Header names are in canonical case, each with the list of its values."""
    seen = Request(request.method, request.raw_path, request.host, tuple(request.headers.items()))
    proto = f"HTTP/{request.version.major}.{request.version.minor}"
    return told(seen, proto, backend.who, tls_of(request.transport))


async def _answer_http2(backend: Backend, request: Request, tls: Any) -> tuple[int, bytes]:
    try:
        status = await _wish(request.query)
    except _Wrong as error:
        return 400, json.dumps({"error": str(error)}).encode()
    return status, json.dumps(told(request, "HTTP/2.0", backend.who, tls)).encode()


class _AnyCall(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers each unary call, whatever its service, with the same JSON as over HTTP, as bytes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method

        async def answer(_: bytes, context: Any) -> bytes:
            metadata = tuple((name, str(value)) for name, value in context.invocation_metadata())
            seen = Request("POST", method, "", metadata)
            shown = told(seen, "gRPC", self._backend.who, None)
            del shown["host"]  # gRPC does not tell a server
            return json.dumps(shown).encode()

        return grpc.unary_unary_rpc_method_handler(answer)


async def _serve_grpc(backend: Backend) -> Any:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_AnyCall(backend),))
    for port in backend.grpc:
        if server.add_insecure_port(f"[::]:{port}") != port:
            raise OSError(f"port {port} is taken")
    await server.start()
    return server


def _reply(backend: Backend, data: bytes) -> bytes:
    return json.dumps(backend.who).encode() if data.strip() == WHO else data


async def _tcp_echo(backend: Backend, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(_reply(backend, data))
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass  # the peer reset: nothing is left to send back to it
    finally:
        writer.close()


class _UdpEcho(asyncio.DatagramProtocol):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own selector transport is no subclass of DatagramTransport before Python 3.12.
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(_reply(self._backend, data), addr)
