"""One stream of an xDS server: its session, and the responses on their way to the client.

What it keeps true: responses are made into bytes when the client is ready to take them; one that is slow, may
not stay, or meets an error of ours costs nothing to others.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from penstock.xds.said import Response
from penstock.xds.session import Session

log = logging.getLogger(__name__)

MOST_WAITING = 256
"""Responses that may wait for a client before its further questions do."""


class Stream:
    """A session and the responses on their way out."""

    def __init__(self, session: Session, refusal: Callable[[], str] = str) -> None:
        """`refusal` says why the client may not be here any more; "" if it may."""
        self.session = session
        self.refusal = refusal
        self._responses: deque[Response] = deque()
        self._ready = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False
        self._broken = False

    def hear(self, what: Callable[[Session], Iterable[Response]]) -> None:
        """Say what `what` gives for our session. Where that fails it costs this client its stream, and nobody
        else anything: it comes back with what it holds."""
        try:
            self.push(what(self.session))
        except Exception:
            log.exception("the stream of %s is ended: it cannot be told what is new", self.session.node_id)
            self._broken = True
            self._ready.set()

    def end(self) -> None:
        """Nothing more is sent but what is on its way: gRPC cannot end a call in the middle of a message."""
        self._ended = True
        self._responses.clear()
        self._ready.set()

    def push(self, responses: Iterable[Response]) -> None:
        """Also with nothing to send this looks whether the client may still be here."""
        self._responses.extend(responses)
        self._ready.set()

    async def write(self, context: Any) -> None:
        """Send responses to the end, one at a time: a slow client holds its own stream back, nothing else."""
        while True:
            await self._ready.wait()
            # Before anything is looked at: what happens while a response is being written wakes us once more.
            self._ready.clear()
            if self._ended:
                return
            if verdict := self._verdict():
                # The end of the call ends its requests too.
                with suppress(grpc.aio.AbortError):
                    await context.abort(*verdict)
                return
            while self._responses:
                await context.write(self.session.encode(self._responses.popleft()))
                self._taken.set()

    def _verdict(self) -> tuple[grpc.StatusCode, str] | None:
        """Why the call is to end now."""
        if self._broken:
            return grpc.StatusCode.INTERNAL, "an error of the server; come again"
        why = self.refusal()
        return (grpc.StatusCode.UNAUTHENTICATED, why) if why else None

    @property
    def waiting(self) -> int:
        """Responses that the client has yet to take."""
        return len(self._responses)

    async def room(self) -> None:
        """Until few enough responses wait to take another question."""
        while self.waiting > MOST_WAITING:
            self._taken.clear()
            await self._taken.wait()
