"""How a CA comes to be, if not by itself: made with chosen keys, brought along, or signed by another CA.

What it keeps true: nothing half-done is taken for a CA (root.crt comes last); what is brought along has
signed a certificate that passes every rule before it is put anywhere; a CA that is already in use is not
replaced but rotated: what is new waits in `next/` for `penstock ca rotate`, which takes it through the
stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from penstock.errors import InputError
from penstock.files import locked, write_atomically
from penstock.mtls import certificates, keys, origin, rotation
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.errors import AuthorityError, VerifyError
from penstock.mtls.keys import KeyType, PrivateKey
from penstock.mtls.rotation import Kind, Rotation
from penstock.mtls.verify import verify

PENDING = "pending.key"
"""The key of a signing request until its certificate is installed."""


@dataclass(frozen=True, slots=True)
class Brought:
    """A CA that somebody else made. `chain` is its issuer's certificate first, up to but without the root."""

    root: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey


def init(
    directory: Path, trust_domain: str, key_type: KeyType, passphrase: bytes | None
) -> CertificateAuthority:
    """A new CA with keys of that kind. Raises AuthorityError if there is one already."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(directory / rotation.LOCK):
        _refuse_old(directory)
        key = keys.make(key_type)
        made = certificates.root(key, trust_domain, datetime.now(UTC))
        keys.write(directory / "root.key", key, passphrase)
        write_atomically(directory / "root.crt", certificates.certificate_pem(made), mode=0o644)
    return CertificateAuthority.open(directory, trust_domain, passphrase=passphrase)


def read(root: Path, chain: Path, key: Path, key_passphrase: bytes | None) -> Brought:
    """Files in PEM, as their owner has them. Raises InputError, AuthorityError."""
    try:
        private = keys.read(key, key_passphrase)
    except OSError as error:
        raise InputError(f"{key} cannot be read: {error.strerror}") from error
    return Brought(_certificates(root)[0], tuple(_certificates(chain)), private)


def bring(directory: Path, brought: Brought, trust_domain: str, passphrase: bytes | None) -> Rotation | None:
    """Put it where there is no CA yet; else begin the rotation to it, which is returned. Raises
    AuthorityError.

    Without the root's key, which stays with its owner: the intermediate is replaced by another `install`.
    """
    chain = _without_root(brought)
    _check(brought, chain, trust_domain)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(folder: Path, *, root: bool) -> None:
        keys.write(folder / "intermediate.key", brought.key, passphrase)
        pem = b"".join(map(certificates.certificate_pem, chain))
        write_atomically(folder / "intermediate.crt", pem, mode=0o644)
        if root:
            (folder / rotation.NO_ROOT_KEY).touch()
            write_atomically(folder / "root.crt", certificates.certificate_pem(brought.root), mode=0o644)

    if (directory / "root.crt").exists():
        now = _certificates(directory / "root.crt")[0]
        if origin.trust_domain(directory, now) != trust_domain:
            raise AuthorityError(f"the CA in {directory} is of another trust domain than {trust_domain}")
        same = now == brought.root
        _note(directory, brought.root, trust_domain)
        return rotation.begin_with(
            directory, Kind.INTERMEDIATE if same else Kind.ROOT, lambda folder: put(folder, root=not same)
        )
    with locked(directory / rotation.LOCK):
        _refuse_old(directory)
        _note(directory, brought.root, trust_domain)
        put(directory, root=True)
        (directory / rotation.NO_ROOT_KEY).unlink()
    return None


def request(directory: Path, trust_domain: str, key_type: KeyType, passphrase: bytes | None) -> bytes:
    """A signing request for an intermediate, in PEM; its key waits in the directory for `install`.

    It asks for what we need (RFC 5280 §4.2.1, SPIFFE X.509-SVID §3): a CA with no CA below it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = keys.make(key_type)
    keys.write(directory / PENDING, key, passphrase)
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(certificates.authority_name("Penstock Intermediate CA"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(certificates.key_usage(sign=False), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, keys.signing_hash(key))
    )
    return asked.public_bytes(serialization.Encoding.PEM)


def install(
    directory: Path, root: Path, chain: Path, trust_domain: str, passphrase: bytes | None
) -> Rotation | None:
    """As `bring`, with the key of the last `request`. Raises AuthorityError, InputError."""
    pending = directory / PENDING
    if not pending.exists():
        raise AuthorityError(f"no signing request was made in {directory}", hint="penstock ca csr")
    begun = bring(directory, read(root, chain, pending, passphrase), trust_domain, passphrase)
    pending.unlink()
    return begun


def _without_root(brought: Brought) -> list[x509.Certificate]:
    return [each for each in brought.chain if each != brought.root]


def _check(brought: Brought, chain: list[x509.Certificate], trust_domain: str) -> None:
    """Let it sign something, and look at that by every rule. Raises AuthorityError."""
    if not chain:
        raise AuthorityError("an intermediate is needed: a root does not sign workloads' certificates")
    if brought.key.public_key() != chain[0].public_key():
        raise AuthorityError("the key is not that of the first certificate of the intermediate's file")
    named = origin.named_by(brought.root)
    if named not in ("", trust_domain):
        raise AuthorityError(f"the root is of trust domain {named}, not {trust_domain}")
    now = datetime.now(UTC)
    try:
        probe = certificates.leaf(
            certificates.new_key().public_key(),
            f"spiffe://{trust_domain}/ns/penstock/sa/probe",
            chain[0],
            brought.key,
            now=now,
            lifetime=timedelta(minutes=1),
        )
        pem = b"".join(map(certificates.certificate_pem, [probe, *chain]))
        verify(pem, certificates.certificate_pem(brought.root), now=now.timestamp())
    except (VerifyError, ValueError, x509.ExtensionNotFound) as error:
        raise AuthorityError(f"what this CA signs would not be taken: {error}") from error


def _note(directory: Path, root: x509.Certificate, trust_domain: str) -> None:
    if not origin.named_by(root):
        origin.note(directory, trust_domain)


def _refuse_old(directory: Path) -> None:
    for name in ("root.crt", "intermediate.crt"):
        if (directory / name).exists():
            raise AuthorityError(
                f"there is a CA in {directory} already", hint="penstock ca rotate replaces it, in stages"
            )


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} holds no certificates in PEM: {error}") from error
