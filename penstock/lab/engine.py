"""A Docker Engine of our own: in a network and a mount namespace, with its own socket and directories.

Tests and measurements run containers in it. What it keeps true: the machine is as before. Bridges, iptables
chains, forwarding and br_netfilter's settings are those of the namespace and go with it; mounts are in a
namespace of its own, where what the engine writes outside its directories is in memory; containers are in a
control group of its own. `close` ends whatever is left in either, also after a failure, and looks.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError
from penstock.lab import netns

CLIENT = next((p for p in ("/usr/bin/docker",) if os.access(p, os.X_OK)), "docker")
"""Debian's, where there is another one beside it: it fits the engine."""
START = 30.0
"""Seconds that the engine may take to answer."""
OUTSIDE = ("/etc/docker", "/run/docker")
"""Where an engine writes whatever its directories are: its key, its plugins."""


class EngineError(PenstockError):
    """A command of ours to the engine failed; the text is what it said."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Engine:
    """One engine. `name` is its network namespace's, its control group's and its directories'."""

    def __init__(self, name: str, base: Path) -> None:
        self.name = name
        self.netns = netns.path_of(name)
        self.base = base
        self.socket = base / "docker.sock"
        self.log = base / "dockerd.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._driver = ""
        self._before = _machine(name)
        self._made: list[Path] = []

    # --- life ------------------------------------------------------------------------------------------

    def open(self) -> None:
        for path in map(Path, OUTSIDE):
            if not path.is_dir():
                path.mkdir()
                self._made.append(path)
        netns.create([self.name])
        with netns.entered(self.netns):
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for driver in ("overlay2", "vfs"):
            if self._start(driver):
                return
        raise EngineError(f"dockerd does not start\n{self.tail()}")

    def start(self) -> None:
        """After `end`: the same engine again."""
        if not self._start(self._driver):
            raise EngineError(f"dockerd does not start\n{self.tail()}")

    def _start(self, driver: str) -> bool:
        self._driver = driver
        command = [
            "dockerd", "--host", f"unix://{self.socket}", "--data-root", str(self.base / "data"),
            "--exec-root", str(self.base / "exec"), "--pidfile", str(self.base / "dockerd.pid"),
            "--cgroup-parent", f"/{self.name}", "--exec-opt", "native.cgroupdriver=cgroupfs",
            "--storage-driver", driver, "--bridge", "none", "--shutdown-timeout", "2", "--config-file", "",
            # No pool of the defaults may meet the machine's own networks.
            "--default-address-pool", "base=10.189.0.0/16,size=24",
        ]  # fmt: skip
        # Whatever becomes of the tests, the engine goes with them, and its containers with it.
        wrapped = [
            "setpriv",
            "--pdeathsig",
            "TERM",
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
        ]
        covered = " ".join(f"&& mount -t tmpfs -o mode=711 tmpfs {path}" for path in OUTSIDE)
        script = f'mount --make-rshared / {covered} && exec "$@"'
        with self.log.open("ab") as output:
            self._process = netns.run_in(
                self.netns,
                [*wrapped, script, "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process = self._process
        _wait(lambda: process.poll() is not None or self.answers(), START)
        return self.answers()

    def answers(self) -> bool:
        try:
            return self.request("GET", "/_ping") is not None
        except OSError:
            return False

    def end(self) -> None:
        """Ends the engine, its containers with it."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        self.end()
        for _ in range(50):
            left = self._in_cgroups()
            if not left:
                break
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _wait(lambda: not self._in_cgroups(), 0.2)
        if self.netns.exists():
            netns.end_processes([self.name])
            netns.remove(self.name)
        for group in sorted(self._cgroups(), key=lambda p: -len(p.parts)):
            with suppress(OSError):
                group.rmdir()
        shutil.rmtree(self.base / "data", ignore_errors=True)
        shutil.rmtree(self.base / "exec", ignore_errors=True)
        for path in self._made:
            path.rmdir()
        changed = _machine(self.name).items() ^ self._before.items()
        if changed:
            raise EngineError(f"the engine left something: {sorted(changed)}")

    def _cgroups(self) -> list[Path]:
        roots = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
                 if " - cgroup" in line]  # fmt: skip
        found = []
        for root in roots:
            top = Path(root, self.name)
            if top.is_dir():
                found += [Path(directory) for directory, _, _ in os.walk(top)]
        return found

    def _in_cgroups(self) -> set[int]:
        found: set[int] = set()
        for group in self._cgroups():
            with suppress(OSError):
                found |= {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
        return found

    def tail(self) -> str:
        with suppress(FileNotFoundError):
            return "\n".join(self.log.read_text().splitlines()[-15:])
        return ""

    # --- use -------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Of the Engine's API, newest version. Raises EngineError unless the answer is 2xx or 304."""
        connection = _UnixConnection(self.socket)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        if not (200 <= answer.status < 300 or answer.status == 304):
            raise EngineError(f"{method} {path}: {answer.status} {raw.decode()}")
        kind = answer.headers.get("Content-Type", "")
        return json.loads(raw) if kind.startswith("application/json") and raw else raw

    def stream(self, path: str) -> tuple[http.client.HTTPResponse, Callable[[], None]]:
        """An answer of the API that does not end, line by line, and how to end it, from any thread."""
        connection = _UnixConnection(self.socket)
        connection.timeout = None
        connection.request("GET", path)
        sock = connection.sock
        answer = connection.getresponse()

        def end() -> None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

        return answer, end

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_BUILDKIT": "0",
                "COMPOSE_DOCKER_CLI_BUILD": "0"}  # fmt: skip

    def run(self, *command: str, **more: Any) -> str:
        """What a command of the clients prints (`docker`, `docker-compose`). Raises EngineError."""
        done = subprocess.run(
            [CLIENT if command[0] == "docker" else command[0], *command[1:]],
            env={**self.environment, **more.pop("env", {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=more.pop("timeout", 120),
            check=False,
            **more,
        )
        if done.returncode:
            raise EngineError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}")
        return str(done.stdout)

    def docker(self, *arguments: str, **more: Any) -> str:
        return self.run("docker", *arguments, **more).strip()

    def import_image(self, root: Path, tag: str, *changes: str) -> None:
        """An image out of a directory; of itself, it holds no command."""
        options = [o for change in changes for o in ("--change", change)]
        pack = subprocess.Popen(
            ["tar", "-C", str(root), "--one-file-system", "-c", "."], stdout=subprocess.PIPE
        )
        done = subprocess.run(
            [CLIENT, "import", *options, "-", tag],
            env=self.environment, stdin=pack.stdout, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert pack.stdout is not None
        pack.stdout.close()
        if pack.wait() or done.returncode:
            raise EngineError(f"docker import {tag}: {done.stderr}")

    def inspect(self, name: str) -> dict[str, Any]:
        return dict(self.request("GET", f"/containers/{name}/json"))

    def pid(self, name: str) -> int:
        return int(self.inspect(name)["State"]["Pid"])

    def exec(self, name: str, *command: str, check: bool = True) -> str:
        """Run inside a container, by its namespaces: quicker than the engine's own way."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid(name)), "-n", "-m", "-p", "--", *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise EngineError(f"{name}: {' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def _wait(question: Callable[[], bool], seconds: float) -> None:
    """Until it is so, or the time is over."""
    deadline = time.monotonic() + seconds
    while not question() and time.monotonic() < deadline:
        time.sleep(0.02)  # an engine that starts, or a process that ends, tells nobody


def _machine(name: str) -> dict[str, str]:
    """What the engine `name` could change on the machine outside its namespaces."""
    found = {}
    for command in (["iptables-save"], ["ip", "-br", "link"], ["ip", "route", "show", "table", "all"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found[command[0] + command[-1]] = "\n".join(
            # Counters and times differ each time; links of others come and go beside us.
            line for line in done.stdout.splitlines() if "docker" in line.lower() or "br-" in line
        )  # fmt: skip
    for path in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables", "net/ipv4/conf/all/forwarding"):
        with suppress(OSError):
            found[path] = Path("/proc/sys", path).read_text()
    found["outside"] = "\n".join(
        str(path) for top in OUTSIDE for path in sorted(Path(top).rglob("*")) if os.access(path, os.R_OK)
    )
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found["mounts"] = "\n".join(line for line in mounts if name in line)
    return found


def copy_programs(root: Path, programs: Sequence[str]) -> None:
    """A root file system of the machine's own programs with the libraries that they are linked with."""
    for directory in ("tmp", "etc", "proc", "sys", "dev", "run"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    wanted = [
        Path(found).resolve()
        for p in programs
        if (found := shutil.which(p, path="/usr/sbin:/usr/bin:/sbin:/bin"))
    ]
    missing = set(programs) - {p for p in programs if shutil.which(p, path="/usr/sbin:/usr/bin:/sbin:/bin")}
    if missing:
        raise EngineError(f"the machine has no {missing}")
    for program, name in zip(wanted, programs, strict=True):
        _copy(program, root / "bin" / name)
        listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
        for word in listed.split():
            if word.startswith("/"):
                _copy(Path(word), root / word.lstrip("/"))


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


@contextmanager
def engine(name: str, base: Path) -> Iterator[Engine]:
    """An engine that is gone, with all that was made by it, when the block ends."""
    made = Engine(name, base)
    try:
        made.open()
        yield made
    finally:
        made.close()
