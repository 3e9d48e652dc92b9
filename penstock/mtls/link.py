"""The connection of a node to its CA server: kept up for ever, with all that goes over it.

What it keeps true: it tries again with a pause that grows and is never the same on two nodes; what it is told
is given on before it is acted by; a call that is not answered in time breaks the connection, since a
server that is gone without a word is told by nothing else. All of it is on the event loop that `run` is on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from penstock.errors import PenstockError
from penstock.mtls import certificates, wire
from penstock.mtls.errors import AuthorityError
from penstock.mtls.node_identity import NodeIdentity
from penstock.mtls.reports import Report
from penstock.mtls.state import State
from penstock.mtls.tokens import Token

log = logging.getLogger(__name__)

RETRY_FIRST, RETRY_MOST = 0.5, 30.0
"""Seconds between attempts while the CA does not answer; doubled each time."""
CALL = 3.0
"""Seconds that one call may take."""


class Link:
    """`run` it. `connected` and `problem` say how it stands, `since` when it was connected last."""

    def __init__(
        self,
        address: str,
        identity: NodeIdentity,
        token: Token | None,
        *,
        roots: Callable[[], bytes],
        moved: Callable[[], bool],
        told: Callable[[State], None],
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """`roots` are whom to trust (PEM), `moved` says whether the node's certificate may stay as it is.

        `told` takes each state that the CA tells, and may refuse it; `changed` hears of all else.
        """
        self.address, self.identity, self._token = address, identity, token
        self._roots, self._moved, self._told, self._changed = roots, moved, told, changed
        self._clock = clock
        self.connected = False
        self.problem = "it was not asked yet"
        self.since = clock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._broken = asyncio.Event()
        self._due = asyncio.Event()
        self._report: Report | None = None
        self._reporting = asyncio.Event()

    async def run(self) -> None:
        """For ever: join if need be, follow the CA, report, renew the node's own certificate."""
        self.loop = asyncio.get_running_loop()
        pause = RETRY_FIRST
        while True:
            try:
                await self._once()
                pause = RETRY_FIRST
            except (PenstockError, OSError, ValueError) as error:
                problem = str(error)
                if problem != self.problem:
                    log.warning("the CA at %s: %s", self.address, problem)
                self.problem = problem
            if self.connected:
                pause, self.since = RETRY_FIRST, self._clock()
            self.connected = False
            self._changed()
            await asyncio.sleep(pause * (0.5 + random.random() / 2))
            pause = min(pause * 2, RETRY_MOST)

    def report(self, report: Report) -> None:
        """From any thread. Sent when the CA can be reached, and after each time that it could not."""
        if report != self._report and self.loop is not None:
            self._report = report
            self.loop.call_soon_threadsafe(self._reporting.set)

    def look_again(self) -> None:
        """The node's certificate may have to move."""
        self._due.set()

    def ask(self, name: str, request: Any, answer: type[Any]) -> Any:
        """One call, from another thread than the loop's. Raises AuthorityError, at once if not connected."""
        if self.loop is None or not self.connected:
            raise self._silent()
        return asyncio.run_coroutine_threadsafe(self._call(name, request, answer), self.loop).result()

    def _silent(self) -> AuthorityError:
        return AuthorityError(f"the CA at {self.address} does not answer: {self.problem}")

    async def _once(self) -> None:
        """One connection, to its end. Returns when it should be made anew at once."""
        if not self.identity.chain or self.identity.over:
            await self._join()
        channel = self._open_channel(self.identity.key, self.identity.chain)
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
        credentials = grpc.ssl_channel_credentials(self._roots(), key.encode(), chain.encode())
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
        key = self.identity.joining_key()
        async with self._open_channel(token.key, token.chain) as self._channel:
            request = wire.Csr(certificates.request_for(key.encode()).decode())
            answer: wire.Chain = await self._call("Join", request, wire.Chain)
        self.identity.keep(key, answer.chain)
        log.info("joined the CA at %s", self.address)

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
                self._told(state)
                self.connected, self.problem = True, ""
                self._reporting.set()
                self._changed()
        except grpc.aio.AioRpcError as error:
            raise _said(error) from None
        raise AuthorityError("it has ended the connection")

    async def _send_reports(self) -> None:
        while True:
            await self._reporting.wait()
            self._reporting.clear()
            if self._report is not None and self.connected:
                await self._call("Report", self._report, wire.Nothing)

    async def _renew_forever(self) -> None:
        """At half of its life, or when another issuer signs. With a new key each time."""
        while True:
            left = self.identity.until_renewal
            if left > 0 and self._moved():
                self._due.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._due.wait()
                continue
            key = certificates.key_pem(certificates.new_key())
            request = wire.Csr(certificates.request_for(key).decode())
            answer: wire.Chain = await self._call("Renew", request, wire.Chain)
            self.identity.keep(key.decode(), answer.chain)
            log.info("this node's own certificate was renewed")
            self._changed()

    async def _call(self, name: str, request: Any, answer: Any) -> Any:
        """Raises AuthorityError."""
        channel = self._channel
        if channel is None:
            raise self._silent()
        call = channel.unary_unary(
            f"/{wire.SERVICE}/{name}",
            request_serializer=wire.encode,
            response_deserializer=wire.decoder(answer),
        )
        try:
            return await call(request, timeout=CALL)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                self.connected = False
                self._broken.set()
            raise _said(error) from None


def _said(error: grpc.aio.AioRpcError) -> AuthorityError:
    refused = error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INTERNAL)
    details = error.details() or error.code().name
    return AuthorityError(details if refused else f"no answer ({error.code().name.lower()}: {details})")
