"""The DNS proxy as the daemon has it: started, adopted, told what the Plan says, asked what it knows.

It outlives the daemon, as Envoy does: names are answered and recorded while there is none. If it dies, what
the kernel steers to it is dropped until the next one is there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from penstock.dns.model import DnsPlan
from penstock.dns.wire import LARGEST, line, plan_line
from penstock.errors import PenstockError

log = logging.getLogger(__name__)

_START_TIMEOUT = 10.0
_BACKOFF = (0.05, 5.0)
_ANSWER_TIMEOUT = 5.0


def _directory(run_dir: Path) -> Path:
    return run_dir / "dns"


def socket_of(run_dir: Path) -> Path:
    return _directory(run_dir) / "dns.sock"


def pid_file(run_dir: Path) -> Path:
    return run_dir / "dns.pid"


def journal_of(run_dir: Path, place: str) -> Path:
    return _directory(run_dir) / f"names-{place}"


def options_of(
    port: int, upstreams: Sequence[str], min_ttl: int, grace: float, source_ports: Sequence[int]
) -> str:
    """What a proxy was started with: one that was started otherwise is not adopted."""
    return f"{port} {','.join(upstreams)} {min_ttl} {grace} {'-'.join(map(str, source_ports))}"


class NoDnsError(PenstockError):
    """The DNS proxy does not answer."""


class DnsProxy:
    """One for one run directory. `tell` gets a record of each question that was answered."""

    def __init__(
        self,
        run_dir: Path,
        *,
        upstreams: Sequence[str] = (),
        min_ttl: int = 0,
        grace: float = 60.0,
        source_ports: tuple[int, int] = (20000, 31999),
        tell: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._run_dir = run_dir
        self._upstreams, self._min_ttl, self._grace = tuple(upstreams), min_ttl, grace
        self._source_ports, self._tell = source_ports, tell
        self._plan = DnsPlan()
        self._revision = 0
        self._applied = -1
        self._changed = asyncio.Condition()
        self._wanted = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self.pid: int | None = None
        self.starts = 0

    @property
    def needed(self) -> bool:
        return self._plan.port != 0

    @property
    def bound(self) -> bool:
        """Whether a policy names it, and not only its own address."""
        return bool(self._plan.rules)

    @property
    def ready(self) -> bool:
        """Whether it knows the plan of now."""
        return self._writer is not None and self._applied == self._revision

    # --- what the daemon says and asks -----------------------------------------------------------------

    async def publish(self, plan: DnsPlan, seconds: float) -> bool:
        """Tell it `plan`; whether it has taken it in time. One that is not needed any more is not told."""
        if plan != self._plan:
            self._plan = plan
            self._revision += 1
            self._send(plan_line(plan, self._revision))
        if not self.needed:
            return True
        self._wanted.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self.ready)
        return self.ready

    def release(self) -> None:
        """After the kernel points there no more: end it if nothing needs it."""
        if not self.needed and self._wanted.is_set():
            self._wanted.clear()
            self._send(line({"quit": True}))

    async def ask(self, what: str) -> Any:
        """ "names" or "state". Raises NoDnsError."""
        if self._writer is None:
            raise NoDnsError("the DNS proxy does not run", hint="no policy names DNS, or see penstock status")
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._send(line({"ask": what, "id": number}))
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                return await future
        except TimeoutError:
            raise NoDnsError("the DNS proxy did not answer in time") from None
        finally:
            self._asked.pop(number, None)

    def _send(self, raw: bytes) -> None:
        if self._writer is not None:
            self._writer.write(raw)

    # --- its life --------------------------------------------------------------------------------------

    async def keep(self, on_change: Callable[[], None]) -> None:
        """Keeps one running while it is needed, until cancelled, and leaves it running then."""
        pause = _BACKOFF[0]
        while True:
            await self._wanted.wait()
            since = time.monotonic()
            try:
                reader, hello = await self._start()
            except (OSError, NoDnsError) as error:
                log.error("the DNS proxy could not be started: %s; trying again in %.1f s", error, pause)
            else:
                self.pid = int(hello["pid"])
                log.info("the DNS proxy: pid %s", self.pid)
                on_change()
                try:
                    await self._hear(reader)
                finally:
                    self._lost()
                if not self._wanted.is_set():
                    continue
                log.error("the DNS proxy ended; starting it again")
                on_change()
            if time.monotonic() - since > _BACKOFF[1]:
                pause = _BACKOFF[0]
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BACKOFF[1])

    def _lost(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self.pid, self._applied = None, None, -1
        for future in self._asked.values():
            if not future.done():
                future.set_exception(NoDnsError("the DNS proxy ended"))

    async def _start(self) -> tuple[asyncio.StreamReader, dict[str, Any]]:
        """Adopt the one that is there, or start one. Raises OSError, NoDnsError."""
        wanted = options_of(self._plan.port, self._upstreams, self._min_ttl, self._grace, self._source_ports)
        found = await self._connect()
        if found is not None and found[1]["options"] != wanted:
            found[2].close()
            found = None
        if found is None:
            await asyncio.to_thread(stop, self._run_dir)
            child = self._spawn()
            self.starts += 1
            deadline = time.monotonic() + _START_TIMEOUT
            while (found := await self._connect()) is None:
                if child.poll() not in (None, 0) or time.monotonic() > deadline:
                    raise NoDnsError(f"it did not start: {self._last_words()}")
                await asyncio.sleep(0.02)
        reader, hello, self._writer = found
        self._writer.write(plan_line(self._plan, self._revision))
        return reader, hello

    async def _connect(
        self,
    ) -> tuple[asyncio.StreamReader, dict[str, Any], asyncio.StreamWriter] | None:
        try:
            reader, writer = await asyncio.open_unix_connection(socket_of(self._run_dir), limit=LARGEST)
        except OSError:
            return None
        with suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(2.0):
                return reader, msgspec.json.decode(await reader.readline())["hello"], writer
        writer.close()
        return None

    def _spawn(self) -> subprocess.Popen[bytes]:
        _directory(self._run_dir).mkdir(mode=0o700, exist_ok=True)
        command = [
            "setsid", sys.executable, "-m", "penstock.dns", "--run-dir", str(self._run_dir),
            "--port", str(self._plan.port), "--min-ttl", str(self._min_ttl), "--grace", str(self._grace),
            "--source-ports", *map(str, self._source_ports),
        ]  # fmt: skip
        for upstream in self._upstreams:
            command += ["--upstream", upstream]
        kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "LANG") if key in os.environ}
        with (self._run_dir / "dns.log").open("ab") as log_file:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, env=kept, cwd="/"
            )

    def _last_words(self) -> str:
        with suppress(OSError, IndexError):
            return (self._run_dir / "dns.log").read_text(errors="replace").splitlines()[-1]
        return "it said nothing"

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError, ValueError):
            while raw := await reader.readline():
                said = msgspec.json.decode(raw)
                if "flow" in said:
                    self._tell(said["flow"])
                elif "applied" in said:
                    async with self._changed:
                        self._applied = said["applied"]
                        self._changed.notify_all()
                elif "answer" in said and (future := self._asked.get(said["id"])) and not future.done():
                    future.set_result(said["answer"])


def stop(run_dir: Path) -> None:
    """End the proxy of `run_dir`, and remove its socket; nothing there is fine."""
    for number, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
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
