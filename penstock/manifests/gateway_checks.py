"""The rules of one GatewayClass, Gateway, ListenerSet, Secret or ConfigMap that its types cannot say.

What the API reports in status (an unknown protocol, a certificate that is not there) is no matter of this.

Source: the validation rules of Gateway API v1.6's schema.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Sequence

from penstock.manifests import syntax
from penstock.manifests.gateway_kinds import (
    ConfigMap,
    Gateway,
    GatewayClass,
    GatewayLabelSelector,
    Listener,
    ListenerSet,
    Secret,
)
from penstock.manifests.problem import Finding, Path

MAX_LISTENERS = 64
_CONTROLLER = re.compile(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[A-Za-z0-9/\-._~%!$&'()*+,;=:]+"
)


def check_class(gateway_class: GatewayClass) -> Iterator[Finding]:
    name = gateway_class.spec.controller_name
    if not _CONTROLLER.fullmatch(name):
        yield Finding(("spec", "controllerName"), f'"{name}" is not a domain, "/" and a path')


def check(gateway: Gateway) -> Iterator[Finding]:
    spec = gateway.spec
    if wrong := syntax.dns_subdomain(spec.gateway_class_name):
        yield Finding(("spec", "gatewayClassName"), f'"{spec.gateway_class_name}" {wrong}')
    if not spec.listeners and spec.allowed_listeners.namespaces.from_ == "None":
        yield Finding(("spec", "listeners"), "is empty: a Gateway needs at least one listener")
    yield from _listeners(spec.listeners)
    if len(spec.addresses) > 16:
        yield Finding(("spec", "addresses"), f"holds {len(spec.addresses)} entries, at most 16 are allowed")
    for i, address in enumerate(spec.addresses):
        here: Path = ("spec", "addresses", i, "value")
        if address.type == "IPAddress" and address.value and (wrong := syntax.address(address.value)):
            yield Finding(here, wrong)
    given = [(a.type, a.value) for a in spec.addresses if a.value]
    if len(set(given)) < len(given):
        yield Finding(("spec", "addresses"), "holds the same entry twice", code="duplicate")
    selector = spec.allowed_listeners.namespaces.selector
    yield from _selector(selector, ("spec", "allowedListeners", "namespaces", "selector"))
    if spec.tls is not None and spec.tls.frontend is not None:
        ports = [each.port for each in spec.tls.frontend.per_port]
        if len(set(ports)) < len(ports):
            path: Path = ("spec", "tls", "frontend", "perPort")
            yield Finding(path, "names a port twice", code="duplicate")


def check_set(listeners: ListenerSet) -> Iterator[Finding]:
    if not listeners.spec.listeners:
        yield Finding(("spec", "listeners"), "is empty: a ListenerSet needs at least one listener")
    yield from _listeners(listeners.spec.listeners)


def _listeners(listeners: Sequence[Listener]) -> Iterator[Finding]:
    at: Path = ("spec", "listeners")
    if len(listeners) > MAX_LISTENERS:
        yield Finding(at, f"holds {len(listeners)} entries, at most {MAX_LISTENERS} are allowed")
    for name, count in Counter(each.name for each in listeners).items():
        if count > 1:
            yield Finding(at, f'the name "{name}" is given {count} times', code="duplicate")
    places = Counter((each.port, each.protocol.lower(), each.hostname or "") for each in listeners)
    for (port, protocol, hostname), count in places.items():
        if count > 1:
            what = f"port {port}, protocol {protocol.upper()}" + (
                f', hostname "{hostname}"' if hostname else ""
            )
            yield Finding(at, f"{what} is given {count} times", code="duplicate")
    for i, listener in enumerate(listeners):
        yield from _listener(listener, (*at, i))


def _listener(listener: Listener, path: Path) -> Iterator[Finding]:
    if wrong := syntax.dns_subdomain(listener.name):
        yield Finding((*path, "name"), f'"{listener.name}" {wrong}')
    if wrong := syntax.port_number(listener.port):
        yield Finding((*path, "port"), wrong)
    if listener.hostname and (wrong := syntax.hostname(listener.hostname)):
        yield Finding((*path, "hostname"), f'"{listener.hostname}" {wrong}')
    protocol = listener.protocol.upper()
    if protocol in ("HTTP", "TCP", "UDP") and listener.tls is not None:
        yield Finding((*path, "tls"), f"is not for the protocol {protocol}")
    if protocol in ("TCP", "UDP") and listener.hostname:
        yield Finding((*path, "hostname"), f"is not for the protocol {protocol}")
    if protocol == "HTTPS" and listener.tls is not None and listener.tls.mode != "Terminate":
        yield Finding((*path, "tls", "mode"), "must be Terminate for the protocol HTTPS")
    namespaces = listener.allowed_routes.namespaces
    yield from _selector(namespaces.selector, (*path, "allowedRoutes", "namespaces", "selector"))
    if len(listener.allowed_routes.kinds) > 8:
        yield Finding((*path, "allowedRoutes", "kinds"), "holds more than 8 entries")


def _selector(selector: GatewayLabelSelector | None, path: Path) -> Iterator[Finding]:
    if selector is None:
        return
    for key, value in selector.match_labels.items():
        if wrong := syntax.label_key(key) or syntax.label_value(value):
            yield Finding((*path, "matchLabels", key), wrong)
    for i, each in enumerate(selector.match_expressions):
        here: Path = (*path, "matchExpressions", i)
        if wrong := syntax.label_key(each.key):
            yield Finding((*here, "key"), wrong)
        if (each.operator in ("In", "NotIn")) != bool(each.values):
            yield Finding((*here, "values"), f"does not fit the operator {each.operator}")


def check_secret(secret: Secret) -> Iterator[Finding]:
    yield from _base64(secret.data, "data")


def check_config_map(config_map: ConfigMap) -> Iterator[Finding]:
    yield from _base64(config_map.binary_data, "binaryData")


def _base64(data: dict[str, str], field: str) -> Iterator[Finding]:
    for key, value in data.items():
        try:
            b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            yield Finding((field, key), "is not base64")
