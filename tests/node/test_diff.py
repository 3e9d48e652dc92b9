"""`penstock diff` against a running daemon: what it foretells is what then happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import Mesh, workload

from penstock.cli.diff import diff

API = service("api", {"port": 80, "targetPort": 8080}, selector={"app": "api"})
ROUTE = route("r", "api", {"backendRefs": [to("api")]})


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(workload("client", "node-a"), workload("api", "node-a", serves=True))


def told(mesh: Mesh, folder: Path) -> tuple[int, dict[str, list[dict[str, str]]]]:
    daemon = mesh.on("client")
    arguments = ["-f", str(folder), "--run-dir", str(daemon.run_dir), "-o", "json"]
    result = CliRunner().invoke(diff, arguments, standalone_mode=False)
    assert result.exception is None, result.exception
    return result.return_value, json.loads(result.stdout)


def test_what_is_told_comes_true(mesh: Mesh, tmp_path: Path) -> None:
    mesh.apply(API)
    assert told(mesh, mesh.config)[0] == 0
    for file in mesh.config.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    closed = policy(
        "in",
        select(app="api"),
        ingress=[{"fromEndpoints": [select(app="client")], "toPorts": [ports(8080)]}],
    )
    (tmp_path / "scenario.yaml").write_text(mesh.text(API, ROUTE, closed))
    code, found = told(mesh, tmp_path)
    assert code == 1
    assert {(o["change"], o["kind"]) for o in found["objects"]} == {
        ("added", "HTTPRoute"),
        ("added", "CiliumNetworkPolicy"),
    }
    daemon = mesh.on("client")
    before = {e["name"] for e in daemon.call("services") if e["routed"]}
    entries = len(daemon.call("kernel_policy", workload="api"))
    mesh.apply(API, ROUTE, closed)
    steered = {k["entry"] for k in found["kernel"] if "steered to Envoy" in (k["after"] or "")}
    now = [e for e in daemon.call("services") if e["routed"] and e["name"] not in before]
    assert steered == {f"{e['address']}:{e['port']}/TCP" for e in now}
    changes = [k["change"] for k in found["kernel"] if k["table"] == "policy"]
    after = len(daemon.call("kernel_policy", workload="api"))
    assert after - entries == changes.count("added") - changes.count("removed")
    # Then nothing is left to be done.
    assert told(mesh, tmp_path)[0] == 0
