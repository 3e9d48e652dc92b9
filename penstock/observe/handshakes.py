"""Why a TLS connection was refused, from what Envoy says about it.

    IDENTITY_MISMATCH     a good certificate, of somebody else than the address belongs to
    CERTIFICATE_REFUSED   a certificate that is over, not yet valid, revoked, or not of our CA
    SERVER_NAME           TLS with a server name that no rule allows, or none, or no TLS
    HANDSHAKE_REFUSED     no certificate, no TLS, or a version that is not spoken

The counters of these are in `status` and in the metrics beside the kernel's.
"""

from __future__ import annotations

from enum import StrEnum

from penstock.envoy.accesslog import NO_NAME
from penstock.observe.als import RequestRecord


class Refusal(StrEnum):
    IDENTITY_MISMATCH = "IDENTITY_MISMATCH"
    CERTIFICATE_REFUSED = "CERTIFICATE_REFUSED"
    HANDSHAKE_REFUSED = "HANDSHAKE_REFUSED"
    SERVER_NAME = "SERVER_NAME"


EXPLANATIONS = {
    Refusal.IDENTITY_MISMATCH: "a certificate of another workload than the one at that address",
    Refusal.CERTIFICATE_REFUSED: "a certificate that does not hold: over, revoked, or of another CA",
    Refusal.SERVER_NAME: "no rule about server names allows the SNI, or there was none",
    Refusal.HANDSHAKE_REFUSED: "mesh TLS was expected, and no handshake came about",
}

_MISMATCH = ("san", "subject alt name")
"""In lower case; as Envoy 1.40 words it."""


_NO_CONNECTION = ("connect_error", "connection refused", "connection_refused")
"""No TLS failed there: nobody listens, or nobody answers."""


def refused(record: RequestRecord) -> Refusal | None:
    """None where the handshakes were good, or there were none."""
    said = record.tls_failure.lower()
    if record.log_name.startswith(NO_NAME):
        return Refusal.SERVER_NAME
    if record.protocol == "TCP" and record.details.startswith("rbac_access_denied"):
        # The one rule at that level: the name that was asked for is the connection's destination.
        return Refusal.IDENTITY_MISMATCH
    if not said or any(word in said for word in _NO_CONNECTION):
        return None
    if "certificate_verify_failed" not in said and "certificate verif" not in said:
        return Refusal.HANDSHAKE_REFUSED
    return (
        Refusal.IDENTITY_MISMATCH if any(word in said for word in _MISMATCH) else Refusal.CERTIFICATE_REFUSED
    )
