"""What the nodes that share a CA directory have proven, each in a file of its own there.

    nodes/NODE.json   the node's last report
    nodes/NODE.lock   held (flock) while its daemon lives

A node is known from before its daemon first reads the CA, so a rotation that begins at that moment waits
for it. It stays known when its daemon ends, because its Envoy goes on with what it has; `forget` is for nodes
that are gone for good.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from penstock.files import locked, write_atomically
from penstock.mtls.errors import AuthorityError
from penstock.mtls.rotation import Rotation

FOLDER = "nodes"


@dataclass(frozen=True, slots=True)
class Report:
    """How far a node is. `rotation` and `stage` are those that it acts by ("" if it knows of none).

    `proven`: its Envoy has acknowledged the trust bundle and every certificate that this stage asks for;
    `reason` says what is missing. `leaves` are its certificates, `moved` those of them under the issuer that
    signs in this stage. `revocations` is the number up to which revocations are in force there.
    """

    node: str
    rotation: str = ""
    stage: str = ""
    proven: bool = False
    reason: str = "its daemon has just started"
    leaves: int = 0
    moved: int = 0
    revocations: int = 0

    def proves(self, rotation: Rotation) -> bool:
        return self.proven and (self.rotation, self.stage) == (rotation.id, rotation.stage)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A report, and whether the daemon that wrote it is there."""

    report: Report
    alive: bool

    def missing(self, rotation: Rotation) -> str:
        """What holds this node back from proving the stage; "" if nothing does."""
        report = self.report
        if report.proves(rotation):
            return ""
        if not self.alive:
            return "its daemon does not run"
        if (report.rotation, report.stage) != (rotation.id, rotation.stage):
            return "its daemon has not taken up this stage"
        return report.reason or "not proven"


class Reporter:
    """The writing side, of one daemon. `open` it before the CA is read."""

    def __init__(self, directory: Path, node: str, lock: int) -> None:
        self._path = _path(directory, node)
        self._lock = lock
        self._last: Report | None = None

    @classmethod
    def open(cls, directory: Path, node: str) -> Reporter:
        """Make `node` known in the CA directory, which is created. Raises AuthorityError.

        What an earlier daemon reported stays: its Envoy still has what it acknowledged.
        """
        path = _path(directory, node)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                with locked(path.parent / ".lock"):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not path.exists():
                    write_atomically(path, msgspec.json.encode(Report(node)))
            except BaseException:
                os.close(lock)
                raise
        except BlockingIOError as error:
            raise AuthorityError(
                f"another daemon that shares the CA in {directory} is named {node}, too",
                hint="give each a --node of its own",
            ) from error
        except OSError as error:
            raise AuthorityError(f"CA directory {directory}: {error.strerror or error}") from error
        return cls(directory, node, lock)

    def write(self, report: Report) -> None:
        """Raises OSError. A report that says nothing new is not written."""
        if report != self._last:
            # Not durable: who starts again reports again.
            write_atomically(self._path, msgspec.json.encode(report), durable=False)
            self._last = report

    def close(self) -> None:
        os.close(self._lock)


def read(directory: Path) -> tuple[NodeState, ...]:
    """Every node that is known, by name. A report that cannot be read proves nothing."""
    found = []
    for path in sorted((directory / FOLDER).glob("*.json")):
        try:
            report = msgspec.json.decode(path.read_bytes(), type=Report)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, msgspec.MsgspecError):
            report = Report(path.stem, reason="its report cannot be read")
        found.append(NodeState(report, _alive(path.with_suffix(".lock"))))
    return tuple(found)


def forget(directory: Path, node: str) -> None:
    """Do not wait for this node any more. Raises AuthorityError if it lives, or is not known."""
    path = _path(directory, node)
    if not path.exists():
        known = ", ".join(state.report.node for state in read(directory)) or "none"
        raise AuthorityError(f"no node {node} shares this CA", hint=f"known nodes: {known}")
    if _alive(path.with_suffix(".lock")):
        raise AuthorityError(f"the daemon of {node} runs", hint="only a node that is gone can be left out")
    for gone in (path, path.with_suffix(".lock")):
        gone.unlink(missing_ok=True)


def holding(states: tuple[NodeState, ...], rotation: Rotation) -> dict[str, str]:
    """Node → what it lacks to prove the stage, for those that have not."""
    found = {state.report.node: state.missing(rotation) for state in states}
    return {node: why for node, why in found.items() if why}


def _path(directory: Path, node: str) -> Path:
    return directory / FOLDER / f"{quote(node, safe='')}.json"


def _alive(lock: Path) -> bool:
    """Looks by trying to take the lock, under another, so that no daemon meets it taken by a look."""
    with suppress(FileNotFoundError), locked(lock.parent / ".lock"):
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False
