"""The backend that demo, tests and bench talk to: it answers with what it received and who it is.

The fields of the HTTP answer are those that Gateway API's conformance tests expect of their backend.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from dataclasses import dataclass
from typing import Any, cast

import grpc
from aiohttp import web

MAX_DELAY_MS = 600_000


@dataclass(frozen=True, slots=True)
class Backend:
    """Who the backend says it is, and the ports it serves. `name` is the answer's `pod`."""

    name: str
    namespace: str = "default"
    service: str = ""
    http: tuple[int, ...] = ()
    tcp: tuple[int, ...] = ()
    udp: tuple[int, ...] = ()
    grpc: tuple[int, ...] = ()


def serve(backend: Backend) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError if a port is taken."""
    asyncio.run(_serve(backend))


async def _serve(backend: Backend) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    runner = web.ServerRunner(web.Server(_http_handler(backend), access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    for port in backend.http:
        await web.SockSite(runner, _listen(port, socket.SOCK_STREAM), backlog=4096).start()
    servers = [
        await asyncio.start_server(_tcp_echo, sock=_listen(port, socket.SOCK_STREAM)) for port in backend.tcp
    ]
    datagrams = [
        (await loop.create_datagram_endpoint(_UdpEcho, sock=_listen(port, socket.SOCK_DGRAM)))[0]
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
    await runner.cleanup()


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


def _http_handler(backend: Backend) -> Any:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        try:
            status = int(request.query.get("status", 200))
            delay = int(request.query.get("delay", 0))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        if not (200 <= status <= 599 and 0 <= delay <= MAX_DELAY_MS):
            return web.json_response({"error": "status or delay out of range"}, status=400)
        if delay:
            await asyncio.sleep(delay / 1000)
        return web.json_response(describe(backend, request), status=status)

    return handle


def describe(backend: Backend, request: web.BaseRequest) -> dict[str, Any]:
    """What the answer says. Header names are in canonical case, each with the list of its values."""
    headers: dict[str, list[str]] = {}
    for name, value in request.headers.items():
        headers.setdefault(name.title(), []).append(value)
    return {
        "path": request.raw_path,
        "host": request.host,
        "method": request.method,
        "proto": f"HTTP/{request.version.major}.{request.version.minor}",
        "headers": headers,
        "namespace": backend.namespace,
        "service": backend.service,
        "pod": backend.name,
        "tls": None,
    }


class _AnyCall(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers each unary call, whatever its service, with the same JSON as over HTTP, as bytes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method

        async def answer(_: bytes, context: Any) -> bytes:
            headers: dict[str, list[str]] = {}
            for name, value in context.invocation_metadata():
                headers.setdefault(name.title(), []).append(str(value))
            told = {
                "path": method,
                "method": "POST",
                "proto": "gRPC",
                "headers": headers,
                "namespace": self._backend.namespace,
                "service": self._backend.service,
                "pod": self._backend.name,
                "tls": None,
            }
            return json.dumps(told).encode()

        return grpc.unary_unary_rpc_method_handler(answer)


async def _serve_grpc(backend: Backend) -> Any:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_AnyCall(backend),))
    for port in backend.grpc:
        if server.add_insecure_port(f"[::]:{port}") != port:
            raise OSError(f"port {port} is taken")
    await server.start()
    return server


async def _tcp_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the peer reset: nothing is left to send back to it
    finally:
        writer.close()


class _UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own selector transport is no subclass of DatagramTransport before Python 3.12.
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)
