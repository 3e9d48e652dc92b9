"""TLS for the echo backend: its certificate, and what it tells of a connection."""

from __future__ import annotations

import datetime
import ssl
import tempfile
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from penstock.lab.echo import Backend


def self_signed(hostnames: tuple[str, ...]) -> tuple[bytes, bytes]:
    """A certificate for `hostnames` that is its own CA, and its key, both PEM; valid until tomorrow."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostnames[0][:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(h) for h in hostnames]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def server_context(backend: Backend, protocols: tuple[str, ...]) -> ssl.SSLContext:
    """TLS as `backend` wants it, offering `protocols` by ALPN."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if backend.certificate:
        context.load_cert_chain(backend.certificate, backend.key or None)
    else:
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(b"".join(self_signed(backend.hostnames)))
            pem.flush()
            context.load_cert_chain(pem.name)
    if backend.client_ca:
        context.load_verify_locations(backend.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    if protocols:
        context.set_alpn_protocols(list(protocols))

    def remember(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.penstock_sni = name or ""  # type: ignore[attr-defined]

    context.sni_callback = remember
    return context


def tls_of(transport: Any) -> dict[str, Any] | None:
    """What the answer says of TLS: version, server name (SNI), ALPN, cipher suite, client certificate."""
    connection = transport.get_extra_info("ssl_object") if transport is not None else None
    if connection is None:
        return None
    cipher = connection.cipher()
    shown = connection.getpeercert(binary_form=True)
    return {
        "version": connection.version(),
        "serverName": getattr(connection, "penstock_sni", ""),
        "negotiatedProtocol": connection.selected_alpn_protocol() or "",
        "cipherSuite": cipher[0] if cipher else "",
        "peerCertificates": [ssl.DER_cert_to_PEM_cert(shown)] if shown else [],
    }
