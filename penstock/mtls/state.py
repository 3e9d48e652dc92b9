"""What a node must know of its CA, as one value: from the CA's directory, or from a CA server and then kept.

trust bundle, the chain of the issuer that signs, the stage of a rotation, what is revoked, the lists, and the
keys of JWTs
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.mtls.revocation import Revocations
from penstock.mtls.rotation import Rotation


@dataclass(frozen=True, slots=True)
class State:
    """Certificates and lists are in PEM."""

    trust_domain: str
    bundle: str
    signer: str
    rotation: Rotation | None = None
    revoked: Revocations = field(default_factory=Revocations)
    lists: str = ""
    jwks: str = '{"keys": []}'
    """The keys by which JWT-SVIDs are checked (RFC 7517)."""
    jwt_made: float = 0.0
    """When the key that signs them was made (seconds since the epoch); 0 if the CA does not tell."""
