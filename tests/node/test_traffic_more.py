"""Health probes by gRPC and by TCP, failover by zone, traffic policies of GRPCRoutes, and a foreign xDS
client over TCP: through the real Envoy and gRPC's own client and server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from clients import ask, connect, until
from conftest import MeshFactory
from objects import backend_policy, http_policy, route, service, to
from rig import PENSTOCK, Mesh, workload

from penstock import lab
from penstock.lab import LabWorkload
from penstock.mtls import certificates
from penstock.mtls.ca import CertificateAuthority

HTTP = {"name": "http", "port": 80, "targetPort": 8080}
CALLS = {"name": "grpc", "port": 90, "targetPort": 9000, "appProtocol": "grpc"}
XDS_PORT = 18500


def serving(name: str, node: str, **more: Any) -> dict[str, Any]:
    made = workload(name, node, labels={"app": name, "tier": "api"}, **more)
    made["run"] = [[*PENSTOCK, "lab", "echo", "--name", name, "--http", "8080", "--grpc", "9000"]]
    return made


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        serving("near", "node-a"),
        serving("far", "node-b"),
        workload("watched", "node-a", labels={"app": "watched", "tier": "api"}),
        options=("--xds", f"0.0.0.0:{XDS_PORT}"),
    )


def pods(mesh: Mesh, name: str = "api", count: int = 10) -> set[str]:
    found = (ask(mesh["client"], mesh.vip(name), 80) for _ in range(count))
    return {answer.pod if answer.status == 200 else str(answer.status) for answer in found}


CALL = """
import grpc, json, sys
target, method, count = sys.argv[1:]
with grpc.insecure_channel(target) as channel:
    found = []
    for _ in range(int(count)):
        try:
            found.append(json.loads(channel.unary_unary(method)(b"", timeout=5))["pod"])
        except grpc.RpcError as error:
            found.append(error.code().name)
    print(json.dumps(found))
"""


def calls(mesh: Mesh, method: str, count: int = 1, name: str = "api") -> list[str]:
    process = lab.run_in(
        mesh["client"].netns,
        [sys.executable, "-c", CALL, f"{mesh.vip(name)}:90", method, str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )
    return list(json.loads(process.communicate(timeout=60)[0]))


# --- probes ---------------------------------------------------------------------------------------------

PROBE = {"interval": "100ms", "unhealthyThreshold": 1, "healthyThreshold": 1}


class Watched(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Health as grpc.health.v1 has it, of just one service; every other call says who it is."""

    def __init__(self) -> None:
        self.well = True
        self.asked: list[bytes] = []

    def service(self, details: Any) -> Any:
        def answer(request: bytes, _: Any) -> bytes:
            if not details.method.endswith("/Check"):
                return b'{"pod": "watched"}'
            self.asked.append(request)
            return b"\x08\x01" if self.well else b"\x08\x02"

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def watched(where: LabWorkload) -> Iterator[Watched]:
    handler = Watched()
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[handler])
    with lab.entered(where.netns):
        assert server.add_insecure_port("0.0.0.0:9000") == 9000
        server.start()
    try:
        yield handler
    finally:
        server.stop(None).wait()


def both(port: dict[str, Any], *members: LabWorkload, **spec: Any) -> list[dict[str, Any]]:
    """Service `both` of just these workloads, with a policy for its port."""
    ends = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "both", "labels": {"kubernetes.io/service-name": "both"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [str(each.address())]} for each in members],
        "ports": [{"name": port["name"], "port": port["targetPort"]}],
    }
    return [service("both", port), ends, backend_policy("both", "both", port=port["port"], **spec)]


def test_probes_by_grpc(mesh: Mesh) -> None:
    """SERVING and NOT_SERVING of the service that the policy names; nothing at all is unhealthy too."""
    members = (mesh["near"], mesh["watched"])
    with watched(mesh["watched"]) as handler:
        mesh.apply(*both(CALLS, mesh["watched"], healthCheck={**PROBE, "grpc": {"service": "shop"}}))
        until("it is asked", lambda: handler.asked)
        # Field 1 of HealthCheckRequest (grpc.health.v1) is the service.
        assert set(handler.asked) == {b"\x0a\x04shop"}
        mesh.apply(*both(CALLS, *members, healthCheck={**PROBE, "grpc": {"service": "shop"}}))
        # What the echo says of its health is no answer that gRPC's health knows.
        until("the well one alone is taken", lambda: set(calls(mesh, "/a.B/C", 12, "both")) == {"watched"})
        handler.well = False
        before = len(handler.asked)
        until("it was asked again", lambda: len(handler.asked) > before + 2)
        until("nobody is well, so all are taken", lambda: "near" in calls(mesh, "/a.B/C", 12, "both"))


def test_probes_by_tcp(mesh: Mesh) -> None:
    """Whoever takes a connection is well; where nobody listens nothing is sent."""
    mesh.apply(*both(HTTP, mesh["near"], mesh["watched"], healthCheck={**PROBE, "tcp": {}}))
    until("who does not listen is out", lambda: pods(mesh, "both", 12) == {"near"})
    echo = [*PENSTOCK, "lab", "echo", "--name", "watched", "--http", "8080"]
    process = lab.run_in(mesh["watched"].netns, echo, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until("who listens is in", lambda: pods(mesh, "both", 12) == {"near", "watched"}, 20)
    finally:
        process.terminate()
        process.wait(timeout=10)
    until("who ended is out", lambda: pods(mesh, "both", 12) == {"near"})


# --- zones ----------------------------------------------------------------------------------------------


@contextmanager
def zones(mesh: Mesh, **of_nodes: str) -> Iterator[None]:
    """The lab's Node objects with these zones, while the block lasts."""
    (path,) = mesh.config.glob("lab-*.yaml")
    before = path.read_text()
    documents = list(yaml.safe_load_all(before))
    for document in documents:
        zone = of_nodes.get(document["metadata"]["name"].replace("-", "_"))
        if document["kind"] == "Node" and zone:
            labels = {"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": zone}
            document["metadata"]["labels"] = labels
    mesh.write(path.name, yaml.safe_dump_all(documents))
    try:
        yield
    finally:
        mesh.write(path.name, before)
        mesh.wait()


def test_failover_by_zone(mesh: Mesh) -> None:
    """Another node of the own zone is as near as this one; one of another zone only comes after it."""

    def apply(path: str) -> None:
        check = {**PROBE, "http": {"path": path}}
        mesh.apply(
            *both(HTTP, mesh["near"], mesh["far"], healthCheck=check, localityFailover={"mode": "Zone"})
        )

    with zones(mesh, node_a="z1", node_b="z1"):
        apply("/?status=200")
        until("both are near", lambda: pods(mesh, "both", 20) == {"near", "far"})
    with zones(mesh, node_a="z1", node_b="z2"):
        apply("/?status=200")
        until("the own zone alone", lambda: pods(mesh, "both", 20) == {"near"})
        # Workloads of other nodes are not probed: what fails is near alone.
        apply("/?status=503")
        until("it fails over", lambda: pods(mesh, "both", 20) == {"far"})


# --- GRPCRoutes -----------------------------------------------------------------------------------------


def test_policies_of_a_grpc_route(mesh: Mesh) -> None:
    """Limits and faults of one rule, with gRPC's own codes; other rules and calls are left alone."""
    rules = [
        {"name": name, "matches": [{"method": {"service": name}}], "backendRefs": [to("api", port=90)]}
        for name in ("slow.S", "broken.S", "plain.S")
    ]
    for rule in rules:
        rule["name"] = str(rule["name"]).lower()
    kind = {"kind": "GRPCRoute", "name": "g"}
    mesh.apply(
        service("api", CALLS, selector={"app": "near"}),
        {**route("g", "api", *rules), "kind": "GRPCRoute"},
        http_policy("slow", {**kind, "sectionName": "slow.s"}, rateLimit={"requests": 2, "interval": "300s"}),
        http_policy("broken", {**kind, "sectionName": "broken.s"}, fault={"abort": {"grpcStatus": 9}}),
    )
    assert calls(mesh, "/slow.S/M", 4) == ["near", "near", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"]
    assert calls(mesh, "/broken.S/M", 2) == ["FAILED_PRECONDITION"] * 2
    assert calls(mesh, "/plain.S/M", 4) == ["near"] * 4
    assert calls(mesh, "/other.S/M") == ["UNIMPLEMENTED"]


# --- xDS over TCP ---------------------------------------------------------------------------------------

ASK = """
import sys
import grpc
from envoy.service.discovery.v3 import discovery_pb2 as pb
address, home = sys.argv[1:]
read = lambda name: open(f"{home}/{name}", "rb").read()
own = (read("key"), read("chain")) if len(read("key")) else (None, None)
how = grpc.ssl_channel_credentials(read("roots"), *own)
with grpc.secure_channel(address, how, [("grpc.ssl_target_name_override", "node-a")]) as channel:
    stream = channel.stream_stream(
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        request_serializer=pb.DeltaDiscoveryRequest.SerializeToString,
        response_deserializer=pb.DeltaDiscoveryResponse.FromString,
    )
    wanted = pb.DeltaDiscoveryRequest(type_url="type.googleapis.com/envoy.config.listener.v3.Listener")
    wanted.resource_names_subscribe.append("api.default.svc:90")
    try:
        print(*(r.name for r in next(stream(iter([wanted]), timeout=10)).resources))
    except grpc.RpcError as error:
        print(error.code().name)
"""


def test_a_foreign_xds_client_over_tcp(mesh: Mesh, tmp_path: Path) -> None:
    """`--xds`: from another node, with a certificate of the mesh, and not at all without one."""
    mesh.apply(service("api", CALLS, selector={"app": "near"}))
    node = mesh.on("far").node
    address = mesh.on("near").node.addresses[0]
    ca = CertificateAuthority.open(mesh.base / "ca", "penstock.local")
    key = certificates.new_key()
    request = certificates.signing_request(key)
    own = ca.sign(
        request, "spiffe://penstock.local/ns/default/sa/far", timedelta(hours=1), owner="default/far"
    )

    def asked(key_pem: bytes, chain: bytes) -> str:
        for name, content in (("key", key_pem), ("chain", chain), ("roots", ca.bundle_pem)):
            (tmp_path / name).write_bytes(content)
        process = lab.run_in(
            node.netns,
            [sys.executable, "-c", ASK, f"{address}:{XDS_PORT}", str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        return str(process.communicate(timeout=60)[0]).strip()

    assert asked(certificates.key_pem(key), own) == "api.default.svc:90"
    assert asked(b"", b"") == "UNAVAILABLE"
    with connect(mesh["client"], address, XDS_PORT) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        assert b"HTTP" not in plain.recv(999)
