"""A certificate that is taken back: refused by every node, and closed where it is open, within 5 seconds."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import Http, ask, connect, echoes, status_or_reset, until
from conftest import MeshFactory
from objects import peer_authentication, policy, ports, select
from rig import PENSTOCK, Mesh, workload
from thief import Stolen, speak

from penstock import lab

WITHIN = 5.0
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
    found = make_mesh(
        workload("client", "node-a"), workload("other", "node-a"), workload("far", "node-b", serves=True)
    )
    found.apply(STRICT, OUT)
    until("far serves", lambda: ask(found["client"], found["far"].address(), 8080).status == 200)
    return found


def cli(mesh: Mesh, *argv: str, code: int = 0) -> str:
    done = lab.run_in(
        mesh.daemons["node-a"].node.netns,
        [*PENSTOCK, *argv, "--ca-dir", str(mesh.base / "ca")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    out = done.communicate(timeout=30)[0]
    assert done.returncode == code, out
    return str(out)


@contextmanager
def revoked(mesh: Mesh, name: str) -> Iterator[dict[str, Any]]:
    """While the block lasts; afterwards the workload has a certificate again."""
    try:
        yield json.loads(cli(mesh, "cert", "revoke", name, "-o", "json"))
    finally:
        cli(mesh, "cert", "restore", name)
        until(f"{name} is back", lambda: echoes(mesh["client"], mesh["far"].address(), 9090, timeout=2))


def closed(sock: Any) -> bool:
    sock.settimeout(WITHIN)
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("who", ["client", "far"])
def test_new_connections_are_refused_and_open_ones_end(mesh: Mesh, who: str) -> None:
    """A client that is revoked, and a server."""
    far = mesh["far"].address()
    with connect(mesh["client"], far, 9090) as tcp, Http(mesh["client"], far, 8080) as http:
        tcp.sendall(b"one")
        assert tcp.recv(9) == b"one"
        assert http.ask("/").status == 200
        began = time.monotonic()
        with revoked(mesh, who) as told:
            assert [each["owner"] for each in told["revoked"]] == [f"default/{who}"] * len(told["revoked"])
            assert told["nodes"] == [{"node": n, "missing": ""} for n in ("node-a", "node-b")]
            assert closed(tcp)
            assert time.monotonic() - began < WITHIN
            assert status_or_reset(http) in (0, 503)
            assert not echoes(mesh["client"], far, 9090)
            with Http(mesh["client"], far, 8080) as again:
                assert status_or_reset(again) in (0, 503)


def test_those_who_are_not_meant_go_on(mesh: Mesh) -> None:
    far = mesh["far"].address()
    with connect(mesh["client"], far, 9090) as tcp, revoked(mesh, "other"):
        assert not echoes(mesh["other"], far, 9090)
        tcp.sendall(b"still here")
        assert tcp.recv(99) == b"still here"
        assert echoes(mesh["client"], far, 9090, timeout=3)


def test_it_stays_so_through_a_restart_of_every_process(mesh: Mesh) -> None:
    far = mesh["far"].address()
    with revoked(mesh, "client"):
        for daemon in mesh.daemons.values():
            daemon.kill()
            daemon.kill_envoy_only()
            daemon.start()
        mesh.wait_for_daemons()
        mesh.wait()
        assert not echoes(mesh["client"], far, 9090)
        warnings = mesh.on("client").status()["certificate_health"]["warnings"]
        assert any("default/client was revoked" in each for each in warnings)
        assert "default/client: no certificate" in lab_cli(mesh, "cert", "list")


def lab_cli(mesh: Mesh, *argv: str) -> str:
    daemon = mesh.daemons["node-a"]
    done = subprocess.run(
        [*PENSTOCK, *argv, "--run-dir", str(daemon.run_dir)], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_a_stolen_certificate_is_of_no_use_once_it_is_revoked(mesh: Mesh, tmp_path: Path) -> None:
    """Used in the best place for it: from the address that it belongs to, past the client's own node."""
    stolen = Stolen.of(mesh, tmp_path, "client")
    subprocess.run(
        [*PENSTOCK, "cert", "rotate", "client", "--run-dir", str(mesh.on("client").run_dir)], check=True
    )
    assert speak(mesh, "client", "far", stolen).served
    cli(mesh, "cert", "revoke", stolen.serial)
    refused = speak(mesh, "client", "far", stolen)
    assert not refused.served
    assert "certificate revoked" in refused.said
    assert echoes(mesh["client"], mesh["far"].address(), 9090, timeout=3), "the workload has another one"


def test_a_node_that_is_down_is_named(mesh: Mesh) -> None:
    far = mesh.on("far")
    far.kill()
    try:
        said = cli(mesh, "cert", "revoke", "client", code=1)
        assert "not in force on node-b: its daemon does not run" in said
        assert not echoes(mesh["client"], mesh["far"].address(), 9090)
    finally:
        far.start()
        mesh.wait_for_daemons()
        cli(mesh, "cert", "restore", "client")
    number = json.loads(cli(mesh, "cert", "revoked", "-o", "json"))["number"]
    until("node-b has it in force", lambda: report(mesh, "node-b") == number)
    assert "neither a workload nor the serial" in cli(mesh, "cert", "revoke", "nobody", code=1)


def report(mesh: Mesh, node: str) -> int:
    return int(json.loads((mesh.base / f"ca/nodes/{node}.json").read_text())["revocations"])
