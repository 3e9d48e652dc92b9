"""How a node's certificates stand: nearest end, ages, failures, and warnings before anything hurts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.mtls import jwt_keys, show
from penstock.mtls.authority import Authority
from penstock.mtls.issuer import Issuer
from penstock.mtls.svid import SVID

LATE = 1 / 3
"""Renewal comes at half of a certificate's life; with less than this left of it something is wrong."""
ROOT_NEAR = 90 * 86400
"""Seconds before the root's end from which on it should be rotated: every node must be there for that."""
INTERMEDIATE_NEAR = 29 * 86400
"""Seconds before its end by which the CA has renewed the intermediate, if it has the root's key."""


def health(ca: Authority, issuer: Issuer, svids: Mapping[str, SVID], now: float) -> dict[str, Any]:
    """Nearest end, ages, failures, and what should be looked at before it hurts."""
    held = list({id(kept): kept for kept in svids.values()}.values())
    nearest = min(held, key=lambda kept: kept.not_after, default=None)
    failures = [
        {"workload": "/".join(o[0]), "spiffe_id": o[1], "reason": w} for o, w in issuer.failures.items()
    ]
    root, intermediate = (c.not_valid_after_utc.timestamp() - now for c in (ca.root, ca.intermediate))
    under_way, made = ca.rotation, ca.state.jwt_made
    warnings = []
    warnings += [f"{why}" for why in issuer.withheld.values()]
    warnings += ca.warnings(now)
    for kept in held:
        if kept.not_after - now < LATE * (kept.not_after - kept.issued_at):
            why = issuer.failures.get((kept.workload, kept.spiffe_id), "no reason known")
            left = show.remaining(kept.not_after - now)
            warnings.append(
                f"the certificate of {'/'.join(kept.workload)} was not renewed ({why}): {left} left"
            )
    if intermediate < min(INTERMEDIATE_NEAR, root):
        warnings.append(
            f"the CA's intermediate was not renewed: {show.remaining(intermediate)} left; "
            "put root.key into the CA directory, and run penstock ca rotate --intermediate"
        )
    if root < ROOT_NEAR:
        warnings.append(f"the CA's root has {show.remaining(root)} left: penstock ca rotate --root")
    if under_way is not None:
        since = show.remaining(now - under_way.started)
        warnings.append(
            f"a rotation of the CA's {under_way.kind} is at stage {under_way.stage}, begun {since} ago"
        )
    return {
        "nearest_expiry": show.moment(nearest.not_after) if nearest else None,
        "nearest_expiry_seconds": round(nearest.not_after - now, 1) if nearest else None,
        "nearest_expiry_workload": "/".join(nearest.workload) if nearest else None,
        "oldest_age_seconds": round(max((now - k.issued_at for k in held), default=0.0), 1),
        "lifetime_seconds": issuer.lifetime.total_seconds(),
        "failures": failures,
        "attempts": [
            {"workload": "/".join(o[0]), "spiffe_id": o[1], "failed": n} for o, n in issuer.attempts.items()
        ],
        "roots_expiry_seconds": {
            f"{root.serial_number:x}": round(root.not_valid_after_utc.timestamp() - now) for root in ca.roots
        },
        "rotation_age_seconds": round(now - under_way.started) if under_way is not None else None,
        "rotation": f"{under_way.kind} {under_way.stage}" if under_way is not None else "",
        "jwt_key_age_seconds": round(now - made) if made else None,
        "jwt_key_expiry_seconds": round(made + jwt_keys.LIFE - now) if made else None,
        "revocations": ca.revoked.number,
        "ca_link": {key: round(value, 1) for key, value in ca.link(now).items()},
        "intermediate_expiry_seconds": round(intermediate),
        "root_expiry_seconds": round(root),
        "warnings": warnings,
    }
