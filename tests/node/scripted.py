"""A backend inside a workload that answers as it is told and remembers what it got."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from clients import make_socket

from penstock.lab import LabWorkload


class Scripted:
    """Answers each request by `answer(number of the request)`: a status, or 0 to close without any."""

    def __init__(
        self,
        where: LabWorkload,
        port: int,
        answer: Callable[[int], int] = lambda _: 200,
        *,
        version: int = 4,
        body: bytes = b"",
    ) -> None:
        self._body = body
        self.heads: list[str] = []
        self.peers: list[str] = []
        self._clients: list[socket.socket] = []
        self.arrived = threading.Condition()
        self._answer = answer
        self._sock = make_socket(where.netns, version=version)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind(("::" if version == 6 else "0.0.0.0", port))
        self._sock.listen(64)
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._sock.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            client.settimeout(10)
            while head := self._read(client):
                with self.arrived:
                    self.heads.append(head)
                    self.peers.append(client.getpeername()[0])
                    number = len(self.heads) - 1
                    self.arrived.notify_all()
                status = self._answer(number)
                if not status:
                    return
                head = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(self._body))
                client.sendall(head + self._body)

    @staticmethod
    def _read(client: socket.socket) -> str:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := client.recv(65536)):
                return ""
            data += more
        return data.decode("latin-1")

    def wait(self, count: int, seconds: float = 5.0) -> bool:
        """Until `count` requests have come; False if they do not."""
        with self.arrived:
            return self.arrived.wait_for(lambda: len(self.heads) >= count, seconds)

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join()
        # Pooled connections would go on with this one while the next test's stands beside it.
        for client in self._clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
