"""A CA for many nodes: the gRPC side of a CA directory.

Everything is mTLS: a caller has a join token's certificate or a node's, and each call looks whether that is
still good. What it keeps true: a node gets its own name and the ids of workloads that run on it, nothing
else; a node is known to the CA's rotations (reports.py) before it is told anything; one whose certificate was
revoked is told nothing any more. `penstock ca rotate` and `cert revoke` work on the directory, as without a
server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
from cryptography import x509

from penstock.errors import HostError, PenstockError
from penstock.mtls import certificates, origin, spiffe, tokens, wire
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.errors import RequestError
from penstock.mtls.placement import Placement
from penstock.mtls.reports import Report, Reporter
from penstock.mtls.state import State

log = logging.getLogger(__name__)

NODE_LIFETIME = timedelta(days=7)
"""A node that is away for longer needs a new token."""
SERVER_LIFETIME = timedelta(hours=24)
MAX_LIFETIME = timedelta(days=30)
"""Of a workload's certificate, whatever its node asks for."""
LINGER = 3.0
"""Seconds for which a node whose stream ended is taken as alive: it may only be connecting anew."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who calls, by its certificate. `role` is JOIN or NODE (tokens.py)."""

    role: str
    node: str
    serial: int


class AuthorityServer:
    """`start` it, `run` it for ever, `stop` it."""

    def __init__(self, ca: CertificateAuthority, listen: str, placement: Callable[[], Placement]) -> None:
        self._ca, self._listen, self._placement = ca, listen, placement
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ca")
        self._changed = asyncio.Event()
        self._streams: dict[str, int] = {}
        self._reporters: dict[str, Reporter] = {}
        self._opening = asyncio.Lock()
        self._own: tuple[float, bytes, bytes] | None = None
        self._server: grpc.aio.Server | None = None
        self._answers: Counter[str] = Counter(dict.fromkeys(("answered", "refused", "failed"), 0))
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises HostError, AuthorityError."""
        first = await self._blocking(self._configuration)
        server = grpc.aio.server(
            options=[
                ("grpc.http2.min_ping_interval_without_data_ms", wire.KEEPALIVE_MS // 2),
                ("grpc.so_reuseport", 0),
            ]
        )
        calls = {
            "Join": self._join,
            "Renew": self._renew,
            "Sign": self._sign,
            "SignJwt": self._sign_jwt,
            "Report": self._report,
        }
        handlers: dict[str, grpc.RpcMethodHandler] = {
            name: grpc.unary_unary_rpc_method_handler(
                self._unary(call),
                request_deserializer=wire.decoder(wire.REQUESTS[name]),
                response_serializer=wire.encode,
            )
            for name, call in calls.items()
        }
        handlers["Watch"] = grpc.unary_stream_rpc_method_handler(
            self._watch, request_deserializer=wire.decoder(wire.Nothing), response_serializer=wire.encode
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))
        credentials = grpc.dynamic_ssl_server_credentials(first, self._configuration_now, True)
        try:
            self.port = server.add_secure_port(self._listen, credentials)
        except RuntimeError as error:
            raise HostError(f"cannot listen on {self._listen}: {error}") from error
        await server.start()
        self._server = server

    async def run(self) -> None:
        """Follow the directory: tell the nodes what changes."""
        async for _ in self._ca.changes():
            try:
                await self._blocking(self._ca.reload)
            except PenstockError as error:
                log.error("%s", error)
                continue
            self._tell()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)
        for reporter in self._reporters.values():
            reporter.close()
        self._reporters.clear()
        self._thread.shutdown()

    async def _blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def counted(self) -> dict[str, Any]:
        """Calls by their outcome, nodes that are connected, and ages and ends in seconds, as of now."""
        now = time.time()
        state, under_way = self._ca.state, self._ca.rotation

        def left(chain: x509.Certificate) -> float:
            return round(chain.not_valid_after_utc.timestamp() - now)

        own = x509.load_pem_x509_certificates(self._own[2])[0] if self._own else self._ca.intermediate
        return {
            "answers": dict(self._answers),
            "nodes": len(self._streams),
            "root_expiry_seconds": left(self._ca.root),
            "intermediate_expiry_seconds": left(self._ca.intermediate),
            "server_expiry_seconds": left(own),
            "jwt_key_age_seconds": round(now - state.jwt_made),
            "rotation_age_seconds": round(now - under_way.started) if under_way else None,
            "rotation": f"{under_way.kind} {under_way.stage}" if under_way else "",
        }

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- the server's own certificate ----------------------------------------------------------------------

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        """A certificate of the issuer that signs now; made anew at half of its life."""
        now = time.time()
        if self._own is None or now > self._own[0] or not self._ca.keeps(self._own[2]):
            key = certificates.new_key()
            chain = self._ca.sign(
                certificates.signing_request(key),
                f"{spiffe.SCHEME}{self._ca.trust_domain}{tokens.SERVER}",
                SERVER_LIFETIME,
                owner="the CA server",
                host_names=(wire.HOST_NAME,),
            )
            self._own = (now + SERVER_LIFETIME.total_seconds() / 2, certificates.key_pem(key), chain)
        _, key_pem, chain = self._own
        return grpc.ssl_server_certificate_configuration([(key_pem, chain)], self._ca.bundle_pem)

    def _configuration_now(self) -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks at each handshake, from a thread of its own. None: what it has is good."""
        try:
            return self._thread.submit(self._configuration).result(timeout=5)
        except (PenstockError, RuntimeError, TimeoutError) as error:
            log.error("no certificate for the server itself: %s", error)
            return None

    # --- the calls -----------------------------------------------------------------------------------------

    def _unary(self, call: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            try:
                answer = await call(self._peer(context), request)
            except PenstockError as error:
                self._answers["refused" if isinstance(error, RequestError) else "failed"] += 1
                return await _refuse(context, error)
            self._answers["answered"] += 1
            return answer

        return handle

    def _peer(self, context: Any) -> Peer:
        """Raises RequestError if the caller is nobody whom we serve (any more)."""
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            raise RequestError("no certificate was shown")
        leaf = x509.load_pem_x509_certificates(shown[0])[0]
        uri = origin.uri(leaf)
        for role in (tokens.JOIN, tokens.NODE):
            prefix = f"{spiffe.SCHEME}{self._ca.trust_domain}{role}"
            if uri.startswith(prefix):
                peer = Peer(role, uri.removeprefix(prefix), leaf.serial_number)
                self._check(peer, leaf)
                return peer
        raise RequestError(f"{uri or 'who has no SPIFFE id'} is neither a node nor about to join")

    def _check(self, peer: Peer, leaf: x509.Certificate | None = None) -> None:
        if leaf is not None and leaf.not_valid_after_utc.timestamp() < time.time():
            raise RequestError("the certificate that was shown is over")
        if why := self._ca.revoked.reason(tokens.owner_of_node(peer.node), peer.serial):
            raise RequestError(why)

    async def _join(self, peer: Peer, request: wire.Csr) -> wire.Chain:
        if peer.role != tokens.JOIN:
            raise RequestError("to join takes a join token")
        csr = request.csr.encode()

        def join() -> bytes:
            tokens.use(self._ca.directory, peer.serial, peer.node, csr, time.time())
            return self._node_certificate(peer.node, csr)

        chain = await self._blocking(join)
        log.info("a node has joined", extra={"node": peer.node})
        return wire.Chain(chain.decode())

    async def _renew(self, peer: Peer, request: wire.Csr) -> wire.Chain:
        _only_nodes(peer)
        chain = await self._blocking(self._node_certificate, peer.node, request.csr.encode())
        return wire.Chain(chain.decode())

    def _node_certificate(self, node: str, csr: bytes) -> bytes:
        spiffe_id = f"{spiffe.SCHEME}{self._ca.trust_domain}{tokens.NODE}{node}"
        return self._ca.sign(csr, spiffe_id, NODE_LIFETIME, owner=tokens.owner_of_node(node))

    async def _sign(self, peer: Peer, request: wire.SignRequest) -> wire.Chain:
        _only_nodes(peer)

        def sign() -> bytes:
            self._check_placement(peer, request.spiffe_id, request.owner)
            lifetime = min(timedelta(seconds=request.lifetime), MAX_LIFETIME)
            return self._ca.sign(request.csr.encode(), request.spiffe_id, lifetime, owner=request.owner)

        try:
            chain = await self._blocking(sign)
        except RequestError as error:
            log.warning("refused to sign: %s", error, extra={"node": peer.node, "owner": request.owner})
            raise
        return wire.Chain(chain.decode())

    def _check_placement(self, peer: Peer, spiffe_id: str, owner: str) -> None:
        """Raises RequestError if that node does not run that workload."""
        grant = tokens.granted(self._ca.directory, peer.node)
        if grant is None:
            raise RequestError(f"{peer.node} has not joined", hint="penstock ca token --node NAME")
        self._placement().check(grant, self._ca.trust_domain, spiffe_id, owner)

    async def _sign_jwt(self, peer: Peer, request: wire.JwtRequest) -> wire.Token:
        _only_nodes(peer)

        def sign() -> str:
            self._check_placement(peer, request.spiffe_id, request.owner)
            return self._ca.sign_jwt(request.spiffe_id, request.audience, owner=request.owner)

        try:
            return wire.Token(await self._blocking(sign))
        except RequestError as error:
            log.warning("refused to sign: %s", error, extra={"node": peer.node, "owner": request.owner})
            raise

    async def _report(self, peer: Peer, report: Report) -> wire.Nothing:
        _only_nodes(peer)
        reporter = self._reporters.get(peer.node)
        if report.node != peer.node or reporter is None:
            raise RequestError(f"{peer.node} may not report for {report.node}, nor without watching")
        await self._blocking(reporter.write, report)
        return wire.Nothing()

    async def _watch(self, _: wire.Nothing, context: Any) -> AsyncIterator[State]:
        try:
            peer = self._peer(context)
            _only_nodes(peer)
            await self._known(peer.node)
        except PenstockError as error:
            await _refuse(context, error)
            return
        try:
            told: State | None = None
            while True:
                changed = self._changed
                self._check(peer)
                state = self._ca.state
                if state != told:
                    yield state
                    told = state
                await changed.wait()
        except RequestError as error:
            await _refuse(context, error)
        finally:
            asyncio.get_running_loop().call_later(LINGER, self._gone, peer.node)

    async def _known(self, node: str) -> None:
        """From now on rotations wait for this node. Raises AuthorityError."""
        self._streams[node] = self._streams.get(node, 0) + 1
        async with self._opening:
            if node not in self._reporters:
                try:
                    self._reporters[node] = await self._blocking(Reporter.open, self._ca.directory, node)
                except BaseException:
                    self._gone(node)
                    raise

    def _gone(self, node: str) -> None:
        self._streams[node] = self._streams.get(node, 1) - 1
        if self._streams[node] <= 0:
            del self._streams[node]
            if (reporter := self._reporters.pop(node, None)) is not None:
                reporter.close()


def _only_nodes(peer: Peer) -> None:
    if peer.role != tokens.NODE:
        raise RequestError("a join token is good for joining only")


async def _refuse(context: Any, error: PenstockError) -> Any:
    code = grpc.StatusCode.PERMISSION_DENIED if isinstance(error, RequestError) else grpc.StatusCode.INTERNAL
    return await context.abort(code, str(error))
