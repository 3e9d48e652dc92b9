"""The DNS proxy: what the kernel steers here is judged, answered or passed on, recorded before it is told.

The order of an answer: the server's word, the record of its addresses, the kernel's entries for them, the
client. A question of somebody who is not known gets no answer; it is asked again.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import dns.message
import dns.rcode

from penstock.dns import messages, upstream
from penstock.dns.learned import Learned
from penstock.dns.messages import Question
from penstock.dns.model import Client, DnsPlan
from penstock.dns.question import Resolver
from penstock.dns.recorded import FullError
from penstock.dns.sockets import Asked, answering, asked, packet
from penstock.redirect.libbpf import BpfError

UDP, TCP = 17, 6
MOST_IN_FLIGHT, MOST_OF_ONE = 1024, 128
"""Questions that wait for a server, in all and of one workload."""
MOST_CONNECTIONS = 256
IDLE = 10.0
"""Seconds that a TCP connection may be silent."""
_AT_ONCE = 64
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class Settings:
    """`upstreams` are asked by the node's own DNS; `source_ports` are the proxy's."""

    port: int
    upstreams: tuple[str, ...]
    min_ttl: int
    source_ports: tuple[int, int]


class Server:
    """`tell` gets a record of each question that was answered; `sockets` are where questions come."""

    def __init__(
        self,
        settings: Settings,
        learned: Learned,
        tell: Callable[[dict[str, Any]], None],
        sockets: Iterable[socket.socket],
    ) -> None:
        self._settings, self._learned, self._tell = settings, learned, tell
        self._resolver = Resolver(DnsPlan())
        self._sockets = tuple(sockets)
        self._answering = {f: answering(f) for f in _FAMILIES}
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_client: Counter[str] = Counter()
        self._connected = 0
        self.counters: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    def use(self, plan: DnsPlan) -> None:
        """From now on questions are judged by `plan`."""
        self._resolver = Resolver(plan)
        self._learned.use(plan, self._resolver)

    async def start(self, told: asyncio.Event) -> None:
        """Serve for ever, once `told` a plan."""
        await told.wait()
        loop = asyncio.get_running_loop()
        for made in self._sockets:
            made.setblocking(False)
            if made.type == socket.SOCK_STREAM:
                await asyncio.start_server(self._connection, sock=made)
            else:
                loop.add_reader(made.fileno(), self._readable, made)
        await asyncio.Event().wait()

    # --- datagrams -------------------------------------------------------------------------------------

    def _readable(self, made: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                wire, ancillary, _, client = made.recvmsg(65535, 256)
            except OSError:
                return
            who = asked(ancillary, client[:2])
            if who is None:
                continue
            self._begin(self._datagram(wire, who), who.client)

    def _begin(self, work: Any, client: str) -> None:
        if len(self._tasks) >= MOST_IN_FLIGHT or self._of_client[client] >= MOST_OF_ONE:
            self.counters["overloaded"] += 1
            work.close()
            return
        task = asyncio.create_task(work)
        self._of_client[client] += 1
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]
            if not task.cancelled() and task.exception() is not None:
                self.counters["failed"] += 1

        task.add_done_callback(ended)

    async def _datagram(self, wire: bytes, who: Asked) -> None:
        found = await self._judged(wire, who, UDP)
        if found is None:
            return
        question, answer = found
        if len(answer) > max(question.size, messages.PLAIN_SIZE):
            answer = messages.refusal(question, "NOERROR", truncated=True)
        raw = self._answering[socket.AF_INET6 if ":" in who.client else socket.AF_INET]
        with suppress(OSError):
            raw.sendto(packet(who, answer), (who.client, 0))

    # --- connections -----------------------------------------------------------------------------------

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client, server = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        self._connected += 1
        try:
            # Who dials the port itself was steered by nobody.
            if server[1] == self._settings.port or self._connected > MOST_CONNECTIONS:
                return
            who = Asked(client[0], client[1], server[0], server[1])
            while True:
                async with asyncio.timeout(IDLE):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    wire = await reader.readexactly(size)
                found = await self._judged(wire, who, TCP)
                if found is None:
                    return
                writer.write(len(found[1]).to_bytes(2, "big") + found[1])
                async with asyncio.timeout(IDLE):
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connected -= 1
            writer.close()

    # --- one question ----------------------------------------------------------------------------------

    async def _judged(self, wire: bytes, who: Asked, protocol: int) -> tuple[Question, bytes] | None:
        resolver = self._resolver
        client = resolver.client(who.client)
        question = messages.read(wire)
        if client is None or question is None:
            self.counters["not answered"] += 1
            return None
        started = time.perf_counter()
        addresses: tuple[str, ...] = ()
        server = self._learned.kernel.identity(who.server)
        if question.transfer or not resolver.allowed(
            client, server, protocol, who.server_port, question.name
        ):
            answer, rcode, addresses = messages.refusal(question, "REFUSED"), "REFUSED", ()
        else:
            answer, rcode, addresses = await self._answer(resolver, client, question, wire, who, protocol)
            # What was asked under an earlier plan may not be told, or learned, against this one.
            if not self._resolver.allowed(client, server, protocol, who.server_port, question.name):
                answer, rcode, addresses = messages.refusal(question, "REFUSED"), "REFUSED", ()
        self.counters[rcode] += 1
        self._tell(
            {
                "type": "dns",
                "time": time.time(),
                "verdict": "DENIED" if rcode == "REFUSED" and not addresses else "SERVED",
                "protocol": "DNS/TCP" if protocol == TCP else "DNS",
                "source": (who.client, who.client_port),
                "destination": (who.server, who.server_port, server),
                "name": question.name or ".",
                "kind": question.kind,
                "rcode": rcode,
                "addresses": list(addresses),
                "latency_us": int((time.perf_counter() - started) * 1e6),
            }
        )
        return question, answer

    async def _answer(
        self, resolver: Resolver, client: Client, question: Question, wire: bytes, who: Asked, protocol: int
    ) -> tuple[bytes, str, tuple[str, ...]]:
        own = resolver.own(who.server)
        found = resolver.answer(client, question.name, own=own)
        if found is not None:
            rcode = "NOERROR" if found.exists else "NXDOMAIN"
            return messages.answer(question, found), rcode, found.addresses
        servers = [(who.server, who.server_port)]
        if own:
            servers = [(s, 53) for s in self._settings.upstreams if not resolver.own(s)]
        for server, port in servers:
            try:
                answer = await upstream.ask(
                    question, wire, server, port, self._settings.source_ports, tcp=protocol == TCP
                )
            except upstream.NoAnswerError:
                self.counters["no answer"] += 1
                continue
            return self._recorded(client, question, *answer)
        return messages.refusal(question, "SERVFAIL"), "SERVFAIL", ()

    def _recorded(
        self, client: Client, question: Question, answer: bytes, message: dns.message.Message
    ) -> tuple[bytes, str, tuple[str, ...]]:
        rcode = dns.rcode.to_text(message.rcode())
        addresses, ttl = messages.told(question, message) if rcode == "NOERROR" else ((), 0)
        # By the plan of now, which may know more than when it was asked.
        now = self._resolver.client_like(client)
        if addresses and now is not None and self._resolver.lists(now, question.name):
            try:
                self._learned.learn(now, question.name, addresses, max(ttl, self._settings.min_ttl))
            except (FullError, BpfError):
                self.counters["table full"] += 1
                return messages.refusal(question, "SERVFAIL"), "SERVFAIL", ()
        return answer, rcode, addresses
