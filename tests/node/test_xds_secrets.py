"""Secrets by name over the real Envoy's incremental ADS: absent at first, then there, rotated, gone, back."""

from __future__ import annotations

import asyncio
import datetime
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from xds_bench import (
    ALL,
    BACKEND_A,
    LISTENER,
    PATIENCE,
    Bench,
    ads,
    any_of,
    bench,
    cluster,
    endpoints,
    listener,
    roll,
    routes,
    snap,
)

from penstock.xds.snapshot import Resource, TypeUrl, resource
from penstock.xds.watch import SyncState

__all__ = ["bench"]


def tls_listener(secret: str) -> Resource:
    message = listener_pb2.Listener.FromString(listener("web", LISTENER, "web").body)
    context = tls_pb2.DownstreamTlsContext()
    wanted = context.common_tls_context.tls_certificate_sds_secret_configs.add(name=secret)
    wanted.sds_config.CopyFrom(ads())
    socket = base_pb2.TransportSocket(name="tls", typed_config=any_of(context))
    message.filter_chains[0].transport_socket.CopyFrom(socket)
    return resource("web", message)


def secret(name: str, subject: str) -> Resource:
    key = ec.generate_private_key(ec.SECP256R1())
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    chain = base_pb2.DataSource(inline_bytes=certificate.public_bytes(pem))
    private = base_pb2.DataSource(inline_bytes=key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    pair = common_pb2.TlsCertificate(certificate_chain=chain, private_key=private)
    return resource(name, secret_pb2.Secret(name=name, tls_certificate=pair))


async def subject_served() -> str:
    """The common name of the certificate on the listener; "" if the connection fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", LISTENER, ssl=context)
    except OSError:
        return ""
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    found = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value)


async def serves(subject: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while await subject_served() != subject:
            pass


async def test_a_secret_comes_later_is_rotated_goes_and_comes_back(bench: Bench) -> None:
    rest = (cluster("one"), endpoints("one", BACKEND_A), tls_listener("cert"), routes("web", "one"))
    server = await bench.serve(snap(*rest))
    assert (await server.wait_acked(ALL, PATIENCE)).ok
    assert await subject_served() == ""
    await roll(server, snap(*rest, secret("cert", "first")))
    await serves("first")
    await roll(server, snap(*rest, secret("cert", "second")))
    await serves("second")
    await roll(server, snap(*rest))
    (client,) = server.state()
    assert client.types[TypeUrl.SDS] == ()
    await roll(server, snap(*rest, secret("cert", "third"), secret("unasked", "x")))
    await serves("third")
    (client,) = server.state()
    states = {status.name: status.state for status in client.types[TypeUrl.SDS]}
    assert states == {"cert": SyncState.SYNCED, "unasked": SyncState.NOT_SENT}
