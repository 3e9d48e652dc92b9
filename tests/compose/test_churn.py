"""Many containers, some of which come and go: what it costs, how soon one is served, and that nobody notices.

PENSTOCK_CONTAINERS=100 is the size that the limits are meant for; the tests take less.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from boxes import PORT, Box, Node, node
from clients import Load, ask, until
from test_workloads import NETWORK, ROUTE, SERVICE, VIP, policy

from penstock.lab.engine import Engine

CONTAINERS = int(os.environ.get("PENSTOCK_CONTAINERS", "20"))
MEMORY = 120_000
"""KiB of the daemon, resident."""
STEERED = 0.3
"""Seconds from the engine's event that a container started to its first request that a rule let pass: p99."""
SLACK = 3.0
"""Times that a machine which does other things meanwhile may take longer."""


@pytest.fixture(scope="module")
def mesh(docker: Engine, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node(docker, base_image, tmp_path_factory.mktemp("churn"), "churn") as made:
        made.network(NETWORK, "10.188.0.0/22")
        for name in ("client", "web-1", "web-2"):
            made.run(name, NETWORK)
        for number in range(CONTAINERS - 3):
            made.run(f"idle-{number}", NETWORK, Cmd=["sleep", "1000"])
        made.apply(SERVICE, ROUTE, policy("web", "web", "client", "guest"))
        made.known(*made.boxes)
        yield made


def first_answer(box: Box) -> float:
    """When a request of it passed first, in seconds since the epoch."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            # A SYN that is dropped is sent again after a second: a new connection sooner.
            if ask(box, VIP, PORT, timeout=0.02).status == 200:
                return time.time()
        except OSError:
            pass
    raise AssertionError(f"{box.name} is not served")


def started(box: Box) -> float:
    """When the engine started it, in seconds since the epoch."""
    text = box.inspected["State"]["StartedAt"]
    return datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00").timestamp()


def test_containers_come_and_go(mesh: Node) -> None:
    with (
        Load(mesh.boxes["client"], VIP, PORT) as kept,
        Load(mesh.boxes["client"], VIP, PORT, keep=False) as new,
    ):
        took, removals = [], []
        for number in range(CONTAINERS // 2):
            box = mesh.run(f"guest-{number}", NETWORK, Cmd=["sleep", "1000"])
            took.append(first_answer(box) - started(box))
            removals.append(threading.Thread(target=mesh.remove, args=(box.name,)))
            removals[-1].start()
        for removal in removals:
            removal.join()
    took.sort()
    resident = next(
        int(line.split()[1])
        for line in Path(f"/proc/{mesh.daemon.process.pid}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    )
    figures = {
        "containers": CONTAINERS,
        "came_and_went": len(took),
        "steered_ms": {p: round(took[min(int(len(took) * q), len(took) - 1)] * 1000)
                       for p, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))},
        "daemon_kib": resident,
        "requests": {"kept": dict(kept.seen), "new": dict(new.seen)},
    }  # fmt: skip
    print(json.dumps(figures))
    assert set(kept.seen) == set(new.seen) == {200}, figures
    assert resident < MEMORY, figures
    assert took[-1] < STEERED * SLACK, figures
    until("those that went are no workloads any more", lambda: not guests(mesh))


def guests(mesh: Node) -> list[str]:
    found = mesh.daemon.status()["objects"]
    return [o["name"] for o in found if o["kind"] == "Workload" and o["name"].startswith("guest")]
