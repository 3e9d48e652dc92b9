"""What a CA has signed and what it has taken back, in its directory.

    issued.log     a line for each certificate that was signed and may still hold
    revoked.json   serials that are revoked; owners that get no certificate until they are restored
    crl/ID.pem     for each issuer (by its key id) the list that it has signed (RFC 5280 §5)

What it keeps true: what was revoked stays so through restarts until the certificate is over anyway; while
anything is revoked there is a list of *every* issuer whose leaves may still hold, because a TLS library that
was given one list refuses leaves whose issuer has none. An owner is ``namespace/name`` of a workload, or
``node NAME``. The log is not synced: what a power cut takes from it is revoked by serial instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from penstock.errors import UsageError
from penstock.files import locked, write_atomically
from penstock.mtls import keys
from penstock.mtls.certificates import SKEW, key_id
from penstock.mtls.errors import AuthorityError

FILE = "revoked.json"
LOG = "issued.log"
LISTS = "crl"
_LOG_LOCK = ".issued.lock"
FORMAT = 1
COMPACT = 1 << 20
"""Bytes of the log above which what is over is thrown away at the next look."""


@dataclass(frozen=True, slots=True)
class Issued:
    """`serial` and `issuer` (its key id) are hexadecimal; `not_after` is in seconds since the epoch."""

    serial: str
    issuer: str
    owner: str
    spiffe_id: str
    not_after: float


@dataclass(frozen=True, slots=True)
class Revoked:
    serial: str
    issuer: str
    owner: str
    spiffe_id: str
    not_after: float
    at: float


@dataclass(frozen=True, slots=True)
class Revocations:
    """`number` grows with every change. `withheld`: owner → since when (seconds since the epoch)."""

    number: int = 0
    certificates: tuple[Revoked, ...] = ()
    withheld: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT

    def reason(self, owner: str, serial: int | None = None) -> str:
        """Why `owner` may not have the certificate `serial` (None: a new one); "" if it may."""
        if owner in self.withheld:
            return f"{owner} was revoked; `penstock cert restore` lets it have a new certificate"
        if serial is not None and any(int(c.serial, 16) == serial for c in self.certificates):
            return f"certificate {serial:x} was revoked"
        return ""


def load(directory: Path, now: float) -> Revocations:
    """What is revoked and not over anyway. Raises AuthorityError."""
    path = directory / FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Revocations)
    except FileNotFoundError:
        return Revocations()
    except (ValueError, msgspec.MsgspecError) as error:
        raise AuthorityError(f"{path} is damaged: {error}", hint="put back a copy of it") from error
    if found.format != FORMAT:
        raise AuthorityError(f"{path} is of format {found.format}, not {FORMAT}")
    return replace(found, certificates=tuple(c for c in found.certificates if c.not_after > now))


def record(directory: Path, issued: Issued) -> None:
    """Note a certificate before it is handed out. Raises OSError."""
    with locked(directory / _LOG_LOCK):
        descriptor = os.open(directory / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(issued) + b"\n")
        finally:
            os.close(descriptor)


def issued(directory: Path, now: float) -> list[Issued]:
    """Every certificate that was signed and still holds, in the order of signing."""
    with locked(directory / _LOG_LOCK):
        try:
            data = (directory / LOG).read_bytes()
        except FileNotFoundError:
            return []
        found = []
        for line in data.splitlines():
            try:
                entry = msgspec.json.decode(line, type=Issued)
            except (ValueError, msgspec.MsgspecError):
                continue  # the end of a line that a crash cut off
            if entry.not_after > now:
                found.append(entry)
        if len(data) > COMPACT:
            lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in found)
            write_atomically(directory / LOG, lines, durable=False)
    return found


def revoke(directory: Path, name: str, now: float) -> tuple[Revoked, ...]:
    """Take back what `name` has: an owner (its namespace may be left out) or a serial in hexadecimal.

    An owner gets no other certificate until it is restored; so too if the serial is that of its newest. The
    caller holds the CA's lock. Raises AuthorityError if nothing valid is found, UsageError if it is not
    clear.
    """
    valid = issued(directory, now)
    held = load(directory, now)
    before = {c.serial for c in held.certificates}
    serial = name.lower().replace(":", "").lstrip("0")
    by_serial = [entry for entry in valid if entry.serial == serial]
    owner = by_serial[0].owner if by_serial else _owner(name, (*(e.owner for e in valid), *held.withheld))
    of_owner = [entry for entry in valid if entry.owner == owner]
    taken = by_serial or of_owner
    new = tuple(
        Revoked(e.serial, e.issuer, e.owner, e.spiffe_id, e.not_after, now)
        for e in taken
        if e.serial not in before
    )
    withheld = dict(held.withheld)
    if not by_serial or by_serial[-1] is of_owner[-1]:
        withheld.setdefault(owner, now)
    if new or withheld != held.withheld:
        _save(directory, replace(held, certificates=(*held.certificates, *new), withheld=withheld))
    return new


def restore(directory: Path, name: str, now: float) -> str:
    """Let an owner have a new certificate; what was revoked stays so. Returns the owner."""
    held = load(directory, now)
    owner = _owner(name, held.withheld)
    _save(directory, replace(held, withheld={o: at for o, at in held.withheld.items() if o != owner}))
    return owner


def _owner(name: str, owners: Iterable[str]) -> str:
    known = sorted({owner for owner in owners if name == owner or owner.endswith(f"/{name}")})
    if not known:
        raise AuthorityError(
            f"{name} is neither a workload nor the serial of a certificate that this CA knows of",
            hint="penstock cert list shows both; a workload is NAMESPACE/NAME",
        )
    if len(known) > 1 and name not in known:
        raise UsageError(f"{name} is the name of several workloads", hint=f"say which: {', '.join(known)}")
    return name if name in known else known[0]


def _save(directory: Path, revocations: Revocations) -> None:
    after = replace(revocations, number=revocations.number + 1)
    data = msgspec.json.format(msgspec.json.encode(after), indent=1)
    write_atomically(directory / FILE, data + b"\n")


def lists(
    directory: Path,
    issuers: Iterable[tuple[x509.Certificate, Path]],
    held: Revocations,
    now: float,
    passphrase: bytes | None,
) -> bytes:
    """The lists of these issuers (certificate, file of its key) in PEM; nothing while nothing is revoked.

    One that is missing or of another number is signed anew. The caller holds the CA's lock. Raises
    AuthorityError if a key cannot be read.
    """
    if not held.certificates:
        return b""
    found = b""
    folder = directory / LISTS
    folder.mkdir(mode=0o700, exist_ok=True)
    for issuer, key_file in issuers:
        path = folder / f"{key_id(issuer)}.pem"
        data = path.read_bytes() if path.exists() else b""
        if _number(data) != held.number:
            try:
                key = keys.read(key_file, passphrase)
            except FileNotFoundError as error:
                raise AuthorityError(f"{key_file} is needed to sign a revocation list") from error
            data = _list(issuer, key, held, now)
            write_atomically(path, data, mode=0o644)
        found += data
    return found


def _number(data: bytes) -> int:
    if not data:
        return -1
    try:
        found = x509.load_pem_x509_crl(data).extensions.get_extension_for_class(x509.CRLNumber)
    except (ValueError, x509.ExtensionNotFound):
        return -1
    return found.value.crl_number


def _list(issuer: x509.Certificate, key: keys.PrivateKey, held: Revocations, now: float) -> bytes:
    """It is good to the issuer's end: it is pushed to whoever needs it, and nobody fetches the next one."""
    moment = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
    own_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(moment - SKEW)
        .next_update(max(issuer.not_valid_after_utc, moment))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_id), critical=False)
        .add_extension(x509.CRLNumber(held.number), critical=False)
    )
    own = key_id(issuer)
    for each in held.certificates:
        if each.issuer == own:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(each.serial, 16))
                .revocation_date(datetime.fromtimestamp(each.at, UTC).replace(microsecond=0))
                .build()
            )
    return builder.sign(key, keys.signing_hash(key)).public_bytes(serialization.Encoding.PEM)
