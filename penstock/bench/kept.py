"""One kept-alive HTTP/1.1 connection of a workload, for benchmarks that wait for an answer to change."""

from __future__ import annotations

import socket
import time

from penstock import lab
from penstock.bench.errors import BenchError
from penstock.bench.site import Site

PACE = 0.0005
"""Seconds between two requests."""
GIVE_UP = 20.0


class Kept:
    """A connection from `client` to (address, port); it is opened again if it ends, which is counted."""

    def __init__(self, place: Site, client: str, address: tuple[str, int]) -> None:
        self._netns, self._address = place.spec.workload(client).netns, address
        self._connection: socket.socket | None = None
        self.lost = 0

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection:
            self._connection.close()

    def ask(self, host: str, path: str = "/") -> int:
        """The status of one GET; 0 if the connection ended instead."""
        try:
            if self._connection is None:
                with lab.entered(self._netns):
                    self._connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                self._connection.settimeout(5.0)
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connection.connect(self._address)
            self._connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            return answered(self._connection)
        except OSError:
            self.lost += 1
            if self._connection:
                self._connection.close()
            self._connection = None
            return 0

    def until(self, status: int, host: str, path: str = "/") -> float:
        """When the first answer with `status` was there (CLOCK_MONOTONIC, s). Raises BenchError."""
        started = time.monotonic()
        while True:
            found = self.ask(host, path)
            now = time.monotonic()
            if found == status:
                return now
            if now - started > GIVE_UP:
                raise BenchError(f"{host}{path}: the answer is {found} and not {status} after {GIVE_UP} s")
            time.sleep(PACE)


def answered(connection: socket.socket) -> int:
    """The status of the next answer (HTTP/1.1 with a content-length). Raises OSError if there is none."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (part := connection.recv(65536)):
            raise ConnectionResetError
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    left = int(fields[b"content-length"]) - len(body)
    while left > 0:
        if not (part := connection.recv(65536)):
            raise ConnectionResetError
        left -= len(part)
    return int(head.split(b" ", 2)[1])
