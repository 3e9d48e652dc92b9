"""Who stands behind each Service port, followed from one World to the next.

Endpoints change all the time, Services hardly ever: so what routes and tables are made of (`ServedPort`) says
nothing of endpoints but whether there are any, and stays the very same value while they come and go. Of a
change of EndpointSlices only the Services that they belong to are looked at.

Source: Kubernetes v1 Service, discovery.k8s.io/v1 EndpointSlice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from penstock.differing import Table
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import EndpointSlice, Service, ServicePort, Workload
from penstock.policy.identities import Member, Members
from penstock.routing.services import Backend, Family, ServedPort, families, headless
from penstock.world import Address, World, parse_address

SLICE_LABEL = "kubernetes.io/service-name"

Owner = tuple[str, str]
"""Namespace and name of a Service."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Those of one Service port. `ending` are terminating, but still serving: who has one keeps it, nobody
    gets one."""

    backends: tuple[Backend, ...] = ()
    ending: tuple[Backend, ...] = ()


NO_ENDS = Ends()


@dataclass(frozen=True, slots=True)
class Served:
    """Every port of every Service, once for each address family, in the order of names; and who stands behind
    each (`ServedPort.place`)."""

    ports: tuple[ServedPort, ...] = ()
    ends: Table[str, Ends] = field(default_factory=Table)

    def of(self, port: ServedPort) -> Ends:
        """Who stands behind a port, whichever way leads to it."""
        return self.ends.get(port.place, NO_ENDS)


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


def _from_selector(port: ServicePort, family: Family, chosen: list[Member]) -> Iterator[tuple[Backend, bool]]:
    for member in chosen:
        number = _target(port, member)
        if number is None or not member.present:
            continue
        for address in member.addresses:
            if address.version == family:
                yield Backend(address, number, member, member.local), True


def _from_slices(
    service: Service,
    port: ServicePort,
    family: Family,
    slices: Iterable[EndpointSlice],
    by_address: Mapping[Address, Member],
    node: str,
) -> Iterator[tuple[Backend, bool]]:
    """Every endpoint that serves, and whether it is ready for new connections.

    A condition that is absent counts as true, `serving` as `ready` (discovery.k8s.io/v1, EndpointConditions).
    """
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
                member = by_address.get(address) if by_address else None
                local = member.local if member is not None else endpoint.node_name == node
                for number in numbers:
                    if number is not None:
                        yield Backend(address, number, member, local, endpoint.zone or ""), ready


def _sorted_out(found: Iterable[tuple[Backend, bool]]) -> Ends:
    """Those by address. Where all are ending they get new connections too (KEP-1669)."""
    ready: dict[tuple[int, int], Backend] = {}
    ending: dict[tuple[int, int], Backend] = {}
    for backend, is_ready in found:
        # All are of one family, and a number is told apart in a tenth of the time of an address.
        (ready if is_ready else ending)[int(backend.address), backend.port] = backend
    if not ready:
        ready, ending = ending, {}
    return Ends(
        tuple(ready[end] for end in sorted(ready)),
        tuple(ending[end] for end in sorted(ending) if end not in ready),
    )


class _Endpoints:
    """Looks for the endpoints of Services of one World."""

    def __init__(self, world: World, members: Members, of: Collection[Owner] | None = None) -> None:
        """`of`: only these are asked about."""
        self._world = world
        self._slices: dict[Owner, list[EndpointSlice]] = {}
        for document, piece in world.of_kind(EndpointSlice):
            owner = _owner(document)
            if owner is not None and (of is None or owner in of):
                self._slices.setdefault(owner, []).append(piece)
        self._members = members
        self._by_address = {a: m for m in members.all for a in m.addresses} if self._slices else {}
        self._selection: _Selection | None = None

    def _chosen(self, document: Document, service: Service) -> list[Member]:
        if not service.spec.selector:
            return []
        self._selection = self._selection or _Selection(self._members)
        selected = self._selection.of(document.key.namespace, service.spec.selector)
        return [member for member in selected if _ready(member, service)]

    def of(self, document: Document) -> Iterator[tuple[ServicePort, Family, Ends]]:
        service = document.value
        assert isinstance(service, Service)
        chosen = self._chosen(document, service)
        owned = self._slices.get((document.key.namespace, document.key.name), ())
        for family in families(service):
            for port in service.spec.ports:
                if service.spec.selector:
                    found = _from_selector(port, family, chosen)
                else:
                    found = _from_slices(service, port, family, owned, self._by_address, self._world.node)
                yield port, family, _sorted_out(found)


def _owner(document: Document) -> Owner | None:
    name = document.metadata.labels.get(SLICE_LABEL)
    return (document.key.namespace, name) if name else None


def served_ports(world: World, members: Members, before: Served | None = None) -> Served:
    """The Services of `world`. `before` never changes a result: what is equal is the very same value."""
    if not world.documents_of(Service):
        return before if before is not None and not before.ports else Served()
    endpoints = _Endpoints(world, members)
    known = {port.place: port for port in before.ports} if before is not None else {}
    ports: list[ServedPort] = []
    ends: dict[str, Ends] = {}
    for document, service in world.of_kind(Service):
        vips = {}
        for family in families(service):
            text = world.allocations.vips.get(f"{document.key.namespace}/{document.key.name}/{family}")
            vips[family] = parse_address(text) if text and not headless(service) else None
        for port, family, found in endpoints.of(document):
            made = ServedPort(document, port, family, vips[family], empty=not found.backends)
            there = known.get(made.place)
            ports.append(
                there
                if there is not None
                and there.document is document
                and (there.vip, there.empty) == (made.vip, made.empty)
                else made
            )
            old = before.ends.get(made.place) if before is not None else None
            ends[made.place] = old if old is not None and old == found else found
    if before is None:
        return Served(tuple(ports), Table(ends))
    same = len(ports) == len(before.ports) and all(a is b for a, b in zip(ports, before.ports, strict=True))
    changes = {
        place: ends.get(place)
        for place in (*ends, *before.ends)
        if ends.get(place) is not before.ends.get(place)
    }
    return Served(before.ports if same else tuple(ports), before.ends.after(changes))


def followed(
    world: World, members: Members, before: Served, old: World, changed: Iterable[ObjectKey]
) -> Served:
    """`before` where of all that it follows from only EndpointSlices have `changed` since `old`."""
    keys = [key for key in changed if key.kind == EndpointSlice.__name__]
    owners = {
        owner
        for documents in (old.documents, world.documents)
        for key in keys
        if (document := documents.get(key)) is not None and (owner := _owner(document)) is not None
    }
    endpoints = _Endpoints(world, members, owners)
    changes: dict[str, Ends | None] = {}
    emptied: dict[str, bool] = {}
    for namespace, name in owners:
        service = world.documents.get(ObjectKey(Service.__name__, namespace, name))
        if service is None:
            continue
        for port, family, found in endpoints.of(service):
            place = ServedPort(service, port, family, None).place
            known = before.ends.get(place, NO_ENDS)
            if known != found:
                changes[place] = found
            if bool(known.backends) != bool(found.backends):
                emptied[place] = not found.backends
    if not changes:
        return before
    ports = before.ports
    if emptied:
        ports = tuple(p if p.place not in emptied else p.filled(empty=emptied[p.place]) for p in ports)
    return Served(ports, before.ends.after(changes))
