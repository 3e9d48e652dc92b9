"""`penstock bench policy`: from a manifest's change on disk to the new verdict, as a client meets it.

The clock starts just before the rename that puts the manifest into place, with the daemon at rest and 50
workloads, each with a policy. It stops

- for an L4 change when the kernel treats real packets the new way: a client sends numbered datagrams
  over one live flow every half millisecond to a socket in the server's namespace; the first sent from which
  on the new verdict holds is the end. A fresh TCP connection must then meet the same verdict.
- for an L7 change when a client that asks over one kept-alive connection through Envoy reads the first
  answer with the new status (200 or 403), after which three more must be the same.

So resolution is half a millisecond (L4) and one request (L7), and each figure is an upper bound.
"""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from penstock import lab
from penstock.bench import crowd
from penstock.bench.errors import BenchError
from penstock.bench.kept import answered
from penstock.bench.record import Bar, Result
from penstock.bench.serving import HTTP_PORT
from penstock.bench.site import DaemonUnderTest, Site, alone, daemon, scratch, site
from penstock.bench.stats import median, summary

MEDIAN_BAR, P99_BAR = 50.0, 200.0
CHANGES, QUICK_CHANGES = 200, 30
PACE = 0.0005
"""Seconds between two probes."""
GIVE_UP = 10.0
QUIET = 0.008
"""Seconds without an arrival after which datagrams count as dropped."""

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError, and BenchError where a verdict does not come or does not stay."""
    changes = QUICK_CHANGES if quick else CHANGES
    with alone(), scratch() as directory:
        tell(f"a lab of {crowd.WORKLOADS} workloads")
        with (
            site("policy", crowd.workloads(), directory) as place,
            daemon(place, crowd.policies()) as running,
        ):
            running.write("plain", crowd.plain_policy(True))
            running.write("http", crowd.http_policy(True))
            running.settle()
            before = len(running.applied())
            l4, l7, reconnects = _measure(place, running, changes, tell)
            steps = running.applied()[before:]
    figures = {"l4": summary(l4), "l7": summary(l7)}
    bars = [
        Bar(f"{arm} {name}", figures[arm][name], limit, "ms")
        for arm in figures
        for name, limit in (("median", MEDIAN_BAR), ("p99", P99_BAR))
    ]
    return Result(
        bench="policy",
        method="ms from a manifest's rename to the new verdict as a client meets it: l4 by datagrams of a "
        "live flow, l7 by requests over a kept-alive connection through Envoy",
        settings={"changes": changes, "workloads": crowd.WORKLOADS, "probe_pace_ms": PACE * 1000},
        arms={
            **{arm: {**found, "unit": "ms"} for arm, found in figures.items()},
            "l7_connections_lost": {"count": reconnects},
            "daemon_steps": {name: round(median([s[name] for s in steps]), 2) for name in steps[0]}
            if steps
            else {},
        },
        bars=tuple(bars),
        raw={"l4_ms": l4, "l7_ms": l7, "daemon_steps_ms": steps},
    )


def _measure(
    place: Site, running: DaemonUnderTest, changes: int, tell: Tell
) -> tuple[list[float], list[float], int]:
    l4: list[float] = []
    l7: list[float] = []
    # A fixed seed: the same waits in each run, none of them in step with anything of the daemon's.
    chance = random.Random(1)
    with Datagrams(place) as datagrams, KeptAlive(place) as requests:
        datagrams.until(True, time.monotonic())
        requests.until(200, time.monotonic())
        for number in range(changes):
            round_, of_l4 = divmod(number, 2)
            allowed = bool(round_ % 2)
            if of_l4:
                rename = running.prepare("plain", crowd.plain_policy(allowed))
                time.sleep(chance.uniform(0.01, 0.06))
                started = time.monotonic()
                rename()
                l4.append(round((datagrams.until(allowed, started) - started) * 1000, 3))
                _check_connections(place, allowed)
            else:
                rename = running.prepare("http", crowd.http_policy(allowed))
                time.sleep(chance.uniform(0.01, 0.06))
                started = time.monotonic()
                rename()
                l7.append(round((requests.until(200 if allowed else 403, started) - started) * 1000, 3))
            running.settle()
            if (number + 1) % 10 == 0:
                so_far = f"L4 median {median(l4):.1f} ms, L7 median {median(l7):.1f} ms"
                tell(f"{number + 1}/{changes} changes: {so_far}")
        return l4, l7, requests.lost


def _socket(place: Site, name: str, kind: socket.SocketKind) -> socket.socket:
    """A socket that lives in the workload's namespace."""
    with lab.entered(place.spec.workload(name).netns):
        return socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)


class Datagrams:
    """One live UDP flow from the client to the plain server, both ends held here."""

    def __init__(self, place: Site) -> None:
        self._receiver = _socket(place, crowd.PLAIN_SERVER, socket.SOCK_DGRAM)
        self._receiver.bind((place.address(crowd.PLAIN_SERVER), crowd.PLAIN_PORT))
        self._receiver.setblocking(False)
        self._sender = _socket(place, crowd.CLIENT, socket.SOCK_DGRAM)
        self._sender.connect((place.address(crowd.PLAIN_SERVER), crowd.PLAIN_PORT))
        self._number = 0

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.close()
        self._sender.close()

    def _send(self) -> None:
        self._number += 1
        self._sender.send(self._number.to_bytes(8, "big"))

    def _arrived(self) -> int:
        """The highest number that has arrived since the last call; 0 if none."""
        highest = 0
        while True:
            try:
                highest = max(highest, int.from_bytes(self._receiver.recv(64), "big"))
            except BlockingIOError:
                return highest

    def until(self, allowed: bool, started: float) -> float:
        """When the first datagram was sent from which on this verdict holds (CLOCK_MONOTONIC, seconds)."""
        self._arrived()
        first = self._number + 1
        sent: dict[int, float] = {}
        last_arrived = first - 1
        while True:
            self._send()
            now = sent[self._number] = time.monotonic()
            if now - started > GIVE_UP:
                raise BenchError(
                    f"datagrams are not {'let through' if allowed else 'dropped'} after {GIVE_UP} s"
                )
            time.sleep(PACE)
            arrived = self._arrived()
            if arrived >= first:
                if allowed:
                    return sent[arrived]
                last_arrived = arrived
            elif not allowed and now - sent.get(last_arrived + 1, now) > QUIET:
                return sent[last_arrived + 1]


class KeptAlive:
    """One HTTP connection of the client to the HTTP server, through Envoy."""

    def __init__(self, place: Site) -> None:
        self._place = place
        self._address = (place.address(crowd.HTTP_SERVER), HTTP_PORT)
        self._request = f"GET {crowd.LIVE_PATH} HTTP/1.1\r\nHost: {crowd.HTTP_SERVER}\r\n\r\n".encode()
        self._connection: socket.socket | None = None
        self.lost = 0

    def __enter__(self) -> KeptAlive:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection:
            self._connection.close()

    def ask(self) -> int:
        """The status of one request, 0 if the connection ended instead (the next call opens a new one)."""
        try:
            if self._connection is None:
                self._connection = _socket(self._place, crowd.CLIENT, socket.SOCK_STREAM)
                self._connection.settimeout(2.0)
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connection.connect(self._address)
            self._connection.sendall(self._request)
            return answered(self._connection)
        except OSError:
            self.lost += 1
            if self._connection:
                self._connection.close()
            self._connection = None
            return 0

    def until(self, status: int, started: float) -> float:
        """When the first answer with `status` was there, followed by more of them (CLOCK_MONOTONIC, s)."""
        while True:
            found = self.ask()
            now = time.monotonic()
            if found == status:
                others = [self.ask() for _ in range(3)]
                if all(other == status for other in others):
                    return now
                raise BenchError(f"after the first {status} came {others}")
            if now - started > GIVE_UP:
                raise BenchError(f"the answer is {found} and not {status} after {GIVE_UP} s")
            time.sleep(PACE)


def _check_connections(place: Site, allowed: bool) -> None:
    """A fresh TCP connection to the same port meets the same verdict. Raises BenchError if not."""
    address = (place.address(crowd.PLAIN_SERVER), crowd.PLAIN_PORT)
    with (
        _socket(place, crowd.PLAIN_SERVER, socket.SOCK_STREAM) as listener,
        _socket(place, crowd.CLIENT, socket.SOCK_STREAM) as client,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        client.setblocking(False)
        client.connect_ex(address)
        # The rule is two writes, TCP and UDP: a SYN in between is dropped, and sent again after 1 s.
        _, connected, _ = select.select([], [client], [], GIVE_UP if allowed else 0.03)
        refused = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if refused or bool(connected) != allowed:
            raise BenchError(
                f"datagrams are {'let through' if allowed else 'dropped'}, but a connection is not"
            )


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: one line for each kind of change."""
    return [
        (name, *(data["arms"][arm][key] for key in ("median", "p90", "p99", "max", "samples")))
        for arm, name in (("l4", "L4 rule, in the kernel"), ("l7", "L7 rule, in Envoy"))
    ]


COLUMNS = ("CHANGE (ms)", "MEDIAN", "P90", "P99", "MAX", "SAMPLES")
