"""SPIFFE IDs: who a workload is, as it stands in its certificate.

Rules: the SPIFFE-ID specification, sections 2.1 to 2.4. There is exactly one spelling of an ID, so
that comparing texts is comparing identities; what is not in that spelling is refused, never mended.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.mtls.errors import SpiffeIdError

SCHEME = "spiffe://"
MAX_BYTES = 2048
MAX_TRUST_DOMAIN_BYTES = 255

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """`path` is empty for the trust domain itself, else it begins with a slash. Make it with `parse`."""

    trust_domain: str
    path: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"


def parse(text: str) -> SpiffeId:
    """Read a SPIFFE ID. Raises SpiffeIdError, which says what is wrong with it."""
    if not text.startswith(SCHEME):
        raise SpiffeIdError(f"{text!r} is not a SPIFFE ID: it must begin with {SCHEME}")
    if len(text.encode()) > MAX_BYTES:
        raise SpiffeIdError(f"{text[:64]!r}… is not a SPIFFE ID: longer than {MAX_BYTES} bytes")
    trust_domain, slash, path = text.removeprefix(SCHEME).partition("/")
    check_trust_domain(trust_domain)
    if slash:
        for segment in path.split("/"):
            _check_segment(text, segment)
    return SpiffeId(trust_domain, slash + path)


def check_trust_domain(name: str) -> str:
    """Return `name` if it is a trust domain's name; else raise SpiffeIdError."""
    if not _TRUST_DOMAIN.fullmatch(name):
        raise SpiffeIdError(f"{name!r} is not a trust domain: only a-z, 0-9, '.', '-' and '_' are allowed")
    if len(name) > MAX_TRUST_DOMAIN_BYTES:
        raise SpiffeIdError(f"{name[:64]!r}… is not a trust domain: over {MAX_TRUST_DOMAIN_BYTES} bytes")
    return name


def for_workload(trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
    """The ID of a service account (design §6). Raises SpiffeIdError."""
    for segment in (namespace, service_account):
        if "/" in segment:
            raise SpiffeIdError(f"{segment!r} cannot be a part of a SPIFFE ID: it holds a slash")
    return parse(f"{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}")


def _check_segment(text: str, segment: str) -> None:
    if not segment:
        raise SpiffeIdError(f"{text!r} is not a SPIFFE ID: empty path segment or slash at the end")
    if segment in (".", ".."):
        raise SpiffeIdError(f"{text!r} is not a SPIFFE ID: {segment!r} as a path segment")
    if not _SEGMENT.fullmatch(segment):
        raise SpiffeIdError(
            f"{text!r} is not a SPIFFE ID: in {segment!r} only letters, digits, '.', '-' and '_' are allowed"
        )
