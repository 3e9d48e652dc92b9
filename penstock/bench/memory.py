"""`penstock bench memory`: what the daemon and its Envoy hold of the machine's memory with 50 workloads.

Read from /proc/PID/smaps_rollup: RSS counts a page that processes share with each of them, PSS its share.
Beside it the daemon's modules are imported one after the other in a fresh interpreter, which tells what
the code alone takes before there is anything to do.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penstock.bench import crowd
from penstock.bench.errors import BenchError
from penstock.bench.record import Bar, Result
from penstock.bench.site import alone, daemon, scratch, site

RSS_BAR = 90.0
CHANGES, QUICK_CHANGES = 100, 20

STAGES = (
    ("interpreter", ""),
    ("asyncio, uvloop", "asyncio, uvloop, logging"),
    ("grpc", "grpc, grpc.aio"),
    ("msgspec, yaml, re2", "msgspec, yaml, re2"),
    ("pyroute2, asyncinotify", "pyroute2, asyncinotify"),
    ("cryptography", "cryptography.x509, cryptography.hazmat.primitives.asymmetric.ec"),
    ("click", "click"),
    ("Envoy's protobuf classes", "penstock.envoy.protos"),
    ("the rest of the daemon", "penstock.daemon"),
)
"""What the daemon imports, in this order: the increase of RSS is put down to the first that needs a thing."""

_STAGE_PROGRAM = """
import importlib, json, sys
def rss():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:"))
found = {}
before = 0
for name, modules in json.load(sys.stdin):
    for module in filter(None, modules.split(", ")):
        importlib.import_module(module)
    now = rss()
    found[name] = now - before
    before = now
print(json.dumps(found))
"""

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    changes = QUICK_CHANGES if quick else CHANGES
    with alone(), scratch() as directory:
        tell("the modules alone")
        stages = stages_mb()
        tell(f"a lab of {crowd.WORKLOADS} workloads")
        with site("memory", crowd.workloads(), directory) as place:
            tell("a daemon without manifests of its own")
            with daemon(place, (), workloads=False) as running:
                empty = _both(running.pid, running.envoy_pid())
            with daemon(place, crowd.policies()) as running:
                running.write("plain", crowd.plain_policy(True))
                running.write("http", crowd.http_policy(True))
                running.settle()
                envoy = running.envoy_pid()
                settled = _both(running.pid, envoy)
                for number in range(changes):
                    name, document = (
                        ("plain", crowd.plain_policy(bool(number & 2)))
                        if number % 2
                        else ("http", crowd.http_policy(bool(number & 2)))
                    )
                    running.write(name, document)
                    running.settle()
                    if (number + 1) % 10 == 0:
                        tell(f"{number + 1}/{changes} changes: {resident(running.pid)['rss_mb']} MB")
                changed = _both(running.pid, envoy)
    arms: dict[str, Mapping[str, Any]] = {
        "empty": empty,
        "settled": settled,
        "changed": changed,
        "modules": {**stages, "sum": round(sum(stages.values()), 1)},
    }
    return Result(
        bench="memory",
        method="MB resident, from smaps_rollup: no workload (empty), all and a policy for each (settled), "
        "after further changes (changed); modules: increase of RSS by imports in a fresh interpreter",
        settings={"workloads": crowd.WORKLOADS, "changes": changes},
        arms=arms,
        bars=(
            Bar("daemon's RSS, settled", settled["daemon"]["rss_mb"], RSS_BAR, "MB"),
            Bar(f"daemon's RSS after {changes} changes", changed["daemon"]["rss_mb"], RSS_BAR, "MB"),
        ),
    )


def resident(pid: int) -> dict[str, float]:
    """RSS, PSS and what of it is the process' own, in MB. Raises BenchError if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError as e:
        raise BenchError(f"process {pid}: {e.strerror}") from e
    return read_rollup(text)


def read_rollup(text: str) -> dict[str, float]:
    """/proc/PID/smaps_rollup in MB (2^20 bytes); `own_mb` is the anonymous memory, heap and stacks."""
    kilobytes = {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    names = {"rss_mb": "Rss", "pss_mb": "Pss", "own_mb": "Anonymous"}
    return {name: round(kilobytes[field] / 1024, 1) for name, field in names.items()}


def _both(daemon_pid: int, envoy_pid: int) -> dict[str, dict[str, float]]:
    return {"daemon": resident(daemon_pid), "envoy": resident(envoy_pid)}


def stages_mb() -> dict[str, float]:
    """Increase of RSS in MB by each of STAGES."""
    done = subprocess.run(
        [sys.executable, "-c", _STAGE_PROGRAM],
        input=json.dumps(STAGES), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"the modules cannot be imported: {done.stderr.strip()[-500:]}")
    return {name: round(kilobytes / 1024, 1) for name, kilobytes in json.loads(done.stdout).items()}


COLUMNS = ("MEMORY (MB)", "RSS", "PSS", "OWN")


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: the processes, then the modules."""
    found = [
        (f"{process}, {arm}", *(data["arms"][arm][process][k] for k in ("rss_mb", "pss_mb", "own_mb")))
        for process in ("daemon", "envoy")
        for arm in ("empty", "settled", "changed")
    ]
    return found + [(f"  import {name}", size, "", "") for name, size in data["arms"]["modules"].items()]
