"""Services → where they are served: at their own address, on node ports, at addresses for the outside. Pure.

Each place is one entry of the kernel's service table. What it keeps true:

- who is inside (the node and its workloads) gets any endpoint, wherever it is, but of a Service with
  `internalTrafficPolicy: Local` only those of this node;
- who comes from outside keeps its own source address: policy judges who it really is. It gets an endpoint
  of this node; where there is none, and the Service does not say `externalTrafficPolicy: Local`, its packets
  go on as they are to a node of the mesh that has one, and that one answers;
- a Service with a route is the same at every address for workloads: they are sent to its own, where the
  route is. Clients from outside get its endpoints, and with them their rules.

Source: Kubernetes v1 Service; KEP-1669 and KEP-2086 (traffic policies).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from penstock.differing import Table, differing
from penstock.manifests.document import ObjectKey
from penstock.manifests.kinds import Node, Service
from penstock.manifests.service_kinds import affinity_seconds, maglev_size
from penstock.plan import BackendSet, ServiceEntry, ServiceKey
from penstock.policy.identities import meshed_nodes
from penstock.routing.endpoints import Ends, Served
from penstock.routing.mesh import MeshRoutes
from penstock.routing.services import (
    ALIAS_SET,
    BEYOND_SET,
    LOCAL_SET,
    OUTSIDE_SET,
    Backend,
    ServedPort,
    has_node_ports,
    node_port_name,
)
from penstock.world import Address, World, parse_address


@dataclass(frozen=True, slots=True)
class Frontends:
    """`conflicts`: Services that another one, earlier by name, keeps from being served somewhere."""

    entries: Table[ServiceKey, ServiceEntry]
    conflicts: Mapping[ObjectKey, str]
    addresses: tuple[Address, ...]
    """Those of Services that no node has: this one answers for them."""
    reserved_ports: tuple[int, ...]
    routed: frozenset[str] = frozenset()
    """The Service ports with a route."""

    def followed(self, world: World, before: Served, served: Served) -> Frontends | None:
        """These, made of `before`, where nothing but endpoints is another in `served`; None if all must be
        looked at."""
        if served.ends is before.ends:
            return self
        if self.conflicts:
            return None
        changed = set(differing(before.ends, served.ends))
        changes: dict[ServiceKey, ServiceEntry | None] = {}
        for port in served.ports:
            if port.place not in changed:
                continue
            old, new = (dict(_served_at(world, port, each, self.routed)) for each in (before, served))
            if any(key in self.entries for key in new.keys() - old.keys()) or changes.keys() & new.keys():
                return None
            changes.update(dict.fromkeys(old.keys() - new.keys()))
            changes.update((key, entry) for key, entry in new.items() if old.get(key) != entry)
        return replace(self, entries=self.entries.after(changes)) if changes else self


def _served_at(
    world: World, port: ServedPort, served: Served, routed: Collection[str]
) -> Iterator[tuple[ServiceKey, ServiceEntry]]:
    number = world.allocations.service_ids.get(port.place)
    if port.vip is not None and number is not None:
        http = port.name in routed and port.port.protocol == "TCP"
        yield from _places(world, port, served.of(port), port.vip, number, http=http)


def frontends(world: World, served: Served, mesh: MeshRoutes) -> Frontends:
    """Every place at which a Service is served on this node."""
    routed = frozenset(t.served.name for t in mesh.tables if not t.plain)
    found: dict[ServiceKey, ServiceEntry] = {}
    owners: dict[ServiceKey, ObjectKey] = {}
    vips: dict[Address, ObjectKey] = {}
    conflicts: dict[ObjectKey, str] = {}
    addresses: set[Address] = set()
    for port in served.ports:
        number = world.allocations.service_ids.get(port.place)
        if port.vip is None:
            continue
        owner = port.document.key
        if vips.setdefault(port.vip, owner) != owner:
            conflicts[owner] = f"clusterIP {port.vip} belongs to {vips[port.vip]}"
        if number is None:
            continue
        addresses.update(_given(world, port))
        for key, entry in _served_at(world, port, served, routed):
            if owners.setdefault(key, owner) == owner:
                found[key] = entry
            else:
                conflicts.setdefault(owner, f"{key.address} port {key.port} belongs to {owners[key]}")
    foreign = addresses.difference(world.node_addresses)
    return Frontends(
        Table(found),
        conflicts,
        tuple(sorted(foreign, key=lambda a: (a.version, a))),
        tuple(sorted(set(world.allocations.node_ports.values()))),
        routed,
    )


def _places(
    world: World, served: ServedPort, ends: Ends, vip: Address, number: int, *, http: bool
) -> Iterator[tuple[ServiceKey, ServiceEntry]]:
    service = served.document.value
    assert isinstance(service, Service)
    ids, name = world.allocations.service_ids, served.place
    affinity, maglev = affinity_seconds(service), maglev_size(service)
    every, ending = _ends(ends.backends), _ends(ends.ending)
    inside = BackendSet(number, every, ending)
    if service.spec.internal_traffic_policy == "Local":
        near = (ends.backends, ends.ending)
        inside = BackendSet(ids.get(name + LOCAL_SET, 0), *(_ends(b for b in of if b.local) for of in near))
    key = ServiceKey(vip, served.port.port, served.protocol)
    yield (
        key,
        ServiceEntry(
            inside.number,
            served.name,
            inside.backends,
            http=http,
            ending=inside.ending,
            affinity=affinity,
            maglev=maglev,
        ),
    )
    if service.spec.type == "ClusterIP" and not service.spec.external_ips:
        return
    outside = BackendSet(
        ids.get(name + OUTSIDE_SET, 0),
        _ends(b for b in ends.backends if b.local),
        _ends(b for b in ends.ending if b.local),
    )
    beyond = None
    if service.spec.external_traffic_policy == "Cluster":
        far = (_ends(b for b in of if _beyond(b)) for of in (ends.backends, ends.ending))
        beyond = BackendSet(ids.get(name + BEYOND_SET, 0), *far)
    entry = ServiceEntry(
        number,
        served.name,
        every,
        http=http,
        ending=ending,
        external=True,
        outside=outside,
        alias=BackendSet(ids.get(name + ALIAS_SET, 0), ((vip, served.port.port),)),
        affinity=affinity,
        maglev=maglev,
        beyond=beyond if beyond and beyond.number and (beyond.backends or beyond.ending) else None,
    )
    for address in _given(world, served):
        yield ServiceKey(address, served.port.port, served.protocol), entry
    node_port = world.allocations.node_ports.get(node_port_name(served.document, served.port))
    if node_port is not None and has_node_ports(service):
        for address in world.node_addresses:
            if address.version == served.family:
                yield ServiceKey(address, node_port, served.protocol), entry
        # What another node sends on here is for that node's address.
        if service.spec.external_traffic_policy == "Cluster" and (outside.backends or outside.ending):
            entry = replace(entry, beyond=None)
            for address in _other_nodes(world):
                if address.version == served.family:
                    yield ServiceKey(address, node_port, served.protocol), entry


def _beyond(backend: Backend) -> bool:
    """Whether another node of the mesh has it: only such a one knows what is sent on to it."""
    return not backend.local and backend.member is not None and backend.member.mesh


def _other_nodes(world: World) -> Iterator[Address]:
    meshed = meshed_nodes(world)
    for document, node in world.of_kind(Node):
        if document.key.name != world.node and document.key.name in meshed:
            for each in node.status.addresses:
                if each.type == "InternalIP":
                    yield parse_address(each.address)


def _given(world: World, served: ServedPort) -> tuple[Address, ...]:
    """The Service's addresses for clients from outside, of the family of `served`."""
    service, key = served.document.value, served.document.key
    assert isinstance(service, Service)
    found = [parse_address(text) for text in service.spec.external_ips]
    if service.spec.type == "LoadBalancer":
        text = world.allocations.balancers.get(f"{key.namespace}/{key.name}/{served.family}")
        if text:
            found.append(parse_address(text))
    return tuple(dict.fromkeys(a for a in found if a.version == served.family))


def _ends(backends: Iterable[Backend]) -> tuple[tuple[Address, int], ...]:
    return _shared(tuple(b.end for b in backends))


@lru_cache(maxsize=65536)
def _shared(ends: tuple[tuple[Address, int], ...]) -> tuple[tuple[Address, int], ...]:
    """One tuple for equal ones: many places of a Service have the same backends."""
    return ends
