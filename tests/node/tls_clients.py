"""TLS from inside workloads, as a client that wants to get past a look at its server name would speak it."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from typing import Any

from clients import connect

from penstock.lab import LabNode, LabWorkload


class TlsClient:
    """A TLS connection of which no certificate is checked. Raises OSError where it does not come about.

    With `pieces` the ClientHello goes out in segments of that many bytes; `records` splits it into TLS
    records of that many bytes (RFC 8446, 5.1).
    """

    def __init__(
        self,
        client: LabWorkload | LabNode,
        address: Any,
        port: int,
        name: str | None,
        *,
        timeout: float = 5.0,
        pieces: int = 0,
        records: int = 0,
    ) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        self.sock = connect(client, address, port, timeout=timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._handshake(pieces, records)
        except BaseException:
            self.sock.close()
            raise

    def _handshake(self, pieces: int, records: int) -> None:
        first = True
        while True:
            try:
                self._tls.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                hello = self._out.read()
                if first and records:
                    hello = split(hello, records)
                if first and pieces:
                    for at in range(0, len(hello), pieces):
                        self.sock.sendall(hello[at : at + pieces])
                        time.sleep(0.002)  # so that they are segments of their own
                else:
                    self.sock.sendall(hello)
                first = False
                self._fill()

    def _flush(self) -> None:
        if data := self._out.read():
            self.sock.sendall(data)

    def _fill(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("closed")
        self._in.write(data)

    def echo(self, data: bytes = b"back please\n") -> bytes:
        """What comes back. Raises OSError."""
        self._tls.write(data)
        self._flush()
        while True:
            with suppress(ssl.SSLWantReadError):
                return self._tls.read(4096)
            self._fill()

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> TlsClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def split(hello: bytes, size: int) -> bytes:
    """One TLS record as several."""
    kind, version, body = hello[:1], hello[1:3], hello[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(kind + version + len(part).to_bytes(2, "big") + part for part in parts)


def tls(client: LabWorkload | LabNode, address: Any, port: int, name: str | None, **how: Any) -> str:
    """How it ended: "echo", "reset", "closed" or "silence"."""
    try:
        with TlsClient(client, address, port, name, **how) as connection:
            return "echo" if connection.echo() == b"back please\n" else "closed"
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "silence"
    except OSError:
        return "closed"


def plain(client: LabWorkload | LabNode, address: Any, port: int, data: bytes, timeout: float = 5.0) -> str:
    """The same for bytes that are no TLS."""
    try:
        with connect(client, address, port, timeout=timeout) as sock:
            sock.sendall(data)
            return "answer" if sock.recv(100) else "closed"
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "silence"
