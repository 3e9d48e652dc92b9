"""Our secrets in the real Envoy: it takes the chain, the critical name constraint and the SPIFFE IDs.

One Envoy talks mTLS to itself over Unix sockets: `way` → client TLS → `server` (strict).
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from google.protobuf.json_format import MessageToDict

from penstock.envoy.process import find_binary
from penstock.envoy.tls import downstream
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.issuer import Issuer
from penstock.mtls.secrets import TRUST_BUNDLE, secrets
from penstock.plan import SecretWanted

WEB = SecretWanted("10.0.0.1", "spiffe://mesh.test/ns/default/sa/web", ("default", "web"))
API = SecretWanted("10.0.0.2", "spiffe://mesh.test/ns/default/sa/api", ("default", "api"))
THIEF = "thief"
"""Name of a certificate with WEB's id, by another CA of the same trust domain."""


def common_tls(certificate: str, peer: str) -> dict[str, Any]:
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificate_sds_secret_configs": [{"name": certificate}],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}]
            },
            "validation_context_sds_secret_config": {"name": TRUST_BUNDLE},
        },
    }


def transport_socket(side: str, context: dict[str, Any]) -> dict[str, Any]:
    kind = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext"
    return {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": kind, **context}}


def listener(folder: Path, name: str, network_filter: dict[str, Any], **chain: Any) -> dict[str, Any]:
    return {
        "name": name,
        "address": {"pipe": {"path": str(folder / name)}},
        "filter_chains": [{"filters": [network_filter], **chain}],
    }


def way(folder: Path, name: str) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    config = {"@type": kind, "stat_prefix": name, "cluster": name}
    return listener(folder, name, {"name": "envoy.filters.network.tcp_proxy", "typed_config": config})


def cluster(folder: Path, name: str, certificate: str, peer: str) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(folder / "server")}}}}
    return {
        "name": name,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "transport_socket": transport_socket(
            "Upstream", {"common_tls_context": common_tls(certificate, peer)}
        ),
    }


def server(folder: Path) -> dict[str, Any]:
    """Answers with the id that it verified, as a header."""
    filters = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "server",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{filters}.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "response_headers_to_add": [{"header": {"key": "peer", "value": "%DOWNSTREAM_PEER_URI_SAN%"}}],
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ],
        },
    }
    tls = {"require_client_certificate": True, "common_tls_context": common_tls(API.name, WEB.spiffe_id)}
    network_filter = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    found = listener(folder, "server", network_filter, transport_socket=transport_socket("Downstream", tls))
    return found | {"stat_prefix": "server"}


def bootstrap(folder: Path) -> dict[str, Any]:
    ca = CertificateAuthority.open(folder / "ca", "mesh.test")
    now = ca._clock()
    resources = secrets(Issuer(ca).reconcile([WEB, API], now), ca.bundle_pem)
    foreign = CertificateAuthority.open(folder / "foreign", "mesh.test")
    stolen = SecretWanted(THIEF, WEB.spiffe_id, WEB.workload)
    resources[THIEF] = secrets(Issuer(foreign).reconcile([stolen], now), b"")[THIEF]
    ways = {
        "good": (WEB.name, API.spiffe_id),
        "wrong-server": (WEB.name, WEB.spiffe_id),
        "wrong-client": (API.name, API.spiffe_id),
        "wrong-ca": (THIEF, API.spiffe_id),
    }
    return {
        "admin": {"address": {"pipe": {"path": str(folder / "admin")}}},
        "static_resources": {
            "secrets": [MessageToDict(resource) for resource in resources.values()],
            "listeners": [server(folder), *(way(folder, name) for name in ways)],
            "clusters": [cluster(folder, name, *arguments) for name, arguments in ways.items()],
        },
    }


@pytest.fixture(scope="module")
def sockets() -> Iterator[Path]:
    """The folder of the sockets of a running Envoy. Short, for a socket's path has 108 bytes at most."""
    envoy = shutil.which("envoy", path=str(Path(sys.executable).parent))
    assert envoy, "Envoy is not installed beside this Python"
    with tempfile.TemporaryDirectory(prefix="mtls-") as name:
        folder = Path(name)
        (folder / "envoy.json").write_text(json.dumps(bootstrap(folder)))
        process = subprocess.Popen(
            [envoy, "-c", str(folder / "envoy.json"), "--disable-hot-restart", "--concurrency", "1"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr
            said = []
            for line in process.stderr:
                said.append(line)
                if "starting main dispatch loop" in line:
                    break
            else:
                pytest.fail("Envoy did not start:\n" + "".join(said))
            yield folder
        finally:
            process.terminate()
            process.communicate(timeout=30)


def get(path: Path, url: str = "/") -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("mesh", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    with connection.sock:
        connection.sock.connect(str(path))
        connection.request("GET", url)
        response = connection.getresponse()
        return response, response.read().decode()


def counters(sockets: Path) -> dict[str, int]:
    _, text = get(sockets / "admin", "/stats?filter=ssl.fail_verify")
    return {name: int(value) for name, value in (line.split(": ") for line in text.splitlines())}


def test_both_sides_verify_each_other(sockets: Path) -> None:
    response, _ = get(sockets / "good")
    assert response.status == 200
    assert response.headers["peer"] == WEB.spiffe_id


@pytest.mark.parametrize(
    ("name", "counter"),
    [
        ("wrong-server", "cluster.wrong-server.ssl.fail_verify_san"),
        ("wrong-client", "listener.server.ssl.fail_verify_san"),
        ("wrong-ca", "listener.server.ssl.fail_verify_error"),
    ],
)
def test_whoever_is_not_the_one_expected_is_refused(sockets: Path, name: str, counter: str) -> None:
    before = counters(sockets)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)):
        get(sockets / name)
    after = counters(sockets)
    assert {key: after[key] - before[key] for key in after if after[key] != before[key]} == {counter: 1}


@pytest.mark.parametrize("kind", ["stateless", "stateful"])
def test_envoy_takes_no_session_resumption_with_certificates_on_demand(tmp_path: Path, kind: str) -> None:
    """The day that this fails, sessions may be resumed: see penstock/envoy/tls.py."""
    transport = downstream(WEB.spiffe_id)
    context = tls_pb2.DownstreamTlsContext()
    transport.typed_config.Unpack(context)

    def said() -> str:
        transport.typed_config.Pack(context)
        config = bootstrap_pb2.Bootstrap()
        config.node.id = config.node.cluster = "n"
        ads = config.dynamic_resources.ads_config
        ads.api_type, ads.transport_api_version = ads.DELTA_GRPC, 2
        ads.grpc_services.add().envoy_grpc.cluster_name = "ads"
        cluster = config.static_resources.clusters.add(name="ads")
        cluster.load_assignment.cluster_name = "ads"
        listener = config.static_resources.listeners.add(name="server")
        listener.address.pipe.path = str(tmp_path / "server")
        listener.filter_chains.add().transport_socket.CopyFrom(transport)
        (tmp_path / "envoy.pb").write_bytes(config.SerializeToString())
        command = [str(find_binary()), "--mode", "validate", "-c", str(tmp_path / "envoy.pb")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    assert "not integrated with session resumption" not in said()
    setattr(context, f"disable_{kind}_session_resumption", False)
    assert "not integrated with session resumption" in said()
