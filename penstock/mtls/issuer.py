"""Keeps a valid SVID for every workload of this node: issues, renews, adopts after a restart, forgets.

What it keeps true: one certificate per (workload, SPIFFE ID), however many addresses it has; a new key
for each certificate; a certificate is replaced only by a newer one, never thrown away because the CA
does not answer; the key of an absent workload is nowhere, neither in memory nor on disk, and neither is that
of a revoked certificate.

SVIDs are kept on disk so that a restarted daemon serves the same bytes, hence the same xDS version, and
Envoy sees no change. There is no clock and no task here: `reconcile` is called with the time, when the
Plan changed or when `next_renewal` has come. `wanted` must be the whole truth: whoever is
not in it is forgotten, so it must not be called before the first complete World.
"""

from __future__ import annotations

import hashlib
import logging
import random as randomness
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from penstock.errors import PenstockError
from penstock.files import write_atomically
from penstock.mtls import certificates, schedule, svid
from penstock.mtls.errors import VerifyError
from penstock.mtls.revocation import Revocations
from penstock.mtls.svid import SVID
from penstock.mtls.verify import verify
from penstock.plan import SecretWanted
from penstock.world import WorkloadName

log = logging.getLogger(__name__)

Owner = tuple[WorkloadName, str]
"""(workload, SPIFFE ID): what a certificate belongs to."""

LIFETIME = timedelta(hours=24)
RETRY_FIRST, RETRY_MOST = 1.0, 300.0
"""Seconds between attempts while the CA fails; doubled each time."""


class Signer(Protocol):
    """A CA, here or elsewhere. `sign` as in CertificateAuthority; it fails with a PenstockError."""

    @property
    def bundle_pem(self) -> bytes: ...

    @property
    def revoked(self) -> Revocations: ...

    def keeps(self, chain_pem: bytes) -> bool: ...

    def sign(self, csr: bytes, spiffe_id: str, lifetime: timedelta, *, owner: str) -> bytes: ...


@dataclass(slots=True)
class _Held:
    due: float
    phase: float
    svid: SVID | None = None
    failures: int = 0
    error: str = ""
    revoked: str = ""


class Issuer:
    """`directory` is where SVIDs outlive the daemon (mode 0600 each); without one they are in memory only.

    `random` gives numbers in [0, 1): the start of the spread, and the jitter of retries.
    """

    def __init__(
        self,
        ca: Signer,
        *,
        lifetime: timedelta = LIFETIME,
        directory: Path | None = None,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        self._ca = ca
        self._lifetime = lifetime
        self._directory = directory
        self._random = random
        self._phase = random()
        # Places of those that went are taken first: what comes and goes leaves neither gaps nor crowds.
        self._free: list[float] = []
        self._held: dict[Owner, _Held] = {}
        self._swept = False

    @property
    def failures(self) -> Mapping[Owner, str]:
        """Whose certificate could not be issued or renewed at the last attempt, and why."""
        return {owner: held.error for owner, held in self._held.items() if held.error}

    @property
    def withheld(self) -> Mapping[Owner, str]:
        """Who has no certificate on purpose, and why."""
        return {owner: held.revoked for owner, held in self._held.items() if held.revoked}

    def next_renewal(self) -> float | None:
        """When `reconcile` has something to do again (seconds since the epoch); None if never."""
        return min((held.due for held in self._held.values() if not held.revoked), default=None)

    def reconcile(self, wanted: Iterable[SecretWanted], now: float) -> dict[str, SVID]:
        """Issue and renew what is due at `now`, forget who is not wanted; return secret name → SVID.

        A name is missing while its first certificate could not be issued (see `failures`). One that could
        not be renewed in time stays even after its end: peers then refuse new connections, old ones live on.
        """
        wanted = tuple(wanted)
        owners = {(secret.workload, secret.spiffe_id) for secret in wanted}
        for owner in sorted(self._held.keys() - owners):
            self._free.append(self._held.pop(owner).phase)
            self._unlink(self._path(owner))
        self._sweep(owners)
        for owner in sorted(owners):
            held = self._held.get(owner)
            if held is None:
                held = self._held[owner] = self._adopt(owner, self._place(), now)
            held = self._held[owner] = self._unless_revoked(owner, held, now)
            if held.revoked:
                continue
            if held.svid is not None and not held.failures and not self._ca.keeps(held.svid.chain_pem):
                held.due = now
            if held.due <= now:
                self._renew(owner, held, now)
        found = ((secret.name, self._held[secret.workload, secret.spiffe_id].svid) for secret in wanted)
        return {name: kept for name, kept in found if kept is not None}

    def _place(self) -> float:
        """Of one more certificate, in the cycle of renewals (schedule.py)."""
        if self._free:
            return self._free.pop()
        self._phase = schedule.next_phase(self._phase)
        return self._phase

    def renew(self, owners: Iterable[Owner]) -> None:
        """Make these due at once, whatever their age; the next `reconcile` does it."""
        for owner in owners:
            if (held := self._held.get(owner)) is not None:
                held.due, held.failures = 0.0, 0

    def moved(self) -> tuple[int, int]:
        """How many certificates stand under an issuer that is to stay, and how many there should be."""
        there = [held.svid for held in self._held.values()]
        return sum(kept is not None and self._ca.keeps(kept.chain_pem) for kept in there), len(there)

    @property
    def lifetime(self) -> timedelta:
        return self._lifetime

    def _unless_revoked(self, owner: Owner, held: _Held, now: float) -> _Held:
        revoked = self._ca.revoked
        name = "/".join(owner[0])
        if held.svid is not None and revoked.reason(name, held.svid.serial):
            log.warning("the certificate %x of %s is revoked", held.svid.serial, name)
            self._unlink(self._path(owner))
            held = _Held(now, held.phase)
        why = revoked.reason(name)
        if bool(why) != bool(held.revoked):
            return _Held(now, held.phase, revoked=why)
        return held

    def _renew(self, owner: Owner, held: _Held, now: float) -> None:
        workload, spiffe_id = owner
        key = certificates.new_key()
        try:
            chain = self._ca.sign(
                certificates.signing_request(key), spiffe_id, self._lifetime, owner="/".join(workload)
            )
            issued = svid.read(workload, spiffe_id, chain, certificates.key_pem(key))
        except (PenstockError, ValueError) as error:
            pause = min(RETRY_MOST, RETRY_FIRST * 2 ** min(held.failures, 16))
            held.failures += 1
            held.due = now + pause * (0.5 + self._random() / 2)
            held.error = str(error)
            log.warning("no certificate for %s/%s (%s): %s", *workload, spiffe_id, error)
            return
        due = max(self._due(issued, held.phase), now + RETRY_FIRST)
        self._held[owner] = _Held(due, held.phase, issued)
        self._store(owner, issued)

    def _due(self, issued: SVID, phase: float) -> float:
        """A certificate made under a longer setting counts as made under today's."""
        life = min(issued.not_after - issued.issued_at, self._lifetime.total_seconds())
        return schedule.due(issued.issued_at, life, phase)

    def _adopt(self, owner: Owner, phase: float, now: float) -> _Held:
        """What an earlier daemon left, if it is good under today's bundle; else one is due at once."""
        path = self._path(owner)
        try:
            if path is None or not path.exists():
                return _Held(now, phase)
            key_pem, mark, chain_pem = path.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")
            kept = svid.read(*owner, mark + chain_pem, key_pem)
            verify(kept.chain_pem, self._ca.bundle_pem, now=now, spiffe_id=kept.spiffe_id)
        except (OSError, ValueError, VerifyError) as error:
            log.info("the certificate kept for %s/%s is of no use (%s): asking for another", *owner[0], error)
            return _Held(now, phase)
        return _Held(self._due(kept, phase), phase, kept)

    def _path(self, owner: Owner) -> Path | None:
        """Hashed, because a name and an ID together may be longer than a file name."""
        if self._directory is None:
            return None
        (namespace, name), spiffe_id = owner
        digest = hashlib.sha256(f"{namespace}/{name} {spiffe_id}".encode()).hexdigest()
        return self._directory / f"{digest[:32]}.pem"

    def _store(self, owner: Owner, issued: SVID) -> None:
        path = self._path(owner)
        if path is None:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Not durable: what a power cut loses is issued again.
            write_atomically(path, issued.key_pem + issued.chain_pem, durable=False)
        except OSError as error:
            log.warning("the certificate of %s/%s will not outlive this daemon: %s", *owner[0], error)

    def _sweep(self, owners: set[Owner]) -> None:
        """Once: remove the keys of workloads that went while no daemon ran, and half-written files."""
        if self._swept or self._directory is None:
            return
        self._swept = True
        wanted = {self._path(owner) for owner in owners}
        try:
            there = list(self._directory.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            log.error("cannot look for keys of absent workloads: %s", error)
            return
        for path in there:
            if path not in wanted:
                self._unlink(path)

    @staticmethod
    def _unlink(path: Path | None) -> None:
        if path is None:
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.error("the key of an absent workload cannot be removed: %s: %s", path, error)
