"""The rules of one Ingress that its types cannot say.

Source: Kubernetes API v1.31, the validation of Ingress v1.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.manifests import syntax
from penstock.manifests.ingress_kinds import HTTPIngressPath, Ingress, IngressBackend, IngressClass
from penstock.manifests.problem import Finding, Path


def check(ingress: Ingress) -> Iterator[Finding]:
    spec = ingress.spec
    if spec.default_backend is None and not spec.rules:
        yield Finding(("spec",), "needs rules or a defaultBackend")
    if spec.default_backend is not None:
        yield from _backend(spec.default_backend, ("spec", "defaultBackend"))
    for i, rule in enumerate(spec.rules):
        here: Path = ("spec", "rules", i)
        if rule.host:
            yield from _host(rule.host, (*here, "host"))
        if rule.http is None:
            continue
        if not rule.http.paths:
            yield Finding((*here, "http", "paths"), "is empty")
        for j, path in enumerate(rule.http.paths):
            yield from _path(path, (*here, "http", "paths", j))
    for i, entry in enumerate(spec.tls):
        for j, host in enumerate(entry.hosts):
            yield from _host(host, ("spec", "tls", i, "hosts", j))
        if entry.secret_name and (wrong := syntax.dns_subdomain(entry.secret_name)):
            yield Finding(("spec", "tls", i, "secretName"), f'"{entry.secret_name}" {wrong}')


def check_class(_: IngressClass) -> Iterator[Finding]:
    yield from ()


def _host(host: str, path: Path) -> Iterator[Finding]:
    if wrong := syntax.hostname(host):
        yield Finding(path, f'"{host}" {wrong}')


def _path(path: HTTPIngressPath, at: Path) -> Iterator[Finding]:
    yield from _backend(path.backend, (*at, "backend"))
    value = path.path
    if not value:
        if path.path_type != "ImplementationSpecific":
            yield Finding((*at, "path"), f'is missing: the pathType is "{path.path_type}"')
    elif not value.startswith("/"):
        yield Finding((*at, "path"), f'"{value}" does not begin with "/"', f'write "/{value}"')
    elif wrong := syntax.url_path(value):
        yield Finding((*at, "path"), f'"{value}" {wrong}')


def _backend(backend: IngressBackend, path: Path) -> Iterator[Finding]:
    service = backend.service
    if service is None:
        yield Finding((*path, "service"), "is missing: only Services can be backends")
        return
    here = (*path, "service")
    if wrong := syntax.service_name(service.name):
        yield Finding((*here, "name"), f'"{service.name}" {wrong}')
    if bool(service.port.name) == bool(service.port.number):
        yield Finding((*here, "port"), "needs exactly one of name and number")
    elif service.port.number and (wrong := syntax.port_number(service.port.number)):
        yield Finding((*here, "port", "number"), wrong)
