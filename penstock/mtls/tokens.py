"""Join tokens: how a node that has no certificate yet proves that somebody let it in.

A token is a short-lived client certificate for `/penstock/join/NODE` with its key, and the roots to trust; so
a node that joins speaks mTLS from its first byte, and to nobody but its CA. In the CA's directory:

    tokens/SERIAL.json    not over; `key` is the hash of the key that it was used for
    joined/NODE.json      what a node that has joined may ask for besides what the manifests say

Single use means one key: the same node may ask again for the same key, because an answer can be lost on its
way. A second key is refused.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from penstock.errors import InputError
from penstock.files import locked, write_atomically
from penstock.mtls import certificates, rotation, spiffe
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.errors import RequestError

PREFIX = "penstock-join-v1."
FOLDER, JOINED = "tokens", "joined"
JOIN, NODE, SERVER = "/penstock/join/", "/penstock/node/", "/penstock/ca"
"""Paths of SPIFFE ids that are not workloads'."""


@dataclass(frozen=True, slots=True)
class Token:
    """What the operator carries to the node. Secret."""

    node: str
    trust_domain: str
    key: str
    chain: str
    bundle: str

    def text(self) -> str:
        return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(self)).decode()


@dataclass(frozen=True, slots=True)
class Grant:
    """`allow` are patterns of ``namespace/service account``."""

    node: str
    allow: tuple[str, ...] = ()

    def allows(self, namespace: str, account: str) -> bool:
        return any(fnmatchcase(f"{namespace}/{account}", pattern) for pattern in self.allow)


@dataclass(frozen=True, slots=True)
class _Open:
    grant: Grant
    expires: float
    key: str = ""


def read(file: Path) -> Token:
    """Raises InputError."""
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the join token {file} cannot be read: {error}") from error
    try:
        if not text.startswith(PREFIX):
            raise ValueError("it does not begin as one")
        return msgspec.json.decode(base64.urlsafe_b64decode(text.removeprefix(PREFIX)), type=Token)
    except (ValueError, msgspec.MsgspecError) as error:
        raise InputError(f"{file} is no join token: {error}", hint="penstock ca token --node NAME") from error


def make(ca: CertificateAuthority, grant: Grant, lifetime: timedelta, now: float) -> Token:
    """A token for a node of that name. Raises MtlsError, OSError; SpiffeIdError for an impossible name."""
    spiffe_id = str(spiffe.parse(f"{spiffe.SCHEME}{ca.trust_domain}{JOIN}{grant.node}"))
    for pattern in grant.allow:
        if pattern.count("/") != 1:
            raise InputError(f"{pattern!r} is not NAMESPACE/SERVICE-ACCOUNT")
    key = certificates.new_key()
    chain = ca.sign(certificates.signing_request(key), spiffe_id, lifetime, owner=owner_of_node(grant.node))
    serial = x509.load_pem_x509_certificates(chain)[0].serial_number
    folder = ca.directory / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    known = _Open(grant, now + lifetime.total_seconds())
    write_atomically(folder / f"{serial:x}.json", msgspec.json.encode(known))
    return Token(
        grant.node,
        ca.trust_domain,
        certificates.key_pem(key).decode(),
        chain.decode(),
        ca.bundle_pem.decode(),
    )


def owner_of_node(node: str) -> str:
    """What a node's own certificates are revoked by."""
    return f"node {node}"


def use(directory: Path, serial: int, node: str, csr: bytes, now: float) -> None:
    """Take the token for this key, and note what its node may ask for. Raises RequestError, OSError."""
    try:
        key = x509.load_pem_x509_csr(csr).public_key()
        shown = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(f"not a signing request in PEM: {error}") from error
    digest = hashlib.sha256(shown).hexdigest()
    with locked(directory / rotation.LOCK):
        path = directory / FOLDER / f"{serial:x}.json"
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_Open)
        except (FileNotFoundError, ValueError, msgspec.MsgspecError) as error:
            raise RequestError("this join token is not known") from error
        if found.grant.node != node or now > found.expires:
            raise RequestError("this join token is over")
        if found.key not in ("", digest):
            raise RequestError("this join token was used before, for another key")
        write_atomically(path, msgspec.json.encode(replace(found, key=digest)))
        joined = directory / JOINED
        joined.mkdir(mode=0o700, exist_ok=True)
        write_atomically(joined / f"{quote(node, safe='')}.json", msgspec.json.encode(found.grant))
        _forget_old(directory / FOLDER, now)


def granted(directory: Path, node: str) -> Grant | None:
    """What a node that has joined may ask for; None if it never did."""
    try:
        data = (directory / JOINED / f"{quote(node, safe='')}.json").read_bytes()
        return msgspec.json.decode(data, type=Grant)
    except (FileNotFoundError, ValueError, msgspec.MsgspecError):
        return None


def _forget_old(folder: Path, now: float) -> None:
    for path in folder.glob("*.json"):
        try:
            over = msgspec.json.decode(path.read_bytes(), type=_Open).expires < now
        except (OSError, ValueError, msgspec.MsgspecError):
            continue
        if over:
            path.unlink(missing_ok=True)
