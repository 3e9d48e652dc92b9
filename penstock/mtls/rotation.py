"""How a CA directory changes its root or its intermediate: the stages, and their state on disk.

    rotation.json     the stage; there is none when nothing is being rotated
    next/             the new root and intermediate, with the names they will have

    root          trusted      signs            goes on to   is rolled back to
    trust         old, new     old              sign         withdraw
    sign          old, new     new              drop         return
    drop          new          new              finish       -
    return        old, new     old              withdraw     -
    withdraw      old          old              the end      -

Rotating the intermediate is the same without `drop`, with one root all the time: what every node must have
before the new one signs is its revocation list (revocation.py). A stage is left only when every node has
proven it (`reports`), so whatever two nodes are a stage apart, each trusts what the other one shows.

What it keeps true: the next stage is on disk before anybody acts by it; a crash at any moment leaves a stage
that can be gone on with. `finish` is left by whoever meets it first, so files are never half moved.
All functions block for milliseconds; they raise AuthorityError.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import msgspec
from cryptography import x509

from penstock.files import locked, sync_directory, write_atomically
from penstock.mtls import certificates, keys, origin
from penstock.mtls.errors import AuthorityError

FILE = "rotation.json"
NEXT = "next"
RETIRED = "retired"
LOCK = ".lock"
FORMAT = 1


class Kind(StrEnum):
    ROOT = "root"
    INTERMEDIATE = "intermediate"


class Stage(StrEnum):
    TRUST = "trust"
    SIGN = "sign"
    DROP = "drop"
    FINISH = "finish"
    RETURN = "return"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True)
class Rotation:
    """`started` is in seconds since the epoch; `id` tells this rotation from every other."""

    id: str
    kind: Kind
    stage: Stage
    started: float
    format: int = FORMAT

    @property
    def trusts_old(self) -> bool:
        return self.kind is Kind.INTERMEDIATE or self.stage not in (Stage.DROP, Stage.FINISH)

    @property
    def trusts_new(self) -> bool:
        """Whether a new root is in the bundle (an intermediate never is)."""
        return self.kind is Kind.ROOT and self.stage is not Stage.WITHDRAW

    @property
    def new_signs(self) -> bool:
        return self.stage in (Stage.SIGN, Stage.DROP, Stage.FINISH)

    @property
    def going_back(self) -> bool:
        return self.stage in (Stage.RETURN, Stage.WITHDRAW)

    @property
    def ahead(self) -> tuple[Stage, ...]:
        """This stage and all that follow it and need a proof."""
        way: tuple[Stage, ...] = (Stage.TRUST, Stage.SIGN, Stage.DROP)
        if self.going_back:
            way = (Stage.RETURN, Stage.WITHDRAW)
        elif self.kind is Kind.INTERMEDIATE:
            way = (Stage.TRUST, Stage.SIGN)
        return way[way.index(self.stage) :] if self.stage in way else ()


def load(directory: Path) -> Rotation | None:
    """The rotation under way. The caller holds the lock; a finished one is completed."""
    path = directory / FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Rotation)
    except FileNotFoundError:
        return None
    except (ValueError, msgspec.MsgspecError) as error:
        raise AuthorityError(f"{path} is damaged: {error}", hint="put back a copy of it") from error
    if found.format != FORMAT:
        raise AuthorityError(f"{path} is of format {found.format}, not {FORMAT}")
    if found.stage is Stage.FINISH:
        _finish(directory, found)
        return None
    return found


def current(directory: Path) -> Rotation | None:
    """As `load`, under the lock. None too where there is no CA."""
    if not directory.is_dir():
        return None
    with locked(directory / LOCK):
        return load(directory)


def begin(directory: Path, kind: Kind, trust_domain: str, passphrase: bytes | None = None) -> Rotation:
    """Make what is to come, and take the first stage. Refused while a rotation is under way.

    New keys are of the kind of the old root's, and encrypted with `passphrase` if there is one.
    """
    with locked(directory / LOCK):
        if (under_way := load(directory)) is not None:
            raise AuthorityError(
                f"a rotation of the {under_way.kind} is under way, at stage {under_way.stage}"
            )
        next_ = directory / NEXT
        # Without rotation.json it is what a crash left; it has signed nothing.
        shutil.rmtree(next_, ignore_errors=True)
        next_.mkdir(mode=0o700)
        now = datetime.fromtimestamp(time.time(), UTC)
        if kind is Kind.ROOT:
            root_key = keys.make(origin.key_type(directory))
            root = certificates.root(root_key, trust_domain, now)
            _put(next_, "root", root, root_key, passphrase)
        else:
            root, root_key = _root(directory, passphrase)
        key = keys.make(keys.kind_of(root_key))
        made = certificates.intermediate(key.public_key(), trust_domain, root, root_key, now)
        _put(next_, "intermediate", made, key, passphrase)
        rotation = Rotation(f"{x509.random_serial_number():040x}"[:16], kind, Stage.TRUST, now.timestamp())
        _save(directory, rotation)
        return rotation


def advance(directory: Path, proven: Rotation) -> Rotation | None:
    """Leave a stage that was proven, and return the next; None when that was the last one.

    If somebody else took the rotation on meanwhile, or turned it round, what it is now is returned.
    """
    with locked(directory / LOCK):
        if (now := load(directory)) != proven:
            return now
        if proven.stage is Stage.WITHDRAW:
            _remove(directory)
            return None
        following = proven.ahead[1:]
        after = replace(proven, stage=following[0] if following else Stage.FINISH)
        _save(directory, after)
        return load(directory)


def roll_back(directory: Path) -> Rotation:
    """Turn round, where that is possible, and take the first stage of the way back."""
    with locked(directory / LOCK):
        rotation = load(directory)
        if rotation is None:
            raise AuthorityError("nothing is being rotated")
        if rotation.stage is Stage.DROP:
            raise AuthorityError(
                "the old root is being dropped: it is too late to roll back",
                hint="finish it with `penstock ca rotate`, and rotate again if the new root is not to stay",
            )
        if rotation.going_back:
            return rotation
        shown = rotation.stage is Stage.SIGN
        back = replace(rotation, stage=Stage.RETURN if shown else Stage.WITHDRAW)
        _save(directory, back)
        return back


def retire(directory: Path) -> None:
    """Keep an intermediate that is about to be replaced: its leaves may have to be revoked yet."""
    retired = directory / RETIRED
    retired.mkdir(mode=0o700, exist_ok=True)
    path = directory / "intermediate.crt"
    name = certificates.key_id(x509.load_pem_x509_certificates(path.read_bytes())[0])
    for suffix, mode in ((".key", 0o600), (".crt", 0o644)):
        write_atomically(retired / f"{name}{suffix}", path.with_suffix(suffix).read_bytes(), mode=mode)


def _root(directory: Path, passphrase: bytes | None) -> tuple[x509.Certificate, keys.PrivateKey]:
    try:
        root = x509.load_pem_x509_certificate((directory / "root.crt").read_bytes())
        key = keys.read(directory / "root.key", passphrase)
    except FileNotFoundError as error:
        raise AuthorityError(
            f"{error.filename} is not there, and a new intermediate must be signed with it",
            hint="put root.key back into the CA directory for the time of the rotation",
        ) from error
    except (ValueError, TypeError) as error:
        raise AuthorityError(f"the root in {directory} cannot be read: {error}") from error
    if key.public_key() != root.public_key():
        raise AuthorityError(f"root.key and root.crt in {directory} do not belong together")
    return root, key


def _put(
    folder: Path, name: str, certificate: x509.Certificate, key: keys.PrivateKey, passphrase: bytes | None
) -> None:
    keys.write(folder / f"{name}.key", key, passphrase)
    write_atomically(folder / f"{name}.crt", certificates.certificate_pem(certificate), mode=0o644)


def _save(directory: Path, rotation: Rotation) -> None:
    data = msgspec.json.format(msgspec.json.encode(rotation), indent=1)
    write_atomically(directory / FILE, data + b"\n")


def _finish(directory: Path, rotation: Rotation) -> None:
    """What is still in `next` has not been moved: doing it twice does no harm.

    Leaves of an old intermediate hold on under the same root; under a root that is dropped nothing does.
    """
    if rotation.kind is Kind.ROOT:
        shutil.rmtree(directory / RETIRED, ignore_errors=True)
        # How it was made before says nothing about the new one; ours say who they are themselves.
        (directory / origin.FILE).unlink(missing_ok=True)
    elif (directory / NEXT / "intermediate.key").exists():
        retire(directory)
    for name in ("root.key", "root.crt", "intermediate.key", "intermediate.crt"):
        moved = directory / NEXT / name
        if moved.exists():
            moved.replace(directory / name)
    sync_directory(directory)
    _remove(directory)


def _remove(directory: Path) -> None:
    """The state goes first: without it `next` means nothing."""
    (directory / FILE).unlink(missing_ok=True)
    sync_directory(directory)
    shutil.rmtree(directory / NEXT, ignore_errors=True)
