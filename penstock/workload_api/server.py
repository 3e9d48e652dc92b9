"""Serves the SPIFFE Workload API at a Unix socket that everybody on the machine may open.

Whoever connects is attested once (attest.py); it gets the certificate of the workload whose network namespace
it is in, the roots, and both anew whenever they change. gRPC does not tell who is at the other end of a Unix
socket. So a thin relay takes connections, looks, and carries the bytes to a gRPC server that only root can
reach, from a socket whose name stands for the workload. JWT-SVIDs are not issued: those calls answer
UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from penstock.errors import HostError
from penstock.mtls.svid import SVID
from penstock.workload_api import attest
from penstock.workload_api import messages as api

log = logging.getLogger(__name__)

WorkloadName = tuple[str, str]
HEADER = ("workload.spiffe.io", "true")
"""Every call carries it, so that no browser can be made to ask (SPIFFE_Workload_Endpoint.md §6)."""


class Held:
    """What there is to be had now: `update` it after each change."""

    def __init__(self, trust_domain: str) -> None:
        self.trust_domain = trust_domain
        self.netns: Mapping[WorkloadName, str] = {}
        self.svids: Mapping[WorkloadName, SVID] = {}
        self.bundle_pem = b""
        self.lists_pem = b""
        self.changed = asyncio.Event()

    def update(
        self,
        netns: Mapping[WorkloadName, str],
        svids: Mapping[WorkloadName, SVID],
        bundle_pem: bytes,
        lists_pem: bytes,
    ) -> None:
        now = (netns, svids, bundle_pem, lists_pem)
        if now != (self.netns, self.svids, self.bundle_pem, self.lists_pem):
            self.netns, self.svids, self.bundle_pem, self.lists_pem = now
            self.changed.set()
            self.changed = asyncio.Event()


class WorkloadAPI:
    """`start` it, `stop` it. `path` is the socket for workloads, `inner` a folder for root alone."""

    def __init__(self, path: Path, inner: Path, held: Held) -> None:
        self._path, self._inner, self._held = path, inner, held
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
            handlers = {
                "FetchX509SVID": self._stream(self._x509_svid, api.X509SVIDRequest, api.X509SVIDResponse),
                "FetchX509Bundles": self._stream(
                    self._x509_bundles, api.X509BundlesRequest, api.X509BundlesResponse
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

    def _stream(self, make: Callable[[WorkloadName], Any], request: Any, response: Any) -> Any:
        async def handle(_: Any, context: Any) -> AsyncIterator[Any]:
            if HEADER not in [(m.key, m.value) for m in context.invocation_metadata()]:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"security header missing: {HEADER[0]}")
            who = self._callers.get(context.peer())
            if who is None:
                await context.abort(
                    grpc.StatusCode.PERMISSION_DENIED, "no identity issued: not in a workload's namespace"
                )
                return
            told = None
            while True:
                changed = self._held.changed
                answer = make(who)
                if answer is None:
                    await context.abort(
                        grpc.StatusCode.PERMISSION_DENIED, f"no identity issued: {'/'.join(who)} has none now"
                    )
                if answer != told:
                    yield answer
                    told = answer
                await changed.wait()

        return grpc.unary_stream_rpc_method_handler(
            handle,
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )

    def _x509_svid(self, who: WorkloadName) -> Any:
        kept = self._held.svids.get(who)
        if kept is None:
            return None
        key = serialization.load_pem_private_key(kept.key_pem, password=None)
        svid = api.X509SVID(
            spiffe_id=kept.spiffe_id,
            x509_svid=_der(kept.chain_pem),
            x509_svid_key=key.private_bytes(
                serialization.Encoding.DER,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            bundle=_der(self._held.bundle_pem),
        )
        return api.X509SVIDResponse(svids=[svid], crl=self._lists())

    def _x509_bundles(self, _: WorkloadName) -> Any:
        bundles = {f"spiffe://{self._held.trust_domain}": _der(self._held.bundle_pem)}
        return api.X509BundlesResponse(crl=self._lists(), bundles=bundles)

    def _lists(self) -> list[bytes]:
        mark = b"-----BEGIN X509 CRL-----"
        found = [mark + each for each in self._held.lists_pem.split(mark)[1:]]
        return [x509.load_pem_x509_crl(each).public_bytes(serialization.Encoding.DER) for each in found]


def _der(pem: bytes) -> bytes:
    certificates = x509.load_pem_x509_certificates(pem) if pem else []
    return b"".join(each.public_bytes(serialization.Encoding.DER) for each in certificates)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Until one side ends; then the other is told."""
    with suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.close()
