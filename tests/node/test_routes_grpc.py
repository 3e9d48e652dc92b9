"""GRPCRoutes through the real Envoy, with gRPC's own client and server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import PENSTOCK, Mesh, workload

from penstock import lab

SERVICES = tuple(service(n, {"port": 80, "targetPort": 50051}, selector={"app": n}) for n in ("api", "other"))

CLIENT = """
import grpc, json, sys
target, method, metadata = sys.argv[1:]
with grpc.insecure_channel(target) as channel:
    try:
        answer, call = channel.unary_unary(method).with_call(b"", timeout=5, metadata=json.loads(metadata))
        print(json.dumps(["OK", json.loads(answer), dict(call.initial_metadata())]))
    except grpc.RpcError as error:
        print(json.dumps([error.code().name, error.details(), {}]))
"""


def serving(name: str) -> dict[str, Any]:
    made = workload(name, "node-a", ports=[{"name": "grpc", "containerPort": 50051}])
    made["run"] = [[*PENSTOCK, "lab", "echo", "--name", name, "--grpc", "50051"]]
    return made


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(workload("client", "node-a"), serving("api"), serving("other"))


def grpc_route(*rules: dict[str, Any]) -> dict[str, Any]:
    return {**route("g", "api", *rules), "kind": "GRPCRoute"}


def call(mesh: Mesh, method: str, **metadata: str) -> tuple[str, Any, dict[str, str]]:
    process = lab.run_in(
        mesh["client"].netns,
        [sys.executable, "-c", CLIENT, f"{mesh.vip('api')}:80", method, json.dumps(list(metadata.items()))],
        stdout=subprocess.PIPE,
        text=True,
    )
    code, answer, headers = json.loads(process.communicate(timeout=20)[0])
    return code, answer, headers


def test_methods_headers_and_what_does_not_match(mesh: Mesh) -> None:
    asked = {"name": "x-ask", "value": "1"}
    told = {"name": "x-told", "value": "2"}
    filters = [
        {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [asked]}},
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [told]}},
    ]
    mesh.apply(
        *SERVICES,
        grpc_route(
            {
                "matches": [{"method": {"service": "a.B", "method": "One"}}],
                "filters": filters,
                "backendRefs": [to("api")],
            },
            {"matches": [{"method": {"service": "a.B"}}], "backendRefs": [to("other")]},
            {
                "matches": [{"method": {"type": "RegularExpression", "service": "c[.].+"}}],
                "backendRefs": [to("api")],
            },
            {
                "matches": [{"headers": [{"name": "to", "value": "other"}]}],
                "backendRefs": [to("other")],
            },
            {"matches": [{"method": {"method": "Lost"}}], "backendRefs": [to("nobody")]},
        ),
    )
    code, answer, headers = call(mesh, "/a.B/One")
    assert (code, answer["pod"], answer["path"]) == ("OK", "api", "/a.B/One")
    assert (answer["headers"]["X-Ask"], headers["x-told"]) == (["1"], "2")
    assert call(mesh, "/a.B/Two")[1]["pod"] == "other"
    assert call(mesh, "/c.D/Any")[1]["pod"] == "api"
    assert call(mesh, "/x.Y/Any", to="other")[1]["pod"] == "other"
    assert call(mesh, "/x.Y/Any")[0] == "UNIMPLEMENTED"
    assert call(mesh, "/x.Y/Lost")[0] == "UNAVAILABLE"


def test_a_denial_is_a_grpc_status(mesh: Mesh) -> None:
    rules = [{"path": "/a[.]B/One"}]
    peers = [{"fromEndpoints": [select(app="client")], "toPorts": [ports(50051, http=rules)]}]
    closed = policy("in", select(app="api"), ingress=peers)
    mesh.apply(*SERVICES, closed, grpc_route({"backendRefs": [to("api")]}))
    assert call(mesh, "/a.B/One")[0] == "OK"
    assert call(mesh, "/a.B/Two")[:2] == ("PERMISSION_DENIED", "Access denied")
