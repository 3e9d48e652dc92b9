"""Services and their endpoints: who stands behind a name and a port.

A Service with a selector takes the workloads of its namespace that match; one without takes its
EndpointSlices. Virtual addresses come with the World (given by the manifest or allocated).

Source: Kubernetes v1 Service, discovery.k8s.io/v1 EndpointSlice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from penstock.manifests.document import Document
from penstock.manifests.kinds import EndpointSlice, Service, ServicePort, Workload
from penstock.policy.identities import Member, Members
from penstock.policy.rules import PROTOCOLS
from penstock.world import Address, World, parse_address

Family = Literal[4, 6]
SLICE_LABEL = "kubernetes.io/service-name"
EDGE = "edge"
"""The way through Gateways that show backends no certificate of their own."""

H2_PROTOCOLS = ("kubernetes.io/h2c", "grpc")


@dataclass(frozen=True, slots=True)
class Backend:
    """An endpoint of a Service port. `member` is None where the address is no workload of ours."""

    address: Address
    port: int
    member: Member | None


@dataclass(frozen=True, slots=True)
class ServedPort:
    """One port of a Service in one address family."""

    document: Document
    port: ServicePort
    family: Family
    vip: Address | None
    backends: tuple[Backend, ...]
    grpc: bool = False
    """As the backend of a GRPCRoute: HTTP/2 is spoken to it whatever the port says."""
    edge: str = ""
    """As a backend of Gateways: requests leave from the node's own ingress address. "edge" for all of them,
    more for one that shows backends a certificate of its own."""
    stream: bool = False
    """As a backend of bytes or datagrams, which nobody can judge one by one."""

    @property
    def name(self) -> str:
        """``namespace/service:port/family``: what clusters and route tables are called after."""
        plain = f"{self.document.key.namespace}/{self.document.key.name}:{self.port.port}/{self.family}"
        plain = f"{plain}/grpc" if self.grpc else plain
        plain = f"{plain}/{self.edge}" if self.edge else plain
        return f"{plain}/{self.port.protocol.lower()}" if self.stream else plain

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


class _Selection:
    """Workloads by namespace and label, so that a Service touches only those that it may select."""

    def __init__(self, members: Members) -> None:
        self._by_label: dict[tuple[str, str, str], list[Member]] = {}
        for member in members.all:
            for key, value in member.document.metadata.labels.items():
                self._by_label.setdefault((member.namespace, key, value), []).append(member)

    def of(self, namespace: str, selector: Mapping[str, str] | None) -> list[Member]:
        if not selector:
            return []
        fewest = min((self._by_label.get((namespace, k, v), []) for k, v in selector.items()), key=len)
        return [m for m in fewest if all(m.document.metadata.labels.get(k) == v for k, v in selector.items())]


def _target(port: ServicePort, member: Member) -> int | None:
    if port.target_port is None:
        return port.port
    text = str(port.target_port)
    return int(text) if text.isdigit() else member.port_named(text, port.protocol)


def _ready(member: Member, service: Service) -> bool:
    workload = member.document.value
    assert isinstance(workload, Workload)
    return workload.spec.ready or service.spec.publish_not_ready_addresses


def _from_selector(port: ServicePort, family: Family, chosen: list[Member]) -> Iterator[Backend]:
    for member in chosen:
        number = _target(port, member)
        if number is None or not member.present:
            continue
        for address in member.addresses:
            if address.version == family:
                yield Backend(address, number, member)


def _from_slices(
    document: Document,
    port: ServicePort,
    family: Family,
    slices: list[EndpointSlice],
    by_address: Mapping[Address, Member],
) -> Iterator[Backend]:
    for piece in slices:
        if piece.address_type != f"IPv{family}":
            continue
        numbers = [p.port for p in piece.ports if p.name == port.name and p.protocol == port.protocol]
        for endpoint in piece.endpoints:
            if endpoint.conditions.ready is False:
                continue
            for text in endpoint.addresses:
                address = parse_address(text)
                for number in numbers:
                    if number is not None:
                        yield Backend(address, number, by_address.get(address))


def service_name(served: ServedPort) -> str:
    """What the number of a Service port in the kernel's table is allocated for."""
    return f"{served.name}/{served.port.protocol}"


def served_names(world: World) -> tuple[str, ...]:
    """`service_name` of every port, without looking for its backends."""
    return tuple(
        f"{document.key.namespace}/{document.key.name}:{port.port}/{family}/{port.protocol}"
        for document, service in world.of_kind(Service)
        for family in families(service)
        for port in service.spec.ports
    )


def served_ports(world: World, members: Members) -> tuple[ServedPort, ...]:
    """Every port of every Service, once for each address family, in the order of names."""
    slices: dict[tuple[str, str], list[EndpointSlice]] = {}
    for document, piece in world.of_kind(EndpointSlice):
        owner = piece.metadata.labels.get(SLICE_LABEL)
        if owner:
            slices.setdefault((document.key.namespace, owner), []).append(piece)
    if not any(world.of_kind(Service)):
        return ()
    by_address = {a: m for m in members.all for a in m.addresses} if slices else {}
    selection = _Selection(members)

    result = []
    for document, service in world.of_kind(Service):
        selected = selection.of(document.key.namespace, service.spec.selector)
        chosen = [member for member in selected if _ready(member, service)]
        owned = slices.get((document.key.namespace, document.key.name), [])
        for family in families(service):
            text = world.allocations.vips.get(f"{document.key.namespace}/{document.key.name}/{family}")
            vip = parse_address(text) if text and not headless(service) else None
            for port in service.spec.ports:
                if service.spec.selector:
                    found = _from_selector(port, family, chosen)
                else:
                    found = _from_slices(document, port, family, owned, by_address)
                unique = {(b.address, b.port): b for b in found}
                backends = tuple(unique[key] for key in sorted(unique))
                result.append(ServedPort(document, port, family, vip, backends))
    return tuple(result)
