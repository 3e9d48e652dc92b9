"""Private keys of a CA: the kinds we make, the kinds we take, and how they lie on disk.

A key is always PKCS #8 in a file of mode 0600, encrypted where a passphrase is given. RSA is taken from
others (`ca import`) and never made. Leaves are ECDSA P-256 whatever the CA's own keys are: Envoy takes no
Ed25519 leaf.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from penstock.errors import InputError
from penstock.files import write_atomically
from penstock.mtls.errors import AuthorityError

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

CREDENTIAL = "penstock-ca-passphrase"
"""Name of the systemd credential that holds the passphrase (systemd.exec(5), LoadCredential=)."""
MIN_RSA_BITS = 2048


class KeyType(StrEnum):
    P256 = "P-256"
    P384 = "P-384"
    ED25519 = "Ed25519"


def make(kind: KeyType) -> PrivateKey:
    if kind is KeyType.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP384R1() if kind is KeyType.P384 else ec.SECP256R1())


def kind_of(key: PrivateKey) -> KeyType:
    """What to make beside it: for RSA the default."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return KeyType.ED25519
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1):
        return KeyType.P384
    return KeyType.P256


def signing_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """The hash that a key of this kind signs with (RFC 5480 §4; Ed25519 brings its own)."""
    kind = kind_of(key)
    return {KeyType.P256: hashes.SHA256(), KeyType.P384: hashes.SHA384(), KeyType.ED25519: None}[kind]


def encode(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """PKCS #8 in PEM."""
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        protection = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def write(path: Path, key: PrivateKey, passphrase: bytes | None = None) -> None:
    """Raises OSError; then `path` is as it was."""
    write_atomically(path, encode(key, passphrase))


def read(path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """Raises FileNotFoundError, and AuthorityError for what is no such key or needs another passphrase."""
    data = path.read_bytes()
    encrypted = b"ENCRYPTED" in data
    if encrypted and not passphrase:
        raise AuthorityError(
            f"{path} is encrypted",
            hint=f"--ca-passphrase-file FILE, or a systemd credential named {CREDENTIAL}",
        )
    try:
        key = serialization.load_pem_private_key(data, password=passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        what = (
            "cannot be decrypted: wrong passphrase?" if encrypted else f"is not a private key in PEM: {error}"
        )
        raise AuthorityError(f"{path} {what}") from error
    return check(key, path)


def check(key: object, where: Path) -> PrivateKey:
    """`key` if a CA may have it. Raises AuthorityError."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
        return key
    raise AuthorityError(
        f"the key in {where} is neither ECDSA P-256 or P-384, nor Ed25519, nor RSA of 2048 bits"
    )


def passphrase(file: Path | None) -> bytes | None:
    """From `file`, else from systemd's credential of our name, else None. Raises InputError."""
    if file is None:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        file = Path(folder, CREDENTIAL) if folder else None
        if file is None or not file.exists():
            return None
    try:
        found = file.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise InputError(f"the passphrase file {file} cannot be read: {error.strerror}") from error
    if not found:
        raise InputError(f"the passphrase file {file} is empty")
    return found
