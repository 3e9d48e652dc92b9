"""Sidecars to compare with: an Envoy beside each workload, steered to by iptables as in Istio.

What is the same as on the node: the binary, the number of workers, the HTTP connection manager (built by
the same function), its access log, the router, one RBAC filter on the way to the server, unlimited circuit
breakers. What a sidecar mesh does otherwise is done its way: the Envoy has a user of its own, whose packets
iptables lets pass; all other TCP goes out through port 15001 and comes in through 15006; the inbound
connection to the application comes from 127.0.0.6. The configuration is static, and knows one peer only:
that is less than any real sidecar holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import json_format, wrappers_pb2

from penstock.bench.errors import BenchError
from penstock.bench.serving import HTTP2_PORT, HTTP_PORT, find
from penstock.bench.site import Site
from penstock.envoy import http, rbac
from penstock.envoy.bootstrap import stream_cluster
from penstock.envoy.clusters import HTTP_OPTIONS
from penstock.envoy.names import ALS_CLUSTER
from penstock.envoy.process import find_binary
from penstock.envoy.protos import pack, seconds, socket_address
from penstock.mtls import certificates
from penstock.mtls.ca import CertificateAuthority

UID = 1337
OUTBOUND, INBOUND = 15001, 15006
_PASS_THROUGH = "127.0.0.6"
TRUST_DOMAIN = "cluster.local"
_START = 15.0

_RULES = (
    "-N ISTIO_REDIRECT",
    f"-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {OUTBOUND}",
    "-N ISTIO_IN_REDIRECT",
    f"-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {INBOUND}",
    "-N ISTIO_INBOUND",
    "-A PREROUTING -p tcp -j ISTIO_INBOUND",
    "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT",
    "-N ISTIO_OUTPUT",
    "-A OUTPUT -p tcp -j ISTIO_OUTPUT",
    f"-A ISTIO_OUTPUT -s {_PASS_THROUGH}/32 -o lo -j RETURN",
    f"-A ISTIO_OUTPUT -m owner --uid-owner {UID} -j RETURN",
    f"-A ISTIO_OUTPUT -m owner --gid-owner {UID} -j RETURN",
    "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN",
    "-A ISTIO_OUTPUT -j ISTIO_REDIRECT",
)
"""In table nat. Istio's, without the ports that it leaves out for its own health checks and telemetry."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate of the bench's own CA, as files that a sidecar may read."""

    spiffe_id: str
    chain: str
    key: str
    bundle: str


def identities(directory: Path, names: Sequence[str]) -> dict[str, Identity]:
    """A certificate for each name, by a CA in `directory`."""
    ca = CertificateAuthority.open(directory / "ca", TRUST_DOMAIN)
    bundle = directory / "bundle.pem"
    bundle.write_bytes(ca.bundle_pem)
    made = {}
    for name in names:
        spiffe_id, key = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/{name}", certificates.new_key()
        chain = directory / f"{name}.crt"
        request = certificates.signing_request(key)
        chain.write_bytes(ca.sign(request, spiffe_id, timedelta(hours=24), owner=f"default/{name}"))
        secret = directory / f"{name}.key"
        secret.touch(mode=0o600)
        secret.write_bytes(certificates.key_pem(key))
        os.chown(secret, UID, UID)
        made[name] = Identity(spiffe_id, str(chain), str(secret), str(bundle))
    return made


def bootstrap(own: str, peer: str, log: Path, *, identity: Identity | None = None, peer_id: str = "") -> str:
    """The configuration of the sidecar of the workload at address `own`, as JSON.

    It may speak to `peer`, and `peer` to it; with an identity in mTLS, and only with the holder of `peer_id`.
    `log` is the socket of the receiver of access logs.
    """
    tls = identity and _context(identity, peer_id)
    clusters, chains_in, chains_out = [], [], []
    for port in (HTTP_PORT, HTTP2_PORT):
        inbound, outbound = _cluster("inbound", own, port), _cluster("outbound", peer, port)
        source = address_pb2.SocketAddress(address=_PASS_THROUGH, port_value=0)
        inbound.upstream_bind_config.source_address.CopyFrom(source)
        chain = _chain("inbound", port, (_rbac(),))
        if tls:
            outbound.transport_socket.name = chain.transport_socket.name = "envoy.transport_sockets.tls"
            context = tls_pb2.UpstreamTlsContext(common_tls_context=tls, sni=f"outbound_.{port}_._.server")
            outbound.transport_socket.typed_config.CopyFrom(pack(context))
            accepted = tls_pb2.DownstreamTlsContext(
                common_tls_context=tls, require_client_certificate=wrappers_pb2.BoolValue(value=True)
            )
            chain.transport_socket.typed_config.CopyFrom(pack(accepted))
        clusters += [inbound, outbound]
        chains_in.append(chain)
        chains_out.append(_chain("outbound", port, ()))
    made = bootstrap_pb2.Bootstrap(
        node=base_pb2.Node(id=own, cluster="sidecar"),
        static_resources=bootstrap_pb2.Bootstrap.StaticResources(
            listeners=[
                _listener("outbound", OUTBOUND, chains_out),
                _listener("inbound", INBOUND, chains_in),
            ],
            clusters=clusters,
        ),
    )  # fmt: skip
    document: dict[str, Any] = json_format.MessageToDict(made, preserving_proto_field_name=True)
    document["static_resources"]["clusters"].append(stream_cluster(ALS_CLUSTER, log))
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _context(identity: Identity, peer_id: str) -> tls_pb2.CommonTlsContext:
    version = common_pb2.TlsParameters.TlsProtocol.TLSv1_3
    return tls_pb2.CommonTlsContext(
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=version, tls_maximum_protocol_version=version
        ),
        tls_certificates=[
            common_pb2.TlsCertificate(
                certificate_chain=base_pb2.DataSource(filename=identity.chain),
                private_key=base_pb2.DataSource(filename=identity.key),
            )
        ],
        validation_context=common_pb2.CertificateValidationContext(
            trusted_ca=base_pb2.DataSource(filename=identity.bundle),
            match_typed_subject_alt_names=[
                common_pb2.SubjectAltNameMatcher(
                    san_type=common_pb2.SubjectAltNameMatcher.SanType.URI,
                    matcher=string_pb2.StringMatcher(exact=peer_id),
                )
            ],
        ),
    )


def _name(way: str, port: int) -> str:
    return f"{way}-{port}"


def _cluster(way: str, address: str, port: int) -> cluster_pb2.Cluster:
    name = _name(way, port)
    endpoint = endpoint_components_pb2.Endpoint(address=socket_address(address, port))
    host = endpoint_components_pb2.LbEndpoint(endpoint=endpoint)
    most = wrappers_pb2.UInt32Value(value=0xFFFFFFFF)
    as_client = http_protocol_options_pb2.HttpProtocolOptions()
    as_client.use_downstream_protocol_config.http_protocol_options.SetInParent()
    as_client.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    return cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.DiscoveryType.STATIC,
        typed_extension_protocol_options={HTTP_OPTIONS: pack(as_client)},
        connect_timeout=seconds(5),
        circuit_breakers=circuit_breaker_pb2.CircuitBreakers(
            thresholds=[
                circuit_breaker_pb2.CircuitBreakers.Thresholds(
                    max_connections=most, max_pending_requests=most, max_requests=most
                )
            ]
        ),
        load_assignment=endpoint_pb2.ClusterLoadAssignment(
            cluster_name=name,
            endpoints=[endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=[host])],
        ),
    )


def _rbac() -> hcm_pb2.HttpFilter:
    """The rule that the node's Envoy has for the server: GET or POST, any path."""
    permissions = [
        rbac_pb2.Permission(
            header=route_components_pb2.HeaderMatcher(name=name, string_match=rbac.regex(pattern))
        )
        for name, pattern in ((":method", "GET|POST"), (":path", "/.*"))
    ]
    only = rbac_pb2.Policy(
        permissions=[rbac_pb2.Permission(and_rules=rbac_pb2.Permission.Set(rules=permissions))],
        principals=[rbac_pb2.Principal(any=True)],
    )
    rules = rbac_pb2.RBAC(action=rbac_pb2.RBAC.Action.ALLOW, policies={"client": only})
    return hcm_pb2.HttpFilter(
        name="envoy.filters.http.rbac", typed_config=pack(http_rbac_pb2.RBAC(rules=rules))
    )


def _chain(way: str, port: int, filters: Sequence[hcm_pb2.HttpFilter]) -> listener_components_pb2.FilterChain:
    """What is done with connections to `port`."""
    name = _name(way, port)
    manager = http.base(name, way)
    # It tells the node's Envoy where a request goes; a sidecar needs no such thing.
    manager.ClearField("early_header_mutation_extensions")
    route = route_components_pb2.Route(
        match=route_components_pb2.RouteMatch(prefix="/"),
        route=route_components_pb2.RouteAction(cluster=name, timeout=seconds(0)),
    )
    host = route_components_pb2.VirtualHost(name=name, domains=["*"], routes=[route])
    manager.route_config.CopyFrom(route_pb2.RouteConfiguration(name=name, virtual_hosts=[host]))
    manager.http_filters.extend([*filters, http.router()])
    return listener_components_pb2.FilterChain(
        name=name,
        filter_chain_match=listener_components_pb2.FilterChainMatch(
            destination_port=wrappers_pb2.UInt32Value(value=port)
        ),
        filters=[
            listener_components_pb2.Filter(
                name="envoy.filters.network.http_connection_manager", typed_config=pack(manager)
            )
        ],
    )


def _listener(
    name: str, port: int, chains: Sequence[listener_components_pb2.FilterChain]
) -> listener_pb2.Listener:
    original = listener_components_pb2.ListenerFilter(
        name="envoy.filters.listener.original_dst", typed_config=pack(original_dst_pb2.OriginalDst())
    )
    return listener_pb2.Listener(
        name=name,
        address=address_pb2.Address(
            socket_address=address_pb2.SocketAddress(address="0.0.0.0", port_value=port)
        ),
        listener_filters=[original],
        filter_chains=chains,
    )


@contextmanager
def beside(site: Site, workload: str, config: str) -> Iterator[int]:
    """A sidecar in the workload's namespace, redirected to: its pid.

    Raises BenchError if it does not serve in time.
    """
    path, log = site.directory / f"{workload}.json", site.directory / f"{workload}.log"
    path.write_text(config)
    argv = [
        "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--",
        find_binary(), "--config-path", str(path), "--disable-hot-restart",
        "--concurrency", str(os.cpu_count() or 1), "--log-level", "warning",
    ]  # fmt: skip
    with log.open("ab") as output:
        process = site.run_in(workload, argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _START
        while not {OUTBOUND, INBOUND} <= _listening(process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(
                    f"a sidecar does not serve: {log.read_text(errors='replace').strip()[-800:]}"
                )
            time.sleep(0.02)  # nobody tells that a socket listens
        redirect(site, workload)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def redirect(site: Site, workload: str) -> None:
    """Raises BenchError if the kernel does not take the rules."""
    rules = "\n".join(["*nat", *_RULES, "COMMIT", ""])
    process = site.run_in(
        workload, [find("iptables-restore") or "iptables-restore"], stdin=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, said = process.communicate(rules)
    if process.returncode:
        raise BenchError(f"iptables-restore: {said.strip()}")


def _listening(pid: int) -> set[int]:
    table = Path(f"/proc/{pid}/net/tcp")
    rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


@contextmanager
def log_receiver(directory: Path) -> Iterator[tuple[Path, int]]:
    """A receiver of access logs, the daemon's own code: its socket and its pid."""
    path = directory / "als.sock"
    process: subprocess.Popen[Any] = subprocess.Popen(
        [sys.executable, "-m", "penstock.bench.receiver", str(path)], stdin=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + _START
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError("the receiver of access logs does not run")
            time.sleep(0.02)  # nobody tells that a socket was bound
        os.chown(path, UID, UID)
        yield path, process.pid
    finally:
        process.terminate()
        process.wait()
