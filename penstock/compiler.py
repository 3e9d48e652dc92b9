"""World → Plan. Pure: no I/O, no clock, no randomness; the same World gives the same Plan.

The stages stand in their own packages; here they are only put together:

    workloads, identities      policy/identities                 ┐
    policies → stances         policy/rules, policy/entries      │ facts, each computed once
    services → served ports    routing/services, endpoints       │
    routes → tables            routing/mesh                      ┘
    who needs which listener   routing/listeners
    facts → kernel tables      policy/kernel
    facts → proxy model        routing/proxy, policy/rights

Numbers come with the World. What has none yet is named in `Plan.unallocated`: the daemon gives out the
numbers and compiles again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from penstock.differing import Table, replaced
from penstock.dns.compile import dns_plan
from penstock.dns.compile import wanted as dns_wanted
from penstock.facts import Facts
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import EndpointSlice, Service, Workload
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute
from penstock.plan import Condition, ObjectStatus, Plan, SecretWanted
from penstock.policy.identities import Member, identity_text, names_text, node_names
from penstock.policy.ingress import wanted_addresses
from penstock.policy.kernel import kernel_tables
from penstock.policy.policies import POLICY_KINDS, Policies, policies
from penstock.policy_facts import MOST_FOLLOWED
from penstock.routing.gateways import gateway_names, joined
from penstock.routing.listeners import listeners
from penstock.routing.proxy import proxy_model
from penstock.routing.services import served_names, wanted_balancers, wanted_node_ports, wanted_vips
from penstock.world import Address, World, parse_address


@dataclass(frozen=True, slots=True)
class Names:
    """What must have a number before a World can be compiled whole (listeners aside: see `Plan`)."""

    identities: tuple[str, ...]
    vips: dict[str, Address | None]
    services: tuple[str, ...]
    prefixes: tuple[str, ...]
    balancers: dict[str, Address | None]
    node_ports: dict[str, int | None]
    gateways: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _OfServices:
    """What of `Names` follows from these Services alone."""

    documents: tuple[Document, ...]
    vips: dict[str, Address | None]
    services: tuple[str, ...]
    balancers: dict[str, Address | None]
    node_ports: dict[str, int | None]


def _of_services(world: World, before: _OfServices | None = None) -> _OfServices:
    documents = world.documents_of(Service)
    if before is not None and before.documents is documents:
        return before
    return _OfServices(
        documents,
        {name: parse_address(text) if text else None for name, text in wanted_vips(world).items()},
        served_names(world),
        {name: parse_address(text) if text else None for name, text in wanted_balancers(world).items()},
        dict(wanted_node_ports(world)),
    )


def names(
    world: World,
    read: Policies | None = None,
    identities: Iterable[str] | None = None,
    services: _OfServices | None = None,
) -> Names:
    """Everything in `world` that is known by a number; `read` are its policies, if they have been read,
    `identities` the texts of those of its workloads and `services` the names of its Services, if they are
    known."""
    read = read or policies(world)
    services = services or _of_services(world)
    if identities is None:
        identities = (identity_text(d, w) for d, w in world.of_kind(Workload))
    return Names(
        identities=tuple(identities),
        vips=services.vips,
        services=(*services.services, *gateway_names(world)),
        prefixes=(
            *map(str, read.networks),
            *node_names(world, read).values(),
            *map(names_text, read.names),
        ),
        balancers=services.balancers,
        node_ports=services.node_ports,
        gateways=wanted_addresses(world),
    )


class Compiler:
    """Compiles Worlds one after the other; what has the inputs of the last one is not computed again."""

    def __init__(self) -> None:
        self._last: Facts | None = None
        self._policies: Policies | None = None
        self._workloads: tuple[Document, ...] = ()
        self._texts: dict[ObjectKey, tuple[Document, str]] = {}
        # How many workloads each identity has.
        self._told: Counter[str] = Counter()
        self._services: _OfServices | None = None

    @property
    def facts(self) -> Facts | None:
        """The stages of the last compilation, for whoever explains it."""
        return self._last

    def follow(self, world: World) -> None:
        """Let `world` take over what the last one knows of its documents."""
        if self._last is not None and not world.sorted:
            changed = world.changed_since(self._last.world)
            if len(changed) <= MOST_FOLLOWED:
                world.follow(self._last.world, changed)

    def names(self, world: World) -> Names:
        """`names`, of which those of workloads are looked up where they have changed."""
        workloads = world.documents_of(Workload)
        last = self._last
        if last is not None and last.world.documents_of(Workload) is self._workloads is not workloads:
            for key in world.changed_since(last.world):
                if key.kind == Workload.__name__:
                    self._retell(key, world.documents.get(key))
            self._workloads = workloads
        elif workloads is not self._workloads:
            self._texts = {
                d.key: known
                if (known := self._texts.get(d.key)) is not None and known[0] is d
                else (d, identity_text(d, cast(Workload, d.value)))
                for d in workloads
            }
            self._workloads = workloads
            self._told = Counter(text for _, text in self._texts.values())
        self._services = _of_services(world, self._services)
        return names(world, self.read(world), tuple(self._told), self._services)

    def _retell(self, key: ObjectKey, document: Document | None) -> None:
        if key in self._texts:
            _, before = self._texts.pop(key)
            self._told[before] -= 1
            if not self._told[before]:
                del self._told[before]
        if document is not None:
            text = identity_text(document, cast(Workload, document.value))
            self._texts[key] = (document, text)
            self._told[text] += 1

    def read(self, world: World) -> Policies:
        """The policies of `world`; those of the last one where nothing has changed."""
        self._policies = policies(world, self._policies)
        return self._policies

    def compile(self, world: World) -> Plan:
        """The same Plan that `compile_world` makes."""
        self.follow(world)
        facts = Facts(world, self._last, self.read(world))
        plan = _plan(facts)
        facts.forget()
        self._last = facts
        return plan


def compile_world(world: World) -> Plan:
    """What the kernel, Envoy and the CA must hold for `world`."""
    return _plan(Facts(world))


def _plan(facts: Facts) -> Plan:
    demand = listeners(
        facts.world,
        facts.members,
        facts.all_entries,
        facts.modes,
        facts.toward,
        routed=bool(facts.mesh.tables),
        spiffe_id=facts.spiffe_id,
        edge=facts.edge.listeners,
    )
    dns = dns_wanted(facts)
    return Plan(
        kernel=kernel_tables(facts, demand.listeners),
        proxy=proxy_model(facts, demand.listeners),
        secrets=tuple(
            SecretWanted(str(address), facts.spiffe_id(m), (m.namespace, m.document.key.name))
            for m in (*facts.members.local(), *facts.members.ingress[:1])
            for address in m.addresses
        ),
        statuses=_followed_statuses(facts),
        listener_names=(*demand.names, *dns),
        dns=dns_plan(facts),
        unallocated=(
            *demand.unallocated,
            *(n for n in dns if n not in facts.world.allocations.listener_ports),
        ),
        policies=tuple(facts.policies.read.values()),
    )


_VALID = ObjectStatus((Condition("Valid", True, "Accepted"),))


def _followed_statuses(facts: Facts) -> Table[ObjectKey, ObjectStatus]:
    """Those of before, where nothing but workloads, endpoints and routes at the edge has changed."""
    before = facts.before
    changed = facts.workloads_changed()
    if (
        before is not None
        and changed is not None
        and before.said is not None
        and all(key.kind in _FOLLOWED for key in facts.changed)
        and facts.served.ports is before.served.ports
        and facts.mesh == before.mesh
        and facts.frontends.conflicts == before.frontends.conflicts
    ):
        documents = facts.world.documents
        changes: dict[ObjectKey, ObjectStatus | None] = dict.fromkeys(facts.changed)
        changes.update(dict.fromkeys(replaced(before.edge.statuses, facts.edge.statuses)))
        for key in changes:
            if key in documents:
                changes[key] = _of_route(facts, key)
        # A policy tells whether the route that it means is there.
        changes.update(facts.services.http.statuses(facts.world))
        changes.update(_of_workloads(facts, changed[1]))
        facts.said = before.said.after(changes)
    else:
        facts.said = Table(_statuses(facts))
    return facts.said


_FOLLOWED = frozenset({kind.__name__ for kind in (Workload, EndpointSlice, HTTPRoute, GRPCRoute)})


def _of_route(facts: Facts, key: ObjectKey) -> ObjectStatus:
    """Of what stands in the mesh, at the edge or in neither."""
    at_edge, in_mesh = facts.edge.statuses.get(key), facts.mesh.statuses.get(key)
    return joined(in_mesh, at_edge) if at_edge is not None else in_mesh or ObjectStatus()


def _of_workloads(facts: Facts, members: Iterable[Member]) -> dict[ObjectKey, ObjectStatus]:
    found = {}
    for member in members:
        key = member.document.key
        if member.local and member.attachment is None:
            why, reason = _absent(facts, member)
            found[key] = ObjectStatus((Condition("Ready", False, reason, why),), pending=why)
        elif member.local:
            found[key] = ObjectStatus((Condition("Ready", True, "Attached"),))
    return found


def _statuses(facts: Facts) -> dict[ObjectKey, ObjectStatus]:
    found = dict.fromkeys(facts.world.documents, ObjectStatus())
    found.update(_of_workloads(facts, facts.members.all))
    for document in facts.world.of_kinds(*POLICY_KINDS):
        found[document.key] = _VALID
    found.update(_conflicts(facts))
    found.update({key: ObjectStatus(pending=why) for key, why in facts.frontends.conflicts.items()})
    found.update(facts.mesh.statuses)
    found.update(facts.services.policies.statuses())
    found.update(facts.services.http.statuses(facts.world))
    for key, status in facts.edge.statuses.items():
        found[key] = joined(facts.mesh.statuses.get(key), status)
    return found


def _conflicts(facts: Facts) -> dict[ObjectKey, ObjectStatus]:
    """Policies of which a rule is left out for some workload."""
    said: dict[ObjectKey, dict[str, None]] = {}
    for by_subject in (facts.stances.ingress, facts.stances.egress):
        for stance in by_subject.values():
            for each in stance.conflicts:
                said.setdefault(each.left_out.policy, {})[each.message] = None
    found = {}
    for key, messages in said.items():
        why = "; ".join(sorted(messages))
        found[key] = ObjectStatus((Condition("Valid", False, "Conflicted", why),), pending=why)
    return found


def _absent(facts: Facts, member: Member) -> tuple[str, str]:
    """What a local workload that is not attached waits for, and the word for it."""
    there = facts.world.attachments.get((member.namespace, member.document.key.name))
    if there is not None:
        owner = next(m for m in facts.members.local() if m.attachment and m.attachment.cookie == there.cookie)
        why = "shares the network namespace of {}, and counts as that: its own labels select nothing"
        return why.format(owner.document.key), "SharedNamespace"
    workload = member.document.value
    assert isinstance(workload, Workload)
    if workload.spec.container is None:
        return f"network namespace {member.netns} is absent", "NamespaceAbsent"
    what = f"container {workload.spec.container} does not run here"
    return f"{what}, or its engine is not followed (penstock run --docker)", "ContainerAbsent"
