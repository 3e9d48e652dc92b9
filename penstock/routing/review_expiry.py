"""Certificates that are no longer good, or not for long: of Secrets that listeners and Ingresses show, and
authorities that backends or clients are checked by. What the time is, is said by who asks.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import ConfigMap, Gateway, ListenerSet, Secret
from penstock.manifests.ingress_kinds import Ingress
from penstock.manifests.l4_kinds import BackendTLSPolicy
from penstock.manifests.problem import Finding, Problem
from penstock.manifests.review import problem

SOON = timedelta(days=14)
"""Somebody should have replaced it by now: certificates that live for 90 days are, at two thirds of it."""


def review_expiry(documents: Iterable[Document], now: datetime) -> list[Problem]:
    """Every warning at the time `now` (with a zone), in the order of files and lines."""
    everything = {d.key: d for d in documents}
    named = dict.fromkeys(key for d in everything.values() for key in _named(d) if key in everything)
    found = [problem(everything[key], f) for key in named for f in _findings(everything[key], now)]
    return sorted(found, key=lambda p: (p.file, p.line))


def _named(document: Document) -> Iterator[ObjectKey]:
    value, own = document.value, document.key.namespace
    if isinstance(value, Gateway | ListenerSet):
        for listener in value.spec.listeners:
            for ref in listener.tls.certificate_refs if listener.tls else ():
                yield ObjectKey("Secret", ref.namespace or own, ref.name)
        tls = value.spec.tls if isinstance(value, Gateway) else None
        if tls is not None and tls.backend is not None and tls.backend.client_certificate_ref is not None:
            mine = tls.backend.client_certificate_ref
            yield ObjectKey("Secret", mine.namespace or own, mine.name)
        if tls is not None and tls.frontend is not None:
            for each in (tls.frontend.default, *(per.tls for per in tls.frontend.per_port)):
                for trusted in each.validation.ca_certificate_refs if each.validation else ():
                    yield ObjectKey(trusted.kind, trusted.namespace or own, trusted.name)
    elif isinstance(value, Ingress):
        yield from (ObjectKey("Secret", own, e.secret_name) for e in value.spec.tls if e.secret_name)
    elif isinstance(value, BackendTLSPolicy):
        yield from (ObjectKey(r.kind, own, r.name) for r in value.spec.validation.ca_certificate_refs)


def _findings(document: Document, now: datetime) -> Iterator[Finding]:
    value = document.value
    if isinstance(value, ConfigMap):
        yield from _fading(value.data.get("ca.crt", "").encode(), ("data", "ca.crt"), now)
    elif isinstance(value, Secret):
        for name in ("tls.crt", "ca.crt"):
            if name in value.string_data:
                yield from _fading(value.string_data[name].encode(), ("stringData", name), now)
            elif name in value.data:
                yield from _fading(_decoded(value.data[name]), ("data", name), now)


def _decoded(text: str) -> bytes:
    try:
        return b64decode("".join(text.split()))
    except Error:
        return b""


@lru_cache(maxsize=1024)
def _ends(chain: bytes) -> tuple[datetime, ...]:
    try:
        return tuple(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(chain))
    except ValueError:
        return ()


def _fading(chain: bytes, path: tuple[str, str], now: datetime) -> Iterator[Finding]:
    ends = _ends(chain)
    if not ends:
        return
    # Of a chain each link counts; of authorities one that is left is enough.
    end = min(ends) if path[1] == "tls.crt" else max(ends)
    if end <= now:
        message = f"the certificate expired on {end:%Y-%m-%d %H:%M} UTC: nobody trusts it"
    elif end - now < SOON:
        message = f"the certificate expires on {end:%Y-%m-%d %H:%M} UTC, in {(end - now).days} days"
    else:
        return
    yield Finding(path, message, "put a newer one in its place", "expiry", "warning")
