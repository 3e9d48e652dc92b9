"""What a CA directory holds at one moment: read, completed where it lacks something, and checked.

Keeps true: a root that was once complete is never written again; nothing is handed out before it is on disk;
a key that does not belong to its certificate is of no use. Reading is under the lock, so that nobody sees one
without the other. `root.key` may be taken away (an offline root): then the intermediate lasts until its end.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from penstock.files import locked, write_atomically
from penstock.mtls import certificates, jwt_keys, keys, origin, revocation, rotation
from penstock.mtls.errors import AuthorityError
from penstock.mtls.jwt_keys import JwtKeys
from penstock.mtls.keys import PrivateKey
from penstock.mtls.revocation import Revocations
from penstock.mtls.rotation import NEXT, RETIRED, Rotation

log = logging.getLogger(__name__)

RENEW_INTERMEDIATE = timedelta(days=30)
"""A new intermediate is made when the old one has less than this left."""
POSTPONE = timedelta(days=1)
"""A new issuer's revocation list must be everywhere before it signs. Nobody proves that when the intermediate
is renewed by itself, so while anything is revoked that waits until no more than this is left."""


@dataclass(frozen=True, slots=True)
class HeldIssuer:
    """`chain` is its own certificate and those between it and the root, in PEM; `key_id` names it."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)
    chain: bytes
    key_id: str


@dataclass(frozen=True, slots=True)
class HeldAuthority:
    """`roots` are trusted; `root` is the one above the signer."""

    root: x509.Certificate
    signer: HeldIssuer
    roots: tuple[x509.Certificate, ...]
    bundle: bytes
    rotation: Rotation | None
    revoked: Revocations
    lists: bytes
    jwt: JwtKeys


class CaDirectory:
    """Its methods block for milliseconds, and raise AuthorityError and OSError."""

    def __init__(self, directory: Path, trust_domain: str, passphrase: bytes | None) -> None:
        self.directory, self.trust_domain = directory, trust_domain
        self._passphrase = passphrase

    def _path(self, name: str) -> Path:
        return self.directory / name

    def load(self, seconds: float) -> HeldAuthority:
        """All of it, as of `seconds` since the epoch. What is absent or due is made."""
        with locked(self._path(rotation.LOCK)):
            now = datetime.fromtimestamp(seconds, UTC)
            under_way = rotation.load(self.directory)
            revoked = revocation.load(self.directory, now.timestamp())
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
                signer = self._load_intermediate(old, now, hold=bool(revoked.certificates))
            bundle = b"".join(map(certificates.certificate_pem, trusted))
            issuers = self._issuers(now) if revoked.certificates else []
            lists = revocation.lists(self.directory, issuers, revoked, now.timestamp(), self._passphrase)
            signing = jwt_keys.load(self.directory, seconds, self._passphrase)
            return HeldAuthority(root, signer, tuple(trusted), bundle, under_way, revoked, lists, signing)

    def _issuers(self, now: datetime) -> list[tuple[x509.Certificate, Path]]:
        """Every issuer whose leaves may hold, with its key file: of now, the next, earlier ones."""
        folders = [self.directory, self._path(NEXT)]
        files = [folder / "intermediate.crt" for folder in folders]
        files += sorted(self._path(RETIRED).glob("*.crt"))
        found = []
        for path in files:
            if path.exists():
                certificate = self._read_chain(str(path.relative_to(self.directory)))[0]
                if certificate.not_valid_after_utc > now:
                    found.append((certificate, path.with_suffix(".key")))
        return found

    def _make_root(self, now: datetime) -> None:
        """The key is written first: without root.crt it has signed nothing and may be replaced."""
        if self._path("intermediate.crt").exists():
            raise AuthorityError(
                f"{self.directory} holds an intermediate.crt but no root.crt",
                hint="put root.crt back, or give an empty --ca-dir",
            )
        key = keys.make(keys.KeyType.P256)
        root = certificates.root(key, self.trust_domain, now)
        keys.write(self._path("root.key"), key, self._passphrase)
        write_atomically(self._path("root.crt"), certificates.certificate_pem(root), mode=0o644)
        log.info("made a root for trust domain %s in %s", self.trust_domain, self.directory)

    def _check_root(self, root: x509.Certificate, now: datetime) -> None:
        found = origin.trust_domain(self.directory, root)
        if found != self.trust_domain:
            raise AuthorityError(
                f"the CA in {self.directory} is of trust domain {found or '(none)'}, not {self.trust_domain}",
                hint="give another --ca-dir, or set the trust domain to the CA's",
            )
        if now >= root.not_valid_after_utc:
            raise AuthorityError(f"the root in {self.directory} is over since {root.not_valid_after_utc}")

    def _load_intermediate(self, root: x509.Certificate, now: datetime, *, hold: bool) -> HeldIssuer:
        """The intermediate on disk, or a new one where it is due, absent or half replaced.

        `hold` is for the time that anything is revoked (POSTPONE). Replacing writes the key first, so a crash
        in between leaves a pair that does not match.
        """
        usable = self._read_intermediate(root)
        if usable and not is_due(usable.certificate, now):
            return usable
        if usable and hold and usable.certificate.not_valid_after_utc - now > POSTPONE:
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
        root_key = keys.read(self._path("root.key"), self._passphrase)
        if root_key.public_key() != root.public_key():
            raise AuthorityError(f"root.key and root.crt in {self.directory} do not belong together")
        key = keys.make(keys.kind_of(root_key))
        made = certificates.intermediate(key.public_key(), self.trust_domain, root, root_key, now)
        if usable:
            rotation.retire(self.directory)
        keys.write(self._path("intermediate.key"), key, self._passphrase)
        pem = certificates.certificate_pem(made)
        write_atomically(self._path("intermediate.crt"), pem, mode=0o644)
        log.info("made an intermediate in %s, valid until %s", self.directory, made.not_valid_after_utc)
        return HeldIssuer(made, key, pem, certificates.key_id(made))

    def _read_intermediate(self, root: x509.Certificate, folder: str = "") -> HeldIssuer | None:
        try:
            chain = self._read_chain(f"{folder}intermediate.crt")
            key = keys.read(self._path(f"{folder}intermediate.key"), self._passphrase)
        except FileNotFoundError:
            return None
        if key.public_key() != chain[0].public_key():
            return None
        for below, above in zip(chain, [*chain[1:], root], strict=True):
            try:
                below.verify_directly_issued_by(above)
            except (ValueError, TypeError, InvalidSignature) as error:
                raise AuthorityError(
                    f"intermediate.crt in {self.directory} is not signed by root.crt"
                ) from error
        pem = b"".join(map(certificates.certificate_pem, chain))
        return HeldIssuer(chain[0], key, pem, certificates.key_id(chain[0]))

    def _read_certificate(self, name: str) -> x509.Certificate:
        return self._read_chain(name)[0]

    def _read_chain(self, name: str) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(self._path(name).read_bytes())
        except ValueError as error:
            raise AuthorityError(f"{self._path(name)} is not a certificate in PEM: {error}") from error


def is_due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether an intermediate is to be replaced."""
    return certificate.not_valid_after_utc - now < RENEW_INTERMEDIATE
