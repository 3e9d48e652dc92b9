"""The grpc.aio shell around the xDS sessions: a Unix socket, one task pair per stream, and waiting for ACKs.

All protocol knowledge is in `session`; this module moves messages and wakes waiters. It keeps true:
- Requests are served as they come, before pushes; one that breaks us is logged and ends nothing, one that
  breaks the protocol ends its own stream.
- A slow or dead client costs nothing to others. What waits for it is references, at most one push for each
  type; while it does not take its answers, its further questions are not read. And nobody waits for its
  acknowledgements if there is one client that counts (`awaits`).
- Cancellation goes through: a handler that swallowed it would leak the native call.
- ADS streams never end by themselves, so `stop` ends them hard. Clients come back to the next server with
  what they hold.

The file's owner and mode, and the user at the other end (peers.py), say who may connect: put it in a
directory that only the daemon and the proxy's group can enter.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from penstock.errors import HostError
from penstock.xds import services as xds_services
from penstock.xds.csds import client_status
from penstock.xds.errors import ProtocolError
from penstock.xds.limits import UNLIMITED, Limits
from penstock.xds.order import Stage
from penstock.xds.peers import turn_away
from penstock.xds.said import Nacked
from penstock.xds.session import Session
from penstock.xds.snapshot import Snapshot
from penstock.xds.stream import Stream
from penstock.xds.tcp import TcpAccess
from penstock.xds.watch import Refusal, ResourceStatus

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds to wait for ACKs unless told otherwise: as long as traffic may wait for its listener."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a wait ended. `done`: every connected client acknowledged or refused everything in time.

    `waiting` are the types still open when the time was over (all of them if no client is connected).
    """

    done: bool
    errors: tuple[Refusal, ...] = ()
    waiting: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.done and not self.errors


@dataclass(frozen=True, slots=True)
class ClientState:
    """One stream: the node id of the client, its NACKs so far, and every resource by type."""

    node_id: str
    nacks: int
    types: Mapping[str, tuple[ResourceStatus, ...]]


LAST_MESSAGE = 5.0
"""Seconds that a client who ends, or breaks the protocol, has to take the message that is on its way."""


class XdsServer:
    """Serves one snapshot to all who connect to `socket_path`, in every variant of the protocol.

    `services` are further gRPC services for the same socket (access logs). `group` is the gid that may
    connect besides the owner; None leaves the file's group as it is. `users` are the user ids that may; None
    leaves it to the file's mode. `awaits` is the node id of the client whose acknowledgements count; None is
    all of them. `heartbeat` are the seconds between two renewals of resources with a time to live. `tcp` is
    where it listens besides, with mutual TLS. `limits` are what each client may ask of us.
    """

    def __init__(
        self,
        socket_path: Path | str,
        *,
        services: Sequence[grpc.GenericRpcHandler] = (),
        group: int | None = None,
        users: frozenset[int] | None = None,
        awaits: str | None = None,
        heartbeat: float | None = None,
        tcp: TcpAccess | None = None,
        limits: Limits = UNLIMITED,
    ) -> None:
        self._tcp = tcp
        self.port = 0
        """The TCP port, while it listens on one."""
        self._path = Path(socket_path)
        self._services = tuple(services)
        self._group = group
        self._users = users
        self._awaits = awaits
        self._heartbeat = heartbeat
        self._limits = limits
        self._beating: asyncio.Task[None] | None = None
        self._offer: Callable[[], Snapshot] | None = None
        self._server: grpc.aio.Server | None = None
        self.streams: set[Stream] = set()
        self._published: Snapshot | None = None
        self._progress = asyncio.Event()

    async def start(self) -> None:
        """Listen. Raises HostError when the socket cannot be made."""
        # A first answer may have thousands of clusters.
        options = [("grpc.max_send_message_length", -1), *self._limits.options()]
        self._server = grpc.aio.server(options=options)
        handlers = (
            *xds_services.discovery(self._serve),
            xds_services.status(self.client_status, self._refusal_of),
        )
        self._server.add_generic_rpc_handlers((*handlers, *self._services))
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
            if self._group is not None:
                os.chown(self._path, -1, self._group)
            self._path.chmod(0o660)
        except (RuntimeError, OSError) as error:
            raise HostError(
                f"cannot listen on {self._path}: {error}",
                hint="the path may be at most 107 bytes long, in a directory that the daemon can write to",
            ) from error
        if self._tcp is not None:
            try:
                self.port = self._server.add_secure_port(self._tcp.listen, self._tcp.credentials())
            except RuntimeError as error:
                raise HostError(f"cannot listen on {self._tcp.listen}: {error}") from error
        await self._server.start()
        if self._heartbeat is not None:
            self._beating = asyncio.create_task(self._beat(self._heartbeat))

    async def stop(self) -> None:
        """End all streams now. Clients keep what they have and try again."""
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None
        # gRPC cancels the handlers but does not wait for them.
        while self.streams:
            await self._progress.wait()
        self._note_progress()

    @property
    def published(self) -> Snapshot | None:
        """What was published last: where the next `Rollout` starts from."""
        return self._published

    @property
    def connected(self) -> int:
        """Number of streams of clients that count."""
        return len(self._counted())

    def publish(self, snapshot: Snapshot) -> None:
        """Make `snapshot` the wanted state of all clients, present and to come."""
        self._published, self._offer = snapshot, None
        for stream in self.streams:
            stream.hear(lambda session: session.publish(snapshot))
        self._note_progress()

    def offer(self, make: Callable[[], Snapshot]) -> None:
        """`publish` what `make` gives: now if a client is there, else when one comes."""
        if self.streams:
            self.publish(make())
        else:
            self._offer = make

    async def wait_acked(self, types: Iterable[str], within: float = PATIENCE) -> Outcome:
        """Wait until some client is connected and all of them have answered what was published of `types`.

        `within` is in seconds. Refused resources count as answered and are listed in the outcome.
        """
        wanted = tuple(types)
        try:
            async with asyncio.timeout(within):
                while self._waiting(wanted):
                    await self._progress.wait()
        except TimeoutError:
            return Outcome(False, self._errors(wanted), self._waiting(wanted))
        return Outcome(True, self._errors(wanted))

    def settled(self, types: Iterable[str]) -> bool:
        """Whether `wait_acked` would return at once."""
        return not self._waiting(tuple(types))

    async def roll_to(self, stage: Stage, within: float = PATIENCE) -> Outcome:
        """Publish a stage and wait, at most `within` seconds, for the ACKs that end it."""
        self.publish(stage.snapshot)
        return await self.wait_acked(stage.await_types, within)

    def state(self) -> tuple[ClientState, ...]:
        """What each client that counts has acknowledged, refused, and been sent."""
        return tuple(
            ClientState(session.node_id, session.nacks, session.status()) for session in self._counted()
        )

    def refusals(self) -> tuple[Refusal, ...]:
        """What is wanted and was refused by a client that counts."""
        return tuple(dict.fromkeys(r for session in self._counted() for r in session.refusals()))

    @property
    def nacks(self) -> int:
        return sum(session.nacks for session in self._counted())

    def client_status(self, request: Any) -> Any:
        """The answer to a ClientStatusRequest, about all clients."""
        self._look_at_peers()
        return client_status([stream.session for stream in self.streams], request)

    # Inside

    def _look_at_peers(self) -> None:
        if self._users is not None:
            turn_away(self._path, self._users)

    def _refusal_of(self, context: Any) -> Callable[[], str]:
        """For a client: why it may not be here (any more), "" if it may. The socket's own were judged."""
        if self._tcp is None or context.peer().startswith("unix:"):
            return str
        return self._tcp.admitted(context)

    def _counted(self) -> list[Session]:
        sessions = [stream.session for stream in self.streams]
        if self._awaits is None:
            return sessions
        return [session for session in sessions if session.node_id == self._awaits]

    def _waiting(self, types: tuple[str, ...]) -> tuple[str, ...]:
        sessions = self._counted()
        if not sessions:
            return types
        return tuple(kind for kind in types if not all(session.settled(kind) for session in sessions))

    def _errors(self, types: tuple[str, ...]) -> tuple[Refusal, ...]:
        return tuple(refusal for refusal in self.refusals() if refusal.type_url in types)

    async def _beat(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            for stream in self.streams:
                stream.hear(Session.heartbeat)

    def _note_progress(self) -> None:
        """Wake all that wait; the next wait starts on a fresh event."""
        self._progress.set()
        self._progress = asyncio.Event()

    async def _serve(
        self, session: Callable[[], Session], requests: AsyncIterator[Any], context: Any
    ) -> None:
        self._look_at_peers()
        refusal = self._refusal_of(context)
        if why := refusal():
            log.warning("turned away %s: %s", context.peer(), why)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, why)
        stream = Stream(session(), refusal)
        stream.session.most_names = self._limits.names
        if self._offer is not None:
            self.publish(self._offer())
        if self._published is not None:
            stream.session.publish(self._published)
        self.streams.add(stream)
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(stream.write(context))
                broken = await self._read(stream, requests)
                stream.end()
                await asyncio.wait([writer], timeout=LAST_MESSAGE)
                writer.cancel()
            if broken is not None:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(broken))
        finally:
            self.streams.discard(stream)
            self._note_progress()

    async def _read(self, stream: Stream, requests: AsyncIterator[Any]) -> ProtocolError | None:
        """Serve requests until the client ends the stream, or breaks the protocol."""
        async for request in requests:
            try:
                self._receive(stream, request)
            except ProtocolError as error:
                return error
            except Exception:
                # Whatever one request does to us, the stream and its client go on.
                log.exception("a request for %s could not be served", request.type_url)
            await stream.room()
        return None

    def _receive(self, stream: Stream, request: Any) -> None:
        session = stream.session
        stream.push(session.receive(request))
        for event in session.drain_events():
            if isinstance(event, Nacked):
                names = ", ".join(event.names)
                log.warning("%s refused %s %s: %s", session.node_id, event.type_url, names, event.message)
        self._note_progress()
