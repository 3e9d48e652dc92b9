"""The stages of one compilation, each computed once and only when asked for. Pure.

Both halves of a Plan, the kernel's tables and the proxy's model, are made from the same stages: who there is,
what the policies say, which Services are served, and which routes apply.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import (
    EndpointSlice,
    Namespace,
    Node,
    PeerAuthentication,
    Service,
    Workload,
)
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ReferenceGrant
from penstock.mtls.spiffe import for_workload
from penstock.plan import Direction, IpcacheEntry, PolicyEntry, PolicyKey
from penstock.policy.addresses import Whois, followed, ipcache
from penstock.policy.entries import Stance, entries, stances
from penstock.policy.identities import Member, Members, members
from penstock.policy.labels import WORLD
from penstock.policy.mesh_tls import MeshModes
from penstock.policy.netpol import POLICY_KINDS, specs_of
from penstock.policy.prefixes import prefixes
from penstock.policy.rights import Destination, SourceRights, Stances, rights
from penstock.policy.rules import PolicySpec
from penstock.routing.gateways import EDGE_KINDS, Edge, compile_edge
from penstock.routing.mesh import MeshRoutes, mesh_routes
from penstock.routing.model import HostTable, Rights
from penstock.routing.rules import Services, services_of
from penstock.routing.services import ServedPort, served_ports
from penstock.world import Address, Network, World


class Facts:
    """What follows from `world` alone.

    `before` are the facts of an earlier World: what has the same inputs is taken from there instead of being
    computed again. It never changes a result.
    """

    def __init__(self, world: World, before: Facts | None = None) -> None:
        self.world = world
        self._before = before

    def forget(self) -> None:
        """Let go of the facts before, so that not all history is kept."""
        self._before = None

    def _same_documents(self, *kinds: type) -> bool:
        """Whether the documents of these kinds are the very ones of before."""
        if self._before is None:
            return False
        return all(self.world.same_of_kind(self._before.world, kind) for kind in kinds)

    @cached_property
    def members(self) -> Members:
        before, world = self._before, self.world
        if (
            before is None
            or world.node != before.world.node
            or world.allocations.identities != before.world.allocations.identities
            or not self._same_documents(Namespace)
        ):
            return members(world)
        if (
            self._same_documents(Workload, Node, *EDGE_KINDS)
            and world.allocations.gateways == before.world.allocations.gateways
            and world.attachments == before.world.attachments
            and world.allocations.prefixes == before.world.allocations.prefixes
            and prefixes(world) == before.members.index.prefixes.identities.keys()
        ):
            return before.members
        return members(world, before.members)

    @property
    def _same_members(self) -> bool:
        return self._before is not None and self.members is self._before.members

    @cached_property
    def modes(self) -> MeshModes:
        return MeshModes(self.world)

    @cached_property
    def ipcache(self) -> dict[Network, IpcacheEntry]:
        before = self._before
        if (
            before is not None
            and self._same_documents(PeerAuthentication, Node)
            and self.world.node_addresses == before.world.node_addresses
            and self.edge.addresses == before.edge.addresses
            and self.members.ingress == before.members.ingress
            and self.members.index.prefixes.identities == before.members.index.prefixes.identities
        ):
            changed = followed(
                self.world, before.ipcache, before.members, self.members, self.modes, self.edge.addresses
            )
            if changed is not None:
                return changed
        return ipcache(self.world, self.members, self.modes, self.edge.addresses)

    @cached_property
    def whois(self) -> Whois:
        return Whois(self.ipcache)

    def identity_of(self, address: Address, member: Member | None) -> int:
        """The identity of `address`, which is `member`'s if there is one."""
        if member is not None:
            return member.identity
        found = self.whois(address)
        return found.identity if found else WORLD

    @cached_property
    def by_identity(self) -> dict[int, list[Member]]:
        found: dict[int, list[Member]] = {}
        for member in (*self.members.all, *self.members.ingress):
            found.setdefault(member.identity, []).append(member)
        return found

    @cached_property
    def specs(self) -> dict[ObjectKey, tuple[Document, tuple[PolicySpec, ...]]]:
        known = self._before.specs if self._before else {}
        found = {}
        for document in self.world.of_kinds(*POLICY_KINDS):
            before = known.get(document.key)
            if before is None or before[0] is not document:
                before = (document, specs_of(document))
            found[document.key] = before
        return found

    @cached_property
    def stances(self) -> Stances:
        specs = [spec for _, listed in self.specs.values() for spec in listed]
        mode = self.world.settings.policy_enforcement
        both = {direction: stances(specs, self.members, direction, mode) for direction in Direction}
        if self._before is not None and self._same_members:
            for direction, found in both.items():
                known = self._before.stances.of(direction)
                both[direction] = {s: known[s] if known[s] == what else what for s, what in found.items()}
        return Stances(both[Direction.INGRESS], both[Direction.EGRESS], self.by_identity)

    @cached_property
    def entries(self) -> dict[tuple[int, Direction], dict[PolicyKey, PolicyEntry]]:
        """Entries of the local subjects: the only ones that this node's kernel judges."""
        found = {}
        judged = (*self.members.local(), *self.members.ingress[:1])
        for member in {m.subject: m for m in judged}.values():
            for direction in Direction:
                what = self.stances.of(direction)[member.subject]
                place = (member.subject, direction)
                if (
                    self._before is not None
                    and self._same_members
                    and self._before.stances.of(direction)[member.subject] is what
                ):
                    found[place] = self._before.entries[place]
                else:
                    found[place] = entries(what, member, direction, self.members, self.by_identity)
        return found

    @cached_property
    def served(self) -> tuple[ServedPort, ...]:
        before = self._before
        if (
            before is not None
            and self._same_members
            and self._same_documents(Service, EndpointSlice)
            and self.world.allocations.vips == before.world.allocations.vips
        ):
            return before.served
        return served_ports(self.world, self.members)

    @cached_property
    def edge(self) -> Edge:
        before, world = self._before, self.world
        if (
            before is not None
            and self.served is before.served
            and self._same_documents(*EDGE_KINDS, HTTPRoute, GRPCRoute, ReferenceGrant, Namespace, Node)
            and world.allocations.gateways == before.world.allocations.gateways
        ):
            return before.edge
        return compile_edge(world, self.services, before.edge if before is not None else None)

    @cached_property
    def services(self) -> Services:
        """The very same while neither Services nor grants change."""
        before = self._before
        if before is not None and self.served is before.served and self._same_documents(ReferenceGrant):
            return before.services
        return services_of(self.world, self.served)

    @cached_property
    def mesh(self) -> MeshRoutes:
        before = self._before
        if (
            before is not None
            and self.served is before.served
            and self._same_documents(HTTPRoute, GRPCRoute, ReferenceGrant)
            and self.world.carried == before.world.carried
        ):
            return before.mesh
        return mesh_routes(self.world, self.served)

    def spiffe_id(self, member: Member) -> str:
        return str(for_workload(self.world.settings.trust_domain, member.namespace, member.service_account))

    @cached_property
    def _bound(self) -> dict[int, Stance]:
        return self.stances.bound_senders()

    @cached_property
    def tables_memo(self) -> dict[str, tuple[object, HostTable]]:
        """Table of the edge → what it was put together from, and it: the same one while that is the same."""
        return dict(self._before.tables_memo) if self._before is not None else {}

    @cached_property
    def rights_memo(self) -> dict[str, tuple[Stance | None, tuple[SourceRights, ...]]]:
        """Class of endpoints → the stance that its rights were computed from, and they."""
        before = self._before
        if before is None or not self._same_members or before._bound != self._bound:
            return {}
        present = {id(stance) for stance in self.stances.ingress.values()}
        return {
            name: (stance, found)
            for name, (stance, found) in before.rights_memo.items()
            if stance is None or id(stance) in present
        }

    def rights(self, reached: Iterable[Destination]) -> tuple[Rights, ...]:
        """Who may send what to these endpoints."""
        return rights(
            reached,
            self.members,
            self.stances,
            self._bound,
            self.rights_memo,
            host_access=self.world.settings.host_access,
        )
