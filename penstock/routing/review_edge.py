"""What will surprise at the edge, in objects that are valid: certificates that do not fit, backends that
nobody stands behind, paths that another Ingress takes.

Warnings all; docs/findings.md tells of each code. What is said of HTTPRoutes and GRPCRoutes otherwise stands
in routing/review.py.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import Gateway, Listener, ListenerSet, ObjectReference, Secret
from penstock.manifests.ingress_kinds import Ingress
from penstock.manifests.l4_kinds import TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.problem import Finding, Path, Problem
from penstock.manifests.review import problem
from penstock.manifests.route_kinds import GRPCRoute, GRPCRouteRule, HTTPRoute, HTTPRouteRule, ReferenceGrant
from penstock.routing.matches import permitted
from penstock.routing.review import served_services


@dataclass(frozen=True, slots=True)
class _All:
    """What others may refer to."""

    served: Mapping[tuple[str, str], bool]
    grants: Mapping[str, Sequence[ReferenceGrant]]
    secrets: Mapping[tuple[str, str], Secret]

    def allows(self, source: ObjectKey, kind: str, namespace: str, name: str) -> bool:
        return permitted(source, namespace, name, self.grants.get(namespace, ()), kind)


def review_edge(documents: Iterable[Document]) -> list[Problem]:
    """Every warning about what stands at the edge, in the order of files and lines."""
    everything = list(documents)
    grants: dict[str, list[ReferenceGrant]] = {}
    secrets = {}
    for document in everything:
        if isinstance(document.value, ReferenceGrant):
            grants.setdefault(document.key.namespace, []).append(document.value)
        elif isinstance(document.value, Secret):
            secrets[document.key.namespace, document.key.name] = document.value
    known = _All(served_services(everything), grants, secrets)
    found = [problem(document, f) for document in everything for f in _findings(document, known)]
    found += [problem(document, f) for document, f in _twice(everything)]
    return sorted(found, key=lambda p: (p.file, p.line))


def _findings(document: Document, known: _All) -> Iterator[Finding]:
    value = document.value
    if isinstance(value, TLSRoute | TCPRoute | UDPRoute):
        yield from _stream(document, value, known)
    elif isinstance(value, HTTPRoute | GRPCRoute):
        rules: Sequence[HTTPRouteRule | GRPCRouteRule] = value.spec.rules
        for i, rule in enumerate(rules):
            for j, item in enumerate(rule.filters):
                if item.request_mirror is not None:
                    ref = item.request_mirror.backend_ref
                    if (ref.group, ref.kind) == ("", "Service"):
                        at = ("spec", "rules", i, "filters", j, "requestMirror", "backendRef")
                        yield from _backend(document, ref.name, ref.namespace, at, "no copy is sent", known)
    elif isinstance(value, Gateway | ListenerSet):
        for i, listener in enumerate(value.spec.listeners):
            yield from _listener(document, listener, ("spec", "listeners", i), known)
    elif isinstance(value, Ingress):
        yield from _ingress(document, value, known)


# --- backends -------------------------------------------------------------------------------------------


def _backend(
    document: Document, name: str, namespace: str | None, path: Path, fate: str, known: _All
) -> Iterator[Finding]:
    where = namespace or document.key.namespace
    if not known.allows(document.key, "Service", where, name):
        hint = f"one in {where}, from {document.key.kind} of {document.key.namespace}, to Service"
        message = f"no ReferenceGrant of namespace {where} permits it: {fate}"
        yield Finding((*path, "namespace"), message, hint, code="grant")
    elif known.served.get((where, name)) is False:
        message = f"no endpoint stands behind Service {where}/{name}: {fate}"
        yield Finding((*path, "name"), message, code="endpoints")


def _stream(document: Document, route: TLSRoute | TCPRoute | UDPRoute, known: _All) -> Iterator[Finding]:
    fate = "its datagrams get lost" if isinstance(route, UDPRoute) else "its connections are closed"
    for i, rule in enumerate(route.spec.rules):
        at: Path = ("spec", "rules", i, "backendRefs")
        if not any(ref.weight for ref in rule.backend_refs):
            yield Finding(at, f"has only weights of 0: {fate}", code="weights")
        for j, ref in enumerate(rule.backend_refs):
            if (ref.group, ref.kind) == ("", "Service") and ref.weight:
                yield from _backend(document, ref.name, ref.namespace, (*at, j), fate, known)


# --- certificates ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _names(chain: bytes) -> frozenset[str] | None:
    """The host names that a certificate is for; None if it is none, which its object's status tells."""
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except ValueError:
        return None
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    return frozenset(name.lower() for name in names.get_values_for_type(x509.DNSName))


def _chain(secret: Secret) -> bytes:
    if "tls.crt" in secret.string_data:
        return secret.string_data["tls.crt"].encode()
    try:
        return b64decode("".join(secret.data.get("tls.crt", "").split()))
    except Error:
        return b""


def _covered(host: str, names: Iterable[str]) -> bool:
    """RFC 6125, 6.4.3: a wildcard of a certificate is one label."""
    wild = "*." + host.partition(".")[2]
    return any(name in (host.lower(), wild.lower()) for name in names)


def _certificate(
    document: Document, host: str, refs: Sequence[tuple[str, str]], path: Path, known: _All
) -> Iterator[Finding]:
    """A warning if the Secrets (namespace, name) hold certificates, and none of them is for `host`."""
    found = [known.secrets[ref] for ref in refs if ref in known.secrets]
    names = [n for n in map(_names, map(_chain, found)) if n is not None]
    if not host or not names or any(_covered(host, each) for each in names):
        return
    shown = ", ".join(sorted(frozenset().union(*names))) or "no name at all"
    message = f"no certificate is for {host}: clients will not trust it"
    yield Finding(path, message, f"what there is, is for {shown}", code="certificate")


def _listener(document: Document, listener: Listener, path: Path, known: _All) -> Iterator[Finding]:
    refs: list[ObjectReference] = listener.tls.certificate_refs if listener.tls else []
    usable = []
    for i, ref in enumerate(refs):
        namespace = ref.namespace or document.key.namespace
        at = (*path, "tls", "certificateRefs", i)
        if (ref.group, ref.kind) != ("", "Secret"):
            continue
        if not known.allows(document.key, "Secret", namespace, ref.name):
            hint = f"one in {namespace}, from {document.key.kind} of {document.key.namespace}, to Secret"
            message = f"no ReferenceGrant of namespace {namespace} permits it: it is not shown"
            yield Finding((*at, "namespace"), message, hint, code="grant")
        elif (namespace, ref.name) not in known.secrets:
            yield Finding((*at, "name"), f"there is no Secret {namespace}/{ref.name}", code="reference")
        else:
            usable.append((namespace, ref.name))
    yield from _certificate(document, listener.hostname or "", usable, (*path, "hostname"), known)


# --- Ingress --------------------------------------------------------------------------------------------


def _ingress(document: Document, ingress: Ingress, known: _All) -> Iterator[Finding]:
    spec, namespace = ingress.spec, document.key.namespace
    backends: list[tuple[Path, str]] = []
    if spec.default_backend is not None and spec.default_backend.service is not None:
        backends.append((("spec", "defaultBackend", "service"), spec.default_backend.service.name))
    for i, rule in enumerate(spec.rules):
        for j, path in enumerate(rule.http.paths if rule.http else ()):
            if path.backend.service is not None:
                at: Path = ("spec", "rules", i, "http", "paths", j, "backend", "service")
                backends.append((at, path.backend.service.name))
    for at, name in backends:
        if known.served.get((namespace, name)) is False:
            message = f"no endpoint stands behind Service {namespace}/{name}: its requests get 503"
            yield Finding((*at, "name"), message, code="endpoints")
        elif (namespace, name) not in known.served:
            yield Finding((*at, "name"), f"there is no Service {namespace}/{name}", code="reference")
    hosts = {rule.host.lower() for rule in spec.rules}
    for i, entry in enumerate(spec.tls):
        at = ("spec", "tls", i)
        if entry.secret_name and (namespace, entry.secret_name) not in known.secrets:
            message = f"there is no Secret {namespace}/{entry.secret_name}"
            yield Finding((*at, "secretName"), message, code="reference")
        for j, host in enumerate(entry.hosts):
            here = (*at, "hosts", j)
            yield from _certificate(document, host, [(namespace, entry.secret_name)], here, known)
            if host.lower() not in hosts and "" not in hosts and spec.default_backend is None:
                yield Finding(here, f"no rule is for {host}", code="reference")


def _twice(documents: Iterable[Document]) -> Iterator[tuple[Document, Finding]]:
    """Paths of Ingresses that an older one has already for the same host."""
    first: dict[tuple[str, str, str], Document] = {}
    ingresses = [d for d in documents if isinstance(d.value, Ingress)]
    for document in sorted(ingresses, key=lambda d: (d.since, d.key.namespace, d.key.name)):
        assert isinstance(document.value, Ingress)
        for i, rule in enumerate(document.value.spec.rules):
            for j, path in enumerate(rule.http.paths if rule.http else ()):
                kind = "Exact" if path.path_type == "Exact" else "Prefix"
                value = path.path or "/"
                key = (rule.host.lower(), kind, value if kind == "Exact" else value.rstrip("/"))
                by = first.setdefault(key, document)
                if by.key != document.key:
                    message = f"can never match: {by.key} ({by.file}:{by.line}) has it already"
                    yield (
                        document,
                        Finding(("spec", "rules", i, "http", "paths", j), message, code="shadowed"),
                    )
