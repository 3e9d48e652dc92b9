"""The stages of one compilation, each computed once and only when asked for. Pure.

Both halves of a Plan, the kernel's tables and the proxy's model, are made from the same stages: who there is,
what the policies say, which Services are served, and which routes apply.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from penstock.manifests.kinds import CiliumNetworkPolicy
from penstock.mtls.spiffe import for_workload
from penstock.plan import Direction, PolicyEntry, PolicyKey
from penstock.policy.entries import entries, stances
from penstock.policy.identities import Member, Members, members
from penstock.policy.mesh_tls import MeshModes
from penstock.policy.rights import Destination, Stances, rights
from penstock.policy.rules import policy_specs
from penstock.routing.mesh import MeshRoutes, mesh_routes
from penstock.routing.model import Rights
from penstock.routing.services import ServedPort, served_ports
from penstock.world import World


class Facts:
    """What follows from `world` alone."""

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

    def rights(self, reached: Iterable[Destination]) -> tuple[Rights, ...]:
        """Who may send what to these endpoints."""
        return rights(reached, self.members, self.stances, host_access=self.world.settings.host_access)
