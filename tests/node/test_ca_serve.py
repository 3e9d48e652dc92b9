"""Nodes that share no directory: they join a served CA, work on without it, rotate and revoke by it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clients import Load, ask, connect, echoes, until
from conftest import MeshFactory
from objects import peer_authentication, policy, ports, select
from rig import PENSTOCK, Mesh, workload

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
    found = make_mesh(workload("client", "node-a"), workload("far", "node-b", serves=True), serve_ca=True)
    found.apply(STRICT, OUT)
    until("far serves", lambda: ask(found["client"], found["far"].address(), 8080).status == 200)
    return found


def at_the_ca(mesh: Mesh, *argv: str) -> Any:
    command = [*PENSTOCK, *argv, "--ca-dir", str(mesh.base / "ca"), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_keys_stay_where_they_were_made(mesh: Mesh) -> None:
    assert not (mesh.base / "ca/nodes/node-a.json").read_text().count("PRIVATE")
    for daemon in mesh.daemons.values():
        state = mesh.base / f"state-{daemon.name}"
        assert not (state / "ca").exists()
        assert (state / "ca-client/node.pem").stat().st_mode & 0o777 == 0o600
        (entry,) = daemon.call("certs")["certificates"]
        assert entry["node"] == daemon.name
    known = {node["node"]: node["daemon"] for node in at_the_ca(mesh, "ca", "status")["nodes"]}
    assert known == {"node-a": "up", "node-b": "up"}


def test_commands_that_need_the_ca_say_where_it_is(mesh: Mesh) -> None:
    run_dir = mesh.daemons["node-a"].run_dir
    done = subprocess.run(
        [*PENSTOCK, "ca", "show", "--run-dir", str(run_dir)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is served at" in done.stderr


def test_the_root_is_rotated_over_nodes_that_share_nothing(mesh: Mesh) -> None:
    far = mesh["far"].address()
    with (
        Load(mesh["client"], far, 8080) as kept,
        Load(mesh["client"], far, 8081, keep=False) as anew,
        connect(mesh["client"], far, 9090) as open_,
    ):
        old = (mesh.base / "ca/root.crt").read_text()
        done = at_the_ca(mesh, "ca", "rotate", "--yes")
        for load in (kept, anew):
            load.more()
        open_.sendall(b"still open")
        assert open_.recv(99) == b"still open"
    assert [stage["stage"] for stage in done["stages"]] == ["trust", "sign", "drop"]
    assert all(stage["nodes"] == ["node-a", "node-b"] for stage in done["stages"])
    assert (mesh.base / "ca/root.crt").read_text() != old
    assert (set(kept.seen), set(anew.seen)) == ({200}, {200})


def test_nodes_work_on_and_start_again_without_the_ca(mesh: Mesh) -> None:
    assert mesh.ca is not None
    far = mesh["far"].address()
    mesh.ca.stop()
    serials = {c["serial"] for d in mesh.daemons.values() for c in d.call("certs")["certificates"]}
    for daemon in mesh.daemons.values():
        daemon.stop()
        daemon.start()
    mesh.wait_for_daemons()
    mesh.wait()
    assert ask(mesh["client"], far, 8080).status == 200
    with connect(mesh["client"], far, 9090) as sock:
        sock.sendall(b"new")
        assert sock.recv(9) == b"new"
    now = {c["serial"] for d in mesh.daemons.values() for c in d.call("certs")["certificates"]}
    assert now == serials
    (warning,) = mesh.on("far").status()["certificate_health"]["warnings"]
    assert "does not answer since" in warning
    mesh.ca.start()
    until("it is back", lambda: not mesh.on("far").status()["certificate_health"]["warnings"], 40)


def test_what_is_revoked_at_the_ca_ends_on_every_node(mesh: Mesh) -> None:
    far = mesh["far"].address()
    with connect(mesh["client"], far, 9090) as sock:
        sock.sendall(b"open")
        assert sock.recv(9) == b"open"
        done = at_the_ca(mesh, "cert", "revoke", "client")
        assert [node["missing"] for node in done["nodes"]] == ["", ""]
        with pytest.raises((ConnectionError, AssertionError)):
            assert sock.recv(1)
    assert not echoes(mesh["client"], far, 9090)
    subprocess.run([*PENSTOCK, "cert", "restore", "client", "--ca-dir", str(mesh.base / "ca")], check=True)
    until("it is back", lambda: echoes(mesh["client"], far, 9090, timeout=2))


def test_a_daemon_that_nobody_let_in_says_what_to_do(mesh: Mesh, tmp_path: Path) -> None:
    node = mesh.spec.nodes[0]
    done = lab.run_in(
        node.netns,
        [
            *PENSTOCK, "run", "--config", str(mesh.config), "--run-dir", str(tmp_path / "run"),
            "--state-dir", str(tmp_path / "state"), "--node", "stranger", "--ca-server", "192.168.77.1:7443",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    _, said = done.communicate(timeout=30)
    assert done.returncode == 1
    assert "this node has not joined" in said
    assert "penstock ca token --node stranger" in said
