"""What the Workload API answers: to a workload that is known, about itself and its trust domain.

Source: SPIFFE Workload API §5 (X.509-SVID profile) and §6 (JWT-SVID profile).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from penstock.errors import PenstockError
from penstock.mtls import jwt
from penstock.mtls.errors import RequestError
from penstock.mtls.svid import SVID
from penstock.workload_api import messages as api

WorkloadName = tuple[str, str]
Sign = Callable[[str, Sequence[str], str], Awaitable[str]]
"""(SPIFFE id, audience, owner) → a JWT-SVID. Raises PenstockError."""


class NobodyError(PenstockError):
    """The caller has no identity, or asks for one that is not its own."""


class Held:
    """What there is to be had now: `update` it after each change."""

    def __init__(self, trust_domain: str) -> None:
        self.trust_domain = trust_domain
        self.netns: Mapping[WorkloadName, str] = {}
        self.svids: Mapping[WorkloadName, SVID] = {}
        self.bundle_pem = b""
        self.lists_pem = b""
        self.jwks = jwt.jwks(())
        self.changed = asyncio.Event()

    def update(
        self,
        netns: Mapping[WorkloadName, str],
        svids: Mapping[WorkloadName, SVID],
        bundle_pem: bytes,
        lists_pem: bytes,
        jwks: str,
    ) -> None:
        now = (netns, svids, bundle_pem, lists_pem, jwks)
        if now != (self.netns, self.svids, self.bundle_pem, self.lists_pem, self.jwks):
            self.netns, self.svids, self.bundle_pem, self.lists_pem, self.jwks = now
            self.changed.set()
            self.changed = asyncio.Event()


class Answers:
    """To each call its answer. Raises NobodyError, RequestError, and what `sign` raises."""

    def __init__(self, held: Held, sign: Sign) -> None:
        self._held, self._sign = held, sign

    def _of(self, who: WorkloadName) -> SVID:
        kept = self._held.svids.get(who)
        if kept is None:
            raise NobodyError(f"no identity issued: {'/'.join(who)} has none now")
        return kept

    def x509_svid(self, who: WorkloadName) -> Any:
        kept = self._of(who)
        key = serialization.load_pem_private_key(kept.key_pem, password=None)
        svid = api.X509SVID(
            spiffe_id=kept.spiffe_id,
            x509_svid=_der(kept.chain_pem),
            x509_svid_key=key.private_bytes(
                serialization.Encoding.DER,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            bundle=_der(self._held.bundle_pem),
        )
        return api.X509SVIDResponse(svids=[svid], crl=self._lists())

    def x509_bundles(self, _: WorkloadName) -> Any:
        bundles = {f"spiffe://{self._held.trust_domain}": _der(self._held.bundle_pem)}
        return api.X509BundlesResponse(crl=self._lists(), bundles=bundles)

    def _lists(self) -> list[bytes]:
        mark = b"-----BEGIN X509 CRL-----"
        found = [mark + each for each in self._held.lists_pem.split(mark)[1:]]
        return [x509.load_pem_x509_crl(each).public_bytes(serialization.Encoding.DER) for each in found]

    # --- JWT -----------------------------------------------------------------------------------------------

    async def jwt_svid(self, who: WorkloadName, asked: Any) -> Any:
        """A new token each time: its life is shorter than it would be worth to keep it."""
        own = self._of(who).spiffe_id
        if asked.spiffe_id not in ("", own):
            raise NobodyError(f"no identity issued: {'/'.join(who)} is not {asked.spiffe_id}")
        token = await self._sign(own, list(asked.audience), "/".join(who))
        return api.JWTSVIDResponse(svids=[api.JWTSVID(spiffe_id=own, svid=token)])

    def jwt_bundles(self, _: WorkloadName) -> Any:
        bundles = {f"spiffe://{self._held.trust_domain}": self._held.jwks.encode()}
        return api.JWTBundlesResponse(bundles=bundles)

    async def validate(self, _: WorkloadName, asked: Any) -> Any:
        if not asked.audience or not asked.svid:
            raise RequestError("an audience and a token are needed")
        claims = jwt.validated(
            asked.svid, self._held.jwks, asked.audience, self._held.trust_domain, time.time()
        )
        answer = api.ValidateJWTSVIDResponse(spiffe_id=claims["sub"])
        answer.claims.update(claims)
        return answer


def _der(pem: bytes) -> bytes:
    certificates = x509.load_pem_x509_certificates(pem) if pem else []
    return b"".join(each.public_bytes(serialization.Encoding.DER) for each in certificates)
