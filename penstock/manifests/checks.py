"""What types cannot say: the rules that a single document must obey.

Every rule here is one of its API's own, or a limit of this version that is named as such. What
needs other documents to judge is in review.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from penstock.manifests import (
    endpoints_mirror,
    gateway_checks,
    http_policy_checks,
    ingress_checks,
    l4_checks,
    netpol_checks,
    policy_checks,
    route_checks,
    service_checks,
    syntax,
    traffic_checks,
)
from penstock.manifests.base import Labels, ObjectMeta
from penstock.manifests.endpoints_kinds import Endpoints
from penstock.manifests.gateway_kinds import ConfigMap, Gateway, GatewayClass, ListenerSet, Secret
from penstock.manifests.http_policy_kinds import HTTPPolicy
from penstock.manifests.ingress_kinds import Ingress, IngressClass
from penstock.manifests.kinds import (
    AnyKind,
    CiliumCIDRGroup,
    CiliumClusterwideNetworkPolicy,
    CiliumNetworkPolicy,
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    PeerAuthentication,
    Service,
    Workload,
)
from penstock.manifests.l4_kinds import BackendTLSPolicy, TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.problem import Finding, Path
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ReferenceGrant
from penstock.manifests.traffic_kinds import BackendPolicy, XBackendTrafficPolicy


def check(value: AnyKind) -> Iterator[Finding]:
    """Every rule that `value` breaks."""
    yield from _metadata(value.metadata, _NAMES.get(type(value), syntax.dns_subdomain))
    yield from _CHECKS[type(value)](value)


def _wrong(path: Path, message: str) -> Iterator[Finding]:
    if message:
        yield Finding(path, message)


def _twice(path: Path, words: Iterable[Any], what: str) -> Iterator[Finding]:
    for word, count in Counter(words).items():
        if count > 1:
            yield Finding(path, f'{what} "{word}" is given {count} times', code="duplicate")


def _labels(path: Path, labels: Labels) -> Iterator[Finding]:
    for key, value in labels.items():
        yield from _wrong((*path, key), syntax.label_key(key) or syntax.label_value(value))


def _metadata(metadata: ObjectMeta, name_syntax: Callable[[str], str]) -> Iterator[Finding]:
    if wrong := name_syntax(metadata.name):
        yield Finding(("metadata", "name"), f'"{metadata.name}" {wrong}', code="object")
    if wrong := syntax.dns_label(metadata.namespace):
        yield Finding(("metadata", "namespace"), f'"{metadata.namespace}" {wrong}', code="object")
    yield from _labels(("metadata", "labels"), metadata.labels)
    for key in metadata.annotations:
        yield from _wrong(("metadata", "annotations", key), syntax.label_key(key.lower()))


def _workload(workload: Workload) -> Iterator[Finding]:
    spec = workload.spec
    at: Path = ("spec",)
    yield from _wrong((*at, "serviceAccountName"), syntax.dns_subdomain(spec.service_account_name))
    if spec.node is not None:
        yield from _wrong((*at, "node"), syntax.dns_subdomain(spec.node))
    if spec.netns is not None and spec.container is not None:
        yield Finding((*at, "container"), "a workload has a netns or a container, not both")
    if spec.netns is not None and not spec.netns.startswith("/"):
        hint = f"/run/netns/{spec.netns}?" if spec.netns and "/" not in spec.netns else ""
        yield Finding((*at, "netns"), f'"{spec.netns}" is not an absolute path', hint)
    if spec.container == "":
        yield Finding((*at, "container"), "is empty")
    name = spec.interface
    if name is not None and (not 1 <= len(name) <= 15 or "/" in name or any(c.isspace() for c in name)):
        yield Finding((*at, "interface"), f'"{name}" is not the name of an interface')
    for i, address in enumerate(spec.addresses):
        hint = f"write {address.partition('/')[0]}" if "/" in address else ""
        if wrong := syntax.host_address(address):
            yield Finding((*at, "addresses", i), wrong, hint)
    yield from _twice((*at, "addresses"), spec.addresses, "the address")
    for i, port in enumerate(spec.ports):
        yield from _wrong((*at, "ports", i, "containerPort"), syntax.port_number(port.container_port))
        if port.name:
            yield from _wrong((*at, "ports", i, "name"), syntax.port_name(port.name))
    yield from _twice((*at, "ports"), (p.name for p in spec.ports if p.name), "the port name")


def _node(node: Node) -> Iterator[Finding]:
    spec = node.spec
    if spec.pod_cidr is not None:
        yield from _wrong(("spec", "podCIDR"), syntax.network(spec.pod_cidr))
        if spec.pod_cidrs and spec.pod_cidrs[0] != spec.pod_cidr:
            yield Finding(("spec", "podCIDR"), "must be the first of podCIDRs")
    for i, cidr in enumerate(spec.pod_cidrs):
        yield from _wrong(("spec", "podCIDRs", i), syntax.network(cidr))
    for i, address in enumerate(node.status.addresses):
        if address.type in ("InternalIP", "ExternalIP"):
            yield from _wrong(("status", "addresses", i, "address"), syntax.host_address(address.address))


def _endpoint_slice(endpoints: EndpointSlice) -> Iterator[Finding]:
    version = 4 if endpoints.address_type == "IPv4" else 6
    for i, endpoint in enumerate(endpoints.endpoints):
        if not endpoint.addresses:
            yield Finding(("endpoints", i, "addresses"), "an endpoint needs an address")
        for j, address in enumerate(endpoint.addresses):
            yield from _wrong(("endpoints", i, "addresses", j), syntax.host_address(address, version))
    for i, port in enumerate(endpoints.ports):
        if port.port is not None:
            yield from _wrong(("ports", i, "port"), syntax.port_number(port.port))
        if port.name:
            yield from _wrong(("ports", i, "name"), syntax.dns_label(port.name))
    yield from _twice(("ports",), (p.name for p in endpoints.ports), "the port name")


def _peer_authentication(policy: PeerAuthentication) -> Iterator[Finding]:
    if policy.spec.selector is not None:
        yield from _labels(("spec", "selector", "matchLabels"), policy.spec.selector.match_labels)
    ports = policy.spec.port_level_mtls
    if ports and not (policy.spec.selector and policy.spec.selector.match_labels):
        why = "is for the workloads that a selector selects, and there is none"
        yield Finding(("spec", "portLevelMtls"), why, "add spec.selector.matchLabels")
    for port in ports:
        path = ("spec", "portLevelMtls", port)
        if port.isdecimal():
            yield from _wrong(path, syntax.port_number(int(port)))
        else:
            yield Finding(path, "is not a port number of the workload")


def _reference_grant(grant: ReferenceGrant) -> Iterator[Finding]:
    for name, entries in (("from", grant.spec.from_), ("to", grant.spec.to)):
        if not 1 <= len(entries) <= 16:
            yield Finding(("spec", name), f"holds {len(entries)} entries; it must be 1 to 16")
    for i, source in enumerate(grant.spec.from_):
        yield from _wrong(("spec", "from", i, "namespace"), syntax.dns_label(source.namespace))
    for i, target in enumerate(grant.spec.to):
        if target.name == "":
            yield Finding(("spec", "to", i, "name"), "is empty", "leave it out to mean every name")


def _namespace(_: Namespace) -> Iterator[Finding]:
    yield from ()


_NAMES: Mapping[type[AnyKind], Callable[[str], str]] = {
    Service: syntax.service_name,
    Namespace: syntax.dns_label,
}

_CHECKS: Mapping[type[AnyKind], Callable[[Any], Iterator[Finding]]] = {
    Workload: _workload,
    Node: _node,
    Service: service_checks.check,
    EndpointSlice: _endpoint_slice,
    Endpoints: endpoints_mirror.check,
    CiliumNetworkPolicy: policy_checks.check,
    CiliumClusterwideNetworkPolicy: policy_checks.check,
    CiliumCIDRGroup: policy_checks.check_group,
    NetworkPolicy: netpol_checks.check,
    Namespace: _namespace,
    HTTPRoute: route_checks.check,
    GRPCRoute: route_checks.check_grpc,
    ReferenceGrant: _reference_grant,
    PeerAuthentication: _peer_authentication,
    GatewayClass: gateway_checks.check_class,
    Gateway: gateway_checks.check,
    ListenerSet: gateway_checks.check_set,
    Secret: gateway_checks.check_secret,
    ConfigMap: gateway_checks.check_config_map,
    TLSRoute: l4_checks.check_tls_route,
    TCPRoute: l4_checks.check_l4_route,
    UDPRoute: l4_checks.check_l4_route,
    Ingress: ingress_checks.check,
    IngressClass: ingress_checks.check_class,
    BackendTLSPolicy: l4_checks.check_backend_tls,
    BackendPolicy: traffic_checks.check_backend,
    XBackendTrafficPolicy: traffic_checks.check_retries,
    HTTPPolicy: http_policy_checks.check,
}
