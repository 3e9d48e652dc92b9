"""Labs that are up: bringing one up, taking it down, and the record of what is there.

A lab's record (/run/penstock-lab/NAME.json) is written before the first namespace is made and goes
after the last: whatever was left by a crash half-way is found by the next `down` or `up`. Processes
need no record: whatever runs in a lab's namespaces is the lab's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from penstock.lab import netns, resolver
from penstock.lab.errors import LabError
from penstock.lab.file import load
from penstock.lab.spec import LabSpec, LabWorkload

STATE = Path("/run/penstock-lab")
TCP_LISTEN = "0A"


class _Record(msgspec.Struct, frozen=True):
    """`complete` is false while a lab is being made: then only `namespaces` is to be relied on."""

    namespaces: list[str]
    complete: bool
    spec: dict[str, Any]


def up(spec: LabSpec, *, wait: float = 15.0) -> None:
    """Make the lab and start what its workloads run; returns when the TCP ports those declare are served.

    `wait` is the longest that this may take, in seconds. Raises LabError if a lab of this name is up, if a
    namespace's name is taken, or if a workload does not serve in time; nothing is left of it then. A lab of
    this name that was left half-made is cleared away first.
    """
    from penstock.lab.build import build

    with _lock():
        if record := _read(spec.name):
            if record.complete:
                raise LabError(
                    f"lab {spec.name} is up already", hint=f"penstock lab down {spec.name} takes it down"
                )
            _clear(spec.name, record)
        for name in spec.namespaces():
            if netns.path_of(name).exists():
                raise LabError(f"network namespace {name} exists and is not of this lab")
        record = _Record(spec.namespaces(), False, dict(spec.source))
        _write(spec.name, record)
        try:
            build(spec)
            for workload in spec.workloads:
                _start(spec.name, workload)
            _write(spec.name, msgspec.structs.replace(record, complete=True))
        except BaseException:
            _clear(spec.name, record)
            raise
    try:
        _wait_served(spec, wait)
    except BaseException:
        down(spec.name)
        raise


def down(name: str) -> bool:
    """End the lab's processes and namespaces, also those of a half-made one. False if there is none."""
    with _lock():
        record = _read(name)
        if record:
            _clear(name, record)
        return record is not None


def list_labs() -> list[LabSpec]:
    """The labs that are up, by name."""
    return [found for name in names() if (found := find(name))]


def names() -> list[str]:
    """Names of all labs that something is left of, half-made ones included."""
    return sorted(path.stem for path in STATE.glob("*.json"))


def find(name: str) -> LabSpec | None:
    """The lab of this name, if it is up."""
    record = _read(name)
    return load(record.spec) if record and record.complete else None


def log_of(lab: str, workload: LabWorkload) -> Path:
    """Where the output of the commands goes that the lab runs in this workload."""
    return STATE / f"{lab}.logs" / f"{workload.namespace}.{workload.name}.log"


def _start(lab: str, workload: LabWorkload) -> None:
    if not workload.run:
        return
    log = log_of(lab, workload)
    log.parent.mkdir(exist_ok=True)
    # `penstock` and its Python are found also where the environment was not activated.
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    with log.open("ab") as output:
        for argv in workload.run:
            # setsid --fork: the command belongs to nobody here, so it outlives us and leaves no zombie.
            starter = netns.run_in(
                workload.netns,
                ["setsid", "--fork", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
            )
            if starter.wait():
                raise LabError(f"{workload.namespace}/{workload.name}: cannot start {argv[0]}")


def _wait_served(spec: LabSpec, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for workload in spec.workloads:
        wanted = {port.container_port for port in workload.ports if port.protocol == "TCP"}
        while workload.run and (missing := wanted - _listening(workload)):
            running = netns.processes_in([workload.netns.name])
            if not running or time.monotonic() > deadline:
                log = log_of(spec.name, workload).read_text(errors="replace").strip()[-2000:]
                what = "does not serve" if running else "ended without serving"
                ports = ", ".join(map(str, sorted(missing)))
                raise LabError(f"{workload.namespace}/{workload.name} {what} TCP {ports}\n{log}".rstrip())
            time.sleep(0.02)  # the kernel tells nobody that a socket now listens


def _listening(workload: LabWorkload) -> set[int]:
    ports = set()
    with netns.entered(workload.netns):
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/thread-self/net", table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == TCP_LISTEN:
                    ports.add(int(local.rpartition(":")[2], 16))
    return ports


def _clear(name: str, record: _Record) -> None:
    netns.end_processes(record.namespaces)
    for namespace in reversed(record.namespaces):
        netns.remove(namespace)
        resolver.remove(namespace)
    resolver.tidy()
    shutil.rmtree(STATE / f"{name}.logs", ignore_errors=True)
    _path(name).unlink(missing_ok=True)


def _path(name: str) -> Path:
    return STATE / f"{name}.json"


def _read(name: str) -> _Record | None:
    try:
        return msgspec.json.decode(_path(name).read_bytes(), type=_Record)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise LabError(f"{_path(name)} is not a lab's record: {error}") from None


def _write(name: str, record: _Record) -> None:
    part = _path(name).with_suffix(".part")
    part.write_bytes(msgspec.json.encode(record))
    part.rename(_path(name))


@contextmanager
def _lock() -> Iterator[None]:
    """One lab at a time is made or taken down: names under /run/netns are everybody's."""
    try:
        STATE.mkdir(mode=0o755, exist_ok=True)
    except PermissionError as error:
        raise LabError(str(error), hint="run it as root") from None
    handle = os.open(STATE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
