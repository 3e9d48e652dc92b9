"""Whose a CA is: the trust domain of a root, also of one that somebody else made and that names none.

ca.json    the trust domain of an imported or installed CA
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from penstock.files import write_atomically
from penstock.mtls import spiffe
from penstock.mtls.errors import AuthorityError
from penstock.mtls.keys import KeyType

FILE = "ca.json"


@dataclass(frozen=True, slots=True)
class _Origin:
    trust_domain: str


def trust_domain(directory: Path, root: x509.Certificate) -> str:
    """As the root says (SPIFFE X.509-SVID §3.2), else as it was imported; "" if nobody says."""
    named = named_by(root)
    if named:
        return named
    path = directory / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Origin).trust_domain
    except FileNotFoundError:
        return ""
    except (ValueError, msgspec.MsgspecError) as error:
        raise AuthorityError(f"{path} is damaged: {error}") from error


def note(directory: Path, domain: str) -> None:
    """Raises OSError."""
    write_atomically(directory / FILE, msgspec.json.encode(_Origin(domain)) + b"\n")


def named_by(root: x509.Certificate) -> str:
    """The trust domain in the certificate itself; "" if there is none."""
    return uri(root).removeprefix(spiffe.SCHEME)


def uri(certificate: x509.Certificate) -> str:
    """The SPIFFE id that a certificate names; "" if there is none."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    found = san.get_values_for_type(x509.UniformResourceIdentifier)
    return next((each for each in found if each.startswith(spiffe.SCHEME)), "")


def key_type(directory: Path) -> KeyType:
    """The kind of the root's key, for the next root; the default where that was RSA."""
    key = x509.load_pem_x509_certificates((directory / "root.crt").read_bytes())[0].public_key()
    if isinstance(key, ed25519.Ed25519PublicKey):
        return KeyType.ED25519
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        return KeyType.P384
    return KeyType.P256
