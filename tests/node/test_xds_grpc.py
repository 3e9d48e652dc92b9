"""gRPC's own xDS client finds Services by the daemon, without a proxy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from clients import until
from conftest import MeshFactory
from envoy.admin.v3.config_dump_shared_pb2 import ClientResourceStatus
from objects import policy, route, select, service, to
from rig import PENSTOCK, Mesh, workload

from penstock import lab

CLIENT = """
import grpc, grpc_csds, json, sys
def held():
    told = grpc_csds.ClientStatusDiscoveryServiceServicer.FetchClientStatus(None, None)
    items = [item for config in told.config for item in config.generic_xds_configs]
    return {f"{i.type_url.rpartition('.')[2]} {i.name}": [i.version_info, i.client_status] for i in items}
with grpc.insecure_channel(sys.argv[1]) as channel:
    for line in sys.stdin:
        if line == "held\\n":
            print(json.dumps(held()), flush=True)
            continue
        seen = []
        method, count = line.split()
        for _ in range(int(count)):
            try:
                seen.append(json.loads(channel.unary_unary(method)(b"", timeout=2))["pod"])
            except grpc.RpcError as error:
                seen.append(error.code().name)
        print(json.dumps(seen), flush=True)
"""

GRPC = {"port": 50051, "name": "grpc"}


def serving(name: str, tier: str) -> dict[str, Any]:
    made = workload(name, "node-a", ports=[{"name": "grpc", "containerPort": 50051}])
    made["labels"] = {"app": name, "tier": tier}
    made["run"] = [[*PENSTOCK, "lab", "echo", "--name", name, "--grpc", "50051"]]
    return made


SERVICES = tuple(
    service(name, GRPC, selector=selector)
    for name, selector in (("api", {"tier": "api"}), ("v1", {"app": "v1"}), ("v2", {"app": "v2"}))
)


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(serving("v1", "api"), serving("v2", "api"))


def penstock(mesh: Mesh, *words: str) -> Any:
    daemon = mesh.on("v1")
    command = [*PENSTOCK, *words, "--run-dir", str(daemon.run_dir)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def of_program(mesh: Mesh) -> list[dict[str, str]]:
    """What we know of the gRPC program's resources."""
    (found,) = [c for c in penstock(mesh, "xds", "clients", "-o", "json") if c["node"] == "program"]
    return list(found["resources"])


class Calls:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, method: str = "/pkg.Api/Get", count: int = 10) -> Counter[str]:
        """Who answers, or the status of the call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{method} {count}\n")
        self._process.stdin.flush()
        return Counter(json.loads(self._process.stdout.readline()))

    def held(self) -> dict[str, list[Any]]:
        """Type and name of each resource → version and state (ClientResourceStatus), as gRPC itself tells."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("held\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


@contextmanager
def client(mesh: Mesh, target: str) -> Iterator[Calls]:
    """A gRPC program on the node, with one channel to `target`."""
    bootstrap = json.dumps(penstock(mesh, "xds", "bootstrap", "--id", "program"))
    process = lab.run_in(
        mesh.on("v1").node.netns,
        ["env", f"GRPC_XDS_BOOTSTRAP_CONFIG={bootstrap}", sys.executable, "-c", CLIENT, target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Calls(process)
    finally:
        process.communicate(timeout=20)


@pytest.mark.parametrize(
    "target", ["xds:///api.default.svc:50051", "xds:///api.default.svc.cluster.local:50051"]
)
def test_a_service_is_balanced_over_its_endpoints(mesh: Mesh, target: str) -> None:
    mesh.apply(*SERVICES)
    with client(mesh, target) as calls:
        # Until it is connected to both, gRPC takes the one that it is connected to.
        until("both answer", lambda: set(calls()) == {"v1", "v2"})
        seen = calls(count=20)
    assert set(seen) == {"v1", "v2"}
    assert abs(seen["v1"] - seen["v2"]) <= 2


def test_an_unknown_service_is_told_as_such(mesh: Mesh) -> None:
    """gRPC waits 15 s for it all the same, in case it comes."""
    mesh.apply(*SERVICES[1:])
    with client(mesh, "xds:///api.default.svc:50051") as calls:
        assert set(calls(count=1)) == {"DEADLINE_EXCEEDED"}
        assert {r["client"] for r in of_program(mesh)} == {"DOES_NOT_EXIST"}
        mesh.apply(*SERVICES)
        until("both answer", lambda: set(calls()) == {"v1", "v2"})


def test_changes_reach_an_open_channel_and_the_status_tells_what_it_took(mesh: Mesh) -> None:
    mesh.apply(*SERVICES)
    with client(mesh, "xds:///api.default.svc:50051") as calls:
        until("both answer", lambda: set(calls()) == {"v1", "v2"})
        mesh.apply(service("api", GRPC, selector={"app": "v2"}), *SERVICES[1:])
        until("only v2 answers", lambda: set(calls()) == {"v2"})
        mesh.apply(
            *SERVICES,
            route(
                "api",
                "api",
                {"matches": [{"path": {"value": "/pkg.Old"}}], "backendRefs": [to("v1", port=50051)]},
                {"matches": [{"path": {"value": "/pkg.Api"}}], "backendRefs": [to("v2", port=50051)]},
            ),
        )
        until("routed", lambda: set(calls("/pkg.Old/Get")) == {"v1"})
        assert set(calls("/pkg.Api/Get")) == {"v2"}
        assert set(calls("/pkg.Apis/Get", 1)) == {"UNAVAILABLE"}
        until("acknowledged", lambda: {r["state"] for r in of_program(mesh)} == {"SYNCED"})
        kinds = {r["type"] for r in of_program(mesh)}
        assert kinds == {"Listener", "RouteConfiguration", "Cluster", "ClusterLoadAssignment"}
        mesh.apply(*SERVICES)
        until("as before", lambda: set(calls()) == {"v1", "v2"})


def test_what_we_tell_of_a_client_is_what_it_tells_itself(mesh: Mesh) -> None:
    """Our table of acknowledgements against gRPC's own client status (grpcio-csds), resource by resource."""
    mesh.apply(*SERVICES)
    with client(mesh, "xds:///api.default.svc:50051") as calls:
        until("both answer", lambda: set(calls()) == {"v1", "v2"})
        for selector in ({"app": "v2"}, {"tier": "api"}):
            mesh.apply(service("api", GRPC, selector=selector), *SERVICES[1:])
            until("acknowledged", lambda: {r["state"] for r in of_program(mesh)} == {"SYNCED"})
            ours = {f"{r['type']} {r['name']}" for r in of_program(mesh)}
            assert calls.held().keys() == ours
            assert {state for _, state in calls.held().values()} == {ClientResourceStatus.ACKED}


def test_a_client_is_told_of_endpoints_and_given_no_right(mesh: Mesh) -> None:
    """The connection is its own: a policy holds on it as on any other."""
    closed = policy("v2", select(app="v2"), ingress=[{"fromEndpoints": [select(app="v1")]}])
    bootstrap = json.dumps(penstock(mesh, "xds", "bootstrap"))
    mesh.apply(*SERVICES, closed)
    process = lab.run_in(
        mesh["v2"].netns,
        [
            "env",
            f"GRPC_XDS_BOOTSTRAP_CONFIG={bootstrap}",
            sys.executable,
            "-c",
            CLIENT,
            "xds:///v1.default.svc:50051",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate("/pkg.Api/Get 3\n", timeout=20)
    assert json.loads(out) == ["v1"] * 3
    out_of_v1 = policy("v1", select(app="v1"), ingress=[{"fromEndpoints": [select(app="nobody")]}])
    mesh.apply(*SERVICES, out_of_v1)
    process = lab.run_in(
        mesh["v2"].netns,
        [
            "env",
            f"GRPC_XDS_BOOTSTRAP_CONFIG={bootstrap}",
            sys.executable,
            "-c",
            CLIENT,
            "xds:///v1.default.svc:50051",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate("/pkg.Api/Get 1\n", timeout=20)
    assert json.loads(out)[0] in ("DEADLINE_EXCEEDED", "UNAVAILABLE")


def test_the_nodes_envoy_is_told_of_nothing_of_this(mesh: Mesh) -> None:
    mesh.apply(*SERVICES)
    with client(mesh, "xds:///api.default.svc:50051") as calls:
        calls()
        found = {c["node"]: c for c in penstock(mesh, "xds", "clients", "-o", "json")}
    assert set(found) == {"node-a", "program"}
    assert not any("svc" in r["name"] for r in found["node-a"]["resources"])
    assert {r["state"] for r in found["node-a"]["resources"]} == {"SYNCED"}
