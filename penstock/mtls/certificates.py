"""The three kinds of certificate we make, field by field.

Root → intermediate → leaf; leaves are ECDSA P-256, CAs have the keys of `keys`. The extensions and their
critical flags are those of RFC 5280 §4.2 and of the SPIFFE X.509-SVID specification §4 and Appendix A;
`verify` holds them to it.

Not chosen: the trust domain in the subject of a CA. It may be longer than the 64 characters that an
attribute may have (RFC 5280, appendix A), so it stands in the SAN, where SPIFFE looks for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from penstock.mtls.keys import PrivateKey, PublicKey, signing_hash

ROOT_LIFETIME = timedelta(days=3650)
INTERMEDIATE_LIFETIME = timedelta(days=365)
SKEW = timedelta(minutes=5)
"""How far the clock of a peer may lag behind ours and still take a fresh certificate."""


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def signing_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A CSR in PEM that proves possession of `key` and asks for nothing: the CA decides what it certifies."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def request_for(key_pem: bytes) -> bytes:
    """As `signing_request`, for a key in PEM. Raises ValueError."""
    key = serialization.load_pem_private_key(key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic curve key")
    return signing_request(key)


def root(key: PrivateKey, trust_domain: str, now: datetime) -> x509.Certificate:
    """A self-signed root; one intermediate may stand below it."""
    name = _authority_name("Penstock Root CA")
    builder = _authority(name, key.public_key(), trust_domain, now, now + ROOT_LIFETIME, path_length=1)
    own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_id)
    return builder.issuer_name(name).add_extension(authority_id, critical=False).sign(key, signing_hash(key))


def intermediate(
    public_key: PublicKey,
    trust_domain: str,
    issuer: x509.Certificate,
    issuer_key: PrivateKey,
    now: datetime,
) -> x509.Certificate:
    """A CA that signs leaves of `trust_domain` and nothing else: a URI name constraint says so.

    The constraint stands here and not in the root, because RFC 5280 §6 takes nothing from a trust anchor
    but its name and key.
    """
    end = min(now + INTERMEDIATE_LIFETIME, issuer.not_valid_after_utc)
    name = _authority_name("Penstock Intermediate CA")
    constraint = x509.NameConstraints([x509.UniformResourceIdentifier(trust_domain)], None)
    return (
        _authority(name, public_key, trust_domain, now, end, path_length=0)
        .issuer_name(issuer.subject)
        .add_extension(_issued_by(issuer), critical=False)
        .add_extension(constraint, critical=True)
        .sign(issuer_key, signing_hash(issuer_key))
    )


def leaf(
    public_key: ec.EllipticCurvePublicKey,
    spiffe_id: str,
    issuer: x509.Certificate,
    issuer_key: PrivateKey,
    *,
    now: datetime,
    lifetime: timedelta,
    host_names: Iterable[str] = (),
) -> x509.Certificate:
    """An X.509-SVID that never outlives its issuer. The subject is empty, so the SAN is critical.

    `host_names` are for servers whose clients know no SPIFFE ids (gRPC's own checks).
    """
    start = max(now - SKEW, issuer.not_valid_before_utc)
    end = min(now + lifetime, issuer.not_valid_after_utc)
    san = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(spiffe_id), *map(x509.DNSName, host_names)]
    )
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder(x509.Name([]), public_key, start, end)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign=True), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(san, critical=True)
        .add_extension(_issued_by(issuer), critical=False)
        .sign(issuer_key, signing_hash(issuer_key))
    )


def key_id(certificate: x509.Certificate) -> str:
    """The subject key identifier, which names an issuer, in hexadecimal."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def _authority(
    name: x509.Name,
    public_key: PublicKey,
    trust_domain: str,
    now: datetime,
    end: datetime,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")])
    return (
        _builder(name, public_key, now - SKEW, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(sign=False), critical=True)
        .add_extension(san, critical=False)
    )


def _builder(
    subject: x509.Name, public_key: PublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start.replace(microsecond=0))
        .not_valid_after(end.replace(microsecond=0))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _authority_name(common_name: str) -> x509.Name:
    """A name no other CA has, so that two roots in one bundle (rotation) are never taken for each other."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Penstock"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{x509.random_serial_number():040x}"[:16]),
        ]
    )


def _issued_by(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_id)


def _key_usage(*, sign: bool) -> x509.KeyUsage:
    """`sign`: digitalSignature alone (a leaf). Otherwise keyCertSign and cRLSign alone (a CA)."""
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not sign,
        crl_sign=not sign,
        encipher_only=False,
        decipher_only=False,
    )
