"""Asking a server, a socket for each question: its port is random, and only that server's answer gets in.

The sockets carry the mark of what the proxy sends, and leave from the proxy's source ports.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from ipaddress import ip_address

import dns.message

from penstock.dns.messages import Question, answers

Answer = tuple[bytes, dns.message.Message]
"""As it came, with the number of the question; and read."""

TRIES = (1.0, 1.5, 2.0)
"""Seconds that each try waits. Resolvers give up after five by themselves."""
TCP_TIMEOUT = 5.0
MARK = 0xB00
_IP_LOCAL_PORT_RANGE = 51
_LARGEST = 65535


class NoAnswerError(Exception):
    """The server did not answer, or cannot be reached."""


def _socket(server: str, kind: int, ports: tuple[int, int]) -> socket.socket:
    family = socket.AF_INET6 if ip_address(server).version == 6 else socket.AF_INET
    made = socket.socket(family, kind)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        made.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, ports[0] | ports[1] << 16)
    except OSError:
        made.close()
        raise
    return made


async def ask(
    question: Question, wire: bytes, server: str, port: int, ports: tuple[int, int], *, tcp: bool
) -> Answer:
    """Raises NoAnswerError."""
    if tcp:
        return await _by_tcp(question, wire, server, port, ports)
    for seconds in TRIES:
        try:
            return await _by_udp(question, wire, server, port, ports, seconds)
        except (OSError, TimeoutError):
            continue
    raise NoAnswerError(f"{server} does not answer")


def _numbered(wire: bytes) -> tuple[bytes, bytes]:
    number = secrets.token_bytes(2)
    return number, number + wire[2:]


def _ours(question: Question, number: bytes, found: bytes) -> Answer | None:
    """`found` under the client's own number, if it answers what was sent."""
    if found[:2] != number:
        return None
    found = question.message.id.to_bytes(2, "big") + found[2:]
    message = answers(question, found)
    return (found, message) if message is not None else None


async def _by_udp(
    question: Question, wire: bytes, server: str, port: int, ports: tuple[int, int], seconds: float
) -> Answer:
    loop = asyncio.get_running_loop()
    number, sent = _numbered(wire)
    with _socket(server, socket.SOCK_DGRAM, ports) as made:
        made.connect((server, port))
        await loop.sock_sendall(made, sent)
        async with asyncio.timeout(seconds):
            while True:
                found = _ours(question, number, await loop.sock_recv(made, _LARGEST))
                if found is not None:
                    return found


async def _by_tcp(question: Question, wire: bytes, server: str, port: int, ports: tuple[int, int]) -> Answer:
    loop = asyncio.get_running_loop()
    number, sent = _numbered(wire)
    made = _socket(server, socket.SOCK_STREAM, ports)
    try:
        async with asyncio.timeout(TCP_TIMEOUT):
            await loop.sock_connect(made, (server, port))
            reader, writer = await asyncio.open_connection(sock=made)
            try:
                writer.write(len(sent).to_bytes(2, "big") + sent)
                size = int.from_bytes(await reader.readexactly(2), "big")
                found = _ours(question, number, await reader.readexactly(size))
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        made.close()
        raise NoAnswerError(f"{server} does not answer over TCP") from error
    if found is None:
        raise NoAnswerError(f"{server} answered something else")
    return found
