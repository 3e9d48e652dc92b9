"""The demo of the repository, from `docker-compose up` to the first request that a policy let pass."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from penstock import lab
from penstock.bench.errors import BenchError
from penstock.lab.engine import Engine

PROJECT = "bench"
BASE = "penstock-bench-base:latest"
ARCHIVE = Path("build/compose/base.tar")
PATIENCE = 60.0


def measure(
    engine: Engine, directory: Path, rounds: int, tell: Callable[[str], None]
) -> list[dict[str, float]]:
    """Seconds from the command's start to each moment, by round. Raises BenchError, EngineError."""
    if not ARCHIVE.is_file() or not list(Path("build/wheels").glob("penstock-*.whl")):
        raise BenchError(
            f"{ARCHIVE} or build/wheels is not there", hint="`make bench` makes them; run it in the checkout"
        )
    engine.docker("import", str(ARCHIVE), BASE)
    run_dir = directory / "run"
    run_dir.mkdir()
    environment = {
        **engine.environment,
        "COMPOSE_PROJECT_NAME": PROJECT,
        "PENSTOCK_RUN": str(run_dir),
        "PENSTOCK_DOCKER_SOCKET": str(engine.socket),
        "PENSTOCK_BASE": BASE,
    }
    engine.run("docker-compose", "build", env=environment, timeout=400)
    found = []
    for number in range(rounds):
        try:
            found.append(_once(engine, environment))
        finally:
            for command in (
                ["stop", "-t", "2"],
                ["run", "--rm", "penstock", "down"],
                ["down", "-v", "-t", "1"],
            ):
                engine.run("docker-compose", *command, env=environment)
        tell(f"round {number + 1}: {found[-1]['first_request']} s")
    return found


def _once(engine: Engine, environment: dict[str, str]) -> dict[str, float]:
    began = time.time()
    command = subprocess.Popen(
        ["docker-compose", "up", "-d"],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    ended = 0.0
    end = time.monotonic() + PATIENCE
    while True:
        if not ended and command.poll() is not None:
            ended = time.time()
        pid = _pid(engine, "frontend")
        if pid and _passes(pid):
            break
        if time.monotonic() > end:
            command.kill()
            raise BenchError(f"no request passes within {PATIENCE:g} s")
        time.sleep(0.02)  # an application that is not up yet tells nobody
    first = time.time()
    if command.wait(PATIENCE):
        raise BenchError("docker-compose up failed")
    ended = ended or time.time()
    return {
        "first_request": round(first - began, 2),
        "command": round(ended - began, 2),
        "daemon_started": round(_started(engine, "penstock") - began, 2),
        "frontend_started": round(_started(engine, "frontend") - began, 2),
    }


def _container(engine: Engine, service: str) -> dict[str, Any] | None:
    labels = [f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}"]
    query = json.dumps({"label": labels}).replace(" ", "").replace('"', "%22")
    found = engine.request("GET", f"/containers/json?filters={query}")
    return engine.inspect(found[0]["Id"]) if found else None


def _pid(engine: Engine, service: str) -> int:
    found = _container(engine, service)
    return int(found["State"]["Pid"]) if found else 0


def _started(engine: Engine, service: str) -> float:
    found = _container(engine, service)
    if found is None:
        raise BenchError(f"{service} does not run")
    return datetime.fromisoformat(found["State"]["StartedAt"][:26].rstrip("Z") + "+00:00").timestamp()


def _passes(pid: int) -> bool:
    """Whether the frontend answers 200: then it reached api, which needs the route and the policy."""
    with suppress(OSError, http.client.HTTPException):
        if not os.path.exists(f"/proc/{pid}"):
            return False
        with lab.entered(f"/proc/{pid}/ns/net"):
            sock = socket.socket()
        connection = http.client.HTTPConnection("127.0.0.1", 8080)
        connection.sock = sock
        with sock:
            sock.settimeout(3.0)
            sock.connect(("127.0.0.1", 8080))
            connection.request("GET", "/")
            return connection.getresponse().status == 200
    return False
