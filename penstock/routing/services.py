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
    backends: tuple[Backend, ...]
    ending: tuple[Backend, ...] = ()
    """Terminating, but still serving: who has one keeps it, nobody gets one."""
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
                yield Backend(address, number, member, member.local)


def _from_slices(
    document: Document,
    port: ServicePort,
    family: Family,
    slices: list[EndpointSlice],
    by_address: Mapping[Address, Member],
    node: str,
) -> Iterator[tuple[Backend, bool]]:
    """Every endpoint that serves, and whether it is ready for new connections.

    A condition that is absent counts as true, `serving` as `ready` (discovery.k8s.io/v1, EndpointConditions).
    """
    service = document.value
    assert isinstance(service, Service)
    everybody = service.spec.publish_not_ready_addresses
    for piece in slices:
        if piece.address_type != f"IPv{family}":
            continue
        numbers = [p.port for p in piece.ports if p.name == port.name and p.protocol == port.protocol]
        for endpoint in piece.endpoints:
            ready = everybody or endpoint.conditions.ready is not False
            serving = endpoint.conditions.serving
            if not ready and not serving:
                continue
            for text in endpoint.addresses:
                address = parse_address(text)
                member = by_address.get(address)
                local = member.local if member is not None else endpoint.node_name == node
                for number in numbers:
                    if number is not None:
                        yield Backend(address, number, member, local, endpoint.zone or ""), ready


def service_name(served: ServedPort) -> str:
    """What the number of a Service port in the kernel's table is allocated for."""
    return f"{served.name}/{served.port.protocol}"


def served_names(world: World) -> tuple[str, ...]:
    """`service_name` of every port, and of its further sets of backends, without looking for them."""
    return tuple(
        f"{document.key.namespace}/{document.key.name}:{port.port}/{family}/{port.protocol}{which}"
        for document, service in world.of_kind(Service)
        for family in families(service)
        for port in service.spec.ports
        for which in ("", *further_sets(service))
    )


LOCAL_SET, OUTSIDE_SET, ALIAS_SET, BEYOND_SET = "/local", "/outside", "/alias", "/beyond"


def further_sets(service: Service) -> tuple[str, ...]:
    """What the numbers of a port's further sets of backends are allocated for, behind its `service_name`."""
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


def _each_ready(backends: Iterator[Backend]) -> Iterator[tuple[Backend, bool]]:
    return ((backend, True) for backend in backends)


def _sorted_out(found: Iterator[tuple[Backend, bool]]) -> tuple[tuple[Backend, ...], tuple[Backend, ...]]:
    """(who gets new connections, who is ending). Where all are ending they get new ones too (KEP-1669)."""
    ready: dict[tuple[Address, int], Backend] = {}
    ending: dict[tuple[Address, int], Backend] = {}
    for backend, is_ready in found:
        (ready if is_ready else ending)[backend.end] = backend
    if not ready:
        ready, ending = ending, {}
    return (
        tuple(ready[end] for end in sorted(ready)),
        tuple(ending[end] for end in sorted(ending) if end not in ready),
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
                    found = _each_ready(_from_selector(port, family, chosen))
                else:
                    found = _from_slices(document, port, family, owned, by_address, world.node)
                backends, ending = _sorted_out(found)
                result.append(ServedPort(document, port, family, vip, backends, ending))
    return tuple(result)
