"""A CA that is served elsewhere (`penstock ca serve`), as a node sees it.

    node.pem      the node's own key and certificate, by which it proves itself
    join.key      the key that a join token is used for, until there is a certificate for it
    state.json    the last that the CA told: good to start with while it does not answer

What it keeps true: a node works on with what it has while the CA is away, to the end of its certificates; it
tries again with a pause that grows and is never the same on two nodes; keys never leave this directory. All
network traffic is on the event loop that `run` is on; `sign` is for other threads and fails at once while
there is no connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
from cryptography import x509

from penstock.errors import PenstockError
from penstock.files import write_atomically
from penstock.mtls import certificates, show, tokens, wire
from penstock.mtls.errors import AuthorityError
from penstock.mtls.reports import Report
from penstock.mtls.revocation import Revocations
from penstock.mtls.rotation import Rotation
from penstock.mtls.state import State
from penstock.mtls.tokens import Token

log = logging.getLogger(__name__)

RETRY_FIRST, RETRY_MOST = 0.5, 30.0
"""Seconds between attempts while the CA does not answer; doubled each time."""
CALL = 3.0
"""Seconds that one call may take."""
_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
NEAR = 1 / 3
"""Of the node certificate's life: with less left than this there is a warning."""


@dataclass(frozen=True, slots=True)
class _View:
    """A state with its certificates read."""

    state: State
    roots: tuple[x509.Certificate, ...]
    signer: x509.Certificate

    @classmethod
    def of(cls, state: State) -> _View:
        roots = tuple(x509.load_pem_x509_certificates(state.bundle.encode()))
        return cls(state, roots, x509.load_pem_x509_certificates(state.signer.encode())[0])


class RemoteAuthority:
    """`open` it, `run` it on the event loop; the rest is as in `CertificateAuthority`."""

    def __init__(
        self,
        address: str,
        node: str,
        directory: Path,
        view: _View,
        token: Token | None,
        clock: Callable[[], float],
    ) -> None:
        self.address, self.node, self.directory = address, node, directory
        self.trust_domain = view.state.trust_domain
        self._view, self._token, self._clock = view, token, clock
        self._pending: State | None = None
        self._key, mark, chain = _text(directory / "node.pem").partition(_CERTIFICATE)
        self._chain = mark + chain
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._connected = False
        self._changed = asyncio.Event()
        self._due = asyncio.Event()
        self._broken = asyncio.Event()
        self._report: Report | None = None
        self._reporting = asyncio.Event()
        self._problem = "it was not asked yet"
        self._since = clock()

    @classmethod
    def open(
        cls,
        address: str,
        node: str,
        directory: Path,
        trust_domain: str,
        token_file: Path | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> RemoteAuthority:
        """What an earlier run kept, else what the token says. Raises AuthorityError, InputError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        joined = (directory / "node.pem").exists()
        token = None
        if token_file is not None and (not joined or token_file.exists()):
            token = tokens.read(token_file)
            if token.node != node:
                raise AuthorityError(
                    f"the join token is for the node {token.node}, not {node}", hint=f"--node {token.node}"
                )
        try:
            state = msgspec.json.decode((directory / "state.json").read_bytes(), type=State)
        except FileNotFoundError:
            if token is None:
                raise AuthorityError(
                    f"this node has not joined the CA at {address}",
                    hint=f"on the CA: penstock ca token --node {node}; here: --join-token-file FILE",
                ) from None
            signer = token.chain[token.chain.index(_CERTIFICATE, 1) :]
            state = State(token.trust_domain, token.bundle, signer)
        except (ValueError, msgspec.MsgspecError) as error:
            raise AuthorityError(f"{directory}/state.json is damaged: {error}", hint="join again") from error
        if state.trust_domain != trust_domain:
            raise AuthorityError(
                f"the CA at {address} is of trust domain {state.trust_domain}, not {trust_domain}",
                hint=f"--trust-domain {state.trust_domain}",
            )
        return cls(address, node, directory, _View.of(state), token, clock)

    # --- as CertificateAuthority ---------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._view.state

    @property
    def bundle_pem(self) -> bytes:
        return self.state.bundle.encode()

    @property
    def lists_pem(self) -> bytes:
        return self.state.lists.encode()

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        return self._view.roots

    @property
    def root(self) -> x509.Certificate:
        """The root above the intermediate that signs."""
        last = x509.load_pem_x509_certificates(self.state.signer.encode())[-1]
        return next((root for root in self.roots if root.subject == last.issuer), self.roots[0])

    @property
    def intermediate(self) -> x509.Certificate:
        return self._view.signer

    @property
    def rotation(self) -> Rotation | None:
        return self.state.rotation

    @property
    def revoked(self) -> Revocations:
        return self.state.revoked

    def keeps(self, chain_pem: bytes) -> bool:
        return self.rotation is None or chain_pem.endswith(self.state.signer.encode())

    def reload(self) -> None:
        """Take up what the CA told last."""
        if self._pending is not None:
            state, self._pending = self._pending, None
            self._view = _View.of(state)
            self._due.set()

    async def changes(self) -> AsyncIterator[None]:
        while True:
            changed = self._changed
            yield
            await changed.wait()

    def where(self) -> dict[str, Any]:
        raise AuthorityError(
            f"the CA of this node is served at {self.address}", hint="run this there, with --ca-dir"
        )

    def warnings(self, now: float) -> list[str]:
        found = []
        if not self._connected:
            span = show.remaining(now - self._since)
            found.append(f"the CA at {self.address} does not answer since {span}: {self._problem}")
        if self._chain:
            leaf = x509.load_pem_x509_certificates(self._chain.encode())[0]
            end, start = leaf.not_valid_after_utc.timestamp(), leaf.not_valid_before_utc.timestamp()
            if end - now < NEAR * (end - start):
                found.append(
                    f"this node's own certificate was not renewed: {show.remaining(end - now)} left; "
                    "when it is over the node must join again"
                )
        return found

    def missing(self) -> str:
        if self._chain and not self.keeps(self._chain.encode()):
            return "its node certificate has not moved"
        return ""

    def sign(self, csr: bytes, spiffe_id: str, lifetime: timedelta, *, owner: str) -> bytes:
        """Not on the event loop's thread. Raises AuthorityError, also for what the CA refuses."""
        if self._loop is None or not self._connected:
            raise AuthorityError(f"the CA at {self.address} does not answer: {self._problem}")
        request = wire.SignRequest(csr.decode(), spiffe_id, owner, lifetime.total_seconds())
        future = asyncio.run_coroutine_threadsafe(self._call("Sign", request, wire.Chain), self._loop)
        chain: wire.Chain = future.result()
        return chain.chain.encode()

    def sign_jwt(self, spiffe_id: str, audience: Sequence[str], *, owner: str) -> str:
        """As `sign`."""
        if self._loop is None or not self._connected:
            raise AuthorityError(f"the CA at {self.address} does not answer: {self._problem}")
        request = wire.JwtRequest(spiffe_id, owner, tuple(audience))
        future = asyncio.run_coroutine_threadsafe(self._call("SignJwt", request, wire.Token), self._loop)
        token: wire.Token = future.result()
        return token.token

    # --- as Reporter ---------------------------------------------------------------------------------------

    def write(self, report: Report) -> None:
        """Sent when the CA can be reached, and after each time that it could not."""
        if report != self._report and self._loop is not None:
            self._report = report
            self._loop.call_soon_threadsafe(self._reporting.set)

    def close(self) -> None:
        pass

    # --- the connection ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever: join if need be, follow the CA, report, renew the node's own certificate."""
        self._loop = asyncio.get_running_loop()
        pause = RETRY_FIRST
        while True:
            try:
                await self._once()
                pause = RETRY_FIRST
            except (PenstockError, OSError, ValueError) as error:
                problem = str(error)
                if problem != self._problem:
                    log.warning("the CA at %s: %s", self.address, problem)
                self._problem = problem
            if self._connected:
                pause, self._since = RETRY_FIRST, self._clock()
            self._connected = False
            self._tell()
            await asyncio.sleep(pause * (0.5 + random.random() / 2))
            pause = min(pause * 2, RETRY_MOST)

    async def _once(self) -> None:
        """One connection, to its end. Returns when it should be made anew at once."""
        if not self._chain or self._over():
            await self._join()
        channel = self._open_channel(self._key, self._chain)
        async with channel:
            self._channel = channel
            self._broken.clear()
            # Not a TaskGroup: that of Python 3.11 forgets a cancellation which comes as a task fails.
            works = (
                self._until_broken(),
                self._follow(channel),
                self._send_reports(),
                self._renew_forever(),
            )
            tasks = [asyncio.create_task(work) for work in works]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._channel = None

    def _open_channel(self, key: str, chain: str) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.bundle_pem, key.encode(), chain.encode())
        return grpc.aio.secure_channel(
            self.address,
            credentials,
            options=[
                ("grpc.ssl_target_name_override", wire.HOST_NAME),
                ("grpc.keepalive_time_ms", wire.KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", wire.KEEPALIVE_MS // 2),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
            ],
        )

    async def _join(self) -> None:
        token = self._token
        if token is None:
            raise AuthorityError("this node's certificate is over: it must join again, with a new token")
        file = self.directory / "join.key"
        key = _text(file)
        if not key:
            # Kept before it is used: the token is good for one key, and the answer may be lost.
            key = certificates.key_pem(certificates.new_key()).decode()
            write_atomically(file, key.encode())
        async with self._open_channel(token.key, token.chain) as self._channel:
            request = wire.Csr(certificates.request_for(key.encode()).decode())
            answer: wire.Chain = await self._call("Join", request, wire.Chain)
        self._keep(key, answer.chain)
        file.unlink(missing_ok=True)
        log.info("joined the CA at %s", self.address)

    def _keep(self, key: str, chain: str) -> None:
        write_atomically(self.directory / "node.pem", (key + chain).encode())
        self._key, self._chain = key, chain

    async def _until_broken(self) -> None:
        await self._broken.wait()
        raise AuthorityError("it did not answer a call in time")

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        stream = channel.unary_stream(
            f"/{wire.SERVICE}/Watch",
            request_serializer=wire.encode,
            response_deserializer=wire.decoder(State),
        )(wire.Nothing())
        try:
            async for state in stream:
                if state.trust_domain != self.trust_domain:
                    raise AuthorityError(f"it is of trust domain {state.trust_domain} now")
                _View.of(state)
                write_atomically(self.directory / "state.json", msgspec.json.encode(state))
                self._pending = state
                self._connected, self._problem = True, ""
                self._reporting.set()
                self._tell()
        except grpc.aio.AioRpcError as error:
            raise _said(error) from None
        raise AuthorityError("it has ended the connection")

    async def _send_reports(self) -> None:
        while True:
            await self._reporting.wait()
            self._reporting.clear()
            if self._report is not None and self._connected:
                await self._call("Report", self._report, wire.Nothing)

    async def _renew_forever(self) -> None:
        """At half of its life, or when another issuer signs. With a new key each time."""
        while True:
            leaf = x509.load_pem_x509_certificates(self._chain.encode())[0]
            start, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
            left = (start + end) / 2 - self._clock()
            if left > 0 and not self.missing():
                self._due.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._due.wait()
                continue
            key = certificates.key_pem(certificates.new_key())
            request = wire.Csr(certificates.request_for(key).decode())
            answer: wire.Chain = await self._call("Renew", request, wire.Chain)
            self._keep(key.decode(), answer.chain)
            log.info("this node's own certificate was renewed")
            self._tell()

    async def _call(self, name: str, request: Any, answer: Any) -> Any:
        """Raises AuthorityError."""
        channel = self._channel
        if channel is None:
            raise AuthorityError(f"the CA at {self.address} does not answer: {self._problem}")
        call = channel.unary_unary(
            f"/{wire.SERVICE}/{name}",
            request_serializer=wire.encode,
            response_deserializer=wire.decoder(answer),
        )
        try:
            return await call(request, timeout=CALL)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                self._connected = False
                self._broken.set()
            raise _said(error) from None

    def _over(self) -> bool:
        leaf = x509.load_pem_x509_certificates(self._chain.encode())[0]
        return leaf.not_valid_after_utc.timestamp() < self._clock()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _said(error: grpc.aio.AioRpcError) -> AuthorityError:
    refused = error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INTERNAL)
    details = error.details() or error.code().name
    return AuthorityError(details if refused else f"no answer ({error.code().name.lower()}: {details})")
