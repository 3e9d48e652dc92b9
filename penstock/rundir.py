"""Where things lie in a daemon's run directory, and whose it is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from penstock.errors import HostError


def pins(run_dir: Path) -> Path:
    """The bpffs."""
    return run_dir / "bpf"


def host_record(run_dir: Path) -> Path:
    """What was changed at the node, to be put back."""
    return run_dir / "host.json"


def hosts_record(run_dir: Path) -> Path:
    """Whose hosts files were written to."""
    return run_dir / "containers.json"


def leads_record(run_dir: Path) -> Path:
    """Whose namespaces have routes of ours."""
    return run_dir / "leads.json"


def workload_sockets(run_dir: Path) -> tuple[Path, Path]:
    """That of the Workload API, and the folder behind it."""
    return run_dir / "workload.sock", run_dir / "workload"


def lock(run_dir: Path) -> int:
    """One daemon for each run directory: its descriptor, to be closed. Raises HostError if one runs there."""
    fd = os.open(run_dir / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(fd)
        raise HostError(
            f"another daemon runs at {run_dir}", hint="give this one a --run-dir of its own, or stop that one"
        ) from e
    return fd
