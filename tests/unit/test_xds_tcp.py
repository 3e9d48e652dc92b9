"""xDS over TCP: who shows a certificate of our CA gets Services; nobody else gets a byte, by any way."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.status.v3 import csds_pb2
from xds_dialogue import CDS, cds, snap

from penstock.mtls import certificates
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.revocation import revoke
from penstock.xds.server import XdsServer
from penstock.xds.tcp import TcpAccess

SOON = 30.0
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
STATUS = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus"
WEB = "spiffe://penstock.local/ns/default/sa/web"


@pytest.fixture
def home() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="xds-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def ca(home: Path) -> CertificateAuthority:
    return CertificateAuthority.open(home / "ca", "penstock.local")


@pytest.fixture
async def server(home: Path, ca: CertificateAuthority) -> AsyncIterator[XdsServer]:
    found = XdsServer(home / "xds.sock", tcp=TcpAccess("127.0.0.1:0", ca, "node-a"))
    found.publish(snap(*cds("a")))
    await found.start()
    yield found
    await found.stop()


def pair(ca: CertificateAuthority, spiffe_id: str = WEB) -> tuple[bytes, bytes]:
    key = certificates.new_key()
    request = certificates.signing_request(key)
    return certificates.key_pem(key), ca.sign(request, spiffe_id, timedelta(hours=1), owner="default/web")


def credentials(ca: CertificateAuthority, own: tuple[bytes, bytes] | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(ca.bundle_pem, *(own or (None, None)))


def channel(port: int, how: grpc.ChannelCredentials, name: str = "node-a") -> grpc.aio.Channel:
    options = [("grpc.ssl_target_name_override", name)]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", how, options=options)


def stream(over: grpc.aio.Channel) -> Any:
    return over.stream_stream(
        ADS,
        request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
        response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
    )()


async def first(over: grpc.aio.Channel) -> Any:
    """The first answer on a new stream; AioRpcError if there is none."""
    client = stream(over)
    await client.write(discovery_pb2.DeltaDiscoveryRequest(type_url=CDS))
    return await asyncio.wait_for(client.read(), SOON)


async def status(over: grpc.aio.Channel) -> Any:
    fetch = over.unary_unary(
        STATUS,
        request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
        response_deserializer=csds_pb2.ClientStatusResponse.FromString,
    )
    return await fetch(csds_pb2.ClientStatusRequest(), timeout=SOON)


async def test_a_certificate_of_ours_lets_in_by_every_service(
    server: XdsServer, ca: CertificateAuthority
) -> None:
    async with channel(server.port, credentials(ca, pair(ca))) as over:
        assert len((await first(over)).resources) == 1
        await status(over)


@pytest.mark.parametrize("ask", [first, status])
async def test_without_one_nobody_is_let_in(server: XdsServer, ca: CertificateAuthority, ask: Any) -> None:
    for how in (credentials(ca, None), grpc.ssl_channel_credentials()):
        async with channel(server.port, how) as over:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(over)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as over:
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(over)


@pytest.mark.parametrize("ask", [first, status])
async def test_a_certificate_of_another_ca_does_not_count(
    server: XdsServer, ca: CertificateAuthority, home: Path, ask: Any
) -> None:
    """Of the same trust domain, with the same id: but others vouch for it."""
    other = CertificateAuthority.open(home / "other", "penstock.local")
    async with channel(server.port, credentials(ca, pair(other))) as over:
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(over)


@pytest.mark.parametrize("ask", [first, status])
async def test_a_revoked_certificate_is_refused_and_its_open_stream_ends(
    server: XdsServer, ca: CertificateAuthority, home: Path, ask: Any
) -> None:
    key, chain = pair(ca)
    serial = x509.load_pem_x509_certificates(chain)[0].serial_number
    async with channel(server.port, credentials(ca, (key, chain))) as over:
        client = stream(over)
        await client.write(discovery_pb2.DeltaDiscoveryRequest(type_url=CDS))
        await asyncio.wait_for(client.read(), SOON)
        revoke(home / "ca", f"{serial:x}", time.time())
        ca.reload()
        server.publish(snap(*cds("a", "b")))
        with pytest.raises(grpc.aio.AioRpcError):
            while True:
                await asyncio.wait_for(client.read(), SOON)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(over)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_who_is_revoked_is_told_no_more_of_the_others(
    server: XdsServer, ca: CertificateAuthority, home: Path
) -> None:
    key, chain = pair(ca)
    serial = x509.load_pem_x509_certificates(chain)[0].serial_number
    async with channel(server.port, credentials(ca, (key, chain))) as over:
        follow = over.stream_stream(
            STATUS.replace("Fetch", "Stream"),
            request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
            response_deserializer=csds_pb2.ClientStatusResponse.FromString,
        )()
        await follow.write(csds_pb2.ClientStatusRequest())
        await asyncio.wait_for(follow.read(), SOON)
        revoke(home / "ca", f"{serial:x}", time.time())
        ca.reload()
        await follow.write(csds_pb2.ClientStatusRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(follow.read(), SOON)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_client_that_looks_for_another_server_is_not_deceived(
    server: XdsServer, ca: CertificateAuthority
) -> None:
    async with channel(server.port, credentials(ca, pair(ca)), "node-b") as over:
        with pytest.raises(grpc.aio.AioRpcError):
            await first(over)


async def test_plain_text_gets_no_byte_of_http2(server: XdsServer) -> None:
    def ask() -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), SOON) as plain:
            plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
            found = b""
            try:
                while part := plain.recv(4096):
                    found += part
            except ConnectionResetError:
                pass
            return found

    assert b"HTTP" not in await asyncio.to_thread(ask)


async def test_the_socket_goes_on_without_certificates(server: XdsServer, home: Path) -> None:
    assert os.stat(home / "xds.sock").st_mode & 0o777 == 0o660
    async with grpc.aio.insecure_channel(f"unix:{home / 'xds.sock'}") as over:
        assert len((await first(over)).resources) == 1
