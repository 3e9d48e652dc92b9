"""A Compose project on an engine, with Penstock as one of its services."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clients import until

from penstock.lab import netns
from penstock.lab.engine import Engine, EngineError

SETTLE = 60.0


class Project:
    """`directory` holds its docker-compose.yml; `run_dir` is the machine's side of /run/penstock."""

    def __init__(self, engine: Engine, directory: Path, name: str, **environment: str) -> None:
        self.engine = engine
        self.directory = directory
        self.name = name
        self.took = 0.0
        """Seconds until it served, for whoever measures."""
        self.run_dir = engine.base / f"run-{name}"
        self.run_dir.mkdir(exist_ok=True)
        self.environment = {
            "COMPOSE_PROJECT_NAME": name,
            "PENSTOCK_RUN": str(self.run_dir),
            "PENSTOCK_DOCKER_SOCKET": str(engine.socket),
            **environment,
        }

    def compose(self, *command: str, **more: Any) -> str:
        return self.engine.run("docker-compose", *command, cwd=self.directory, env=self.environment, **more)

    def container(self, service: str, number: int = 1) -> str:
        """Its name; docker-compose 1.29 and Compose v2 join the parts differently."""
        labels = (
            f"label=com.docker.compose.project={self.name}",
            f"label=com.docker.compose.service={service}",
            f"label=com.docker.compose.container-number={number}",
        )
        filters = [part for label in labels for part in ("--filter", label)]
        return self.engine.docker("ps", "-a", "--format", "{{.Names}}", *filters)

    def exec(self, service: str, *command: str, check: bool = True) -> str:
        """Run inside a service's first container, in its namespaces."""
        return self.engine.exec(self.container(service), *command, check=check)

    def python(self, service: str, script: str) -> Any:
        """What a script inside a container prints, as JSON."""
        return json.loads(self.exec(service, "python3", "-c", script))

    def penstock(self, *command: str) -> str:
        return self.compose("exec", "-T", "penstock", "penstock", *command)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.penstock("status", "-o", "json")))

    def settled(self) -> None:
        def look() -> bool:
            try:
                return bool(self.status()["settled"])
            except (EngineError, ValueError):
                return False

        until("the daemon has settled", look, SETTLE)

    def take_down(self) -> None:
        """As the README says it."""
        self.compose("stop", "-t", "2")
        self.compose("run", "--rm", "penstock", "down")
        self.compose("down", "-v", "-t", "1")


def network_of(engine: Engine) -> str:
    """What a daemon may change in the engine's network namespace."""
    text = ""
    for family in ("-4", "-6"):
        for what in (("rule",), ("route", "show", "table", "2004")):
            process = netns.run_in(
                engine.netns, ["ip", family, *what],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            text += process.communicate(timeout=10)[0]
    with netns.entered(engine.netns):
        for name in ("ip_local_port_range", "tcp_max_tw_buckets", "conf/all/rp_filter"):
            text += f"{name} {Path('/proc/sys/net/ipv4', name).read_text()}"
    return text


@contextmanager
def project(engine: Engine, directory: Path, name: str, **environment: str) -> Iterator[Project]:
    """A project that is down, and looked after, when the block ends."""
    made = Project(engine, directory, name, **environment)
    before = network_of(engine)
    try:
        yield made
    except BaseException:
        print(made.compose("logs", "--no-color", "--tail=40"))
        raise
    finally:
        made.take_down()
        left = set(network_of(engine).splitlines()) ^ set(before.splitlines())
        assert not left, f"not as before: {sorted(left)}"
