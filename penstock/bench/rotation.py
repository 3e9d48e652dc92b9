"""`penstock bench rotation`: every certificate and the root itself, replaced under load.

Three nodes with one CA. The client's node speaks mutual TLS to a server on each of the two others, in five
kinds of traffic that notice every failure (steady.py). Meanwhile all leaves of all nodes are replaced, again
and again, and then the root: once while a daemon is killed and started anew in the middle of it, once while
another is down for a whole stage, and once in peace. What is counted is what a user would notice: requests
that failed, and connections that ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from penstock.bench.errors import BenchError
from penstock.bench.record import Bar, Result
from penstock.bench.site import (
    NODE,
    OTHER_NODE,
    THIRD_NODE,
    DaemonUnderTest,
    Site,
    alone,
    daemon,
    policy,
    scratch,
    site,
    workload,
)
from penstock.bench.stats import median
from penstock.bench.steady import GRPC_PORT, HTTP_PORT, PLAIN_PORT, TCP_PORT
from penstock.mtls.reports import holding, read
from penstock.mtls.rotation import Stage, current

LEAVES, QUICK_LEAVES = 200, 10
ROOTS = 3
WITHIN = 120.0
SERVERS = {"one": OTHER_NODE, "two": THIRD_NODE}

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    raw: dict[str, list[Any]] = {"leaf_ms": [], "root_ms": [], "counts": []}
    with alone(), scratch() as directory, ExitStack() as stack:
        place = stack.enter_context(site("rotation", _workloads(), directory, nodes=3))
        ca = directory / "rotation-ca"
        daemons = {
            node: stack.enter_context(daemon(place, _policies(), node=node, ca_dir=ca))
            for node in (NODE, OTHER_NODE, THIRD_NODE)
        }
        counted = stack.enter_context(_load(place))
        tell("three nodes, under load")
        for number in range(1, (QUICK_LEAVES if quick else LEAVES) + 1):
            began = time.perf_counter()
            for each in daemons.values():
                each.call("cert_rotate", all=True, names=[], seconds=WITHIN)
            raw["leaf_ms"].append(round(1000 * (time.perf_counter() - began), 2))
            if number % 50 == 0:
                tell(f"{number} rotations of every leaf: {_told(counted())}")
        for number in range(ROOTS):
            began = time.perf_counter()
            _rotate(ca, daemons, number)
            raw["root_ms"].append(round(1000 * (time.perf_counter() - began), 2))
            tell(f"{number + 1} rotations of the root: {_told(counted())}")
        raw["counts"].append(counted())
    return _result(raw)


def _workloads() -> list[dict[str, Any]]:
    serve = [sys.executable, "-m", "penstock.bench.steady", "serve"]
    ports = [{"containerPort": port} for port in (HTTP_PORT, PLAIN_PORT, GRPC_PORT, TCP_PORT)]
    return [
        workload("client", serviceAccountName="client"),
        *(
            workload(name, node=node, run=[serve], ports=ports, serviceAccountName=name)
            for name, node in SERVERS.items()
        ),
    ]


def _policies() -> list[dict[str, Any]]:
    everywhere = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "all"},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    l7 = {"ports": [{"port": str(p)} for p in (HTTP_PORT, GRPC_PORT)], "rules": {"http": [{"path": "/.*"}]}}
    l4 = {"ports": [{"port": str(p)} for p in (PLAIN_PORT, TCP_PORT)]}
    to = {"toEndpoints": [{}], "toPorts": [l7, l4]}
    return [everywhere, policy("client", "client", egress=[to])]


@contextmanager
def _load(place: Site) -> Iterator[Callable[[], dict[str, Any]]]:
    """Gives back what was counted so far. Raises BenchError if the traffic does not begin."""
    targets = [place.address(name) for name in SERVERS]
    process = place.run_in(
        "client",
        [sys.executable, "-m", "penstock.bench.steady", "load", *targets],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    assert process.stdin is not None
    assert process.stdout is not None
    ask, answer = process.stdin, process.stdout

    def counted() -> dict[str, Any]:
        ask.write("\n")
        ask.flush()
        return dict(json.loads(answer.readline()))

    try:
        deadline = time.monotonic() + 30
        while any(count["done"] < 10 for count in counted().values()):
            if time.monotonic() > deadline:
                raise BenchError(f"the traffic does not begin: {counted()}")
            time.sleep(0.1)  # between two looks
        yield counted
    finally:
        ask.close()
        process.wait(30)
        answer.close()


def _rotate(ca: Path, daemons: Mapping[str, DaemonUnderTest], number: int) -> None:
    """Of the root: with a daemon killed in the middle (0), with one down for a stage (1), in peace (2)."""
    if number == 1:
        daemons[THIRD_NODE].kill()
    command = [sys.executable, "-m", "penstock.cli", "ca", "rotate", "--root", "--yes", "--ca-dir", str(ca)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if number == 0:
        _until(lambda: (now := current(ca)) is not None and now.stage is Stage.SIGN)
        daemons[OTHER_NODE].kill()
        daemons[OTHER_NODE].again()
    if number == 1:
        _until(lambda: _holding(ca) == {THIRD_NODE})
        daemons[THIRD_NODE].again()
    _, errors = process.communicate(timeout=WITHIN)
    if process.returncode:
        raise BenchError(f"the rotation of the root did not end: {errors}")


def _holding(ca: Path) -> set[str]:
    now = current(ca)
    return set(holding(read(ca), now)) if now else set()


def _until(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not question():
        if time.monotonic() > deadline:
            raise BenchError("the rotation does not go on")
        time.sleep(0.005)  # between two looks


def _sum(counts: Mapping[str, Mapping[str, int]], what: str) -> int:
    return sum(count[what] for count in counts.values())


def _told(counts: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(f"{_sum(counts, what)} {what}" for what in ("done", "failed", "closed"))


def _result(raw: dict[str, list[Any]]) -> Result:
    counts = raw["counts"][-1]
    kinds: dict[str, dict[str, int]] = {}
    for name, count in counts.items():
        into = kinds.setdefault(name.rpartition(" ")[0], {"done": 0, "failed": 0, "closed": 0, "opened": 0})
        for what in into:
            into[what] += count[what]
    return Result(
        bench="rotation",
        method="three nodes, strict: every leaf replaced again and again, then the root three times (a "
        "daemon killed in the middle, one down for a stage, in peace), under five kinds of traffic",
        settings={"leaf_rotations": len(raw["leaf_ms"]), "root_rotations": len(raw["root_ms"])},
        arms={
            **kinds,
            "all": {
                **{what: _sum(counts, what) for what in ("done", "failed", "closed", "opened")},
                "leaf_rotation_ms": round(median(raw["leaf_ms"]), 1),
                "leaf_rotation_most_ms": max(raw["leaf_ms"]),
                "root_rotation_ms": round(median(raw["root_ms"]), 1),
            },
        },
        bars=(
            Bar("failed requests", _sum(counts, "failed"), 1),
            Bar("closed connections", _sum(counts, "closed"), 1),
        ),
        raw=raw,
    )


COLUMNS = ("TRAFFIC", "REQUESTS", "FAILED", "CONNECTIONS", "CLOSED")


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: one line for each kind of traffic."""
    return [
        (name, each["done"], each["failed"], each["opened"], each["closed"])
        for name, each in data["arms"].items()
    ]
