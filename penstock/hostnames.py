"""Names of Services in the hosts files of containers: what to write there, and writing it.

Docker's own name server knows containers, not virtual addresses; a hosts file comes before any name server in
every resolver. So a name leads to the Service where a Service is meant, and to nothing else:

- ``api.shop`` and ``api.shop.svc.cluster.local`` of every Service, in every container;
- ``api`` alone in the namespace `shop`, if the Service is a manifest's, or a route names it. Otherwise the
  name stays with Docker, and with it ports that the Service does not say.

What is kept true: only the block between our two lines is touched, and only in a file that the engine made.
The path is walked inside the container's own root, through no link: a container cannot lead us elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from penstock.files import write_atomically
from penstock.manifests.kinds import Service, Workload
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute
from penstock.routing.services import families
from penstock.world import World

log = logging.getLogger(__name__)

BEGIN, END = "# begin of what penstock writes\n", "# end of what penstock writes\n"
CLUSTER_DOMAIN = "cluster.local"
MADE = "docker:"
"""What the file of a document that was made of a container begins with."""
LARGEST = 1 << 20
"""Bytes of a hosts file that is still edited."""

_OPENAT2 = 437
_RESOLVE = 0x02 | 0x04 | 0x10
"""RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT (openat2(2))."""


class Containers(Protocol):
    """What an engine tells of containers by name."""

    def pid(self, container: str) -> int: ...

    def has_hosts_file(self, container: str) -> bool: ...


def blocks(world: World, namespaces: Iterable[str]) -> dict[str, str]:
    """Namespace → what the hosts files of its containers hold of ours."""
    routed = set()
    for document in world.of_kinds(HTTPRoute, GRPCRoute):
        assert isinstance(document.value, HTTPRoute | GRPCRoute)
        for parent in document.value.spec.parent_refs:
            if parent.kind == "Service":
                routed.add((parent.namespace or document.key.namespace, parent.name))
    everywhere: list[tuple[str, str, str]] = []
    alone: dict[tuple[str, str], bool] = {}
    for document, service in world.of_kind(Service):
        namespace, name = document.key.namespace, document.key.name
        alone[namespace, name] = not document.file.startswith(MADE) or (namespace, name) in routed
        for family in families(service):
            address = world.allocations.vips.get(f"{namespace}/{name}/{family}")
            if address:
                everywhere.append((namespace, name, address))
    found = {}
    for own in namespaces:
        lines = []
        for namespace, name, address in everywhere:
            full = f"{name}.{namespace}"
            short = f" {name}" if namespace == own and alone[namespace, name] else ""
            lines.append(f"{address}\t{full} {full}.svc {full}.svc.{CLUSTER_DOMAIN}{short}\n")
        found[own] = "".join(lines)
    return found


def of_containers(world: World, containers: Containers) -> dict[int, str]:
    """Process of each container → what its hosts file is to hold of ours."""
    namespaces = {}
    for document, workload in world.of_kind(Workload):
        name = workload.spec.container
        pid = containers.pid(name) if name else None
        if name and pid and containers.has_hosts_file(name):
            namespaces[pid] = document.key.namespace
    texts = blocks(world, set(namespaces.values()))
    return {pid: texts[namespace] for pid, namespace in namespaces.items()}


def edited(text: str, block: str) -> str:
    """A hosts file with `block` as ours; without ours if that is empty."""
    before, begins, rest = text.partition(BEGIN)
    if begins:
        _, _, after = rest.partition(END)
        text = before + after
    if not block:
        return text
    newline = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{newline}{BEGIN}{block}{END}"


class HostsFiles:
    """The hosts files of containers, by the process number of each; `record` is what `forget` reads."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._written: dict[int, str] = {}
        with suppress(OSError, ValueError):
            self._written = {int(pid): "" for pid in json.loads(record.read_text())}

    def apply(self, wanted: Mapping[int, str]) -> None:
        """Write what is not written yet. Blocks. A container that ends meanwhile is not our concern."""
        written = {}
        for pid, block in wanted.items():
            if self._written.get(pid) != block:
                with suppress(OSError):
                    _write(pid, block)
            written[pid] = block
        if written.keys() != self._written.keys():
            write_atomically(self._record, json.dumps(sorted(written)).encode(), durable=False)
        self._written = written

    def forget(self) -> None:
        """Take everything of ours out again; twice is fine."""
        for pid in self._written:
            with suppress(OSError):
                _write(pid, "")
        self._written = {}
        self._record.unlink(missing_ok=True)


def _write(pid: int, block: str) -> None:
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = _open_inside(root, b"etc/hosts")
    finally:
        os.close(root)
    with open(fd, "r+b") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
            return
        before = file.read()
        after = edited(before.decode(errors="surrogateescape"), block).encode(errors="surrogateescape")
        if after == before:
            return
        # In place: the engine has it mounted there, another file would not be seen.
        file.seek(0)
        file.write(after)
        file.truncate()


def _open_inside(root: int, path: bytes) -> int:
    """openat2(2), which Python has no name for. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = struct.pack("=QQQ", os.O_RDWR | os.O_CLOEXEC, 0, _RESOLVE)
    while True:
        fd = libc.syscall(ctypes.c_long(_OPENAT2), ctypes.c_int(root), path, how, ctypes.c_size_t(len(how)))
        if fd >= 0:
            return int(fd)
        number = ctypes.get_errno()
        if number != errno.EAGAIN:
            raise OSError(number, os.strerror(number))
