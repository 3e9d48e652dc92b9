"""The built-in CA: a directory that several daemons of one machine may share.

    root.crt  root.key  intermediate.crt  intermediate.key  .lock
    rotation.json  next/    while the root or the intermediate is being rotated (rotation.py)
    nodes/                  what the nodes have proven (reports.py)
    issued.log  revoked.json  crl/  retired/    what was signed, and what was taken back (revocation.py)
    ca.json                 how it was made, if by somebody else (origin.py)
    jwt.json  jwt/          what signs JWT-SVIDs (jwt_keys.py)

Whoever comes first makes it (store.py). What it keeps true: nothing is signed before its issuer is on disk;
the CA, not the requester, decides what a certificate says. Which root is trusted and which intermediate signs
during a rotation follows from its stage alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from penstock.files import locked
from penstock.mtls import certificates, jwt, jwt_keys, origin, revocation, rotation, spiffe, store
from penstock.mtls.errors import AuthorityError, RequestError
from penstock.mtls.follow import changes
from penstock.mtls.revocation import Issued, Revocations, Revoked
from penstock.mtls.rotation import Rotation
from penstock.mtls.state import State

log = logging.getLogger(__name__)

MIN_LEFT = timedelta(minutes=1)
"""Nothing is signed by an issuer with less than this left: the leaf would be dead on arrival."""
WATCHED = (rotation.FILE, "root.crt", "intermediate.crt", revocation.FILE, jwt_keys.FILE)


class CertificateAuthority:
    """An open CA directory. Its methods block for milliseconds (disk, lock); one thread at a time."""

    def __init__(
        self, directory: Path, trust_domain: str, clock: Callable[[], float], passphrase: bytes | None
    ) -> None:
        self.directory = directory
        self.trust_domain = spiffe.check_trust_domain(trust_domain)
        self._clock = clock
        self._store = store.CaDirectory(directory, self.trust_domain, passphrase)
        self._held = self._store.load(clock())

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
            jwks=held.jwt.jwks,
            jwt_made=held.jwt.made,
        )

    async def run(self) -> None:
        """A directory needs nobody to run it."""

    def changes(self) -> AsyncIterator[None]:
        """Once at first, then whenever somebody may have changed the CA: `reload` it."""
        return changes(self.directory, WATCHED)

    def warnings(self, now: float) -> list[str]:
        return []

    def link(self, now: float) -> dict[str, float]:
        """How the connection to the CA stands, where there is one (`RemoteAuthority.link`)."""
        return {}

    def where(self) -> dict[str, Any]:
        return {"directory": str(self.directory), "trust_domain": self.trust_domain}

    def missing(self) -> str:
        """What this node lacks, besides its workloads' certificates, to prove a stage. Nothing, here."""
        return ""

    def reload(self) -> None:
        """Look at the directory again. Raises AuthorityError; then all is as before."""
        try:
            self._held = self._store.load(self._clock())
        except OSError as error:
            raise AuthorityError(f"CA directory {self.directory}: {error.strerror or error}") from error

    def revoke(self, name: str) -> tuple[Revoked, ...]:
        """Take back what an owner has, or one serial: see `revocation.revoke`. Returns what is new."""
        with locked(self.directory / rotation.LOCK):
            found = revocation.revoke(self.directory, name, self._clock())
        self.reload()
        return found

    def restore(self, name: str) -> str:
        """Let an owner that was revoked have a new certificate. Returns the owner."""
        with locked(self.directory / rotation.LOCK):
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
        self._identity(spiffe_id)
        if lifetime <= timedelta(0):
            raise RequestError(f"a lifetime of {lifetime} is not positive")
        public_key = _requested_key(csr)
        now = self._now()
        if store.is_due(self._held.signer.certificate, now):
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

    def sign_jwt(self, spiffe_id: str, audience: Sequence[str], *, owner: str) -> str:
        """A JWT-SVID of `spiffe_id` for `audience`, good for jwt.LIFETIME.

        Raises RequestError, AuthorityError.
        """
        self._identity(spiffe_id)
        if self._held.jwt.due <= self._clock():
            self.reload()
        if why := self._held.revoked.reason(owner):
            raise RequestError(why)
        signer = self._held.jwt
        return jwt.signed(signer.key, signer.kid, spiffe_id, audience, self._clock())

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _identity(self, spiffe_id: str) -> None:
        """Raises RequestError if it is none that we sign for."""
        identity = spiffe.parse(spiffe_id)
        if identity.trust_domain != self.trust_domain:
            raise RequestError(f"{spiffe_id} is not in the trust domain {self.trust_domain} of this CA")
        if not identity.path:
            raise RequestError(f"{spiffe_id} names a trust domain; a leaf needs a path (X.509-SVID §5.1)")


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
