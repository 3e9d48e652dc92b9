"""The stages of one compilation, each computed once and only when asked for. Pure.

Both halves of a Plan, the kernel's tables and the proxy's model, are made from the same stages: who there is,
what the policies say, which Services are served, and which routes apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache

from penstock.differing import Table
from penstock.dns.compile import service_names
from penstock.dns.model import ServiceName
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.http_policy_kinds import HTTPPolicy
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
from penstock.plan import AUDIT_VIEW, Direction, IpcacheEntry, MeshMode, ObjectStatus, PolicyEntry, PolicyKey
from penstock.policy.addresses import Whois, distinct, followed, ipcache
from penstock.policy.entries import Stance, entries, stances
from penstock.policy.identities import Member, Members
from penstock.policy.labels import HOST, WORLD
from penstock.policy.membership import followed_members, members
from penstock.policy.mesh_tls import MeshModes, TowardModes
from penstock.policy.policies import Policies, policies
from penstock.policy.rights import Destination, SourceRights, Stances, rights
from penstock.policy.rules import PolicySpec
from penstock.routing import backend_policies, http_policies
from penstock.routing.edge import EDGE_KINDS, Edge
from penstock.routing.frontends import Frontends, frontends
from penstock.routing.gateways import compile_edge
from penstock.routing.locality import Localities
from penstock.routing.mesh import MeshRoutes, concerns_mesh, mesh_routes
from penstock.routing.model import HostTable, Rights, ServiceTable
from penstock.routing.rules import Services, services_of
from penstock.routing.services import ServedPort, served_ports
from penstock.world import Address, Network, World

MOST_FOLLOWED = 500
"""Objects that change together and are looked at one by one; beyond that all is computed anew."""


class Facts:
    """What follows from `world` alone.

    `before` are the facts of an earlier World: what has the same inputs is taken from there instead of being
    computed again. It never changes a result.
    """

    def __init__(self, world: World, before: Facts | None = None, read: Policies | None = None) -> None:
        """`read` are the policies of `world`, if they have been read."""
        self.world = world
        self._before = before
        self._read = read
        self.changed: tuple[ObjectKey, ...] = world.changed_since(before.world) if before is not None else ()
        """The objects that are other documents than before."""
        self.said: Table[ObjectKey, ObjectStatus] | None = None
        """What the compilation said of each object."""

    @property
    def before(self) -> Facts | None:
        return self._before

    def forget(self) -> None:
        """Let go of the facts before, so that not all history is kept."""
        self._before = None

    def _same_documents(self, *kinds: type) -> bool:
        """Whether the documents of these kinds are the very ones of before."""
        if self._before is None:
            return False
        names = {kind.__name__ for kind in kinds}
        return not any(key.kind in names for key in self.changed)

    @cached_property
    def policies(self) -> Policies:
        return self._read or policies(self.world, self._before.policies if self._before else None)

    @cached_property
    def members(self) -> Members:
        before, world = self._before, self.world
        if (
            before is None
            or world.node != before.world.node
            or world.allocations.identities != before.world.allocations.identities
            or not self._same_documents(Namespace)
        ):
            return members(world, self.policies)
        if (
            self._same_documents(Workload, Node, *EDGE_KINDS)
            and world.allocations.gateways == before.world.allocations.gateways
            and world.attachments == before.world.attachments
            and world.allocations.prefixes == before.world.allocations.prefixes
            and self.policies.networks == before.policies.networks
            and self.policies.nodes == before.policies.nodes
            and self.policies.names == before.policies.names
        ):
            return before.members
        if (
            len(self.changed) <= MOST_FOLLOWED
            and self._same_documents(Node, *EDGE_KINDS)
            and world.allocations.gateways == before.world.allocations.gateways
            and world.attachments == before.world.attachments
            and world.allocations.prefixes == before.world.allocations.prefixes
            and self.policies.networks == before.policies.networks
            and self.policies.nodes == before.policies.nodes
            and self.policies.names == before.policies.names
        ):
            workloads = [key for key in self.changed if key.kind == Workload.__name__]
            found = followed_members(world, before.members, workloads)
            if found is not None:
                return found
        return members(world, self.policies, before.members)

    @property
    def _same_members(self) -> bool:
        return self._before is not None and self.members is self._before.members

    @property
    def _same_shape(self) -> bool:
        """Whether identities, subjects and names of ports are those of before: all that policy looks at."""
        return self._before is not None and self.members.shape is self._before.members.shape

    def workloads_changed(self) -> tuple[list[Member], list[Member]] | None:
        """The members that went and those that came since the facts before; None if the shape is another."""
        if self._before is None or not self._same_shape:
            return None
        keys = [key for key in self.changed if key.kind == Workload.__name__]
        return self._before.members.named(keys), self.members.named(keys)

    @cached_property
    def modes(self) -> MeshModes:
        return MeshModes(self.world)

    @cached_property
    def ipcache(self) -> Table[Network, IpcacheEntry]:
        before = self._before
        if (
            before is not None
            and self._same_documents(PeerAuthentication, Node)
            and self.world.node_addresses == before.world.node_addresses
            and self.edge.addresses == before.edge.addresses
            and self.members.ingress == before.members.ingress
            and self.members.index.prefixes.identities == before.members.index.prefixes.identities
            and self.members.index.nodes == before.members.index.nodes
            and self.toward.proving == before.toward.proving
        ):
            changed = self.workloads_changed()
            if changed is not None and before.distinct:
                found = followed(before.ipcache, *changed, self.toward)
                if found is not None:
                    self.__dict__["distinct"] = True
                    return found
        return ipcache(self.world, self.members, self.toward, self.edge.addresses)

    @cached_property
    def distinct(self) -> bool:
        return distinct(self.world, self.ipcache, self.members, self.edge.addresses)

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
    def by_identity(self) -> Mapping[int, tuple[Member, ...]]:
        return self.members.by_identity

    def specs(self) -> Iterator[tuple[Document, tuple[PolicySpec, ...]]]:
        """Every policy with what it says."""
        for each in self.policies.read.values():
            yield each.document, each.specs

    @cached_property
    def stances(self) -> Stances:
        if self._before is not None and self._same_shape and self.policies is self._before.policies:
            return replace(self._before.stances, by_identity=self.by_identity)
        both = self._stances(audit=False)
        if self._before is not None and self._same_shape:
            for direction, found in both.items():
                known = self._before.stances.of(direction)
                both[direction] = {s: known[s] if known[s] == what else what for s, what in found.items()}
        return Stances(both[Direction.INGRESS], both[Direction.EGRESS], self.by_identity)

    def _stances(self, *, audit: bool) -> dict[Direction, dict[int, Stance]]:
        specs = list(self.policies.specs(audit=audit))
        mode = self.world.settings.policy_enforcement
        return {direction: stances(specs, self.members, direction, mode) for direction in Direction}

    @cached_property
    def audited(self) -> Stances | None:
        """The same as if the policies in audit were enforced; None if none is."""
        if not self.policies.audit or self.world.settings.policy_enforcement == "never":
            return None
        both = self._stances(audit=True)
        return Stances(both[Direction.INGRESS], both[Direction.EGRESS], self.by_identity)

    @cached_property
    def audit_entries(self) -> dict[tuple[int, Direction], dict[PolicyKey, PolicyEntry]]:
        """The other view of the local subjects that a policy in audit is about, by subject and direction."""
        if self.audited is None:
            return {}
        found = {}
        judged = (*self.members.local(), *self.members.ingress[:1])
        for member in {m.subject: m for m in judged}.values():
            for direction in Direction:
                what = self.audited.of(direction)[member.subject]
                if what != self.stances.of(direction)[member.subject]:
                    view = replace(member, subject=member.subject | AUDIT_VIEW)
                    place = (member.subject, direction)
                    found[place] = entries(what, view, direction, self.members, self.by_identity)
        return found

    @cached_property
    def all_entries(self) -> dict[tuple[int, Direction], dict[PolicyKey, PolicyEntry]]:
        """What the kernel holds for each local subject: its entries and, if there is one, the other view."""
        return self.entries | {
            place: self.entries[place] | view for place, view in self.audit_entries.items()
        }

    @cached_property
    def toward(self) -> TowardModes:
        """How senders of this node must speak to workloads of other nodes."""
        if (
            self._before is not None
            and self._same_shape
            and self.stances.ingress is self._before.stances.ingress
        ):
            return TowardModes(self.modes, self._before.toward.proving)
        proving = frozenset(
            m.identity
            for subject, m in self.members.representatives().items()
            if any(r.authenticated and not r.deny for r in self.stances.ingress[subject].rules)
        )
        return TowardModes(self.modes, proving)

    def destination(self, identity: int, member: Member | None, port: int) -> Destination:
        """An endpoint as rights are judged for it."""
        proven = identity == HOST or (
            member is not None
            and (member.local or (member.mesh and self.modes.of(member, port) is not MeshMode.OFF))
        )
        return Destination(identity, member, port, proven)

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
                    and self._same_shape
                    and place in self._before.entries
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
    def service_names(self) -> Mapping[str, ServiceName]:
        before = self._before
        if before is not None and self.served is before.served and "service_names" in before.__dict__:
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
        if before is not None and self.served is before.served and self._same_documents(*kinds):
            return before.services
        return services_of(self.world, self.served)

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
        return mesh_routes(self.world, self.served, self.services, before.mesh if before else None)

    @cached_property
    def localities(self) -> Localities:
        return Localities(self.world)

    @cached_property
    def frontends(self) -> Frontends:
        before, now = self._before, self.world.allocations
        if before is not None and self.served is before.served and self.mesh is before.mesh:
            then = before.world.allocations
            if self.world.node_addresses == before.world.node_addresses and all(
                getattr(now, what) == getattr(then, what)
                for what in ("service_ids", "node_ports", "balancers")
            ):
                return before.frontends
        return frontends(self.world, self.served, self.mesh)

    def spiffe_id(self, member: Member) -> str:
        return _spiffe_id(self.world.settings.trust_domain, member.namespace, member.service_account)

    @cached_property
    def _bound(self) -> dict[int, Stance]:
        return self.stances.bound_senders()

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
