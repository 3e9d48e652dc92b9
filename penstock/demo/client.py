"""A client inside a workload's network namespace: HTTP over one kept-alive connection, and plain TCP.

Sockets are made inside the namespace and used from outside: a socket stays where it was made.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.lab import entered

TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`pod` is the backend that says it answered, if one did. `seconds` is from the send to the last byte."""

    status: int
    body: bytes
    pod: str
    seconds: float


class Client(http.client.HTTPConnection):
    """HTTP/1.1 from `netns` to `address`. `connections` counts how often it had to connect.

    Every method raises OSError or http.client.HTTPException when no good answer comes.
    """

    def __init__(self, netns: Path, address: str, port: int = 80, *, timeout: float = TIMEOUT) -> None:
        super().__init__(address, port, timeout=timeout)
        self._netns = netns
        self.connections = 0

    def connect(self) -> None:
        self.sock = dial(self._netns, self.host, self.port, self.timeout or TIMEOUT)
        self.connections += 1

    def ask(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request and read its whole answer."""
        started = time.perf_counter()
        self.request(method, path, headers=dict(headers or {}))
        response = self.getresponse()
        body = response.read()
        taken = time.perf_counter() - started
        pod = ""
        if response.getheader("content-type", "").startswith("application/json"):
            pod = str(json.loads(body).get("pod", ""))
        return Answer(response.status, body, pod, taken)


def dial(netns: Path, address: str, port: int, timeout: float = TIMEOUT) -> socket.socket:
    """A TCP connection out of `netns`. Raises OSError; TimeoutError where packets are dropped."""
    with entered(netns):
        sock = socket.create_connection((address, port), timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ask(
    netns: Path,
    address: str,
    path: str,
    *,
    port: int = 80,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> Answer:
    """One request over a connection of its own."""
    client = Client(netns, address, port, timeout=timeout)
    try:
        return client.ask(path, method, headers)
    finally:
        client.close()


def echoed(netns: Path, address: str, port: int, data: bytes) -> bytes:
    """Send `data` to a backend that sends back what it gets; what came back, up to the same length."""
    got = bytearray()
    with dial(netns, address, port) as sock:
        for at in range(0, len(data), 16384):
            chunk = data[at : at + 16384]
            sock.sendall(chunk)
            expected = min(at + len(chunk), len(data))
            while len(got) < expected and (part := sock.recv(65536)):
                got += part
    return bytes(got)
