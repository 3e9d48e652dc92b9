"""Clients inside workloads: sockets made in a workload's namespace and used from the test's own process."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from penstock import lab
from penstock.lab import LabNode, LabWorkload

REFUSED = 0.6
"""Seconds after which what has not come through is taken as dropped (a SYN is sent once in this time)."""
T = TypeVar("T")


def until(what: str, question: Callable[[], T], seconds: float = 30.0) -> T:
    """The first true answer to `question`; AssertionError naming `what` if none comes in time."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what} (last: {answer!r})")
        time.sleep(0.01)  # between two looks at something that tells nobody when it changes
    return answer


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def pod(self) -> str:
        """Who answered, as the lab's backend tells it."""
        return str(self.json["pod"])


def make_socket(where: Path, kind: int = socket.SOCK_STREAM, version: int = 4) -> socket.socket:
    with lab.entered(where):
        return socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind)


def connect(
    client: LabWorkload | LabNode,
    address: Any,
    port: int,
    *,
    timeout: float = 5.0,
    source: Any = None,
    source_port: int = 0,
) -> socket.socket:
    """A TCP connection from inside `client`. Raises OSError, TimeoutError where packets are dropped."""
    version = 6 if ":" in str(address) else 4
    sock = make_socket(client.netns, version=version)
    sock.settimeout(timeout)
    try:
        if source or source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((str(source or ("0.0.0.0" if version == 4 else "::")), source_port))
        sock.connect((str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock


class Http:
    """One kept-alive connection. Requests are sent as written: the path is not tidied up."""

    def __init__(self, client: LabWorkload, address: Any, port: int, *, timeout: float = 5.0) -> None:
        self.sock = connect(client, address, port, timeout=timeout)
        host = f"[{address}]" if ":" in str(address) else str(address)
        self._connection = http.client.HTTPConnection(host, port)
        self._connection.sock = self.sock
        self._connection.auto_open = 0

    def ask(
        self,
        path: str = "/",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        self._connection.request(method, path, body=body, headers=dict(headers or {}))
        response = self._connection.getresponse()
        return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})

    def close(self) -> None:
        self.sock.close()
        self._connection.close()

    def __enter__(self) -> Http:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(
    client: LabWorkload, address: Any, port: int, path: str = "/", *, timeout: float = 5.0, **how: Any
) -> Answer:
    """One request on a connection of its own."""
    with Http(client, address, port, timeout=timeout) as connection:
        return connection.ask(path, **how)


def status_or_reset(connection: Http, path: str = "/") -> int:
    """The status code of one more request; 0 if the connection was reset or closed instead."""
    try:
        return connection.ask(path).status
    except (ConnectionError, http.client.HTTPException):
        return 0


def echoes(client: LabWorkload, address: Any, port: int, *, timeout: float = REFUSED) -> bool:
    """Whether a TCP echo server answers there."""
    try:
        with connect(client, address, port, timeout=timeout) as sock:
            sock.sendall(b"back please")
            return sock.recv(99) == b"back please"
    except OSError:
        return False


def udp_echoes(
    client: LabWorkload, address: Any, port: int, *, connected: bool = True, timeout: float = REFUSED
) -> bool:
    """Whether a UDP echo server answers, and seems to answer from just the address that was asked."""
    with make_socket(client.netns, socket.SOCK_DGRAM, 6 if ":" in str(address) else 4) as sock:
        sock.settimeout(timeout)
        try:
            if connected:
                sock.connect((str(address), port))
                sock.send(b"back please")
                return sock.recv(99) == b"back please"
            sock.sendto(b"back please", (str(address), port))
            data, peer = sock.recvfrom(99)
        except (TimeoutError, ConnectionError):
            return False
        assert peer[:2] == (str(address), port)
        return data == b"back please"


def pings(client: LabWorkload, address: Any) -> bool:
    process = lab.run_in(client.netns, ["ping", "-n", "-c1", "-W1", str(address)], stdout=subprocess.DEVNULL)
    return process.wait(timeout=10) == 0


@contextmanager
def extra_address(where: LabWorkload | LabNode, address: Any, device: str = "eth0") -> Iterator[None]:
    """One more address in a namespace, while the block lasts."""
    text = f"{address}/{128 if ':' in str(address) else 32}"
    flags = ["nodad"] if ":" in text else []
    assert lab.run_in(where.netns, ["ip", "addr", "add", text, "dev", device, *flags]).wait() == 0
    try:
        yield
    finally:
        assert lab.run_in(where.netns, ["ip", "addr", "del", text, "dev", device]).wait() == 0


def served(sock: socket.socket, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
    """What comes back for a request; nothing if the connection ends, or is silent for a while."""
    sock.settimeout(1.0)
    try:
        sock.sendall(request)
        return sock.recv(4096)
    except (TimeoutError, ConnectionError):
        return b""


class Sniffer:
    """Every TCP segment with a payload that passes a device meanwhile, as (source port, bytes)."""

    def __init__(self, where: Path, device: str) -> None:
        with lab.entered(where):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.bind((device, 3))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self.segments: list[tuple[int, bytes]] = []

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.setblocking(False)
        with suppress(BlockingIOError):
            while frame := self._sock.recv(1 << 17):
                self._take(frame)
        self._sock.close()

    def _take(self, frame: bytes) -> None:
        kind = frame[12:14]
        if kind == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
            start, end = 14 + (frame[14] & 15) * 4, 14 + int.from_bytes(frame[16:18], "big")
        elif kind == b"\x86\xdd" and frame[20] == socket.IPPROTO_TCP:
            start, end = 54, 54 + int.from_bytes(frame[18:20], "big")
        else:
            return
        payload = frame[start + (frame[start + 12] >> 4) * 4 : end]
        if payload:
            self.segments.append((int.from_bytes(frame[start : start + 2], "big"), payload))

    def carried(self, text: bytes) -> bool:
        return any(text in payload for _, payload in self.segments)

    def tls(self) -> bool:
        """Whether everything seen is TLS, handshakes included (RFC 8446, 5.1), and there was some."""
        starts = [payload for _, payload in self.segments if payload[1:3] in (b"\x03\x01", b"\x03\x03")]
        return any(p[0] == 0x16 for p in starts) and any(p[0] == 0x17 for p in starts)


class Load:
    """Requests from a thread of its own, on one kept-alive connection or on a new one each.

    `pause` are the seconds between two: without any a load takes a CPU, and what it watches starves. `seen`
    counts the answers: status codes, or the name of the exception in place of one. A kept-alive connection
    that breaks is counted and made anew.
    """

    def __init__(
        self,
        client: LabWorkload,
        address: Any,
        port: int,
        path: str = "/",
        *,
        keep: bool = True,
        pause: float = 0.0,
    ) -> None:
        self._client, self._address, self._port, self._path, self._keep = client, address, port, path, keep
        self._pause = pause
        self.seen: Counter[int | str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"load of {client.name}")

    def _run(self) -> None:
        connection: Http | None = None
        while not self._stop.is_set():
            try:
                connection = connection or Http(self._client, self._address, self._port)
                self.seen[connection.ask(self._path).status] += 1
                broken = False
            except (OSError, http.client.HTTPException) as error:
                self.seen[type(error).__name__] += 1
                broken = True
            if connection is not None and (broken or not self._keep):
                connection.close()
                connection = None
            if self._pause:
                self._stop.wait(self._pause)
        if connection is not None:
            connection.close()

    def more(self, count: int = 20, seconds: float = 10.0) -> None:
        """Wait for so many more answers."""
        target = self.seen.total() + count
        until(f"{count} more answers", lambda: self.seen.total() >= target, seconds)

    def __enter__(self) -> Load:
        self._thread.start()
        self.more(3)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
