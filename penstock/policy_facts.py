"""Who there is and what the policies say: the half of the facts that knows nothing of routes. Pure.

Each stage is computed once and only when asked for; what has the inputs of the facts before is taken from
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Self

from penstock.differing import Table
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import Namespace, Node, PeerAuthentication, Workload
from penstock.plan import AUDIT_VIEW, Direction, IpcacheEntry, MeshMode, ObjectStatus, PolicyEntry, PolicyKey
from penstock.policy.addresses import Whois, distinct, followed, ipcache
from penstock.policy.entries import Stance, entries, stances
from penstock.policy.identities import Member, Members
from penstock.policy.labels import HOST, WORLD
from penstock.policy.membership import followed_members, members
from penstock.policy.mesh_tls import MeshModes, TowardModes
from penstock.policy.policies import Policies, policies
from penstock.policy.rights import Destination, Stances
from penstock.policy.rules import PolicySpec
from penstock.routing.edge import EDGE_KINDS
from penstock.world import Address, Network, World

MOST_FOLLOWED = 500
"""Objects that change together and are looked at one by one; beyond that all is computed anew."""


class PolicyFacts:
    """What follows from `world` alone.

    `before` are the facts of an earlier World: what has the same inputs is taken from there instead of being
    computed again. It never changes a result.
    """

    def __init__(self, world: World, before: Self | None = None, read: Policies | None = None) -> None:
        """`read` are the policies of `world`, if they have been read."""
        self.world = world
        self._before = before
        self._read = read
        self.changed: tuple[ObjectKey, ...] = world.changed_since(before.world) if before is not None else ()
        """The objects that are other documents than before."""
        self.said: Table[ObjectKey, ObjectStatus] | None = None
        """What the compilation said of each object."""

    @property
    def before(self) -> Self | None:
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

    @property
    def edge_addresses(self) -> tuple[Address, ...]:
        """Those of Gateways and Ingresses of this node."""
        raise NotImplementedError

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
        same_but_workloads = (
            self._same_documents(Node, *EDGE_KINDS)
            and world.allocations.gateways == before.world.allocations.gateways
            and world.attachments == before.world.attachments
            and world.allocations.prefixes == before.world.allocations.prefixes
            and self.policies.networks == before.policies.networks
            and self.policies.nodes == before.policies.nodes
            and self.policies.names == before.policies.names
        )
        if same_but_workloads and self._same_documents(Workload):
            return before.members
        if same_but_workloads and len(self.changed) <= MOST_FOLLOWED:
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
            and self.edge_addresses == before.edge_addresses
            and self.members.ingress == before.members.ingress
            and self.members.index.prefixes.identities == before.members.index.prefixes.identities
            and self.members.index.nodes == before.members.index.nodes
            and self.toward.proving == before.toward.proving
        ):
            if self._same_members:
                return before.ipcache
            changed = self.workloads_changed()
            if changed is not None and before.distinct:
                found = followed(before.ipcache, *changed, self.toward)
                if found is not None:
                    self.__dict__["distinct"] = True
                    return found
        return ipcache(self.world, self.members, self.toward, self.edge_addresses)

    @cached_property
    def distinct(self) -> bool:
        return distinct(self.world, self.ipcache, self.members, self.edge_addresses)

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
