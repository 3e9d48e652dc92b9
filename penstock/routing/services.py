"""Services: names, ports, families, and where they are to be served. Who stands behind them is in endpoints.

A Service with a selector takes the workloads of its namespace that match; one without takes its
EndpointSlices. Virtual addresses come with the World (given by the manifest or allocated).

Source: Kubernetes v1 Service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from penstock.manifests.document import Document
from penstock.manifests.kinds import Service, ServicePort
from penstock.policy.identities import Member
from penstock.policy.rules import PROTOCOLS
from penstock.world import Address, World, parse_address

Family = Literal[4, 6]
EDGE = "edge"
"""The way through Gateways that show backends no certificate of their own."""

H2_PROTOCOLS = ("kubernetes.io/h2c", "grpc")


@dataclass(frozen=True, slots=True)
class Backend:
    """An endpoint of a Service port. `member` is None where the address is no workload of ours."""

    address: Address
    port: int
    member: Member | None
    local: bool = False
    """It is on this node."""
    zone: str = ""
    """Where its EndpointSlice says that it is."""

    @property
    def end(self) -> tuple[Address, int]:
        return self.address, self.port


@dataclass(frozen=True, slots=True)
class ServedPort:
    """One port of a Service in one address family."""

    document: Document
    port: ServicePort
    family: Family
    vip: Address | None
    empty: bool = False
    """Nobody stands behind it. Who does is told by `endpoints.Served`."""
    grpc: bool = False
    """As the backend of a GRPCRoute: HTTP/2 is spoken to it whatever the port says."""
    edge: str = ""
    """As a backend of Gateways: requests leave from the node's own ingress address. "edge" for all of them,
    more for one that shows backends a certificate of its own."""
    stream: bool = False
    """As a backend of bytes or datagrams, which nobody can judge one by one."""

    _names: list[str] = field(default_factory=list, init=False, repr=False, compare=False)
    """`name` and `place`: asked for at every change, of every Service."""

    def _named(self) -> list[str]:
        if not self._names:
            key = self.document.key
            plain = f"{key.namespace}/{key.name}:{self.port.port}/{self.family}"
            name = f"{plain}/grpc" if self.grpc else plain
            name = f"{name}/{self.edge}" if self.edge else name
            protocol = self.port.protocol
            self._names[:] = f"{name}/{protocol.lower()}" if self.stream else name, f"{plain}/{protocol}"
        return self._names

    @property
    def name(self) -> str:
        """``namespace/service:port/family``: what clusters and route tables are called after."""
        return self._named()[0]

    @property
    def place(self) -> str:
        """The Service port itself, whichever way leads to it: its number in the kernel's table is allocated
        for this."""
        return self._named()[1]

    def filled(self, *, empty: bool) -> ServedPort:
        """The same with, or without, anybody behind it."""
        return replace(self, empty=empty)

    @property
    def protocol(self) -> int:
        return PROTOCOLS[self.port.protocol][0]

    @property
    def http2(self) -> bool:
        return self.grpc or self.port.app_protocol in H2_PROTOCOLS


def families(service: Service) -> tuple[Family, ...]:
    """The address families of a Service: as said, by its addresses, or by its policy; IPv4 by default."""
    given = service.spec.cluster_ips or [a for a in (service.spec.cluster_ip,) if a]
    fixed = [a for a in given if a != "None"]
    found: list[Family] = [4 if f == "IPv4" else 6 for f in service.spec.ip_families]
    if not found:
        found = [4 if parse_address(a).version == 4 else 6 for a in fixed] or [4]
    if service.spec.ip_family_policy in ("PreferDualStack", "RequireDualStack"):
        found += [f for f in (4, 6) if f not in found]
    return tuple(dict.fromkeys(found))


def headless(service: Service) -> bool:
    return service.spec.cluster_ip == "None" or "None" in service.spec.cluster_ips


def fixed_vip(service: Service, family: Family) -> str | None:
    """The address that the manifest gives, if any."""
    for text in (*service.spec.cluster_ips, service.spec.cluster_ip):
        if text and text != "None" and parse_address(text).version == family:
            return text
    return None


def wanted_vips(world: World) -> Mapping[str, str | None]:
    """``namespace/name/family`` → the address given by the manifest, or None to have one allocated."""
    return {
        f"{document.key.namespace}/{document.key.name}/{family}": fixed_vip(service, family)
        for document, service in world.of_kind(Service)
        if not headless(service)
        for family in families(service)
    }


def served_names(world: World) -> tuple[str, ...]:
    """`ServedPort.place` of every port, and of its further sets of backends, without looking for them."""
    return tuple(
        f"{document.key.namespace}/{document.key.name}:{port.port}/{family}/{port.protocol}{which}"
        for document, service in world.of_kind(Service)
        for family in families(service)
        for port in service.spec.ports
        for which in ("", *further_sets(service))
    )


LOCAL_SET, OUTSIDE_SET, ALIAS_SET, BEYOND_SET = "/local", "/outside", "/alias", "/beyond"


def further_sets(service: Service) -> tuple[str, ...]:
    """What the numbers of a port's further sets of backends are allocated for, behind its `place`."""
    found = [LOCAL_SET] if service.spec.internal_traffic_policy == "Local" else []
    if service.spec.type != "ClusterIP" or service.spec.external_ips:
        found += [OUTSIDE_SET, ALIAS_SET]
        if service.spec.external_traffic_policy == "Cluster":
            found.append(BEYOND_SET)
    return tuple(found)


def wanted_balancers(world: World) -> Mapping[str, str | None]:
    """``namespace/name/family`` → the load balancer's address as the manifest gives it, or None."""
    found: dict[str, str | None] = {}
    for document, service in world.of_kind(Service):
        if service.spec.type == "LoadBalancer":
            given = service.spec.load_balancer_ip
            for family in families(service):
                fits = given is not None and parse_address(given).version == family
                found[f"{document.key.namespace}/{document.key.name}/{family}"] = given if fits else None
    return found


def has_node_ports(service: Service) -> bool:
    spec = service.spec
    return spec.type == "NodePort" or (spec.type == "LoadBalancer" and spec.allocate_load_balancer_node_ports)


def node_port_name(document: Document, port: ServicePort) -> str:
    return f"{document.key.namespace}/{document.key.name}:{port.port}/{port.protocol}"


def wanted_node_ports(world: World) -> Mapping[str, int | None]:
    """`node_port_name` → the port that the manifest gives, or None to have one allocated."""
    return {
        node_port_name(document, port): port.node_port
        for document, service in world.of_kind(Service)
        if has_node_ports(service)
        for port in service.spec.ports
    }
