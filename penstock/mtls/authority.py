"""What a node asks of its CA, whether that stands in a directory (`ca`) or is served elsewhere (`remote`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from cryptography import x509

from penstock.mtls.issuer import Signer
from penstock.mtls.reports import Report
from penstock.mtls.rotation import Rotation
from penstock.mtls.state import State


class Authority(Signer, Protocol):
    """As `CertificateAuthority`, which says what each is."""

    trust_domain: str

    @property
    def lists_pem(self) -> bytes: ...

    @property
    def state(self) -> State: ...

    @property
    def roots(self) -> tuple[x509.Certificate, ...]: ...

    @property
    def root(self) -> x509.Certificate: ...

    @property
    def intermediate(self) -> x509.Certificate: ...

    @property
    def rotation(self) -> Rotation | None: ...

    async def run(self) -> None: ...

    def changes(self) -> AsyncIterator[None]: ...

    def reload(self) -> None: ...

    def warnings(self, now: float) -> list[str]: ...

    def link(self, now: float) -> dict[str, float]: ...

    def missing(self) -> str: ...

    def sign_jwt(self, spiffe_id: str, audience: Sequence[str], *, owner: str) -> str: ...

    def where(self) -> dict[str, Any]:
        """For the commands: directory and trust domain. Raises AuthorityError if it is elsewhere."""
        ...


class Reporting(Protocol):
    """As `Reporter`."""

    def write(self, report: Report) -> None: ...

    def close(self) -> None: ...
