"""Mesh TLS between the Envoys of two nodes: who may speak to whom, each under its own name."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy_rig import PREFIX, Address, Authority, Node, Steer, Workload, inside, link, nodes

from penstock.routing.model import (
    ListenerKind,
    ProxyCluster,
    ProxyEndpoint,
    ProxyListener,
    ProxyModel,
    Rights,
    Route,
    RouteBackend,
    RouteMatch,
    ServiceTable,
    StringMatch,
)

VIP = IPv4Address("10.96.0.10")
OPEN = (Rights(None, ("web",)),)
CLIENT_SERVICE, CLIENT_WORKLOAD, CLIENT_TCP, CLIENT_TCP_WRONG = 15001, 15002, 15003, 15004
FROM_A, FROM_B, TCP_FROM_A = 15011, 15012, 15013
HTTP_PORT, GRPC_PORT, TCP_PORT, PROBE_PORT = 8080, 8081, 9000, 8443


def spiffe(account: str) -> str:
    return f"spiffe://penstock.local/ns/default/sa/{account}"


@dataclass
class Mesh:
    """Clients a and b on one node, of the same source class; servers s and t on the other."""

    near: Node
    far: Node
    a: Workload
    b: Workload
    s: Workload
    t: Workload
    authority: Authority

    def near_model(self, **server_ids: str) -> ProxyModel:
        ids = {"s": spiffe("s"), "t": spiffe("t"), **server_ids}
        hosts = tuple(
            ProxyEndpoint(address, port, "web", ids[name])
            for name, workload in (("s", self.s), ("t", self.t))
            for address in (workload.v4, workload.v6)
            for port in (HTTP_PORT, GRPC_PORT)
        )
        servers = tuple(host for host in hosts if host.address.version == 4 and host.port == HTTP_PORT)
        everything = RouteMatch(StringMatch("prefix", "/"))
        routes = (Route("all", everything, (RouteBackend("servers", 1),)),)
        return ProxyModel(
            listeners=(
                ProxyListener("http-service/7", ListenerKind.HTTP_SERVICE, 7, CLIENT_SERVICE),
                ProxyListener("http-workload/7", ListenerKind.HTTP_WORKLOAD, 7, CLIENT_WORKLOAD),
                ProxyListener("tcp/7/s", ListenerKind.TCP_MTLS, 7, CLIENT_TCP, None, 1, spiffe("s")),
                ProxyListener("tcp/7/t", ListenerKind.TCP_MTLS, 7, CLIENT_TCP_WRONG, None, 2, spiffe("t")),
            ),
            services=(ServiceTable("default/web:80/4", VIP, 80, routes, OPEN),),
            clusters=(ProxyCluster("servers", 4, servers),),
            workloads=hosts,
            workload_rights=OPEN,
        )

    def far_model(self) -> ProxyModel:
        return ProxyModel(
            listeners=(
                ProxyListener("tls-http/a", ListenerKind.TLS_HTTP, 7, FROM_A, spiffe("a")),
                ProxyListener("tls-http/b", ListenerKind.TLS_HTTP, 8, FROM_B, spiffe("b")),
                ProxyListener("tls-tcp/a", ListenerKind.TLS_TCP, 7, TCP_FROM_A, spiffe("a")),
            ),
            workloads=tuple(
                ProxyEndpoint(address, port, "web")
                for workload in (self.s, self.t)
                for address in (workload.v4, workload.v6)
                for port in (HTTP_PORT, GRPC_PORT)
            ),
            workload_rights=OPEN,
        )


def steer_far(mesh: Mesh, *, swapped: bool = False) -> None:
    """What mesh TLS the far node takes from whom: the kernel tells sources apart by address."""
    owners = {mesh.a: FROM_B if swapped else FROM_A, mesh.b: FROM_A if swapped else FROM_B}
    rules = [
        Steer(to, port, listener, proxied=True, source=source)
        for client, listener in owners.items()
        for server in (mesh.s, mesh.t)
        for source, to in ((client.v4, server.v4), (client.v6, server.v6))
        for port in (HTTP_PORT, GRPC_PORT)
    ]
    rules += [Steer(mesh.s.v4, TCP_PORT, TCP_FROM_A, proxied=True), Steer(mesh.s.v4, PROBE_PORT, FROM_A)]
    mesh.far.steer(f"to-{mesh.near.name}", *rules)


async def _banner(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A protocol in which the server speaks first."""
    writer.write(f"hello {writer.get_extra_info('peername')[0]}\n".encode())
    writer.close()


@pytest_asyncio.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with nodes("n1", "n2") as [near, far], contextlib.AsyncExitStack() as stack:
        link(near, far)
        authority = Authority()
        clients = [near.workload(name) for name in ("a", "b")]
        servers = [far.workload(name) for name in ("s", "t")]
        made = Mesh(near, far, *clients, *servers, authority)
        for node in (near, far):
            node.secrets["trust-bundle"] = authority.bundle()
            for name, workload in node.workloads.items():
                for address in (workload.v4, workload.v6):
                    node.secrets[str(address)] = authority.secret(str(address), spiffe(name))
        for server in servers:
            await server.serve(HTTP_PORT, stack)
            far.steer(f"v-{server.namespace.removeprefix('n2-')}")
        await servers[0].listen(TCP_PORT, _banner, stack)
        to_workloads = [
            Steer(address, port, CLIENT_WORKLOAD)
            for server in servers
            for address in (server.v4, server.v6)
            for port in (HTTP_PORT, GRPC_PORT)
        ]
        tcp = Steer(made.s.v4, TCP_PORT, CLIENT_TCP)
        near.steer("v-a", Steer(VIP, 80, CLIENT_SERVICE), tcp, *to_workloads)
        near.steer(
            "v-b", Steer(VIP, 80, CLIENT_SERVICE), replace(tcp, listener=CLIENT_TCP_WRONG), *to_workloads
        )
        near.steer("to-n2")
        steer_far(made)
        await near.start()
        await far.start()
        await asyncio.gather(near.apply(made.near_model()), far.apply(made.far_model()))
        yield made


async def test_each_client_shows_its_own_certificate(mesh: Mesh) -> None:
    # Both go through one listener and one cluster; the far node takes only a from a's address, b from b's.
    connections = [await client.connect(VIP, 80) for client in (mesh.a, mesh.b) for _ in range(4)]
    answers = [(await connection.request()).json() for _ in range(10) for connection in connections]
    for connection in connections:
        connection.close()
    peers = Counter((answer["backend"], answer["peer"][0]) for answer in answers)
    assert set(peers) == {
        (server, f"::ffff:{client.v4}") for server in ("n2-s", "n2-t") for client in (mesh.a, mesh.b)
    }


async def test_a_certificate_of_somebody_else_is_refused(mesh: Mesh) -> None:
    steer_far(mesh, swapped=True)
    assert {(await client.get(VIP, 80)).status for client in (mesh.a, mesh.b)} == {503}


async def test_workloads_of_the_other_node_are_reached_at_their_own_address(mesh: Mesh) -> None:
    for server in (mesh.s, mesh.t):
        for address in (server.v4, server.v6):
            answer = (await mesh.a.get(address, HTTP_PORT)).json()
            assert answer["backend"] == server.namespace
            assert "x-penstock-destination" not in answer["headers"]


async def test_grpc_stays_grpc_all_the_way(mesh: Mesh) -> None:
    async def shout(request: bytes, _: object) -> bytes:
        return request.upper()

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(shout)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", {"Shout": method})])
    with inside(mesh.s.namespace):
        server.add_insecure_port(f"{mesh.s.v4}:{GRPC_PORT}")
    await server.start()
    asked = await asyncio.create_subprocess_exec(
        "nsenter", f"--net=/run/netns/{PREFIX}{mesh.a.namespace}", "curl", "-si", "--http2-prior-knowledge",
        "-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "@-",
        f"http://{mesh.s.v4}:{GRPC_PORT}/test.Echo/Shout", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    # gRPC's framing: not compressed, length, bytes.
    answer, _ = await asyncio.wait_for(asked.communicate(b"\0\0\0\0\5hello"), 5)
    assert b"\0\0\0\0\5HELLO" in answer
    assert b"grpc-status: 0" in answer
    await server.stop(None)


async def test_a_server_must_be_the_endpoint_that_was_chosen(mesh: Mesh) -> None:
    # The model now says that t's address is s: what answers there is still t.
    await mesh.near.apply(mesh.near_model(t=spiffe("s")))
    assert (await mesh.a.get(mesh.t.v4, HTTP_PORT)).status == 503
    assert (await mesh.a.get(mesh.s.v4, HTTP_PORT)).status == 200
    await mesh.near.apply(mesh.near_model())
    assert (await mesh.a.get(mesh.t.v4, HTTP_PORT)).status == 200


async def test_a_client_without_a_certificate_is_refused_at_once(mesh: Mesh) -> None:
    del mesh.near.secrets[str(mesh.a.v4)]
    await mesh.near.apply(mesh.near_model())
    async with asyncio.timeout(2):
        assert (await mesh.a.get(VIP, 80)).status == 503
    assert (await mesh.b.get(VIP, 80)).status == 200


async def test_plain_tcp_travels_over_mesh_tls(mesh: Mesh) -> None:
    connection = await mesh.a.connect(mesh.s.v4, TCP_PORT)
    assert await asyncio.wait_for(connection.reader.read(), 5) == f"hello ::ffff:{mesh.a.v4}\n".encode()
    connection.close()
    sent, received = await asyncio.wait_for(asyncio.gather(mesh.near.log.get(), mesh.far.log.get()), 5)
    assert (sent.log_name, sent.protocol, sent.destination) == ("tcp/7/s", "TCP", (str(mesh.s.v4), TCP_PORT))
    assert (received.log_name, received.source[0]) == ("tls-tcp/a", str(mesh.a.v4))
    assert (received.peer_ids, received.local_ids) == ((spiffe("a"),), (spiffe("s"),))


async def test_plain_tcp_demands_the_identity_of_its_destination(mesh: Mesh) -> None:
    connection = await mesh.b.connect(mesh.s.v4, TCP_PORT)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(connection.reader.read(), 5) == b""
    connection.close()


def _probe(mesh: Mesh, tmp_path: Path, *, sni: Address, owner: str = "a", certificate: bool = True) -> str:
    """A hand-made TLS client at the far node's listener for a; returns what it was answered."""
    secret = secret_pb2.Secret.FromString(mesh.authority.secret("probe", spiffe(owner)).body).tls_certificate
    root = mesh.authority.root.public_bytes(serialization.Encoding.PEM)
    files = {"crt": secret.certificate_chain.inline_bytes, "key": secret.private_key.inline_bytes, "ca": root}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    own = ["-cert", str(tmp_path / "crt"), "-key", str(tmp_path / "key")] if certificate else []
    request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{PREFIX}{mesh.a.namespace}", "openssl", "s_client", "-quiet",
         "-connect", f"{mesh.s.v4}:{PROBE_PORT}", "-servername", str(sni),
         "-CAfile", str(tmp_path / "ca"), *own],
        input=request, capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    return done.stdout


async def test_the_server_side_verifies(mesh: Mesh, tmp_path: Path) -> None:
    async def probe(**how: Any) -> str:
        return await asyncio.to_thread(_probe, mesh, tmp_path, **how)

    # Nobody serves the probe's port: what gets through the TLS listener is answered by the workloads table.
    assert (await probe(sni=mesh.s.v4)).startswith("HTTP/1.1 503")
    assert await probe(sni=mesh.t.v4) == "", "the SNI of another workload"
    assert await probe(sni=mesh.s.v4, owner="b") == "", "the certificate of another client"
    assert await probe(sni=mesh.s.v4, certificate=False) == "", "no certificate"


async def test_plain_text_at_a_tls_listener_is_refused(mesh: Mesh) -> None:
    connection = await mesh.a.connect(mesh.s.v4, PROBE_PORT)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await connection.request()
    connection.close()


async def test_proxy_ports_dialled_directly_are_closed(mesh: Mesh) -> None:
    for node, ports in ((mesh.near, (CLIENT_TCP,)), (mesh.far, (FROM_A, TCP_FROM_A))):
        host = Workload(node.name, mesh.a.v4, mesh.a.v6, node)
        for port in ports:
            connection = await host.connect("127.0.0.1", port)
            # TLS listeners first wait for a greeting.
            connection.writer.write(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(connection.reader.read(), 2) == b""
