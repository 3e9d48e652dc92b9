"""Containers as parts of a test, and the daemon of the node that they are on.

The daemon is a process of this machine in the engine's network namespace, as beside any engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from clients import until
from rig import Daemon

from penstock import lab
from penstock.lab.engine import Engine

SERVER = Path(__file__).with_name("server.py")
PORT = 8080


class Box:
    """A container that runs: a client of the tests' helpers, by its network namespace."""

    def __init__(self, engine: Engine, name: str, number: str) -> None:
        self.engine, self.name, self.number = engine, name, number
        self.inspected = engine.inspect(number)

    @property
    def pid(self) -> int:
        return int(self.inspected["State"]["Pid"])

    @property
    def netns(self) -> Path:
        return Path(f"/proc/{self.pid}/ns/net")

    def address(self, network: str) -> str:
        return str(self.inspected["NetworkSettings"]["Networks"][network]["IPAddress"])

    def remove(self) -> None:
        self.engine.request("DELETE", f"/containers/{self.number}?force=1&v=1")


class Node:
    """An engine with a daemon beside it, and what a test made there."""

    def __init__(self, engine: Engine, image: str, base: Path, name: str) -> None:
        self.engine, self.image = engine, image
        self.config = base / "config"
        self.config.mkdir()
        where: Any = SimpleNamespace(name=name, netns=engine.netns)
        run_dir = Path(f"/run/{engine.name}-{name}")
        self.daemon = Daemon(where, self.config, base, run_dir, ("--docker", str(engine.socket)))
        self.boxes: dict[str, Box] = {}
        self.networks: list[str] = []

    def network(self, name: str, subnet: str) -> str:
        """A network of the mesh, closed to the outside; only a given subnet allows given addresses."""
        self.engine.request(
            "POST",
            "/networks/create",
            {
                "Name": name,
                "Internal": True,
                "Labels": {"penstock.dev/mesh": "true"},
                "IPAM": {"Config": [{"Subnet": subnet}]},
            },
        )
        self.networks.append(name)
        return name

    def create(self, name: str, network: str, *, address: str = "", **config: Any) -> str:
        """A container of the test's server; its id. `labels`, `host` and so on are as the API has them."""
        labels = {"app": name.partition("-")[0], **config.pop("labels", {})}
        host = {"NetworkMode": network, "Binds": [f"{SERVER}:/server.py:ro"], **config.pop("host", {})}
        body = {
            "Image": self.image,
            "Cmd": ["python3", "-u", "/server.py", name],
            "Labels": labels,
            "HostConfig": host,
            "StopTimeout": 3,
            **config,
        }
        if address:
            body["NetworkingConfig"] = {
                "EndpointsConfig": {network: {"IPAMConfig": {"IPv4Address": address}}}
            }
        return str(self.engine.request("POST", f"/containers/create?name={name}", body)["Id"])

    def run(self, name: str, network: str, **how: Any) -> Box:
        number = self.create(name, network, **how)
        self.engine.request("POST", f"/containers/{number}/start")
        self.boxes[name] = Box(self.engine, name, number)
        return self.boxes[name]

    def remove(self, name: str) -> None:
        self.boxes.pop(name).remove()

    def apply(self, *documents: dict[str, Any]) -> None:
        """Exactly these objects, in force."""
        part = self.config / ".objects.part"
        part.write_text("# objects\n" + yaml.safe_dump_all(documents, sort_keys=False))
        part.rename(self.config / "objects.yaml")
        self.daemon.wait()

    def known(self, *names: str) -> None:
        """Wait until containers are workloads in force."""

        def there() -> bool:
            objects = self.daemon.status()["objects"]
            ready = {o["name"] for o in objects if o["kind"] == "Workload" and o["state"] == "in force"}
            return ready >= set(names)

        until(f"{names} are known", there, 30.0)

    def close(self) -> None:
        self.daemon.end()
        for box in self.boxes.values():
            box.remove()
        for network in self.networks:
            self.engine.request("DELETE", f"/networks/{network}")
        self.daemon.remember()
        self.daemon.take_down()
        self.daemon.look_back()


@contextmanager
def node(engine: Engine, image: str, base: Path, name: str) -> Iterator[Node]:
    made = Node(engine, image, base, name)
    try:
        made.daemon.before = made.daemon.network()
        made.daemon.start()
        until("the daemon answers", made.daemon.answers, 30.0)
        yield made
    finally:
        made.close()


__all__ = ["PORT", "Box", "Node", "lab", "node"]
