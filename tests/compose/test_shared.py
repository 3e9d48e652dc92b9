"""`network_mode: service:…` of a real Compose file, and a project that is up before the daemon is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from boxes import SERVER, Box
from clients import Http, ask, status_or_reset, until
from rig import Daemon

from penstock.lab.engine import Engine

NAME = "shared"
NETWORK = f"{NAME}_default"
BESIDE = 8081
"""Where the server listens that lives in the namespace of `web`."""


def service(image: str, name: str, *more: str, **config: Any) -> dict[str, Any]:
    return {
        "image": image,
        "command": ["python3", "-u", "/server.py", name, *more],
        "volumes": [f"{SERVER}:/server.py:ro"],
        "stop_grace_period": "1s",
        **config,
    }


def file(image: str) -> dict[str, Any]:
    return {
        "services": {
            "web": service(image, "web", expose=["8080"]),
            "side": service(
                image, "side", str(BESIDE), network_mode="service:web", labels={"app": "stranger"}
            ),
            "client": service(image, "client"),
            "guest": service(
                image, "guest", "8082", network_mode="service:client", labels={"app": "stranger"}
            ),
            "stranger": service(image, "stranger"),
        },
        "networks": {"default": {"internal": True, "labels": {"penstock.dev/mesh": "true"}}},
    }


def policy(path: str = "/.*") -> dict[str, Any]:
    port = {"port": "8080", "protocol": "TCP"}
    beside = {"port": str(BESIDE), "protocol": "TCP"}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "web", "namespace": NAME},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "web"}},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"app": "client"}}],
                    "toPorts": [
                        {"ports": [port], "rules": {"http": [{"method": "GET", "path": path}]}},
                        {"ports": [beside]},
                    ],
                }
            ],
        },
    }


class Shared:
    """The project, with a daemon beside the engine that began after it."""

    def __init__(self, engine: Engine, image: str, base: Path) -> None:
        self.engine, self.directory = engine, base / NAME
        self.directory.mkdir()
        (self.directory / "docker-compose.yml").write_text(yaml.safe_dump(file(image)))
        self.config = base / "config"
        self.config.mkdir()
        self.write(policy())
        where: Any = SimpleNamespace(name=NAME, netns=engine.netns)
        run_dir = Path(f"/run/{engine.name}-{NAME}")
        self.daemon = Daemon(where, self.config, base, run_dir, ("--docker", str(engine.socket)))

    def compose(self, *command: str) -> str:
        return self.engine.run("docker-compose", "-p", NAME, *command, cwd=self.directory)

    def write(self, *documents: dict[str, Any]) -> None:
        part = self.config / ".policies.part"
        part.write_text(yaml.safe_dump_all(documents))
        part.rename(self.config / "policies.yaml")

    def box(self, name: str) -> Box:
        number = self.compose("ps", "-q", name).strip()
        return Box(self.engine, name, number)

    def address(self, name: str) -> str:
        return self.box(name).address(NETWORK)


@pytest.fixture(scope="module")
def shared(docker: Engine, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    made = Shared(docker, base_image, tmp_path_factory.mktemp(NAME))
    made.daemon.before = made.daemon.network()
    made.compose("up", "-d")
    try:
        until("web is up", lambda: status(made.box("stranger"), made.address("web"), 8080) == 200)
        # What a daemon says of it counts from a second on.
        until("it ran for a while", lambda: time.time() - started(made) > 2.0)
        made.daemon.start()
        until("the daemon answers", made.daemon.answers, 30.0)
        made.daemon.wait()
        yield made
    finally:
        made.daemon.end()
        made.compose("down", "-t", "1")
        made.daemon.remember()
        made.daemon.take_down()
    made.daemon.look_back()


def started(made: Shared) -> float:
    text = made.box("web").inspected["State"]["StartedAt"]
    return datetime.fromisoformat(text[:19] + "+00:00").timestamp()


def status(box: Box, address: str, port: int, path: str = "/") -> int:
    try:
        return int(ask(box, address, port, path, timeout=1.0).status)
    except OSError:
        return 0


def test_the_daemon_says_what_it_found_open(shared: Shared) -> None:
    """All were up before it: each is named, and from now on nobody is open."""
    said = str(shared.daemon.status()["ran_earlier"])
    assert "3 workloads ran for up to" in said
    assert all(f"{NAME}/{name}-1" in said for name in ("web", "client", "stranger"))
    assert status(shared.box("stranger"), shared.address("web"), 8080) == 0
    # Who comes after it has found everything in force.
    shared.daemon.stop()
    shared.daemon.start()
    until("the daemon answers", shared.daemon.answers, 30.0)
    assert shared.daemon.wait()["ran_earlier"] == ""


def test_it_has_the_rights_of_whose_namespace_it_is_in(shared: Shared) -> None:
    """`guest` says it is a stranger; it speaks from the namespace of `client`, and is that to everybody."""
    web = shared.address("web")
    assert status(shared.box("client"), web, 8080) == 200
    assert status(shared.box("guest"), web, 8080) == 200
    assert status(shared.box("stranger"), web, 8080) == 0


def test_what_it_serves_is_guarded_as_whose_namespace_it_is_in(shared: Shared) -> None:
    web = shared.address("web")
    assert ask(shared.box("client"), web, BESIDE).body == b"side"
    assert status(shared.box("stranger"), web, BESIDE) == 0
    with pytest.raises(KeyError):
        shared.box("side").address(NETWORK)


def test_it_is_no_workload_of_its_own(shared: Shared) -> None:
    found = {o["name"] for o in shared.daemon.status()["objects"] if o["kind"] == "Workload"}
    assert found == {"web-1", "client-1", "stranger-1"}


def test_a_live_connection_of_the_shared_namespace_obeys_the_policy_of_now(shared: Shared) -> None:
    web = shared.address("web")
    with Http(shared.box("guest"), web, 8080, timeout=3.0) as kept:
        assert kept.ask("/open").status == 200
        shared.write(policy("/open.*"))
        shared.daemon.wait()
        assert kept.ask("/open").status == 200
        assert status_or_reset(kept, "/closed") == 403
    shared.write(policy())
    shared.daemon.wait()


def test_both_are_guarded_again_after_a_restart(shared: Shared) -> None:
    """Compose restarts the one that owns the namespace, and then the one that shares it."""
    shared.compose("restart", "-t", "1", "web")
    shared.compose("restart", "-t", "1", "side")
    client, stranger = shared.box("client"), shared.box("stranger")
    for port in (8080, BESIDE):
        until("it serves again", lambda: status(client, shared.address("web"), port) == 200, 20.0)  # noqa: B023
        assert status(stranger, shared.address("web"), port) == 0
