"""The stages of one compilation, each computed once and only when asked for. Pure.

Both halves of a Plan, the kernel's tables and the proxy's model, are made from the same stages: who there is
and what the policies say (policy_facts), which Services are served and which routes apply (serving_facts);
and, here, what both say of each endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from penstock.manifests.kinds import Namespace, PeerAuthentication
from penstock.mtls.spiffe import for_workload
from penstock.plan import MeshMode
from penstock.policy.entries import Stance
from penstock.policy.identities import Member
from penstock.policy.rights import Destination, SourceRights, rights
from penstock.routing.endpoints import Ends
from penstock.routing.model import HostTable, ProxyCluster, ProxyEndpoint, Rights, ServiceTable
from penstock.routing.services import Backend, ServedPort
from penstock.serving_facts import ServingFacts
from penstock.world import Address


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """Who stands behind a Service port: as endpoints, and one of each class of them."""

    ends: Ends
    endpoints: tuple[ProxyEndpoint, ...]
    destinations: Mapping[str, Destination]


class Facts(ServingFacts):
    """What follows from `world` alone.

    `before` are the facts of an earlier World: what has the same inputs is taken from there instead of being
    computed again. It never changes a result.
    """

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
