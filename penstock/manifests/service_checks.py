"""The rules that a v1 Service must obey by itself.

Sources: Kubernetes API v1.31 (Service), and service_kinds.py for the annotations of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from penstock.manifests import syntax
from penstock.manifests.base import Labels
from penstock.manifests.kinds import Service, ServiceSpec
from penstock.manifests.problem import Finding, Path
from penstock.manifests.service_kinds import ALGORITHM, ALGORITHMS, TABLE_SIZE, TABLE_SIZES

NODE_PORTS = (30000, 32767)
"""The API server's default of --service-node-port-range."""
AFFINITY_SECONDS = (1, 86400)


def check(service: Service) -> Iterator[Finding]:
    spec = service.spec
    at: Path = ("spec",)
    headless = spec.cluster_ip == "None"
    if not spec.ports and not headless:
        yield Finding((*at, "ports"), "a Service needs at least one port")
    for i, port in enumerate(spec.ports):
        here = (*at, "ports", i)
        yield from _wrong((*here, "port"), syntax.port_number(port.port))
        if port.name:
            yield from _wrong((*here, "name"), syntax.dns_label(port.name))
        elif len(spec.ports) > 1:
            yield Finding((*here, "name"), "is missing: with several ports each needs a name")
        if isinstance(port.target_port, int):
            yield from _wrong((*here, "targetPort"), syntax.port_number(port.target_port))
        elif port.target_port is not None:
            yield from _wrong((*here, "targetPort"), syntax.port_name(port.target_port))
        if port.protocol == "SCTP" and _outside(spec):
            yield Finding(
                (*here, "protocol"),
                f"SCTP at a {spec.type} Service is not supported by this version of Penstock",
                code="unserved",
            )
    yield from _twice((*at, "ports"), (p.name for p in spec.ports if p.name), "the port name")
    yield from _twice((*at, "ports"), (f"{p.port}/{p.protocol}" for p in spec.ports), "the port")
    yield from _labels((*at, "selector"), spec.selector or {})
    if spec.cluster_ip not in (None, "", "None"):
        yield from _wrong((*at, "clusterIP"), syntax.host_address(spec.cluster_ip or ""))
    for i, address in enumerate(spec.cluster_ips):
        if address != "None":
            yield from _wrong((*at, "clusterIPs", i), syntax.host_address(address))
    if spec.cluster_ips and spec.cluster_ip not in (None, spec.cluster_ips[0]):
        yield Finding((*at, "clusterIPs", 0), "must be the same as clusterIP")
    if len(spec.cluster_ips) > 2 or len({":" in a for a in spec.cluster_ips}) < len(spec.cluster_ips):
        yield Finding((*at, "clusterIPs"), "holds at most one address of each family")
    yield from _twice((*at, "ipFamilies"), spec.ip_families, "the family")
    yield from _families(spec)
    yield from _node_ports(spec)
    yield from _addresses(spec)
    yield from _affinity(spec)
    yield from _algorithm(service)


def _outside(spec: ServiceSpec) -> bool:
    return spec.type != "ClusterIP" or bool(spec.external_ips)


def _families(spec: ServiceSpec) -> Iterator[Finding]:
    at: Path = ("spec",)
    if spec.ip_family_policy == "SingleStack" and len(spec.ip_families) > 1:
        yield Finding((*at, "ipFamilies"), "holds one family where ipFamilyPolicy is SingleStack")
    given = spec.cluster_ips or [a for a in (spec.cluster_ip,) if a]
    shown = ["IPv6" if ":" in a else "IPv4" for a in given if a != "None"]
    if spec.ip_families and shown and shown != spec.ip_families[: len(shown)]:
        yield Finding((*at, "ipFamilies"), "must name the families of clusterIPs, in their order")


def _node_ports(spec: ServiceSpec) -> Iterator[Finding]:
    low, high = NODE_PORTS
    for i, port in enumerate(spec.ports):
        here: Path = ("spec", "ports", i, "nodePort")
        if port.node_port is None:
            continue
        if spec.type == "ClusterIP":
            yield Finding(here, "stands only in a Service of type NodePort or LoadBalancer")
        elif not low <= port.node_port <= high:
            yield Finding(here, f"{port.node_port} is not in the range of node ports, {low} to {high}")
    yield from _twice(
        ("spec", "ports"),
        (f"{p.node_port}/{p.protocol}" for p in spec.ports if p.node_port is not None),
        "the node port",
    )


def _addresses(spec: ServiceSpec) -> Iterator[Finding]:
    at: Path = ("spec",)
    if spec.cluster_ip == "None" and spec.type != "ClusterIP":
        yield Finding((*at, "clusterIP"), f"None does not go with type {spec.type}")
    for i, address in enumerate(spec.external_ips):
        yield from _wrong((*at, "externalIPs", i), syntax.host_address(address))
    yield from _twice((*at, "externalIPs"), spec.external_ips, "the address")
    if spec.load_balancer_ip is not None:
        if spec.type != "LoadBalancer":
            yield Finding((*at, "loadBalancerIP"), "stands only in a Service of type LoadBalancer")
        yield from _wrong((*at, "loadBalancerIP"), syntax.host_address(spec.load_balancer_ip))
    if spec.external_traffic_policy == "Local" and not _outside(spec):
        yield Finding(
            (*at, "externalTrafficPolicy"),
            "stands only in a Service of type NodePort or LoadBalancer, or with externalIPs",
        )


def _affinity(spec: ServiceSpec) -> Iterator[Finding]:
    at: Path = ("spec", "sessionAffinityConfig")
    config = spec.session_affinity_config
    if config is None:
        return
    if spec.session_affinity != "ClientIP":
        yield Finding(at, "stands only where sessionAffinity is ClientIP")
    seconds = config.client_ip.timeout_seconds if config.client_ip else None
    low, high = AFFINITY_SECONDS
    if seconds is not None and not low <= seconds <= high:
        yield Finding((*at, "clientIP", "timeoutSeconds"), f"{seconds} is not from {low} to {high}")


def _algorithm(service: Service) -> Iterator[Finding]:
    notes = service.metadata.annotations
    named, size = notes.get(ALGORITHM), notes.get(TABLE_SIZE)
    if named is not None and named not in ALGORITHMS:
        yield Finding(("metadata", "annotations", ALGORITHM), f'"{named}" is none of {", ".join(ALGORITHMS)}')
    if size is not None and size not in map(str, TABLE_SIZES):
        yield Finding(
            ("metadata", "annotations", TABLE_SIZE),
            f'"{size}" is none of {", ".join(map(str, TABLE_SIZES))}',
        )


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
