"""Which Services are served and which routes apply: the facts that stand on who there is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from penstock.differing import Table, differing
from penstock.dns.compile import service_names
from penstock.dns.model import ServiceName
from penstock.manifests.http_policy_kinds import HTTPPolicy
from penstock.manifests.kinds import EndpointSlice, Namespace, Node, Service
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ReferenceGrant
from penstock.plan import ServiceEntry, ServiceKey
from penstock.policy_facts import MOST_FOLLOWED, PolicyFacts
from penstock.routing import backend_policies, endpoints, http_policies
from penstock.routing.edge import EDGE_KINDS, Edge
from penstock.routing.endpoints import Served
from penstock.routing.frontends import Frontends, frontends
from penstock.routing.gateways import compile_edge
from penstock.routing.locality import Localities
from penstock.routing.mesh import MeshRoutes, concerns_mesh, mesh_routes
from penstock.routing.rules import Services, services_of
from penstock.world import Address

Entries = Table[ServiceKey, ServiceEntry]


class ServingFacts(PolicyFacts):
    """What follows from Services, routes and Gateways."""

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
