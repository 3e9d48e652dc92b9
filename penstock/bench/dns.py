"""`penstock bench dns`: what an answer costs that passes the DNS proxy.

One node: a server of names, and workloads that ask it, each in its own way. One is allowed the port and no
more, so the kernel carries its questions; one has a rule about names, so each question is judged by the proxy
and passed on; one may reach what it asks for (toFQDNs), so each address is written to the kernel before it
is told, a new one each time. A fourth asks for a Service at the node's own DNS, which the proxy answers by
itself. They take turns. Before all that the very first question is timed, which has the proxy started.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from typing import Any

from penstock import lab
from penstock.bench import names
from penstock.bench.errors import BenchError
from penstock.bench.record import Result
from penstock.bench.site import DaemonUnderTest, Site, alone, daemon, policy, scratch, site, workload
from penstock.bench.stats import median, ratio, summary, turns
from penstock.dns.model import OWN_ADDRESSES

SERVER, SERVICE = "names", "web"
ARMS = {
    "direct": "past the proxy: an L4 rule",
    "self": "past the proxy, again",
    "judged": "through the proxy: rules.dns",
    "learned": "through the proxy and into the kernel: toFQDNs",
    "service": "a Service's name, from the proxy itself",
}
ROUNDS, QUICK_ROUNDS = 9, 3
QUESTIONS, QUICK_QUESTIONS = 400, 200
"""One after the other, in each round of an arm."""
WAITING = 32
"""Questions that are open at once where answers a second are counted."""
PATIENCE = 5.0

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    rounds, questions = (QUICK_ROUNDS, QUICK_QUESTIONS) if quick else (ROUNDS, QUESTIONS)
    raw: dict[str, dict[str, list[Any]]] = {arm: {"us": [], "a_second": []} for arm in ARMS}
    numbers = count()
    with alone(), scratch() as directory, ExitStack() as stack:
        place = stack.enter_context(site("dns", _workloads(), directory))
        server = place.run_in(SERVER, [sys.executable, "-m", "penstock.bench.names", place.address(SERVER)])
        stack.callback(server.wait)
        stack.callback(server.kill)
        running = stack.enter_context(daemon(place, [_service()]))
        asking = {arm: stack.enter_context(_Asking(place, arm)) for arm in ARMS}
        first = asking["service"].one(next(numbers))
        tell(f"the first question, with the proxy's start: {first / 1000:.0f} ms")
        running.write("rules", *_rules())
        running.settle()
        _warm(asking, numbers)
        for number, order in enumerate(turns(tuple(ARMS), rounds)):
            for arm in order:
                raw[arm]["us"].append([asking[arm].one(next(numbers)) for _ in range(questions)])
                raw[arm]["a_second"].append(asking[arm].many(questions, numbers))
            tell(f"{number + 1}/{rounds} rounds: " + _so_far(raw))
        memory = _memory(running)
    return _result(raw, rounds, questions, first, memory)


def _workloads() -> list[dict[str, Any]]:
    return [workload(SERVER), *(workload(arm) for arm in ARMS if arm != "self")]


def _service() -> dict[str, Any]:
    spec = {"selector": {"app": SERVER}, "ports": [{"name": "http", "port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVICE}, "spec": spec}


def _rules() -> list[dict[str, Any]]:
    port = {"ports": [{"port": "53", "protocol": "UDP"}]}
    to = {"toEndpoints": [{"matchLabels": {"app": SERVER}}]}
    judged = {**port, "rules": {"dns": [{"matchPattern": "*.bench.test"}]}}
    return [
        policy("direct", "direct", egress=[{**to, "toPorts": [port]}]),
        policy("judged", "judged", egress=[{**to, "toPorts": [judged]}]),
        policy(
            "learned",
            "learned",
            egress=[{**to, "toPorts": [port]}, {"toFQDNs": [{"matchPattern": "*.bench.test"}]}],
        ),
    ]


class _Asking:
    """One client: a connected socket in its workload, and what it asks."""

    def __init__(self, place: Site, arm: str) -> None:
        with lab.entered(place.spec.workload("direct" if arm == "self" else arm).netns):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._own = arm == "service"
        self._socket.connect((OWN_ADDRESSES[0] if self._own else place.address(SERVER), 53))

    def __enter__(self) -> _Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _question(self, number: int) -> bytes:
        asked = names.question(number & 0xFFFF, number)
        if self._own:
            labels = b"".join(bytes([len(each)]) + each.encode() for each in (SERVICE, "default"))
            return asked[:12] + labels + asked[-5:]
        return asked

    def _answer(self) -> bytes:
        if not select.select([self._socket], [], [], PATIENCE)[0]:
            raise BenchError("a question was not answered")
        found = self._socket.recv(2048)
        if found[3] & 15 or found[6:8] == b"\0\0":
            raise BenchError("a name was not known, or not allowed")
        return found

    def one(self, number: int) -> float:
        """Microseconds from the question to its answer."""
        wire = self._question(number)
        began = time.perf_counter()
        self._socket.send(wire)
        if self._answer()[:2] != wire[:2]:
            raise BenchError("another question was answered")
        return round((time.perf_counter() - began) * 1e6, 1)

    def many(self, questions: int, numbers: Iterator[int]) -> float:
        """Answers a second, with WAITING questions open."""
        began = time.perf_counter()
        sent = 0
        for answered in range(questions):
            while sent < questions and sent - answered < WAITING:
                self._socket.send(self._question(next(numbers)))
                sent += 1
            self._answer()
        return round(questions / (time.perf_counter() - began), 1)


def _warm(asking: Mapping[str, _Asking], numbers: Iterator[int]) -> None:
    for each in asking.values():
        each.many(WAITING, numbers)


def _memory(running: DaemonUnderTest) -> float:
    from penstock.bench.memory import resident

    pid = running.dns_pid()
    if pid is None:
        raise BenchError("no DNS proxy has answered")
    return round(resident(pid)["rss_mb"], 1)


def _medians(raw: Mapping[str, Mapping[str, list[Any]]], arm: str) -> list[float]:
    return [median(each) for each in raw[arm]["us"]]


def _so_far(raw: Mapping[str, Mapping[str, list[Any]]]) -> str:
    return ", ".join(f"{arm} {median(_medians(raw, arm)):.0f} us" for arm in ARMS)


def _result(
    raw: Mapping[str, Mapping[str, list[Any]]], rounds: int, questions: int, first: float, memory: float
) -> Result:
    arms: dict[str, dict[str, Any]] = {
        arm: {
            **summary([us for each in taken["us"] for us in each]),
            "a_second": round(median(taken["a_second"]), 1),
        }
        for arm, taken in raw.items()
    }
    base = _medians(raw, "direct")
    return Result(
        bench="dns",
        method="us from a question over UDP to its answer, one at a time, and answers a second with "
        f"{WAITING} questions open: past the DNS proxy and through it, in turns",
        settings={
            "rounds": rounds,
            "questions": questions,
            "first_question_ms": round(first / 1000, 1),
            "proxy_rss_mb": memory,
        },
        arms=arms,
        ratios={
            **{
                f"{arm} / direct": round(ratio(_medians(raw, arm), base), 4)
                for arm in ARMS
                if arm != "direct"
            },
        },
        raw=raw,
    )


COLUMNS = ("WAY", "MEDIAN us", "P90", "P99", "MAX", "A SECOND")


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: one line for each way, and what the first question took."""
    keys = ("median", "p90", "p99", "max", "a_second")
    found = [(words, *(data["arms"][arm][key] for key in keys)) for arm, words in ARMS.items()]
    first = data["settings"]["first_question_ms"] * 1000
    return [*found, ("the first question, with the proxy's start", first, "", "", "", "")]
