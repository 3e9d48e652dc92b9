"""An SVID as a value: a workload's certificate chain with its private key."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from penstock.mtls.certificates import SKEW
from penstock.world import WorkloadName


@dataclass(frozen=True, slots=True)
class SVID:
    """Times are seconds since the epoch. `chain_pem` is leaf first, without the root; `key_pem` is secret."""

    workload: WorkloadName
    spiffe_id: str
    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    not_before: float
    not_after: float
    serial: int

    @property
    def issued_at(self) -> float:
        """When it was signed: `not_before` lies before that by the skew allowance."""
        return min(self.not_before + SKEW.total_seconds(), self.not_after)


def read(workload: WorkloadName, spiffe_id: str, chain_pem: bytes, key_pem: bytes) -> SVID:
    """The SVID with its times and serial from the leaf. Raises ValueError if the key is not the leaf's."""
    leaf = x509.load_pem_x509_certificates(chain_pem)[0]
    key = serialization.load_pem_private_key(key_pem, password=None)
    if key.public_key() != leaf.public_key():
        raise ValueError("the private key is not that of the certificate")
    return SVID(
        workload=workload,
        spiffe_id=spiffe_id,
        chain_pem=chain_pem,
        key_pem=key_pem,
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
        serial=leaf.serial_number,
    )
