"""The built-in CA: a directory that several daemons of one machine may share.

    root.crt  root.key  intermediate.crt  intermediate.key  .lock
    rotation.json  next/    while the root or the intermediate is being rotated (rotation.py)
    nodes/                  what the nodes have proven (reports.py)
    issued.log  revoked.json  crl/  retired/    what was signed, and what was taken back (revocation.py)
    ca.json                 how it was made, if by somebody else (origin.py)

Whoever comes first makes it, under the lock. What it keeps true: a root that was once complete is
never written again; nothing is signed before its issuer is on disk; the CA, not the requester, decides
what a certificate says. `root.key` may be taken away (an offline root): then the intermediate lasts
until its end. Reading is under the lock too, so that nobody sees a key without its certificate. Which root
is trusted and which intermediate signs during a rotation follows from its stage alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from penstock.files import locked, write_atomically
from penstock.mtls import certificates, keys, origin, revocation, rotation, spiffe
from penstock.mtls.errors import AuthorityError, RequestError
from penstock.mtls.follow import changes
from penstock.mtls.keys import PrivateKey
from penstock.mtls.revocation import Issued, Revocations, Revoked
from penstock.mtls.rotation import NEXT, RETIRED, Rotation
from penstock.mtls.state import State

log = logging.getLogger(__name__)

RENEW_INTERMEDIATE = timedelta(days=30)
"""A new intermediate is made when the old one has less than this left."""
MIN_LEFT = timedelta(minutes=1)
"""Nothing is signed by an issuer with less than this left: the leaf would be dead on arrival."""


POSTPONE = timedelta(days=1)
"""A new issuer's revocation list must be everywhere before it signs. Nobody proves that when the intermediate
is renewed by itself, so while anything is revoked that waits until no more than this is left."""
WATCHED = (rotation.FILE, "root.crt", "intermediate.crt", revocation.FILE)


@dataclass(frozen=True, slots=True)
class _Issuer:
    """`chain` is its own certificate and those between it and the root, in PEM; `key_id` names it."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)
    chain: bytes
    key_id: str


@dataclass(frozen=True, slots=True)
class _Authority:
    """What the directory held at one moment. `roots` are trusted; the first is the one in force."""

    root: x509.Certificate
    signer: _Issuer
    roots: tuple[x509.Certificate, ...]
    bundle: bytes
    rotation: Rotation | None
    revoked: Revocations
    lists: bytes


class CertificateAuthority:
    """An open CA directory. Its methods block for milliseconds (disk, lock); one thread at a time."""

    def __init__(
        self, directory: Path, trust_domain: str, clock: Callable[[], float], passphrase: bytes | None
    ) -> None:
        self.directory = directory
        self.trust_domain = spiffe.check_trust_domain(trust_domain)
        self._clock = clock
        self._passphrase = passphrase
        self._held = self._load()

    @classmethod
    def open(
        cls,
        directory: Path,
        trust_domain: str,
        *,
        clock: Callable[[], float] = time.time,
        passphrase: bytes | None = None,
    ) -> CertificateAuthority:
        """Open the CA in `directory`; make the directory and the CA if there is none.

        `passphrase` is that of its keys, if they are encrypted; new ones are then encrypted too. `clock`
        gives seconds since the epoch. Raises AuthorityError if the directory holds a CA of another trust
        domain, a damaged one, or one that is over, or if it cannot be written.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(directory, trust_domain, clock, passphrase)
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
        return self._held.rotation is None or chain_pem.endswith(self._held.signer.chain)

    @property
    def lists_pem(self) -> bytes:
        """The revocation lists of all issuers whose leaves may hold; empty while nothing is revoked."""
        return self._held.lists

    @property
    def revoked(self) -> Revocations:
        return self._held.revoked

    @property
    def state(self) -> State:
        """The issuer's chain, the trust bundle, what is revoked and the stage: all that a node acts by."""
        held = self._held
        return State(
            trust_domain=self.trust_domain,
            bundle=held.bundle.decode(),
            signer=held.signer.chain.decode(),
            rotation=held.rotation,
            revoked=held.revoked,
            lists=held.lists.decode(),
        )

    async def run(self) -> None:
        """A directory needs nobody to run it."""

    def changes(self) -> AsyncIterator[None]:
        """Once at first, then whenever somebody may have changed the CA: `reload` it."""
        return changes(self.directory, WATCHED)

    def warnings(self, now: float) -> list[str]:
        return []

    def where(self) -> dict[str, Any]:
        return {"directory": str(self.directory), "trust_domain": self.trust_domain}

    def missing(self) -> str:
        """What this node lacks, besides its workloads' certificates, to prove a stage. Nothing, here."""
        return ""

    def reload(self) -> None:
        """Look at the directory again. Raises AuthorityError; then all is as before."""
        try:
            self._held = self._load()
        except OSError as error:
            raise AuthorityError(f"CA directory {self.directory}: {error.strerror or error}") from error

    def revoke(self, name: str) -> tuple[Revoked, ...]:
        """Take back what an owner has, or one serial: see `revocation.revoke`. Returns what is new."""
        with locked(self._path(rotation.LOCK)):
            found = revocation.revoke(self.directory, name, self._clock())
        self.reload()
        return found

    def restore(self, name: str) -> str:
        """Let an owner that was revoked have a new certificate. Returns the owner."""
        with locked(self._path(rotation.LOCK)):
            owner = revocation.restore(self.directory, name, self._clock())
        self.reload()
        return owner

    def sign(
        self,
        csr: bytes,
        spiffe_id: str,
        lifetime: timedelta,
        *,
        owner: str,
        host_names: Iterable[str] = (),
    ) -> bytes:
        """Certify the key of a CSR (PEM) as `spiffe_id`; nothing else of the CSR is taken.

        `owner` is what it can be revoked by (``namespace/name`` of a workload). Returns the chain in PEM,
        leaf first, without the root. The leaf ends with its issuer if that comes before `lifetime` from now.
        Raises RequestError (CSR or id), AuthorityError (the CA cannot sign).
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
        if why := self._held.revoked.reason(owner):
            raise RequestError(why)
        leaf = certificates.leaf(
            public_key,
            spiffe_id,
            issuer.certificate,
            issuer.key,
            now=now,
            lifetime=lifetime,
            host_names=host_names,
        )
        end = leaf.not_valid_after_utc.timestamp()
        try:
            noted = Issued(f"{leaf.serial_number:x}", issuer.key_id, owner, spiffe_id, end)
            revocation.record(self.directory, noted)
        except OSError as error:
            raise AuthorityError(f"what was signed cannot be noted: {error}") from error
        return certificates.certificate_pem(leaf) + issuer.chain

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _path(self, name: str) -> Path:
        return self.directory / name

    def _load(self) -> _Authority:
        with locked(self._path(rotation.LOCK)):
            now = self._now()
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
            return _Authority(root, signer, tuple(trusted), bundle, under_way, revoked, lists)

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

    def _load_intermediate(self, root: x509.Certificate, now: datetime, *, hold: bool) -> _Issuer:
        """The intermediate on disk, or a new one where it is due, absent or half replaced.

        `hold` is for the time that anything is revoked (POSTPONE). Replacing writes the key first, so a crash
        in between leaves a pair that does not match.
        """
        usable = self._read_intermediate(root)
        if usable and not self._is_due(usable.certificate, now):
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
        return _Issuer(made, key, pem, certificates.key_id(made))

    def _read_intermediate(self, root: x509.Certificate, folder: str = "") -> _Issuer | None:
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
        return _Issuer(chain[0], key, pem, certificates.key_id(chain[0]))

    @staticmethod
    def _is_due(certificate: x509.Certificate, now: datetime) -> bool:
        return certificate.not_valid_after_utc - now < RENEW_INTERMEDIATE

    def _read_certificate(self, name: str) -> x509.Certificate:
        return self._read_chain(name)[0]

    def _read_chain(self, name: str) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(self._path(name).read_bytes())
        except ValueError as error:
            raise AuthorityError(f"{self._path(name)} is not a certificate in PEM: {error}") from error


def opened(directory: Path, passphrase: bytes | None = None) -> CertificateAuthority:
    """The CA that is there, of whatever trust domain. Raises AuthorityError if there is none."""
    if not (directory / "root.crt").exists():
        raise AuthorityError(f"there is no CA in {directory}")
    root = x509.load_pem_x509_certificates((directory / "root.crt").read_bytes())[0]
    domain = origin.trust_domain(directory, root)
    return CertificateAuthority.open(directory, domain, passphrase=passphrase)


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
