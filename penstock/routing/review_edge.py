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
from penstock.manifests.gateway_kinds import (
    CertificateReference,
    ConfigMap,
    Gateway,
    GatewayTLS,
    Listener,
    ListenerSet,
    ObjectReference,
    Secret,
)
from penstock.manifests.ingress_kinds import Ingress, IngressClass, IngressServiceBackend
from penstock.manifests.kinds import Service, ServicePort
from penstock.manifests.l4_kinds import TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.problem import Finding, Path, Problem
from penstock.manifests.review import problem
from penstock.manifests.route_kinds import GRPCRoute, GRPCRouteRule, HTTPRoute, HTTPRouteRule, ReferenceGrant
from penstock.policy.ingress_classes import CLASS, DEFAULT, OLD_CLASS
from penstock.routing.matches import permitted
from penstock.routing.review_backends import Behind, behind


@dataclass(frozen=True, slots=True)
class Known:
    """What others may refer to, by namespace and name."""

    served: Behind
    ports: Mapping[tuple[str, str], Sequence[ServicePort]]
    grants: Mapping[str, Sequence[ReferenceGrant]]
    secrets: Mapping[tuple[str, str], Secret]
    maps: frozenset[tuple[str, str]]
    classes: Mapping[str, bool]
    """IngressClasses, and whether each is the default."""

    def allows(self, source: ObjectKey, kind: str, namespace: str, name: str) -> bool:
        return permitted(source, namespace, name, self.grants.get(namespace, ()), kind)


def known_of(everything: Sequence[Document]) -> Known:
    grants: dict[str, list[ReferenceGrant]] = {}
    secrets, ports, maps, classes = {}, {}, set(), {CLASS: False}
    for document in everything:
        value, place = document.value, (document.key.namespace, document.key.name)
        if isinstance(value, ReferenceGrant):
            grants.setdefault(document.key.namespace, []).append(value)
        elif isinstance(value, Secret):
            secrets[place] = value
        elif isinstance(value, ConfigMap):
            maps.add(place)
        elif isinstance(value, Service):
            ports[place] = value.spec.ports
        elif isinstance(value, IngressClass):
            classes[document.key.name] = document.metadata.annotations.get(DEFAULT) == "true"
    return Known(behind(everything), ports, grants, secrets, frozenset(maps), classes)


def review_edge(documents: Iterable[Document]) -> list[Problem]:
    """Every warning about what stands at the edge, in the order of files and lines."""
    everything = list(documents)
    known = known_of(everything)
    found = [problem(document, f) for document in everything for f in _findings(document, known)]
    found += [problem(document, f) for document, f in _twice(everything)]
    return sorted(found, key=lambda p: (p.file, p.line))


def _findings(document: Document, known: Known) -> Iterator[Finding]:
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
                        yield from backend(document, ref.name, ref.namespace, at, "no copy is sent", known)
    elif isinstance(value, Gateway | ListenerSet):
        if isinstance(value, Gateway) and value.spec.tls is not None:
            yield from _gateway_tls(document, value.spec.tls, known)
        for i, listener in enumerate(value.spec.listeners):
            yield from _listener(document, listener, ("spec", "listeners", i), known)
    elif isinstance(value, Ingress):
        yield from _ingress(document, value, known)


# --- backends -------------------------------------------------------------------------------------------


def backend(
    document: Document,
    name: str,
    namespace: str | None,
    path: Path,
    fate: str,
    known: Known,
    port: int | None = None,
) -> Iterator[Finding]:
    where = namespace or document.key.namespace
    if not known.allows(document.key, "Service", where, name):
        hint = f"one in {where}, from {document.key.kind} of {document.key.namespace}, to Service"
        message = f"no ReferenceGrant of namespace {where} permits it: {fate}"
        yield Finding((*path, "namespace"), message, hint, code="grant")
    elif why := known.served.nobody(where, name, port):
        message = f"no endpoint stands behind Service {where}/{name}: {fate}"
        yield Finding((*path, "name"), message, why, "endpoints")


def port_of(
    place: tuple[str, str], port: int | str | None, path: Path, known: Known, protocol: str = "TCP"
) -> Iterator[Finding]:
    """A warning if there is no such Service, or it has no such port (by number, or by name) of `protocol`."""
    if place not in known.ports:
        yield Finding((*path, "name"), f"there is no Service {place[0]}/{place[1]}", code="reference")
        return
    fitting = [p for p in known.ports[place] if p.protocol == protocol]
    if port is not None and not any(port in (p.port, p.name) for p in fitting):
        has = ", ".join(f"{p.name} {p.port}".strip() for p in fitting) or "none"
        message = f"Service {place[0]}/{place[1]} has no {protocol} port {port}"
        yield Finding((*path, "port"), message, f"it has {has}", code="reference")


def _stream(document: Document, route: TLSRoute | TCPRoute | UDPRoute, known: Known) -> Iterator[Finding]:
    protocol = "UDP" if isinstance(route, UDPRoute) else "TCP"
    fate = "its datagrams get lost" if isinstance(route, UDPRoute) else "its connections are closed"
    for i, rule in enumerate(route.spec.rules):
        at: Path = ("spec", "rules", i, "backendRefs")
        if not any(ref.weight for ref in rule.backend_refs):
            yield Finding(at, f"has only weights of 0: {fate}", code="weights")
        for j, ref in enumerate(rule.backend_refs):
            if (ref.group, ref.kind) == ("", "Service") and ref.weight:
                place = (ref.namespace or document.key.namespace, ref.name)
                yield from port_of(place, ref.port, (*at, j), known, protocol)
                yield from backend(document, ref.name, ref.namespace, (*at, j), fate, known, ref.port)


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
    document: Document, host: str, refs: Sequence[tuple[str, str]], path: Path, known: Known
) -> Iterator[Finding]:
    """A warning if the Secrets (namespace, name) hold certificates, and none of them is for `host`."""
    found = [known.secrets[ref] for ref in refs if ref in known.secrets]
    names = [n for n in map(_names, map(_chain, found)) if n is not None]
    if not host or not names or any(_covered(host, each) for each in names):
        return
    shown = ", ".join(sorted(frozenset().union(*names))) or "no name at all"
    message = f"no certificate is for {host}: clients will not trust it"
    yield Finding(path, message, f"what there is, is for {shown}", code="certificate")


def _gateway_tls(document: Document, tls: GatewayTLS, known: Known) -> Iterator[Finding]:
    """What the Gateway's own TLS names: the certificate for backends, the authorities for clients."""
    at: Path = ("spec", "tls")
    if tls.backend is not None and tls.backend.client_certificate_ref is not None:
        mine = tls.backend.client_certificate_ref
        here = (*at, "backend", "clientCertificateRef")
        yield from _held(document, mine, here, "none is shown to backends", known)
    if tls.frontend is None:
        return
    asked = [(("default",), tls.frontend.default.validation)]
    asked += [(("perPort", i, "tls"), e.tls.validation) for i, e in enumerate(tls.frontend.per_port)]  # type: ignore[misc]
    for where, validation in asked:
        for i, ref in enumerate(validation.ca_certificate_refs if validation else ()):
            here = (*at, "frontend", *where, "validation", "caCertificateRefs", i)
            yield from _held(document, ref, here, "it lets nobody in", known)


def _held(
    document: Document, ref: ObjectReference | CertificateReference, path: Path, fate: str, known: Known
) -> Iterator[Finding]:
    namespace = ref.namespace or document.key.namespace
    there = known.maps if ref.kind == "ConfigMap" else known.secrets
    if ref.group or ref.kind not in ("ConfigMap", "Secret"):
        yield Finding((*path, "kind"), f"a {ref.kind} holds no certificates: {fate}", code="reference")
    elif not known.allows(document.key, ref.kind, namespace, ref.name):
        hint = f"one in {namespace}, from {document.key.kind} of {document.key.namespace}, to {ref.kind}"
        message = f"no ReferenceGrant of namespace {namespace} permits it: {fate}"
        yield Finding((*path, "namespace"), message, hint, code="grant")
    elif (namespace, ref.name) not in there:
        message = f"there is no {ref.kind} {namespace}/{ref.name}: {fate}"
        yield Finding((*path, "name"), message, code="reference")


def _listener(document: Document, listener: Listener, path: Path, known: Known) -> Iterator[Finding]:
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


def _ingress(document: Document, ingress: Ingress, known: Known) -> Iterator[Finding]:
    spec, namespace = ingress.spec, document.key.namespace
    named = spec.ingress_class_name or ingress.metadata.annotations.get(OLD_CLASS)
    if named is not None and named not in known.classes:
        message = f"there is no IngressClass {named}: nobody serves it"
        yield Finding(("spec", "ingressClassName"), message, f'"{CLASS}" is there by itself', "reference")
    elif named is None and not any(known.classes.values()):
        message = "names no class, and no IngressClass is the default: nobody serves it"
        yield Finding(("spec",), message, f"write ingressClassName: {CLASS}", "reference")
    backends: list[tuple[Path, IngressServiceBackend]] = []
    if spec.default_backend is not None and spec.default_backend.service is not None:
        backends.append((("spec", "defaultBackend", "service"), spec.default_backend.service))
    for i, rule in enumerate(spec.rules):
        for j, path in enumerate(rule.http.paths if rule.http else ()):
            if path.backend.service is not None:
                at: Path = ("spec", "rules", i, "http", "paths", j, "backend", "service")
                backends.append((at, path.backend.service))
    for at, service in backends:
        name = service.name
        yield from port_of((namespace, name), service.port.name or service.port.number, at, known)
        if why := known.served.nobody(namespace, name, service.port.name or service.port.number):
            message = f"no endpoint stands behind Service {namespace}/{name}: its requests get 503"
            yield Finding((*at, "name"), message, why, "endpoints")
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
