"""The stages of one compilation, each computed once and only when asked for. Pure.

Both halves of a Plan, the kernel's tables and the proxy's model, are made from the same stages: who there is
and what the policies say (policy_facts), which Services are served, and which routes apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from penstock.differing import Table, differing
from penstock.dns.compile import service_names
from penstock.dns.model import ServiceName
from penstock.manifests.http_policy_kinds import HTTPPolicy
from penstock.manifests.kinds import EndpointSlice, Namespace, Node, PeerAuthentication, Service
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ReferenceGrant
from penstock.mtls.spiffe import for_workload
from penstock.plan import MeshMode, ServiceEntry, ServiceKey
from penstock.policy.entries import Stance
from penstock.policy.identities import Member
from penstock.policy.rights import Destination, SourceRights, rights
from penstock.policy_facts import MOST_FOLLOWED, PolicyFacts
from penstock.routing import backend_policies, endpoints, http_policies
from penstock.routing.edge import EDGE_KINDS, Edge
from penstock.routing.endpoints import Ends, Served
from penstock.routing.frontends import Frontends, frontends
from penstock.routing.gateways import compile_edge
from penstock.routing.locality import Localities
from penstock.routing.mesh import MeshRoutes, concerns_mesh, mesh_routes
from penstock.routing.model import HostTable, ProxyCluster, ProxyEndpoint, Rights, ServiceTable
from penstock.routing.rules import Services, services_of
from penstock.routing.services import Backend, ServedPort
from penstock.world import Address


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """Who stands behind a Service port: as endpoints, and one of each class of them."""

    ends: Ends
    endpoints: tuple[ProxyEndpoint, ...]
    destinations: Mapping[str, Destination]


Entries = Table[ServiceKey, ServiceEntry]


class Facts(PolicyFacts):
    """What follows from `world` alone.

    `before` are the facts of an earlier World: what has the same inputs is taken from there instead of being
    computed again. It never changes a result.
    """

    all_services: tuple[Entries, dict[ServiceKey, ServiceEntry], Entries] | None = None
    """The kernel's Services, its Gateways, and both."""

    @cached_property
    def served(self) -> Served:
        """The very same while neither Services nor their endpoints change; and of its parts each that does
        not."""
        before, world = self._before, self.world
        if before is None:
            return endpoints.served_ports(world, self.members)
        if (
            self._same_members
            and self._same_documents(Service)
            and world.allocations.vips == before.world.allocations.vips
        ):
            if self._same_documents(EndpointSlice):
                return before.served
            if len(self.changed) <= MOST_FOLLOWED:
                return endpoints.followed(world, self.members, before.served, before.world, self.changed)
        return endpoints.served_ports(world, self.members, before.served)

    @property
    def _same_ports(self) -> bool:
        """Whether Services are those of before; their endpoints may be others."""
        return self._before is not None and self.served.ports is self._before.served.ports

    @property
    def edge_addresses(self) -> tuple[Address, ...]:
        return self.edge.addresses

    @cached_property
    def service_names(self) -> Mapping[str, ServiceName]:
        before = self._before
        if before is not None and self._same_ports and "service_names" in before.__dict__:
            changed = set(differing(before.served.ends, self.served.ends))
            # What has an address of its own is known by that, whoever stands behind it.
            if not any(port.vip is None and port.place in changed for port in self.served.ports):
                return before.service_names
        return service_names(self.served)

    @cached_property
    def edge(self) -> Edge:
        before, world = self._before, self.world
        if (
            before is not None
            and self.services is before.services
            and self._same_documents(*EDGE_KINDS, HTTPRoute, GRPCRoute, Namespace, Node)
            and world.allocations.gateways == before.world.allocations.gateways
        ):
            return before.edge
        return compile_edge(world, self.services, before.edge if before is not None else None)

    @cached_property
    def services(self) -> Services:
        """The very same while neither Services nor grants nor policies about traffic change."""
        before = self._before
        kinds = [ReferenceGrant, *backend_policies.KINDS, HTTPPolicy]
        if self.world.documents_of(HTTPPolicy):
            kinds += http_policies.SOURCES
        if before is not None and self._same_ports and self._same_documents(*kinds):
            return before.services
        return services_of(self.world, self.served.ports)

    def _mesh_changed(self) -> bool:
        """Whether a route has changed that the mesh looks at, or did."""
        assert self._before is not None
        kinds = {kind.__name__ for kind in (HTTPRoute, GRPCRoute)}
        both = [
            world.documents.get(key)
            for key in self.changed
            if key.kind in kinds
            for world in (self.world, self._before.world)
        ]
        return any(concerns_mesh(document) for document in both if document is not None)

    @cached_property
    def mesh(self) -> MeshRoutes:
        before = self._before
        if (
            before is not None
            and self.services is before.services
            and not self._mesh_changed()
            and self.world.carried == before.world.carried
        ):
            return before.mesh
        return mesh_routes(self.world, self.served.ports, self.services, before.mesh if before else None)

    @cached_property
    def localities(self) -> Localities:
        return Localities(self.world)

    @cached_property
    def frontends(self) -> Frontends:
        before, now = self._before, self.world.allocations
        if (
            before is not None
            and self._same_ports
            and self.mesh is before.mesh
            and self._same_documents(Node)
            and self.world.node_addresses == before.world.node_addresses
        ):
            then = before.world.allocations
            if all(
                getattr(now, what) == getattr(then, what)
                for what in ("service_ids", "node_ports", "balancers")
            ):
                found = before.frontends.followed(self.world, before.served, self.served)
                if found is not None:
                    return found
        return frontends(self.world, self.served, self.mesh)

    def with_gateways(self, entries: Entries, gateways: dict[ServiceKey, ServiceEntry]) -> Entries:
        """Both in one table, which knows in what it differs from the one before. A Service comes first."""
        before = self._before.all_services if self._before is not None else None
        if before is not None and before[1] == gateways and entries is before[0]:
            self.all_services = before
        elif before is not None and before[1] == gateways and entries.base is before[0].token:
            changes = {key: entries.get(key, gateways.get(key)) for key in entries.changed}
            self.all_services = (entries, gateways, before[2].after(changes))
        else:
            self.all_services = (entries, gateways, Table({**gateways, **entries}))
        return self.all_services[2]

    def spiffe_id(self, member: Member) -> str:
        return _spiffe_id(self.world.settings.trust_domain, member.namespace, member.service_account)

    @cached_property
    def _bound(self) -> dict[int, Stance]:
        return self.stances.bound_senders()

    @cached_property
    def reached_memo(self) -> dict[str, Reached]:
        """Service port → who is reached there; the very same while neither they nor what is known of their
        addresses changes."""
        before = self._before
        if (
            before is None
            or not self._same_shape
            or not self._same_documents(PeerAuthentication, Namespace)
            or (self.ipcache is not before.ipcache and self.ipcache.base is not before.ipcache.token)
        ):
            return {}
        known = before.reached_memo
        if not self._same_ports:
            return {place: each for place, each in known.items() if place in self.served.ends}
        return dict(known)

    def reached(self, served: ServedPort) -> Reached:
        """Whoever stands behind a Service port, as the proxy sees them."""
        ends = self.served.of(served)
        known = self.reached_memo.get(served.place)
        if known is None or known.ends is not ends:
            known = Reached(ends, *self._reached(ends.backends))
            self.reached_memo[served.place] = known
        return known

    def _reached(
        self, backends: tuple[Backend, ...]
    ) -> tuple[tuple[ProxyEndpoint, ...], dict[str, Destination]]:
        destinations: dict[str, Destination] = {}
        found = []
        strangers: dict[tuple[int, int], str] = {}
        for backend in backends:
            address, port, member = backend.address, backend.port, backend.member
            if member is not None:
                to = self.endpoint(address, port, member)
                found.append(to[0])
                destinations.setdefault(to[0].policy_class, to[1])
                continue
            # Of what is none of ours nothing counts but who it is.
            who = (self.identity_of(address, None), port)
            if who not in strangers:
                destination = self.destination(who[0], None, port)
                strangers[who] = destination.policy_class
                destinations.setdefault(strangers[who], destination)
            found.append(ProxyEndpoint(address, port, strangers[who]))
        return tuple(found), destinations

    def endpoint(
        self, address: Address, port: int, member: Member | None
    ) -> tuple[ProxyEndpoint, Destination]:
        """An address as the proxy is told of it, and as rights are judged for it."""
        to = self.destination(self.identity_of(address, member), member, port)
        # What goes through the proxy and leaves for another node of the mesh is mesh TLS (design §6).
        tls = member is not None and member.mesh and self.modes.of(member, port) is not MeshMode.OFF
        server = self.spiffe_id(member) if member is not None and tls else None
        return ProxyEndpoint(address, port, to.policy_class, server), to

    @cached_property
    def clusters_memo(self) -> dict[str, tuple[tuple[object, ...], ProxyCluster]]:
        """Cluster → what it was put together from, and it: the same one while that is the very same."""
        return dict(self._before.clusters_memo) if self._before is not None else {}

    @cached_property
    def tables_memo(self) -> dict[str, tuple[object, HostTable]]:
        """Table of the edge → what it was put together from, and it: the same one while that is the same."""
        return dict(self._before.tables_memo) if self._before is not None else {}

    @cached_property
    def mirrors_memo(self) -> dict[str, tuple[HostTable, frozenset[str]]]:
        """Table of the edge → it, and the clusters that its mirrors name."""
        return dict(self._before.mirrors_memo) if self._before is not None else {}

    @cached_property
    def rights_memo(self) -> dict[str, tuple[Stance | None, tuple[SourceRights, ...]]]:
        """Class of endpoints → the stance that its rights were computed from, and they."""
        before = self._before
        if (
            before is None
            or not self._same_shape
            or (before.stances is not self.stances and before._bound != self._bound)
            or not self._same_documents(PeerAuthentication)
        ):
            return {}
        present = {id(stance) for stance in self.stances.ingress.values()}
        return {
            name: (stance, found)
            for name, (stance, found) in before.rights_memo.items()
            if stance is None or id(stance) in present
        }

    def rights(self, reached: Iterable[Destination]) -> tuple[Rights, ...]:
        """Who may send what to these endpoints; the very same value for the same classes of endpoints."""
        reached = tuple(reached)
        classes = frozenset(each.policy_class for each in reached)
        found = self.rights_made.get(classes)
        if found is None:
            found = rights(
                reached,
                self.members,
                self.stances,
                self._bound,
                self.rights_memo,
                host_access=self.world.settings.host_access,
            )
            before = self._before.rights_made.get(classes) if self._before is not None else None
            self.rights_made[classes] = found = before if before == found else found
        return found

    @cached_property
    def rights_made(self) -> dict[frozenset[str], tuple[Rights, ...]]:
        """Classes of endpoints → the rights at them."""
        return {}

    @cached_property
    def services_memo(self) -> dict[str, tuple[object, ServiceTable]]:
        """Table of a Service → what it was put together from, and it: the same one while that is the same."""
        return dict(self._before.services_memo) if self._before is not None else {}

    def audit_rights(self, reached: Iterable[Destination]) -> tuple[Rights, ...] | None:
        """The same as if the policies in audit were enforced; None if that is no difference."""
        if self.audited is None:
            return None
        reached = tuple(reached)
        found = rights(
            reached,
            self.members,
            self.audited,
            self.audited.bound_senders(),
            {},
            host_access=self.world.settings.host_access,
        )
        return found if found != self.rights(reached) else None


@lru_cache(maxsize=65536)
def _spiffe_id(trust_domain: str, namespace: str, account: str) -> str:
    return str(for_workload(trust_domain, namespace, account))
