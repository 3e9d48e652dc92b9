"""Serves the SPIFFE Workload API at a Unix socket that everybody on the machine may open.

Whoever connects is attested once (attest.py); it gets the certificate of the workload whose network namespace
it is in, the roots, and both anew whenever they change. gRPC does not tell who is at the other end of a Unix
socket. So a thin relay takes connections, looks, and carries the bytes to a gRPC server that only root can
reach, from a socket whose name stands for the workload. What each call answers is in answers.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from penstock.errors import HostError, PenstockError
from penstock.mtls.errors import RequestError
from penstock.workload_api import attest
from penstock.workload_api import messages as api
from penstock.workload_api.answers import Answers, Held, NobodyError, Sign, WorkloadName

log = logging.getLogger(__name__)

HEADER = ("workload.spiffe.io", "true")
"""Every call carries it, so that no browser can be made to ask (SPIFFE_Workload_Endpoint.md §6)."""


class WorkloadAPI:
    """`start` it, `stop` it. `path` is the socket for workloads, `inner` a folder for root alone."""

    def __init__(self, path: Path, inner: Path, held: Held, sign: Sign) -> None:
        self._path, self._inner, self._held = path, inner, held
        self._answers = Answers(held, sign)
        self._callers: dict[str, WorkloadName] = {}
        self._numbers = count(1)
        self._server: grpc.aio.Server | None = None
        self._relay: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises HostError."""
        try:
            shutil.rmtree(self._inner, ignore_errors=True)
            self._inner.mkdir(mode=0o700)
            server = grpc.aio.server()
            own = self._answers
            handlers = {
                "FetchX509SVID": self._stream(own.x509_svid, api.X509SVIDRequest, api.X509SVIDResponse),
                "FetchX509Bundles": self._stream(
                    own.x509_bundles, api.X509BundlesRequest, api.X509BundlesResponse
                ),
                "FetchJWTBundles": self._stream(
                    own.jwt_bundles, api.JWTBundlesRequest, api.JWTBundlesResponse
                ),
                "FetchJWTSVID": self._unary(own.jwt_svid, api.JWTSVIDRequest, api.JWTSVIDResponse),
                "ValidateJWTSVID": self._unary(
                    own.validate, api.ValidateJWTSVIDRequest, api.ValidateJWTSVIDResponse
                ),
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(api.SERVICE, handlers),))
            server.add_insecure_port(f"unix:{self._inner}/grpc")
            await server.start()
            self._server = server
            self._path.unlink(missing_ok=True)
            self._relay = await asyncio.start_unix_server(self._connected, self._path)
            self._path.chmod(0o666)
        except (OSError, RuntimeError) as error:
            raise HostError(f"the Workload API cannot be served at {self._path}: {error}") from error

    async def stop(self) -> None:
        if self._relay is not None:
            self._relay.close()
        if self._server is not None:
            await self._server.stop(grace=None)
        self._path.unlink(missing_ok=True)
        shutil.rmtree(self._inner, ignore_errors=True)

    # --- connections ---------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = f"{self._inner}/{next(self._numbers)}"
        try:
            with socket.socket(fileno=socket.dup(writer.get_extra_info("socket").fileno())) as connection:
                namespace = attest.caller(connection)
            who = attest.workload_in(namespace, self._held.netns) if namespace else None
            if who is not None:
                self._callers[f"unix:{name}"] = who
            inner = socket.socket(socket.AF_UNIX)
            inner.setblocking(False)
            inner.bind(name)
            await asyncio.get_running_loop().sock_connect(inner, f"{self._inner}/grpc")
            there_reader, there_writer = await asyncio.open_unix_connection(sock=inner)
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        except OSError as error:
            log.info("a connection to the Workload API ended: %s", error)
        finally:
            writer.close()
            self._callers.pop(f"unix:{name}", None)
            with suppress(OSError):
                os.unlink(name)

    # --- calls ---------------------------------------------------------------------------------------------

    async def _caller(self, context: Any) -> WorkloadName:
        if HEADER not in [(m.key, m.value) for m in context.invocation_metadata()]:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"security header missing: {HEADER[0]}")
        who = self._callers.get(context.peer())
        if who is None:
            why = "no identity issued: not in a workload's namespace"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        assert who is not None
        return who

    def _unary(self, make: Callable[[WorkloadName, Any], Awaitable[Any]], request: Any, response: Any) -> Any:
        async def handle(asked: Any, context: Any) -> Any:
            who = await self._caller(context)
            try:
                return await make(who, asked)
            except NobodyError as error:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            except RequestError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except PenstockError as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )

    def _stream(self, make: Callable[[WorkloadName], Any], request: Any, response: Any) -> Any:
        async def handle(_: Any, context: Any) -> AsyncIterator[Any]:
            who = await self._caller(context)
            told = None
            while True:
                changed = self._held.changed
                try:
                    answer = make(who)
                except NobodyError as error:
                    await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
                if answer != told:
                    yield answer
                    told = answer
                await changed.wait()

        return grpc.unary_stream_rpc_method_handler(
            handle,
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Until one side ends; then the other is told."""
    with suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.close()
