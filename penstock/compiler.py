"""World → Plan. Pure: no I/O, no clock, no randomness; the same World gives the same Plan.

The stages stand in their own packages; here they are only put together:

    workloads, identities      policy/identities
    policies → stances         policy/rules, policy/entries     → kernel policy entries
    services → served ports    routing/services                 → kernel services, clusters
    routes → tables            routing/mesh                     → route tables
    stances at endpoints       policy/rights                    → rights that the proxy judges
    who needs which listener   routing/listeners                → listeners, kernel listener ports

Numbers come with the World. What has none yet is named in `Plan.unallocated`: the daemon gives out the
numbers and compiles again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_network
from itertools import chain

from penstock.manifests.document import ObjectKey
from penstock.manifests.kinds import CiliumNetworkPolicy, Node, Workload
from penstock.mtls.spiffe import for_workload
from penstock.plan import (
    Condition,
    Direction,
    EndpointEntry,
    IpcacheEntry,
    KernelTables,
    ListenerKey,
    MeshMode,
    ObjectStatus,
    Plan,
    PolicyEntry,
    PolicyKey,
    SecretWanted,
    ServiceEntry,
    ServiceKey,
    Verdict,
)
from penstock.policy.entries import entries, redirected_ports, stances
from penstock.policy.identities import Member, Members, identity_text, members
from penstock.policy.labels import HOST, REMOTE_NODE, WORLD
from penstock.policy.mesh_tls import MeshModes
from penstock.policy.rights import Destination, Stances, policy_class, rights
from penstock.policy.rules import policy_specs
from penstock.routing.listeners import Demand, listeners
from penstock.routing.mesh import MeshRoutes, RouteTable, mesh_routes
from penstock.routing.model import ProxyCluster, ProxyEndpoint, ProxyModel, Rights, ServiceTable
from penstock.routing.services import Backend, ServedPort, served_names, served_ports, wanted_vips
from penstock.world import Address, Network, World, parse_address


@dataclass(frozen=True, slots=True)
class Names:
    """What must have a number before a World can be compiled whole (listeners aside: see `Plan`)."""

    identities: tuple[str, ...]
    vips: dict[str, Address | None]
    services: tuple[str, ...]


def names(world: World) -> Names:
    """Everything in `world` that is known by a number."""
    vips = {name: parse_address(text) if text else None for name, text in wanted_vips(world).items()}
    return Names(
        identities=tuple(identity_text(d, w) for d, w in world.of_kind(Workload)),
        vips=vips,
        services=served_names(world),
    )


def _service_name(served: ServedPort) -> str:
    return f"{served.name}/{served.port.protocol}"


def compile_world(world: World) -> Plan:
    """What the kernel, Envoy and the CA must hold for `world`."""
    return _Compilation(world).plan()


class _Compilation:
    """The stages of one compilation, each computed once, from the World alone."""

    def __init__(self, world: World) -> None:
        self.world = world

    @cached_property
    def members(self) -> Members:
        return members(self.world)

    @cached_property
    def modes(self) -> MeshModes:
        return MeshModes(self.world)

    @cached_property
    def by_identity(self) -> dict[int, list[Member]]:
        found: dict[int, list[Member]] = {}
        for member in self.members.all:
            found.setdefault(member.identity, []).append(member)
        return found

    @cached_property
    def stances(self) -> Stances:
        specs = [
            spec
            for document, policy in self.world.of_kind(CiliumNetworkPolicy)
            for spec in policy_specs(document, policy)
        ]
        return Stances(
            stances(specs, self.members, Direction.INGRESS),
            stances(specs, self.members, Direction.EGRESS),
            self.by_identity,
        )

    @cached_property
    def entries(self) -> dict[tuple[int, Direction], dict[PolicyKey, PolicyEntry]]:
        """Entries of the local subjects: the only ones that this node's kernel judges."""
        return {
            (member.subject, direction): entries(
                self.stances.of(direction)[member.subject],
                member,
                direction,
                self.members,
                self.by_identity,
            )
            for member in {m.subject: m for m in self.members.local()}.values()
            for direction in Direction
        }

    @cached_property
    def served(self) -> tuple[ServedPort, ...]:
        return served_ports(self.world, self.members)

    @cached_property
    def mesh(self) -> MeshRoutes:
        return mesh_routes(self.world, self.served)

    def spiffe_id(self, member: Member) -> str:
        return str(for_workload(self.world.settings.trust_domain, member.namespace, member.service_account))

    # --- the proxy ---------------------------------------------------------------------------------

    def endpoint(self, backend: Backend) -> ProxyEndpoint:
        member = backend.member
        if member is None:
            return ProxyEndpoint(backend.address, backend.port, policy_class(None, backend.port))
        tls = member.mesh and self.modes.of(member) is not MeshMode.OFF
        return ProxyEndpoint(
            backend.address,
            backend.port,
            policy_class(member, backend.port),
            self.spiffe_id(member) if tls else None,
        )

    def _table(self, table: RouteTable) -> ServiceTable:
        assert table.served.vip is not None
        reached = [(b.member, b.port) for s in table.clusters for b in s.backends]
        return ServiceTable(
            name=table.served.name,
            address=table.served.vip,
            port=table.served.port.port,
            routes=table.routes,
            rights=self._rights(reached),
        )

    def _rights(self, reached: Iterable[Destination]) -> tuple[Rights, ...]:
        return rights(reached, self.members, self.stances, host_access=self.world.settings.host_access)

    @cached_property
    def guarded(self) -> tuple[tuple[Member, int], ...]:
        """Every (workload, port) that a connection may reach through the proxy at its own address."""
        of_subject: dict[int, list[Member]] = {}
        for member in self.members.all:
            if member.present:
                of_subject.setdefault(member.subject, []).append(member)
        found: dict[tuple[ObjectKey, int], tuple[Member, int]] = {}
        for (subject, direction), table in self.entries.items():
            steered = {key: e for key, e in table.items() if e.verdict is Verdict.REDIRECT}
            if not steered:
                continue
            outward = direction is Direction.EGRESS
            reached = of_subject if outward else {subject: of_subject.get(subject, [])}
            for member in chain.from_iterable(reached.values()):
                for port in redirected_ports(steered, member.identity if outward else None):
                    found[(member.document.key, port)] = (member, port)
        return tuple(found[key] for key in sorted(found))

    def proxy(self, demand: Demand) -> ProxyModel:
        clusters = {s.name: s for t in self.mesh.tables for s in t.clusters}
        workloads = [
            self.endpoint(Backend(address, port, member))
            for member, port in self.guarded
            for address in member.addresses
        ]
        return ProxyModel(
            listeners=demand.listeners,
            services=tuple(self._table(t) for t in self.mesh.tables),
            clusters=tuple(
                ProxyCluster(
                    name,
                    s.family,
                    tuple(self.endpoint(b) for b in s.backends),
                    s.http2,
                )
                for name, s in sorted(clusters.items())
            ),
            workloads=tuple(workloads),
            workload_rights=self._rights(self.guarded),
        )

    # --- the kernel --------------------------------------------------------------------------------

    def kernel(self, demand: Demand) -> KernelTables:
        endpoints: dict[Address, EndpointEntry] = {}
        netns: dict[int, int] = {}
        attach: dict[int, tuple[str, str]] = {}
        for member in self.members.local():
            at = member.attachment
            assert at is not None
            name = (member.namespace, member.document.key.name)
            for address in member.addresses:
                endpoints[address] = EndpointEntry(
                    member.identity, member.subject, at.ifindex, at.mac, at.host_mac, self.modes.of(member)
                )
            netns[at.cookie] = member.identity
            attach[at.ifindex] = name
        if self.world.node_cookie:
            netns[self.world.node_cookie] = HOST
        policy = {key: entry for table in self.entries.values() for key, entry in table.items()}
        return KernelTables(
            endpoints=endpoints,
            ipcache=self._ipcache(),
            policy=policy,
            services=self._services(),
            listeners={
                ListenerKey(listener.source_class, listener.kind, listener.destination): listener.port
                for listener in demand.listeners
            },
            netns=netns,
            attach=attach,
            routes=self._routes(),
        )

    def _ipcache(self) -> dict[Network, IpcacheEntry]:
        found: dict[Network, IpcacheEntry] = {}
        for network in ("0.0.0.0/0", "::/0"):
            found[ip_network(network)] = IpcacheEntry(WORLD, WORLD)
        for document, node in self.world.of_kind(Node):
            if document.key.name == self.world.node:
                continue
            for item in node.status.addresses:
                if item.type == "InternalIP":
                    found[ip_network(item.address)] = IpcacheEntry(REMOTE_NODE, REMOTE_NODE)
        for address in self.world.node_addresses:
            found[ip_network(address)] = IpcacheEntry(HOST, HOST, local=True)
        for member in self.members.all:
            if member.local and member.attachment is None:
                continue
            for address in member.addresses:
                found[ip_network(address)] = IpcacheEntry(
                    member.identity,
                    member.identity,
                    mesh=member.mesh,
                    mode=self.modes.of(member) if member.mesh else MeshMode.OFF,
                    local=member.local,
                )
        return found

    def _services(self) -> dict[ServiceKey, ServiceEntry]:
        routed = {t.served.name for t in self.mesh.tables}
        found = {}
        for served in self.served:
            number = self.world.allocations.service_ids.get(_service_name(served))
            if served.vip is None or number is None:
                continue
            found[ServiceKey(served.vip, served.port.port, served.protocol)] = ServiceEntry(
                number,
                served.name,
                tuple((b.address, b.port) for b in served.backends),
                http=served.name in routed and served.port.protocol == "TCP",
            )
        return found

    def _routes(self) -> dict[Network, Address]:
        found: dict[Network, Address] = {}
        for document, node in self.world.of_kind(Node):
            if document.key.name == self.world.node:
                continue
            vias = [parse_address(a.address) for a in node.status.addresses if a.type == "InternalIP"]
            for text in node.spec.pod_cidrs or [c for c in (node.spec.pod_cidr,) if c]:
                network = ip_network(text)
                via = next((v for v in vias if v.version == network.version), None)
                if via is not None:
                    found[network] = via
        return found

    # --- all of it -----------------------------------------------------------------------------------

    def plan(self) -> Plan:
        demand = listeners(
            self.world,
            self.members,
            self.entries,
            self.modes,
            routed=bool(self.mesh.tables),
            spiffe_id=self.spiffe_id,
        )
        secrets = tuple(
            SecretWanted(str(address), self.spiffe_id(member), (member.namespace, member.document.key.name))
            for member in self.members.local()
            for address in member.addresses
        )
        return Plan(
            kernel=self.kernel(demand),
            proxy=self.proxy(demand),
            secrets=secrets,
            statuses=self._statuses(),
            listener_names=demand.names,
            unallocated=demand.unallocated,
        )

    def _statuses(self) -> dict[ObjectKey, ObjectStatus]:
        found: dict[ObjectKey, ObjectStatus] = {}
        for key in self.world.documents:
            found[key] = ObjectStatus()
        for member in self.members.all:
            if member.local and member.attachment is None:
                where = member.document.value.spec.netns or member.document.value.spec.container  # type: ignore[union-attr]
                found[member.document.key] = ObjectStatus(
                    (Condition("Ready", False, "NamespaceAbsent", f"{where} is not there"),),
                    pending=f"network namespace {where} is absent",
                )
            elif member.local:
                found[member.document.key] = ObjectStatus((Condition("Ready", True, "Attached"),))
        for document, _ in self.world.of_kind(CiliumNetworkPolicy):
            found[document.key] = ObjectStatus((Condition("Valid", True, "Accepted"),))
        found.update(self.mesh.statuses)
        return found
