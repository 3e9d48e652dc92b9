"""Certificates of a running mesh: shown, replaced, and the CA rotated under load, with crashes and back.

The load goes between two nodes by mutual TLS: requests on kept-alive connections and on new ones through
pooled connections (8080), a handshake for each connection (8081), and a connection that stays open.
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
from rig import PENSTOCK, START, Daemon, Mesh, workload

from penstock import lab
from penstock.mtls import reports, rotation

PAUSE = 0.01
"""Seconds between two requests of a load: daemons must start beside it, which takes two CPU seconds."""
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
            while not self._stop.wait(PAUSE):
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
        Load(client, address, 8080, pause=PAUSE) as kept,
        Load(client, address, 8080, keep=False, pause=PAUSE) as anew,
        Load(client, address, 8081, keep=False, pause=PAUSE) as handshakes,
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
        ".issued.lock", ".lock", "intermediate.crt", "intermediate.key", "issued.log", "jwt", "jwt.json",
        "nodes", "root.crt", "root.key",
    ]  # fmt: skip


def stage(mesh: Mesh) -> str:
    state = mesh.base / "ca/rotation.json"
    return str(json.loads(state.read_text())["stage"]) if state.exists() else ""


def holding(mesh: Mesh) -> dict[str, str]:
    """Node → what it lacks, at the stage of now."""
    now = rotation.current(mesh.base / "ca")
    assert now is not None
    return reports.holding(reports.read(mesh.base / "ca"), now)


class Slow:
    """One more node that shares the CA and proves a stage when it is told to: it holds every stage."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._directory = mesh, mesh.base / "ca"
        self._reporter = reports.Reporter.open(self._directory, "slow")

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *_: object) -> None:
        self._reporter.close()
        reports.forget(self._directory, "slow")

    def reached(self, at: str) -> None:
        """Wait until this node alone holds the stage."""
        until(f"stage {at}", lambda: stage(self._mesh) == at)
        until("the others have proven it", lambda: holding(self._mesh).keys() == {"slow"})

    def prove(self) -> None:
        now = rotation.current(self._directory)
        assert now is not None
        self._reporter.write(reports.Report("slow", now.id, now.stage, proven=True, reason=""))


def rotate(mesh: Mesh, *options: str) -> Command:
    return Command(mesh.daemons["node-a"], "ca", "rotate", "--yes", *options)


def restart(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()
    until("the daemon answers", daemon.answers, START)


def test_a_node_that_is_down_holds_the_stage_and_is_named(mesh: Mesh) -> None:
    old_root, far = root_of(mesh), mesh.on("far")
    with nothing_fails(mesh):
        far.kill()
        _, err = rotate(mesh, "--timeout", "5s").end(1)
        assert "stage trust is not proven within 5 s: node-b: its daemon does not run" in err
        (waiting,) = (n for n in data(mesh, "ca", "status", code=1)["nodes"] if not n["proven"])
        assert (waiting["node"], waiting["daemon"]) == ("node-b", "down")
        command = rotate(mesh)
        far.start()
        command.end()
        until("the daemon answers", far.answers, START)
    assert root_of(mesh) != old_root
    assert "nothing is being rotated" in cli(mesh, "ca", "status")


def test_the_command_and_a_daemon_are_killed_at_every_stage(mesh: Mesh, tmp_path: Path) -> None:
    old_root, far = root_of(mesh), mesh.on("far")
    with nothing_fails(mesh), Slow(mesh) as slow:
        command = rotate(mesh)
        for at in ("trust", "sign", "drop"):
            slow.reached(at)
            command.process.kill()
            command.process.communicate()
            restart(far)
            slow.prove()
            command = rotate(mesh)
        command.end()
    assert root_of(mesh) != old_root
    assert all(openssl_takes(tmp_path, pem, root_of(mesh)) for pem in pems(mesh))


def test_a_daemon_that_was_away_at_a_change_of_stage_comes_up_in_the_right_one(mesh: Mesh) -> None:
    far, before = mesh.on("far"), certificates(mesh)
    with nothing_fails(mesh), Slow(mesh) as slow:
        command = rotate(mesh)
        for at, following in (("trust", "sign"), ("sign", "drop")):
            slow.reached(at)
            far.kill()
            slow.prove()
            until(f"stage {following}", lambda following=following: stage(mesh) == following)
            until("node-a has proven it", lambda: "node-a" not in holding(mesh))
            assert holding(mesh)["node-b"] == "its daemon does not run"
            far.start()
            until("the daemon answers", far.answers, START)
            slow.reached(following)
        slow.prove()
        command.end()
    assert all(entry["serial"] != before[name]["serial"] for name, entry in certificates(mesh).items())


@pytest.mark.parametrize("at", ["trust", "sign"])
def test_a_rotation_is_rolled_back(mesh: Mesh, tmp_path: Path, at: str) -> None:
    root, back = root_of(mesh), {"trust": ["withdraw"], "sign": ["return", "withdraw"]}[at]
    with nothing_fails(mesh), Slow(mesh) as slow:
        forward = rotate(mesh)
        slow.reached("trust")
        if at == "sign":
            slow.prove()
            slow.reached("sign")
        abort = rotate(mesh, "--abort")
        for each in back:
            slow.reached(each)
            if each == back[0]:
                assert "turned this rotation round" in forward.end(1)[1]
                assert "is being rolled back" in rotate(mesh).end(1)[1]
                abort.process.kill()
                abort.process.communicate()
                restart(mesh.on("far"))
                abort = rotate(mesh, "--abort")
                slow.reached(each)
            slow.prove()
        abort.end()
    assert root_of(mesh) == root
    assert not (mesh.base / "ca/next").exists()
    assert all(openssl_takes(tmp_path, pem, root) for pem in pems(mesh))


def test_the_last_stage_is_not_rolled_back(mesh: Mesh) -> None:
    old_root = root_of(mesh)
    with Slow(mesh) as slow:
        command = rotate(mesh)
        for at in ("trust", "sign"):
            slow.reached(at)
            slow.prove()
        slow.reached("drop")
        assert "too late to roll back" in rotate(mesh, "--abort").end(1)[1]
        slow.prove()
        command.end()
    assert root_of(mesh) != old_root


def test_the_intermediate_is_rotated_under_the_same_root(mesh: Mesh, tmp_path: Path) -> None:
    root, before = root_of(mesh), certificates(mesh)
    with nothing_fails(mesh):
        done = data(mesh, "ca", "rotate", "--intermediate", "--yes")
    assert [each["stage"] for each in done["stages"]] == ["trust", "sign"]
    assert root_of(mesh) == root
    for name, entry in certificates(mesh).items():
        assert entry["issuer"] != before[name]["issuer"]
    assert all(openssl_takes(tmp_path, pem, root) for pem in pems(mesh))


# --- certificates of workloads -----------------------------------------------------------------------------


def test_list_says_whose_and_how_long_and_where(mesh: Mesh) -> None:
    (entry,) = data(mesh, "cert", "list", node="node-b")["certificates"]
    assert (entry["workload"], entry["node"]) == ("default/far", "node-b")
    assert entry["spiffe_id"] == "spiffe://penstock.local/ns/default/sa/far"
    assert 23 * 3600 < entry["remaining_seconds"] <= 24 * 3600
    assert entry["addresses"] == [str(address) for address in mesh["far"].addresses]
    assert entry["envoy"][str(mesh["far"].address())] == "acknowledged"
    assert "default/far" in cli(mesh, "cert", "list", "--expiring", "6h", node="node-b")
    _, err = Command(mesh.on("far"), "cert", "list", "--expiring", "30d").end(1)
    assert f"default/far ends at {entry['not_after']}" in err
    health = mesh.on("far").status()["certificate_health"]
    assert health["nearest_expiry"] == entry["not_after"]
    assert (health["failures"], health["warnings"]) == ([], [])


@pytest.mark.parametrize("name", ["far", "default/far", "ADDRESS"])
def test_inspect_finds_a_workload_by_name_and_by_address(mesh: Mesh, name: str) -> None:
    name = name.replace("ADDRESS", str(mesh["far"].address(6)))
    (entry,) = data(mesh, "cert", "inspect", name, node="node-b")
    assert (entry["workload"], entry["valid"], entry["key"]) == ("default/far", True, "ECDSA secp256r1")
    assert [c["uris"] for c in entry["chain"] + entry["roots"]] == [["spiffe://penstock.local"]] * 2
    assert "PRIVATE" not in json.dumps(entry)
    assert "valid      yes" in cli(mesh, "cert", "inspect", name, node="node-b")


def test_what_is_not_there_and_what_is_not_said(mesh: Mesh) -> None:
    for argv in (("inspect", "nobody"), ("rotate", "nobody"), ("rotate", "far")):
        assert "no certificate of" in Command(mesh.daemons["node-a"], "cert", *argv).end(1)[1]
    Command(mesh.daemons["node-a"], "cert", "rotate").end(2)
    Command(mesh.daemons["node-a"], "ca", "rotate").end(2)
    assert stage(mesh) == ""


def configured(mesh: Mesh) -> dict[str, int]:
    """How often listeners and clusters have come, gone or changed in any Envoy."""
    found = {}
    for node, daemon in mesh.daemons.items():
        for manager in ("listener_manager.listener", "cluster_manager.cluster"):
            for name, count in daemon.envoy_stats(manager).items():
                if name.endswith(("_added", "_modified", "_removed")):
                    found[f"{node} {name}"] = count
    assert found
    return found


def test_certificates_are_replaced_with_new_keys_and_no_connection_ends(mesh: Mesh, tmp_path: Path) -> None:
    serials = {certificates(mesh)["default/far"]["serial"]}
    before = configured(mesh)
    with nothing_fails(mesh) as (_, _, handshakes):
        for options in [("far",), ("--all",)] * 5:
            (done,) = data(mesh, "cert", "rotate", *options, node="node-b")
            assert done["old_serial"] in serials
            serials.add(done["serial"])
            cli(mesh, "cert", "rotate", "client")
            handshakes.more(5)
    assert len(serials) == 11
    assert configured(mesh) == before
    assert certificates(mesh)["default/far"]["envoy"][str(mesh["far"].address())] == "acknowledged"
    assert all(openssl_takes(tmp_path, pem, root_of(mesh)) for pem in pems(mesh))


def test_short_certificates_are_renewed_in_time_and_no_connection_ends(mesh: Mesh) -> None:
    seen: set[str] = set()

    def renewed(count: int) -> bool:
        seen.add(mesh.on("far").call("certs")["certificates"][0]["serial"])
        return len(seen) >= count

    def live(*options: str) -> None:
        for daemon in mesh.daemons.values():
            daemon.options = options
            daemon.stop()
            daemon.start()
        mesh.wait_for_daemons()
        mesh.wait()

    try:
        with nothing_fails(mesh):
            live("--cert-lifetime", "6s")
            until("the certificate was renewed three times", lambda: renewed(4), 20)
            health = mesh.on("far").status()["certificate_health"]
            assert health["lifetime_seconds"] == 6
            assert 2 < health["nearest_expiry_seconds"] <= 6
            assert health["warnings"] == []
    finally:
        live()
