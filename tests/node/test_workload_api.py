"""The SPIFFE Workload API, asked by the public client from inside workloads and from where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clients import until
from conftest import MeshFactory
from cryptography import x509
from rig import PENSTOCK, Mesh, workload

from penstock import lab
from penstock.mtls.verify import verify

ASK = """
import json, sys
from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import WorkloadApiClient
with WorkloadApiClient("unix://" + sys.argv[1]) as client:
    found = client.fetch_x509_context()
    svid = found.default_svid
    bundles = client.fetch_x509_bundles()
    print(json.dumps({
        "id": str(svid.spiffe_id),
        "serial": f"{svid.leaf.serial_number:x}",
        "same_key": svid.private_key.public_key() == svid.leaf.public_key(),
        "domains": [each.trust_domain.name for each in bundles.bundles],
        "pem": "".join(each.public_bytes(Encoding.PEM).decode() for each in svid.cert_chain),
    }))
"""
WATCH = """
import sys
from spiffe import WorkloadApiClient
client = WorkloadApiClient("unix://" + sys.argv[1])
def told(found):
    print(f"{found.default_svid.leaf.serial_number:x}", flush=True)
client.stream_x509_contexts(told, print)
sys.stdin.read()
"""
TOKEN = """
import json, sys
from spiffe import JwtBundleSet, JwtSvid, TrustDomain, WorkloadApiClient
with WorkloadApiClient("unix://" + sys.argv[1]) as client:
    svid = client.fetch_jwt_svid(audience={"db", "cache"})
    bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(TrustDomain("penstock.local"))
    own = JwtSvid.parse_and_validate(svid.token, bundle, {"db"})
    there = client.validate_jwt_svid(svid.token, "cache")
    told = {"token": svid.token, "ids": [str(each.spiffe_id) for each in (svid, own, there)]}
    told["seconds"] = svid.expiry - __import__("time").time()
    for name, ask in {
        "wrong audience": lambda: client.validate_jwt_svid(svid.token, "somebody else"),
        "touched": lambda: client.validate_jwt_svid(svid.token[:-4] + "AAAA", "db"),
        "another's": lambda: client.fetch_jwt_svid(
            audience={"db"}, subject=__import__("spiffe").SpiffeId("spiffe://penstock.local/ns/default/sa/x")
        ),
    }.items():
        try:
            ask()
        except Exception as error:
            told[name] = str(error)
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(workload("client", "node-a"), workload("other", "node-a"))


def run(mesh: Mesh, netns: Path, program: str, **how: Any) -> subprocess.Popen[str]:
    socket = str(mesh.daemons["node-a"].run_dir / "workload.sock")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **how}
    return lab.run_in(netns, [sys.executable, "-c", program, socket], **pipes)


def ask(mesh: Mesh, name: str) -> dict[str, Any]:
    process = run(mesh, mesh[name].netns, ASK)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return dict(json.loads(out))


@pytest.mark.parametrize("name", ["client", "other"])
def test_a_workload_gets_its_own_certificate(mesh: Mesh, name: str) -> None:
    found = ask(mesh, name)
    assert found["id"] == f"spiffe://penstock.local/ns/default/sa/{name}"
    assert found["same_key"]
    assert found["domains"] == ["penstock.local"]
    root = (mesh.base / "ca/root.crt").read_bytes()
    leaf = x509.load_pem_x509_certificates(found["pem"].encode())[0]
    at = leaf.not_valid_before_utc.timestamp() + 600
    verify(found["pem"].encode(), root, now=at, spiffe_id=found["id"])


@pytest.mark.parametrize("name", ["client", "other"])
def test_a_workload_gets_tokens_of_its_own(mesh: Mesh, name: str) -> None:
    """By the public client, which checks them by the bundle that it got."""
    process = run(mesh, mesh[name].netns, TOKEN)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["ids"] == [f"spiffe://penstock.local/ns/default/sa/{name}"] * 3
    assert 200 < found["seconds"] <= 300
    assert "not for somebody else" in found["wrong audience"]
    assert "signature does not hold" in found["touched"]
    assert "no identity issued" in found["another's"]


def test_no_tokens_outside_a_workloads_namespace(mesh: Mesh) -> None:
    process = run(mesh, mesh.daemons["node-a"].node.netns, TOKEN)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "no identity issued" in err


def test_who_is_in_no_workloads_namespace_gets_nothing(mesh: Mesh) -> None:
    process = run(mesh, mesh.daemons["node-a"].node.netns, ASK)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "no identity issued" in err


def test_a_call_without_the_security_header_is_refused(mesh: Mesh) -> None:
    program = """
import grpc, sys
call = grpc.insecure_channel("unix:" + sys.argv[1]).unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
try:
    next(iter(call(b"", timeout=10)))
except grpc.RpcError as error:
    print(error.code().name)
"""
    out, err = run(mesh, mesh["client"].netns, program).communicate(timeout=60)
    assert out.strip() == "INVALID_ARGUMENT", err


def test_a_new_certificate_is_told_at_once(mesh: Mesh) -> None:
    daemon = mesh.daemons["node-a"]
    process = run(mesh, mesh["client"].netns, WATCH, stdin=subprocess.PIPE)
    assert process.stdout
    try:
        first = process.stdout.readline().strip()
        subprocess.run([*PENSTOCK, "cert", "rotate", "client", "--run-dir", str(daemon.run_dir)], check=True)
        second = process.stdout.readline().strip()
        assert second != first
        serials = {c["workload"]: c["serial"] for c in daemon.call("certs")["certificates"]}
        assert serials["default/client"] == second
    finally:
        process.kill()
        process.communicate()


def test_it_is_there_again_after_a_restart(mesh: Mesh) -> None:
    daemon = mesh.daemons["node-a"]
    before = ask(mesh, "client")["serial"]
    daemon.stop()
    assert not (daemon.run_dir / "workload.sock").exists()
    daemon.start()
    mesh.wait_for_daemons()
    mesh.wait()
    until("the same certificate", lambda: ask(mesh, "client")["serial"] == before)
