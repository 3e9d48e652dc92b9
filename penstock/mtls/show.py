"""Certificates as plain data, for people and programs: no key, nothing that is secret."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from penstock.files import locked
from penstock.mtls import origin, reports, rotation
from penstock.mtls.errors import AuthorityError
from penstock.mtls.rotation import LOCK, NEXT, Rotation


def moment(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339, in UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def remaining(seconds: float) -> str:
    """A time span for people, in its two largest units."""
    if seconds < 0:
        return f"over since {remaining(-seconds)}"
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def certificate(found: x509.Certificate, now: float) -> dict[str, Any]:
    """The fields that tell one certificate from another."""
    return {
        "subject": _name(found.subject),
        "issuer": _name(found.issuer),
        "uris": _uris(found),
        "serial": f"{found.serial_number:x}",
        "not_before": moment(found.not_valid_before_utc.timestamp()),
        "not_after": moment(found.not_valid_after_utc.timestamp()),
        "remaining_seconds": int(found.not_valid_after_utc.timestamp() - now),
        "key": _key(found),
        "sha256": found.fingerprint(hashes.SHA256()).hex(),
    }


def authorities(directory: Path, now: float) -> dict[str, Any]:
    """What a CA directory holds, and the rotation under way. Raises AuthorityError."""
    if not (directory / "root.crt").exists():
        raise AuthorityError(f"there is no CA in {directory}")
    with locked(directory / LOCK):
        under_way = rotation.load(directory)
        found = [
            _authority(directory, name, under_way, now)
            for name in ("root", "intermediate", f"{NEXT}/root", f"{NEXT}/intermediate")
            if (directory / f"{name}.crt").exists() and (under_way or not name.startswith(NEXT))
        ]
        domain = origin.trust_domain(directory, _read(directory / "root.crt"))
    return {
        "directory": str(directory),
        "trust_domain": domain,
        "certificates": found,
        "rotation": rotation_state(under_way, reports.read(directory)),
    }


def rotation_state(under_way: Rotation | None, nodes: Iterable[reports.NodeState]) -> dict[str, Any]:
    """The stage, and how far each node is. `stage` is "" while nothing is being rotated."""
    return {
        "kind": under_way.kind if under_way else "",
        "stage": under_way.stage if under_way else "",
        "started": moment(under_way.started) if under_way else "",
        "ahead": list(under_way.ahead) if under_way else [],
        "nodes": [
            {
                "node": state.report.node,
                "daemon": "up" if state.alive else "down",
                "certificates": state.report.leaves,
                "moved": state.report.moved,
                "proven": under_way is None or state.report.proves(under_way),
                "missing": state.missing(under_way) if under_way else "",
            }
            for state in nodes
        ],
    }


def _authority(directory: Path, name: str, under_way: Rotation | None, now: float) -> dict[str, Any]:
    """`next/root` is there only while the root is rotated; else the one root stands above both."""
    new = name.startswith(NEXT)
    is_root = name.endswith("root")
    trusted = True if under_way is None else under_way.trusts_new if new else under_way.trusts_old
    return {
        "role": f"{'new ' if new else ''}{'root' if is_root else 'intermediate'}",
        "trusted": is_root and trusted,
        "signs": not is_root and new == (under_way is not None and under_way.new_signs),
        "key_present": (directory / f"{name}.key").exists(),
        **certificate(_read(directory / f"{name}.crt"), now),
    }


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AuthorityError(f"{path} is not a certificate in PEM: {error}") from error


def _name(name: x509.Name) -> str:
    """Common name and serial number, which are what differs between our CAs; all of a foreign one."""
    parts = [
        str(attribute.value)
        for oid in (NameOID.COMMON_NAME, NameOID.SERIAL_NUMBER)
        for attribute in name.get_attributes_for_oid(oid)
    ]
    return " ".join(parts) or name.rfc4514_string()


def _uris(found: x509.Certificate) -> list[str]:
    try:
        san = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return list(san.get_values_for_type(x509.UniformResourceIdentifier))


def _key(found: x509.Certificate) -> str:
    key = found.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else type(key).__name__
