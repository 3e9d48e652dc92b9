"""The keys of a CA that sign JWT-SVIDs, in its directory.

    jwt.json        the keys by age, with their public halves
    jwt/KID.key     the private ones

A key is published for a day before it signs, and for a day after its successor has begun to: whoever checks
a token has its key, however late it heard of it. They change by themselves, since nothing that is
long-lived hangs on them. The caller holds the directory's lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from penstock.files import write_atomically
from penstock.mtls import jwt, keys
from penstock.mtls.errors import AuthorityError

FILE = "jwt.json"
FOLDER = "jwt"
DAY = 86400.0
LIFE = 30 * DAY
"""Seconds for which a key signs."""
AHEAD = BEHIND = DAY


@dataclass(frozen=True, slots=True)
class _Key:
    """`made` is in seconds since the epoch."""

    kid: str
    made: float
    jwk: dict[str, str]


@dataclass(frozen=True, slots=True)
class JwtKeys:
    """The one that signs, all that are published, and when to `load` them anew (seconds since the epoch).

    `made` is when the one that signs was.
    """

    kid: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    jwks: str
    due: float
    made: float


def load(directory: Path, now: float, passphrase: bytes | None) -> JwtKeys:
    """As they are to be at `now`: one is made where it is due, and those of no use any more are removed.

    Raises AuthorityError, OSError.
    """
    held = _read(directory)
    # One that lost its key signs nothing; tokens under it hold until it would have gone.
    usable = [each for each in held if _path(directory, each.kid).exists()]
    if not usable or now >= usable[-1].made + LIFE - AHEAD:
        made = _make(directory, now, passphrase)
        held, usable = [*held, made], [*usable, made]
    signer = max((k for k in usable if k.made + AHEAD <= now), key=lambda k: k.made, default=usable[0])
    kept = [k for k in held if k.made >= signer.made or now < _began(held, k) + BEHIND]
    if kept != _read(directory):
        write_atomically(directory / FILE, msgspec.json.encode(kept), mode=0o644)
    for gone in {k.kid for k in held} - {k.kid for k in kept}:
        _path(directory, gone).unlink(missing_ok=True)
    key = keys.read(_path(directory, signer.kid), passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"{_path(directory, signer.kid)} is no ECDSA key")
    moments = [k.made + at for k in kept for at in (AHEAD, LIFE - AHEAD)]
    moments += [_began(kept, k) + BEHIND for k in kept[:-1]]
    due = min(moment for moment in moments if moment > now)
    return JwtKeys(signer.kid, key, jwt.jwks(k.jwk for k in kept), due, signer.made)


def _began(held: list[_Key], key: _Key) -> float:
    """When the successor of a key begins to sign."""
    after = [each.made for each in held if each.made > key.made]
    return min(after) + AHEAD if after else float("inf")


def _path(directory: Path, kid: str) -> Path:
    return directory / FOLDER / f"{kid}.key"


def _read(directory: Path) -> list[_Key]:
    path = directory / FILE
    try:
        return sorted(msgspec.json.decode(path.read_bytes(), type=list[_Key]), key=lambda k: k.made)
    except FileNotFoundError:
        return []
    except (ValueError, msgspec.MsgspecError) as error:
        raise AuthorityError(f"{path} is damaged: {error}", hint="remove it: new keys are made") from error


def _make(directory: Path, now: float, passphrase: bytes | None) -> _Key:
    """The private key is written first: what is published can sign."""
    (directory / FOLDER).mkdir(mode=0o700, exist_ok=True)
    kid = f"{x509.random_serial_number():040x}"[:16]
    key = keys.make(keys.KeyType.P256)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    keys.write(_path(directory, kid), key, passphrase)
    return _Key(kid, now, jwt.jwk(kid, key.public_key()))
