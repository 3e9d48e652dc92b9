"""What a node and a CA server say to each other: JSON over gRPC with mTLS, both of one installation.

Join     a join token's certificate and a CSR → a node certificate
Renew    a node certificate and a CSR → a node certificate
Sign     a CSR, for whom → a workload's certificate, if that node runs the workload
SignJwt  for whom, for what audience → a workload's token, likewise
Report   how far the node is with a rotation or a revocation
Watch    → the CA's state, at first and whenever it changes; while it lasts the node's daemon is known to live
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.mtls.reports import Report

SERVICE = "penstock.Authority"
HOST_NAME = "penstock-ca"
"""In the server's certificate beside its SPIFFE id: gRPC itself checks host names only."""
PORT = 7443
KEEPALIVE_MS = 10_000


@dataclass(frozen=True, slots=True)
class Csr:
    csr: str


@dataclass(frozen=True, slots=True)
class SignRequest:
    """`owner` is ``namespace/name`` of the workload, `lifetime` in seconds."""

    csr: str
    spiffe_id: str
    owner: str
    lifetime: float


@dataclass(frozen=True, slots=True)
class JwtRequest:
    spiffe_id: str
    owner: str
    audience: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Token:
    token: str


@dataclass(frozen=True, slots=True)
class Chain:
    chain: str


@dataclass(frozen=True, slots=True)
class Nothing:
    pass


REQUESTS: dict[str, Any] = {
    "Join": Csr,
    "Renew": Csr,
    "Sign": SignRequest,
    "SignJwt": JwtRequest,
    "Report": Report,
}
encode = msgspec.json.encode


def decoder(kind: Any) -> Any:
    return msgspec.json.Decoder(kind).decode
