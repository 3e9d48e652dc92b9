"""The built-in CA: a directory that several daemons of one machine may share.

    root.crt  root.key  intermediate.crt  intermediate.key  .lock
    rotation.json  next/    while the root or the intermediate is being rotated (rotation.py)
    nodes/                  what the nodes have proven (reports.py)

Whoever comes first makes it, under the lock. What it keeps true: a root that was once complete is
never written again; nothing is signed before its issuer is on disk; the CA, not the requester, decides
what a certificate says. `root.key` may be taken away (an offline root): then the intermediate lasts
until its end. Reading is under the lock too, so that nobody sees a key without its certificate. Which root
is trusted and which intermediate signs during a rotation follows from its stage alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from penstock.files import locked, write_atomically
from penstock.mtls import certificates, rotation, spiffe
from penstock.mtls.errors import AuthorityError, RequestError
from penstock.mtls.rotation import NEXT, Rotation

log = logging.getLogger(__name__)

RENEW_INTERMEDIATE = timedelta(days=30)
"""A new intermediate is made when the old one has less than this left."""
MIN_LEFT = timedelta(minutes=1)
"""Nothing is signed by an issuer with less than this left: the leaf would be dead on arrival."""


@dataclass(frozen=True, slots=True)
class _Issuer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Authority:
    """What the directory held at one moment. `roots` are trusted; the first is the one in force."""

    root: x509.Certificate
    signer: _Issuer
    roots: tuple[x509.Certificate, ...]
    bundle: bytes
    signer_pem: bytes
    rotation: Rotation | None


class CertificateAuthority:
    """An open CA directory. Its methods block for milliseconds (disk, lock); one thread at a time."""

    def __init__(self, directory: Path, trust_domain: str, clock: Callable[[], float]) -> None:
        self.directory = directory
        self.trust_domain = spiffe.check_trust_domain(trust_domain)
        self._clock = clock
        self._held = self._load()

    @classmethod
    def open(
        cls, directory: Path, trust_domain: str, *, clock: Callable[[], float] = time.time
    ) -> CertificateAuthority:
        """Open the CA in `directory`; make the directory and the CA if there is none.

        `clock` gives seconds since the epoch. Raises AuthorityError if the directory holds a CA of another
        trust domain, a damaged one, or one that is over, or if it cannot be written.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(directory, trust_domain, clock)
        except OSError as error:
            raise AuthorityError(f"CA directory {directory}: {error.strerror or error}") from error

    @property
    def bundle_pem(self) -> bytes:
        """What a peer must trust: the root; during a rotation of it the old one and the new one."""
        return self._held.bundle

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """The certificates of the bundle."""
        return self._held.roots

    @property
    def root(self) -> x509.Certificate:
        """The root above the intermediate that signs."""
        return self._held.root

    @property
    def intermediate(self) -> x509.Certificate:
        """The one that signs."""
        return self._held.signer.certificate

    @property
    def rotation(self) -> Rotation | None:
        """The rotation under way, as this CA acts by it: as of the last `reload`."""
        return self._held.rotation

    def keeps(self, chain_pem: bytes) -> bool:
        """Whether a certificate may stay until it is due: during a rotation only if the signer made it."""
        return self._held.rotation is None or chain_pem.endswith(self._held.signer_pem)

    def reload(self) -> None:
        """Look at the directory again. Raises AuthorityError; then all is as before."""
        try:
            self._held = self._load()
        except OSError as error:
            raise AuthorityError(f"CA directory {self.directory}: {error.strerror or error}") from error

    def sign(self, csr: bytes, spiffe_id: str, lifetime: timedelta) -> bytes:
        """Certify the key of a CSR (PEM) as `spiffe_id`; nothing else of the CSR is taken.

        Returns the chain in PEM, leaf first, without the root. The leaf ends with its issuer if that comes
        before `lifetime` from now. Raises RequestError (CSR or id), AuthorityError (the CA cannot sign).
        """
        identity = spiffe.parse(spiffe_id)
        if identity.trust_domain != self.trust_domain:
            raise RequestError(f"{spiffe_id} is not in the trust domain {self.trust_domain} of this CA")
        if not identity.path:
            raise RequestError(f"{spiffe_id} names a trust domain; a leaf needs a path (X.509-SVID §5.1)")
        if lifetime <= timedelta(0):
            raise RequestError(f"a lifetime of {lifetime} is not positive")
        public_key = _requested_key(csr)
        now = self._now()
        if self._is_due(self._held.signer.certificate, now):
            self.reload()
        issuer = self._held.signer
        if issuer.certificate.not_valid_after_utc - now < MIN_LEFT:
            raise AuthorityError(
                f"the intermediate in {self.directory} is over ({issuer.certificate.not_valid_after_utc})",
                hint="put root.key back into the CA directory, or install a new intermediate",
            )
        leaf = certificates.leaf(
            public_key, spiffe_id, issuer.certificate, issuer.key, now=now, lifetime=lifetime
        )
        return certificates.certificate_pem(leaf) + certificates.certificate_pem(issuer.certificate)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _path(self, name: str) -> Path:
        return self.directory / name

    def _load(self) -> _Authority:
        with locked(self._path(rotation.LOCK)):
            now = self._now()
            under_way = rotation.load(self.directory)
            if not self._path("root.crt").exists():
                self._make_root(now)
            old = root = self._read_certificate("root.crt")
            self._check_root(root, now)
            signer = None
            trusted = [root]
            if under_way is not None:
                if under_way.kind is rotation.Kind.ROOT:
                    root = self._read_certificate(f"{NEXT}/root.crt")
                    self._check_root(root, now)
                    trusted = [old] * under_way.trusts_old + [root] * under_way.trusts_new
                if under_way.new_signs:
                    signer = self._read_intermediate(root, f"{NEXT}/")
                    if signer is None:
                        raise AuthorityError(f"{self._path(NEXT)} holds no usable intermediate")
                else:
                    root = old
            if signer is None:
                signer = self._load_intermediate(old, now)
            bundle = b"".join(map(certificates.certificate_pem, trusted))
            signer_pem = certificates.certificate_pem(signer.certificate)
            return _Authority(root, signer, tuple(trusted), bundle, signer_pem, under_way)

    def _make_root(self, now: datetime) -> None:
        """The key is written first: without root.crt it has signed nothing and may be replaced."""
        if self._path("intermediate.crt").exists():
            raise AuthorityError(
                f"{self.directory} holds an intermediate.crt but no root.crt",
                hint="put root.crt back, or give an empty --ca-dir",
            )
        key = certificates.new_key()
        root = certificates.root(key, self.trust_domain, now)
        write_atomically(self._path("root.key"), certificates.key_pem(key))
        write_atomically(self._path("root.crt"), certificates.certificate_pem(root), mode=0o644)
        log.info("made a root for trust domain %s in %s", self.trust_domain, self.directory)

    def _check_root(self, root: x509.Certificate, now: datetime) -> None:
        found = _trust_domain(root)
        if found != self.trust_domain:
            raise AuthorityError(
                f"the CA in {self.directory} is of trust domain {found or '(none)'}, not {self.trust_domain}",
                hint="give another --ca-dir, or set the trust domain to the CA's",
            )
        if now >= root.not_valid_after_utc:
            raise AuthorityError(f"the root in {self.directory} is over since {root.not_valid_after_utc}")

    def _load_intermediate(self, root: x509.Certificate, now: datetime) -> _Issuer:
        """The intermediate on disk, or a new one where it is due, absent or half replaced.

        Replacing writes the key first, so a crash in between leaves a pair that does not match.
        """
        usable = self._read_intermediate(root)
        if usable and not self._is_due(usable.certificate, now):
            return usable
        if usable and usable.certificate.not_valid_after_utc >= root.not_valid_after_utc:
            return usable  # The root ends as soon: another intermediate would not last longer.
        if not self._path("root.key").exists():
            if usable:
                return usable
            raise AuthorityError(
                f"{self.directory} has no usable intermediate and no root.key to make one",
                hint="install intermediate.crt and intermediate.key, or put root.key back",
            )
        root_key = self._read_key("root.key")
        if root_key.public_key() != root.public_key():
            raise AuthorityError(f"root.key and root.crt in {self.directory} do not belong together")
        key = certificates.new_key()
        made = certificates.intermediate(key.public_key(), self.trust_domain, root, root_key, now)
        write_atomically(self._path("intermediate.key"), certificates.key_pem(key))
        write_atomically(self._path("intermediate.crt"), certificates.certificate_pem(made), mode=0o644)
        log.info("made an intermediate in %s, valid until %s", self.directory, made.not_valid_after_utc)
        return _Issuer(made, key)

    def _read_intermediate(self, root: x509.Certificate, folder: str = "") -> _Issuer | None:
        try:
            certificate = self._read_certificate(f"{folder}intermediate.crt")
            key = self._read_key(f"{folder}intermediate.key")
        except FileNotFoundError:
            return None
        if key.public_key() != certificate.public_key():
            return None
        try:
            certificate.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise AuthorityError(f"intermediate.crt in {self.directory} is not signed by root.crt") from error
        return _Issuer(certificate, key)

    @staticmethod
    def _is_due(certificate: x509.Certificate, now: datetime) -> bool:
        return certificate.not_valid_after_utc - now < RENEW_INTERMEDIATE

    def _read_certificate(self, name: str) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(self._path(name).read_bytes())
        except ValueError as error:
            raise AuthorityError(f"{self._path(name)} is not a certificate in PEM: {error}") from error

    def _read_key(self, name: str) -> ec.EllipticCurvePrivateKey:
        try:
            key = serialization.load_pem_private_key(self._path(name).read_bytes(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise AuthorityError(f"{self._path(name)} is not a private key in PEM: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"{self._path(name)} is not an elliptic curve key")
        return key


def _requested_key(csr: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(csr)
        signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(f"not a signing request in PEM: {error}") from error
    if not signed:
        raise RequestError("the signing request is not signed by the key it names")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    raise RequestError("the signing request is for a key that is neither ECDSA P-256 nor P-384")


def _trust_domain(root: x509.Certificate) -> str:
    try:
        san = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    for uri in san.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith(spiffe.SCHEME):
            return uri.removeprefix(spiffe.SCHEME)
    return ""
