"""`penstock bench attach`: from a workload's coming to its traffic being treated as its own.

A node with a daemon knows a workload by its manifest, and its namespace is not there. Then it is made as a
CNI plugin does it (namespace, veth, addresses, routes), while the daemon has no more than the kernel's
events to go by. Two clocks start: one just before the namespace appears, one when its last address or route
is in place. They stop

- for L4 with the first datagram that arrives at a server which lets in only this workload's identity: sent
  every half millisecond from the moment on that the namespace can send;
- for L7 with the first connection that is answered with 200 through Envoy, for a rule that names a path; one
  that does not come about within PATIENCE is given up for the next. Envoy must have a listener for the
  workload's class by then, whose going and coming is part of it.

Nothing is allowed before: until the kernel knows whose address it is, it is the world's. After each round
the namespace goes, and the time is taken until no entry of the kernel speaks of the address any more.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socket import SO_ERROR, SOL_SOCKET
from typing import Any

from penstock import lab
from penstock.bench.errors import BenchError
from penstock.bench.record import Bar, Result
from penstock.bench.site import Site, allow, alone, daemon, policy, scratch, site, workload
from penstock.bench.stats import summary
from penstock.control import ControlClient

COMER, SERVER = "comer", "server"
HTTP_PORT, PLAIN_PORT = 8080, 7000
BAR = 50.0
ROUNDS, QUICK_ROUNDS = 60, 10
OTHERS = 20
"""Workloads that are there all the time, and that the daemon need not look at again."""
PACE = 0.0005
GIVE_UP = 10.0
PATIENCE = 0.002

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError, and BenchError where a workload is not steered at all."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    raw: dict[str, list[float]] = {name: [] for name in ("l4", "l4_whole", "l7", "l7_whole", "gone")}
    with alone(), scratch() as directory:
        others = [workload(f"other{n}") for n in range(OTHERS)]
        serves = {
            "ports": [{"name": "http", "containerPort": HTTP_PORT}],
            "run": [[sys.executable, "-m", "penstock.bench.answer", str(HTTP_PORT)]],
        }
        with (
            site("attach", [workload(COMER), workload(SERVER, **serves), *others], directory) as place,
            daemon(place, _policies()) as running,
            ControlClient(running.run_dir) as asked,
        ):
            for number in range(rounds):
                for arm, probe in (("l4", _datagrams), ("l7", _requests)):
                    raw["gone"].append(_go(place, asked))
                    appeared, whole, first = _come(place, probe)
                    raw[arm].append(round((first - appeared) * 1000, 3))
                    raw[f"{arm}_whole"].append(round((first - whole) * 1000, 3))
                    running.settle()
                if not (number + 1) % 5:
                    so_far = ", ".join(f"{arm} {summary(each)['median']}" for arm, each in raw.items())
                    tell(f"{number + 1}/{rounds} rounds, medians in ms: {so_far}")
            made = [a - b for a, b in zip(raw["l4"], raw["l4_whole"], strict=True)]
    figures = {arm: summary(each) for arm, each in raw.items()}
    return Result(
        bench="attach",
        method="ms from a namespace's appearing (and from its last address and route) until its traffic is "
        "treated as its own: l4 by datagrams, l7 by connections through Envoy; and until the kernel has "
        "forgotten it",
        settings={"rounds": rounds, "other_workloads": OTHERS, "probe_pace_ms": PACE * 1000},
        arms={**{arm: {**each, "unit": "ms"} for arm, each in figures.items()}, "making": summary(made)},
        bars=tuple(
            Bar(f"{words} {name}", figures[arm][name], BAR, "ms")
            for arm, words in (("l4", "L4, from the namespace"), ("l7_whole", "L7, from the last route"))
            for name in ("median", "p99")
        ),
        raw=raw,
    )


def _policies() -> list[dict[str, Any]]:
    rule = {"method": "GET", "path": "/"}
    return [
        policy(
            "server",
            SERVER,
            ingress=[allow(COMER, (PLAIN_PORT, "UDP")), allow(COMER, (HTTP_PORT, "TCP"), http=[rule])],
        )
    ]


def _go(place: Site, asked: ControlClient) -> float:
    """Take the workload's namespace away; milliseconds until the kernel's tables say nothing of it."""
    lab.remove_workload(place.spec, COMER)
    started = time.monotonic()
    while any(e["name"].endswith(f"/{COMER}") for e in asked.call("endpoints")):
        if time.monotonic() - started > GIVE_UP:
            raise BenchError("the kernel still knows the workload that has gone")
        time.sleep(PACE)
    took = time.monotonic() - started
    # The kernel takes its time to end a namespace, and until then the name of the link is taken.
    gone = place.spec.workload(COMER)
    with lab.entered(place.spec.node(gone.node).netns):
        while gone.device in Path("/proc/thread-self/net/dev").read_text():
            if time.monotonic() - started > GIVE_UP:
                raise BenchError("the link of the workload that has gone is still there")
            time.sleep(PACE)
    asked.call("wait", timeout=60, seconds=30)
    return round(took * 1000, 3)


def _come(place: Site, probe: Callable[[Site, float], float]) -> tuple[float, float, float]:
    """When its namespace began to be made, when it was whole, and when it was first treated as itself."""
    appeared = time.monotonic()
    lab.add_workload(place.spec, COMER)
    whole = time.monotonic()
    return appeared, whole, probe(place, whole)


def _socket(place: Site, name: str, kind: socket.SocketKind) -> socket.socket:
    with lab.entered(place.spec.workload(name).netns):
        found = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    found.setblocking(False)
    return found


def _datagrams(place: Site, started: float) -> float:
    where = (place.address(SERVER), PLAIN_PORT)
    with (
        _socket(place, SERVER, socket.SOCK_DGRAM) as receiver,
        _socket(place, COMER, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(where)
        sent: list[float] = []
        while True:
            sent.append(time.monotonic())
            # While the neighbour is not known, what is sent waits in a short queue.
            with suppress(BlockingIOError):
                sender.sendto(len(sent).to_bytes(4, "big"), where)
            if select.select([receiver], [], [], PACE)[0]:
                return sent[int.from_bytes(receiver.recv(16), "big") - 1]
            if sent[-1] - started > GIVE_UP:
                raise BenchError("no datagram of the new workload arrives")


def _requests(place: Site, started: float) -> float:
    """When the first connection began that was answered with 200. One whose SYN is lost waits for 1 s."""
    while True:
        began = time.monotonic()
        if began - started > GIVE_UP:
            raise BenchError("no request of the new workload is answered")
        with _socket(place, COMER, socket.SOCK_STREAM) as one:
            one.connect_ex((place.address(SERVER), HTTP_PORT))
            if not select.select([], [one], [], PATIENCE)[1] or one.getsockopt(SOL_SOCKET, SO_ERROR):
                continue
            one.send(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
            if select.select([one], [], [], 1.0)[0] and one.recv(65536).startswith(b"HTTP/1.1 200"):
                return began


COLUMNS = ("FROM … UNTIL (ms)", "MEDIAN", "P90", "P99", "MAX", "SAMPLES")
WORDS = {
    "l4": "namespace appears … L4 as its own",
    "l4_whole": "last route … L4 as its own",
    "l7": "namespace appears … L7 through Envoy",
    "l7_whole": "last route … L7 through Envoy",
    "gone": "namespace goes … nothing in the kernel",
    "making": "making the namespace (part of the first)",
}


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: one line for each clock."""
    keys = ("median", "p90", "p99", "max", "samples")
    return [(words, *(data["arms"][arm][key] for key in keys)) for arm, words in WORDS.items()]
