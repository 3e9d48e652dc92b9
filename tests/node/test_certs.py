"""Certificates of a running mesh: shown, replaced, and the CA's root rotated under load, with crashes and a way back.

Every connection of the load goes between two nodes by mutual TLS: requests on kept-alive connections and on
new ones through pooled connections (8080), a handshake for each connection (8081), and a connection that stays open.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import Load, connect, until
from conftest import MeshFactory
from objects import peer_authentication, policy, ports, select
from rig import PENSTOCK, Daemon, Mesh, workload

from penstock import lab

STRICT = peer_authentication("far", "STRICT", app="far")
OUT = policy(
    "out",
    select(app="client"),
    egress=[
        {
            "toEndpoints": [select()],
            "toPorts": [ports(8080, http=[{"path": "/.*"}]), ports(8081), ports(9090)],
        }
    ],
)


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    found = make_mesh(workload("client", "node-a"), workload("far", "node-b", serves=True))
    found.apply(STRICT, OUT)
    return found


class Command:
    """`penstock …` at one node's daemon. Its output is read when it has ended."""

    def __init__(self, daemon: Daemon, *argv: str) -> None:
        self.process = lab.run_in(
            daemon.node.netns,
            [*PENSTOCK, *argv, "--run-dir", str(daemon.run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, code: int = 0) -> tuple[str, str]:
        out, err = self.process.communicate(timeout=90)
        assert self.process.returncode == code, f"{out}\n{err}"
        return out, err


def cli(mesh: Mesh, *argv: str, node: str = "node-a", code: int = 0) -> str:
    return Command(mesh.daemons[node], *argv).end(code)[0]


def data(mesh: Mesh, *argv: str, node: str = "node-a", code: int = 0) -> Any:
    return json.loads(cli(mesh, *argv, "-o", "json", node=node, code=code))


def certificates(mesh: Mesh) -> dict[str, dict[str, Any]]:
    """Workload → its certificate, on all nodes."""
    return {
        entry["workload"]: entry
        for node in mesh.daemons
        for entry in data(mesh, "cert", "list", node=node)["certificates"]
    }


def pems(mesh: Mesh) -> list[str]:
    return [
        entry["pem"]
        for name, node in (("client", "node-a"), ("far", "node-b"))
        for entry in data(mesh, "cert", "inspect", name, node=node)
    ]


def openssl_takes(folder: Path, pem: str, root: str) -> bool:
    first = pem.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----\n")
    names = {"leaf": pem[:first], "rest": pem[first:], "root": root}
    for name, text in names.items():
        (folder / name).write_text(text)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "root"]
    done = subprocess.run(
        [*command, "-untrusted", "rest", "leaf"], cwd=folder, capture_output=True, check=False
    )
    return done.returncode == 0


def root_of(mesh: Mesh) -> str:
    return (mesh.base / "ca/root.crt").read_text()


class Open:
    """One TCP connection that stays, and is used all the time."""

    def __init__(self, mesh: Mesh) -> None:
        self._sock = connect(mesh["client"], mesh["far"].address(), 9090)
        self._stop = threading.Event()
        self.count = 0
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.005):
                self._sock.sendall(b"still there")
                assert self._sock.recv(99) == b"still there"
                self.count += 1
        except (OSError, AssertionError) as error:
            self.error = OSError(str(error) or repr(error))

    def __enter__(self) -> Open:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()


@contextmanager
def nothing_fails(mesh: Mesh) -> Iterator[tuple[Load, ...]]:
    """Load from here to there; afterwards every answer was a 200 and no connection was closed."""
    client, address = mesh["client"], mesh["far"].address()
    with (
        Load(client, address, 8080) as kept,
        Load(client, address, 8080, keep=False) as anew,
        Load(client, address, 8081, keep=False) as handshakes,
        Open(mesh) as open_,
    ):
        loads = (kept, anew, handshakes)
        yield loads
        for load in loads:
            load.more()
    assert [set(load.seen) for load in loads] == [{200}] * 3, [dict(load.seen) for load in loads]
    assert open_.error is None
    assert open_.count > 10


def test_a_root_rotation_fails_no_request_and_closes_no_connection(mesh: Mesh, tmp_path: Path) -> None:
    old_root, before = root_of(mesh), certificates(mesh)
    envoys = {name: daemon.envoy_pid for name, daemon in mesh.daemons.items()}
    with nothing_fails(mesh):
        done = data(mesh, "ca", "rotate", "--yes")
    assert [stage["stage"] for stage in done["stages"]] == ["trust", "sign", "drop"]
    assert all(stage["nodes"] == ["node-a", "node-b"] for stage in done["stages"])
    after = certificates(mesh)
    assert all(after[name]["serial"] != before[name]["serial"] for name in before)
    assert root_of(mesh) != old_root
    for pem in pems(mesh):
        assert openssl_takes(tmp_path, pem, root_of(mesh))
        assert not openssl_takes(tmp_path, pem, old_root)
    assert {name: daemon.envoy_pid for name, daemon in mesh.daemons.items()} == envoys
    assert sorted(path.name for path in (mesh.base / "ca").iterdir()) == [
        ".lock", "intermediate.crt", "intermediate.key", "nodes", "root.crt", "root.key",
    ]  # fmt: skip
