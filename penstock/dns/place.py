"""Where the DNS proxy of a run directory lies, how it is started and ended, and whom one finds there."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from penstock.dns.wire import LARGEST

_HELLO_TIMEOUT = 2.0


def _directory(run_dir: Path) -> Path:
    return run_dir / "dns"


def socket_of(run_dir: Path) -> Path:
    return _directory(run_dir) / "dns.sock"


def pid_file(run_dir: Path) -> Path:
    return run_dir / "dns.pid"


def journal_of(run_dir: Path, place: str) -> Path:
    return _directory(run_dir) / f"names-{place}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a proxy is started with: seconds, and ports. One that was started otherwise is not adopted."""

    upstreams: tuple[str, ...]
    min_ttl: int
    grace: float
    source_ports: tuple[int, int]

    def text(self, port: int) -> str:
        ports = "-".join(map(str, self.source_ports))
        return f"{port} {','.join(self.upstreams)} {self.min_ttl} {self.grace} {ports}"


@dataclass(frozen=True, slots=True)
class Found:
    """A proxy that answers, and the way to it."""

    pid: int
    options: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def connect(run_dir: Path) -> Found | None:
    """None where nobody is, or who is there does not say who it is."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket_of(run_dir), limit=LARGEST)
    except OSError:
        return None
    with suppress(OSError, ValueError, TimeoutError):
        async with asyncio.timeout(_HELLO_TIMEOUT):
            hello = msgspec.json.decode(await reader.readline())["hello"]
            return Found(int(hello["pid"]), hello["options"], reader, writer)
    writer.close()
    return None


def spawn(run_dir: Path, port: int, choice: Choice, sockets: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start one, with `sockets` as those that questions come to (penstock.dns.door). Raises OSError."""
    _directory(run_dir).mkdir(mode=0o700, exist_ok=True)
    command = [
        "setsid", sys.executable, "-m", "penstock.dns", "--run-dir", str(run_dir),
        "--port", str(port), "--min-ttl", str(choice.min_ttl), "--grace", str(choice.grace),
        "--source-ports", *map(str, choice.source_ports), "--sockets", *map(str, sockets),
    ]  # fmt: skip
    for upstream in choice.upstreams:
        command += ["--upstream", upstream]
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "LANG") if key in os.environ}
    with (run_dir / "dns.log").open("ab") as log_file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            env=kept,
            cwd="/",
            pass_fds=tuple(sockets),
        )


def last_words(run_dir: Path) -> str:
    with suppress(OSError, IndexError):
        return (run_dir / "dns.log").read_text(errors="replace").splitlines()[-1]
    return "it said nothing"


def stop(run_dir: Path, *, at_once: bool = False) -> None:
    """End the proxy of `run_dir`, and remove its socket; nothing there is fine. `at_once`: it hangs."""
    for number, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
        if at_once and number == signal.SIGTERM:
            continue
        pidfd = _find(run_dir)
        if pidfd is None:
            break
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(seconds * 1000)
        os.close(pidfd)
    for left in (socket_of(run_dir), pid_file(run_dir)):
        left.unlink(missing_ok=True)


def _find(run_dir: Path) -> int | None:
    """The process of the pid file, if it is a DNS proxy of this run directory and runs."""
    try:
        pid = int(pid_file(run_dir).read_text())
        # Opened before the look at its command line, so that the pid cannot change hands in between.
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if {b"penstock.dns", str(run_dir).encode()} <= set(command) and not poll.poll(0):
            return pidfd
    os.close(pidfd)
    return None
