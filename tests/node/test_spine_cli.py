"""The command line as a contract: exit codes, what goes to which stream, and -o json everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from clients import ask, until
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import PENSTOCK, Mesh, workload

from penstock import lab

RULE = {"fromEndpoints": [select(app="client")], "toPorts": [ports(8080, http=[{"path": "/a"}])]}
GOOD = (
    policy("api", select(app="api"), ingress=[RULE]),
    service("web", {"port": 80, "targetPort": 8080}, selector={"app": "api"}),
    route("web", "web", {"backendRefs": [to("web")]}),
)


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    found = make_mesh(workload("client", "node-a"), workload("api", "node-a", serves=True))
    found.apply(*GOOD)
    return found


class Done:
    """One run of the command line, in the node's namespace."""

    def __init__(self, mesh: Mesh, *argv: str, run_dir: Path | None = None) -> None:
        daemon = mesh.daemons["node-a"]
        environment = {**os.environ, "PENSTOCK_RUN_DIR": str(run_dir or daemon.run_dir)}
        process = lab.run_in(
            daemon.node.netns,
            [*PENSTOCK, *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.out, self.err = process.communicate(timeout=60)
        self.code = process.returncode

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.mark.parametrize("argv", [["status"], ["status", "--wait", "1"], ["get", "service"], ["observe"]])
def test_without_a_daemon_the_code_is_3(mesh: Mesh, tmp_path: Path, argv: list[str]) -> None:
    done = Done(mesh, *argv, run_dir=tmp_path)
    assert (done.code, done.out) == (3, "")
    assert str(tmp_path) in done.err


@pytest.mark.parametrize(
    "argv",
    [
        ["no-such-command"],
        ["status", "--no-such-option"],
        ["status", "--wait", "soon"],
        ["get"],
        ["get", "no-such-kind"],
        ["validate", "-f", "/no/such/file"],
        ["run"],
        ["run", "--config", "/no/such/directory", "--run-dir", "{tmp}/run", "--state-dir", "{tmp}/state"],
        ["observe", "-o", "yaml"],
    ],
)
def test_bad_usage_is_2(mesh: Mesh, tmp_path: Path, argv: list[str]) -> None:
    done = Done(mesh, *(word.format(tmp=tmp_path) for word in argv))
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err


def test_status(mesh: Mesh) -> None:
    done = Done(mesh, "status", "--wait", "10")
    assert (done.code, done.err) == (0, "")
    for word in ("in force", "CiliumNetworkPolicy", "settled"):
        assert word in done.out
    found = Done(mesh, "status", "-o", "json").json
    assert found["settled"]
    assert {"in force"} == {o["state"] for o in found["objects"]}
    assert yaml.safe_load(Done(mesh, "status", "-o", "yaml").out)["node"] == "node-a"


def test_status_that_is_not_reached_in_time_is_1_and_says_what_is_missing(mesh: Mesh) -> None:
    daemon = mesh.daemons["node-a"]
    os.kill(daemon.envoy_pid, signal.SIGSTOP)
    try:
        more = service("more", {"port": 80, "targetPort": 8080}, selector={"app": "api"})
        mesh.write(
            "scenario.yaml", mesh.text(*GOOD, more, route("more", "more", {"backendRefs": [to("more")]}))
        )
        done = Done(mesh, "status", "--wait", "0.5")
        assert done.code == 1
        assert "more" in done.err
    finally:
        os.kill(daemon.envoy_pid, signal.SIGCONT)
    mesh.apply(*GOOD)
    assert Done(mesh, "status", "--wait", "10").code == 0


def test_refused_and_pending_objects_are_settled(mesh: Mesh) -> None:
    bad = {**GOOD[0], "metadata": {"name": "bad"}, "spec": {"endpointSelektor": {}}}
    lost = route("lost", "web", {"backendRefs": [to("no-such")]})
    mesh.apply(*GOOD, bad, lost)
    done = Done(mesh, "status", "--wait", "5", "-o", "json")
    states = {o["name"]: o["state"] for o in done.json["objects"] if o["name"] in ("bad", "lost")}
    assert states == {"bad": "refused", "lost": "pending"}
    mesh.apply(*GOOD)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((k, "api") for k in ("CiliumNetworkPolicy", "ciliumnetworkpolicies", "cnp", "CNP")),
        *((k, "web") for k in ("Service", "SERVICE", "services", "svc")),
        *((k, "web") for k in ("HTTPRoute", "httproute", "httproutes")),
        *((k, "client") for k in ("Workload", "workloads")),
        *((k, "node-a") for k in ("Node", "nodes", "no")),
    ],
)
def test_get_by_any_name_of_a_kind(mesh: Mesh, kind: str, name: str) -> None:
    found = Done(mesh, "get", kind, name, "-o", "json").json
    assert found["metadata"]["name"] == name
    listed = Done(mesh, "get", kind, "-o", "json").json
    assert name in [item["metadata"]["name"] for item in listed["items"]]


def test_get(mesh: Mesh) -> None:
    web = Done(mesh, "get", "httproute", "web", "-o", "json").json
    conditions = {c["type"]: c for c in web["status"]["parents"][0]["conditions"]}
    assert (web["apiVersion"], web["kind"]) == ("gateway.networking.k8s.io/v1", "HTTPRoute")
    for kind in ("Accepted", "ResolvedRefs"):
        assert conditions[kind]["status"] == "True"
        assert conditions[kind]["observedGeneration"] == web["metadata"]["generation"]
    assert Done(mesh, "get", "svc", "web", "-o", "json").json["spec"]["clusterIP"].startswith("10.96.")
    assert Done(mesh, "get", "svc", "-n", "elsewhere", "-o", "json").json == {"items": []}
    assert len(Done(mesh, "get", "svc", "-A", "-o", "json").json["items"]) == 1
    assert yaml.safe_load(Done(mesh, "get", "svc", "web", "-o", "yaml").out)["kind"] == "Service"
    assert "web" in Done(mesh, "get", "svc").out
    absent = Done(mesh, "get", "svc", "no-such")
    assert (absent.code, absent.out) == (1, "")


def test_validate(mesh: Mesh, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(yaml.safe_dump_all(GOOD))
    bad.write_text(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: x}\nspec: {ingres: []}\n"
    )
    assert Done(mesh, "validate", "-f", str(good)).code == 0
    done = Done(mesh, "validate", "-f", str(tmp_path))
    assert done.code == 2
    assert f"{bad}:4: CiliumNetworkPolicy default/x: spec.ingres" in done.out
    data = Done(mesh, "validate", "-f", str(bad), "-o", "json")
    assert data.code == 2
    assert json.loads(data.out)["problems"][0]["line"] == 4


def test_observe(mesh: Mesh) -> None:
    path = "/observed"
    assert ask(mesh["client"], mesh["api"].address(), 8080, path).status == 403

    def records() -> list[dict[str, Any]]:
        lines = Done(mesh, "observe", "--last", "50", "-o", "json").out.splitlines()
        return [r for r in map(json.loads, lines) if r.get("path") == path]

    record = until("the request was told of", records)[-1]
    assert (record["verdict"], record["code"], record["method"]) == ("DENIED", 403, "GET")
    assert (record["source"]["name"], record["destination"]["name"]) == ("default/client", "default/api")
    text = Done(mesh, "observe", "--last", "50").out
    line = next(line for line in text.splitlines() if path in line)
    for word in ("DENIED", "GET", "403", "default/client", "default/api", "ms"):
        assert word in line


def test_observe_follows(mesh: Mesh) -> None:
    daemon = mesh.daemons["node-a"]
    command = [*PENSTOCK, "observe", "-f", "--last", "0", "-o", "json", "--run-dir", str(daemon.run_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        os.set_blocking(pipe, False)
        text = b""

        def seen() -> bool:
            nonlocal text
            ask(mesh["client"], mesh["api"].address(), 8080, "/followed")
            with suppress(BlockingIOError):
                text += os.read(pipe, 65536)
            return b"/followed" in text

        until("the follower tells of a request", seen)
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_one_daemon_for_a_run_directory(mesh: Mesh, tmp_path: Path) -> None:
    argv = ["--config", str(mesh.config), "--state-dir", str(tmp_path), "--node", "node-a"]
    second = Done(mesh, "run", *argv)
    assert second.code == 1
    assert "another daemon" in second.err
    down = Done(mesh, "down")
    assert down.code == 1
    assert ask(mesh["client"], mesh["api"].address(), 8080, "/a").status == 200


def test_down_twice_and_where_nothing_ever_was(mesh: Mesh, tmp_path: Path) -> None:
    daemon = mesh.daemons["node-a"]
    daemon.stop()
    assert Done(mesh, "status").code == 3
    assert Done(mesh, "down").code == 0
    assert Done(mesh, "down").code == 0
    assert Done(mesh, "down", run_dir=tmp_path / "never").code == 0
    assert ask(mesh["client"], mesh["api"].address(), 8080, "/b").status == 200
    daemon.start()
    until("the daemon answers", daemon.answers, 15)
    mesh.wait()
    assert ask(mesh["client"], mesh["api"].address(), 8080, "/b").status == 403
