"""Containers of a Docker Engine of our own with a daemon beside it, for `penstock bench docker`.

An idle container runs `sleep` out of an image of this machine's own programs; what serves in one is a
process of this machine in the container's network namespace. So nothing has to be built, and nothing is
fetched.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penstock import lab
from penstock.bench.errors import BenchError
from penstock.bench.site import DaemonUnderTest, launched
from penstock.lab import netns
from penstock.lab.engine import Engine, copy_programs
from penstock.plan import ServiceKey
from penstock.redirect.decode import service_value
from penstock.redirect.layout import address_bytes, service_key
from penstock.redirect.libbpf import BpfMap
from penstock.redirect.shapes import SHAPES

NAME = "bench-docker"
PORT = 8080
IMAGE = "tiny:latest"
NETWORK, SIDE = "bench", "bench-side"
SIDE_ADDRESS = "10.188.8.77"
ROUTED, PLAIN, MOVING = "10.96.7.7", "10.96.7.8", "10.96.7.9"
"""Virtual addresses: with an HTTPRoute, without one, and of the container that things are done to."""
PATIENCE = 20.0


@contextmanager
def engine() -> Iterator[Engine]:
    """In a directory for itself: images are too large for /run. Raises BenchError, EngineError."""
    if netns.path_of(NAME).exists():
        netns.end_processes([NAME])
        netns.remove(NAME)
    if missing := [
        program for program in ("dockerd", "docker", "docker-compose") if not shutil.which(program)
    ]:
        raise BenchError(f"{', '.join(missing)} is not there", hint="`make bench` installs what is missing")
    with TemporaryDirectory(prefix="penstock-bench-") as directory:
        made = Engine(NAME, Path(directory))
        try:
            made.open()
            yield made
        finally:
            made.close()


@dataclass(frozen=True, slots=True)
class Box:
    """A container that runs. `started` is when, by the engine, in seconds since the epoch."""

    name: str
    number: str
    pid: int
    address: str
    started: float

    @property
    def netns(self) -> Path:
        return Path(f"/proc/{self.pid}/ns/net")


class Crowd:
    """An engine with a network of the mesh, and the daemon that follows it."""

    def __init__(self, made: Engine, running: DaemonUnderTest) -> None:
        self.engine, self.running = made, running
        self._servers: list[subprocess.Popen[Any]] = []
        self._maps = {
            name: BpfMap(running.run_dir / "bpf" / name, SHAPES[name].key, SHAPES[name].value)
            for name in ("endpoints", "services")
        }

    def run(self, name: str, app: str, *command: str, network: str = NETWORK) -> Box:
        """A container that sleeps, or runs `command`."""
        body = {
            "Image": IMAGE,
            "Cmd": list(command) or ["sleep", "10000"],
            "Labels": {"app": app},
            "StopTimeout": 3,
            "HostConfig": {"NetworkMode": network},
        }
        number = str(self.engine.request("POST", f"/containers/create?name={name}", body)["Id"])
        self.engine.request("POST", f"/containers/{number}/start")
        return self.look(number)

    def look(self, number: str) -> Box:
        found = self.engine.inspect(number)
        state, networks = found["State"], found["NetworkSettings"]["Networks"]
        started = datetime.fromisoformat(state["StartedAt"][:26].rstrip("Z") + "+00:00").timestamp()
        return Box(
            found["Name"].lstrip("/"), number, int(state["Pid"]),
            str(networks[NETWORK]["IPAddress"]), started,
        )  # fmt: skip

    def remove(self, box: Box) -> None:
        self.engine.request("DELETE", f"/containers/{box.number}?force=1")

    def serve(self, box: Box) -> None:
        argv = [sys.executable, "-m", "penstock.bench.answer", str(PORT)]
        self._servers.append(lab.run_in(box.netns, argv))

    def endpoint(self, address: str) -> bytes | None:
        """What the kernel knows of this address, if it is a workload's."""
        return self._maps["endpoints"].get(address_bytes(ip_address(address)))

    def backends(self) -> int:
        """How many the Service MOVING has in the kernel."""
        raw = self._maps["services"].get(
            service_key(ServiceKey(ip_address(MOVING), PORT, socket.IPPROTO_TCP))
        )
        return service_value(raw).inside[1] if raw else 0

    def close(self) -> None:
        for each in self._maps.values():
            each.close()
        for server in self._servers:
            server.kill()
            server.wait()


@contextmanager
def crowd(made: Engine, directory: Path, manifests: Sequence[Mapping[str, Any]]) -> Iterator[Crowd]:
    """Without containers yet; `manifests` are in force as far as they can be."""
    copy_programs(directory / "tiny", ("sh", "sleep"))
    made.import_image(directory / "tiny", IMAGE)
    for name, subnet in ((NETWORK, "10.188.0.0/22"), (SIDE, "10.188.8.0/24")):
        body = {
            "Name": name,
            "Internal": True,
            "Labels": {"penstock.dev/mesh": "true"},
            "IPAM": {"Config": [{"Subnet": subnet}]},
        }
        made.request("POST", "/networks/create", body)
    options = ("--docker", str(made.socket), "--node", "bench")
    with launched(made.netns, Path(f"/run/penstock-{NAME}"), directory / "daemon", manifests, *options) as it:
        it.settle(60.0)
        found = Crowd(made, it)
        try:
            yield found
        finally:
            found.close()


def ask(where: Path, address: str, seconds: float = 2.0) -> int:
    """The status of one request on a connection of its own. Raises OSError, HTTPException."""
    with lab.entered(where):
        sock = socket.socket()
    connection = http.client.HTTPConnection(address, PORT)
    connection.sock = sock
    with sock:
        sock.settimeout(seconds)
        sock.connect((address, PORT))
        connection.request("GET", "/")
        return connection.getresponse().status


def first_answer(where: Path, address: str) -> float:
    """When a request passed first, in seconds since the epoch. Raises BenchError if none does."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        # A SYN that is dropped is sent again after a second: a new connection sooner.
        with suppress(OSError, http.client.HTTPException):
            if ask(where, address, 0.02) == 200:
                return time.time()
    raise BenchError(f"no request of {where} passes")


class Load:
    """Requests without a pause, each on a connection of its own, counted by status or by what went wrong."""

    def __init__(self, where: Path, address: str) -> None:
        self.seen: Counter[str] = Counter()
        self._stop = threading.Event()
        self._where, self._address = where, address
        self._thread = threading.Thread(target=self._run, name="load")

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.seen[str(ask(self._where, self._address))] += 1
            except (OSError, http.client.HTTPException) as e:
                self.seen[type(e).__name__] += 1
            self._stop.wait(0.002)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def lost(self) -> int:
        return sum(count for what, count in self.seen.items() if what != "200")


class Events:
    """The engine's own account of what it did, with its times."""

    def __init__(self, made: Engine) -> None:
        self._lines: list[dict[str, Any]] = []
        self._answer, self._end = made.stream("/events")
        self._thread = threading.Thread(target=self._read, daemon=True, name="events")
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError, ValueError, http.client.HTTPException, AttributeError):
            for line in self._answer:
                self._lines.append(json.loads(line))
        self._answer.close()

    def close(self) -> None:
        self._end()
        self._thread.join()

    def of(self, action: str, number: str, after: float) -> float:
        """When this was done to a container, first after `after`, in seconds since the epoch."""

        def found() -> float:
            for line in list(self._lines):
                actor = line["Actor"]
                about = actor["Attributes"].get("container", actor["ID"])
                moment = line["timeNano"] / 1e9
                if line["Action"] == action and about == number and moment > after:
                    return float(moment)
            return 0.0

        return float(wait(f"event {action}", found))


def wait(what: str, question: Callable[[], Any]) -> Any:
    """The first true answer. Raises BenchError if none comes in time."""
    end = time.monotonic() + PATIENCE
    while not (answer := question()):
        if time.monotonic() > end:
            raise BenchError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.001)  # a map of the kernel tells nobody that it has changed
    return answer
