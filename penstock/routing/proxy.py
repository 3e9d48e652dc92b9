"""Facts → what the node's proxy must hold: routes, rights and who is guarded. Pure. Clusters are in
proxy_clusters."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

from penstock.facts import Facts
from penstock.manifests.document import ObjectKey
from penstock.plan import Direction, Verdict
from penstock.policy.entries import redirected_ports
from penstock.policy.identities import Member
from penstock.policy.labels import INGRESS
from penstock.policy.rights import Destination
from penstock.routing.edge import EdgeTable
from penstock.routing.mesh import RouteTable
from penstock.routing.model import (
    HostTable,
    HttpChain,
    ListenerKind,
    ProxyListener,
    ProxyModel,
    Rights,
    ServiceTable,
)
from penstock.routing.proxy_clusters import Clusters, destinations, of_mesh


def proxy_model(facts: Facts, listeners: tuple[ProxyListener, ...]) -> ProxyModel:
    """The clusters that routes name, the routes, the workloads that are guarded, and the rights at each."""
    reached = of_mesh(facts) | {each.name: each.served for each in facts.edge.clusters if not each.lost}
    mirrored = _mirrored(facts)
    guarded = _guarded(facts)
    behind = {each.edge for each in listeners if each.kind is ListenerKind.GATEWAY}
    guarded_ports = {
        chain.table: each.port
        for each in facts.edge.listeners
        if each.name in behind
        for chain in each.chains
        if isinstance(chain, HttpChain)
    }
    own = [facts.destination(m.identity, m, port) for m, port in guarded]
    workloads = (
        facts.endpoint(address, port, member)[0] for member, port in guarded for address in member.addresses
    )
    copied = list(destinations(facts, (reached[name] for name in mirrored if name in reached)))
    return ProxyModel(
        listeners=listeners,
        services=tuple(_table(facts, t) for t in facts.mesh.tables),
        clusters=Clusters(facts).all(),
        workloads=tuple(workloads),
        mirrored=mirrored,
        mirror_rights=facts.rights(copied),
        mirror_audit=facts.audit_rights(copied),
        workload_rights=facts.rights(own),
        workload_audit=facts.audit_rights(own),
        edge=facts.edge.listeners,
        tables=tuple(_edge_table(facts, t, guarded_ports.get(t.table.name)) for t in facts.edge.tables),
        edge_secrets=tuple(str(a) for m in facts.members.ingress[:1] for a in m.addresses),
        certificates=facts.edge.certificates,
        authorities=facts.edge.authorities,
    )


def _edge_table(facts: Facts, each: EdgeTable, guarded: int | None) -> HostTable:
    """With the rights of Gateways alone: no other class comes by it. `guarded` is the port that L7 rules of
    clients or about Gateways name."""
    reached = list(destinations(facts, each.clusters))
    mine, view = _of_ingress(facts.rights(reached)), facts.audit_rights(reached)
    audit = _of_ingress(view) if view is not None else None
    admission = admission_audit = None
    if guarded is not None:
        gateway = [Destination(INGRESS, facts.members.ingress[0], guarded)]
        admission, admission_audit = facts.rights(gateway), facts.audit_rights(gateway)
    inputs = (each.table, mine, admission, audit if audit != mine else None, admission_audit)
    known = facts.tables_memo.get(each.table.name)
    if known is None or known[0] != inputs:
        made = replace(
            each.table, rights=mine, admission=admission, audit=inputs[3], admission_audit=admission_audit
        )
        known = (inputs, made)
        facts.tables_memo[each.table.name] = known
    return known[1]


def _of_ingress(rights: tuple[Rights, ...]) -> tuple[Rights, ...]:
    mine = (replace(r, sources=(INGRESS,)) for r in rights if r.sources is None or INGRESS in r.sources)
    return tuple(dict.fromkeys(mine))


def _mirrored(facts: Facts) -> tuple[str, ...]:
    of_mesh = chain.from_iterable(table.routes for table in facts.mesh.tables)
    found = {mirror.cluster for route in of_mesh for mirror in route.actions.mirrors}
    for each in facts.edge.tables:
        known = facts.mirrors_memo.get(each.table.name)
        if known is None or known[0] is not each.table:
            known = (each.table, frozenset().union(*(host.mirrors for host in each.table.hosts)))
            facts.mirrors_memo[each.table.name] = known
        found |= known[1]
    return tuple(sorted(found))


def _table(facts: Facts, table: RouteTable) -> ServiceTable:
    assert table.served.vip is not None
    reached = tuple(destinations(facts, table.clusters))
    rights, audit = facts.rights(reached), facts.audit_rights(reached)
    inputs = (table.served.vip, table.routes, rights, audit, table.treatment)
    name = table.served.name
    known = facts.services_memo.get(name)
    if known is None or known[0] != inputs:
        port = table.served.port.port
        made = ServiceTable(name, table.served.vip, port, table.routes, rights, audit, table.treatment)
        known = facts.services_memo[name] = (inputs, made)
    return known[1]


def _guarded(facts: Facts) -> tuple[tuple[Member, int], ...]:
    """Every (workload, port) that a connection may reach through the proxy at its own address."""
    of_subject: dict[int, list[Member]] = {}
    steering = [
        place
        for place, table in facts.all_entries.items()
        if any(e.verdict is Verdict.REDIRECT for e in table.values())
    ]
    for member in facts.members.all if steering else ():
        if member.present:
            of_subject.setdefault(member.subject, []).append(member)
    found: dict[tuple[ObjectKey, int], tuple[Member, int]] = {}
    for subject, direction in steering:
        table = facts.all_entries[subject, direction]
        steered = {key: e for key, e in table.items() if e.verdict is Verdict.REDIRECT}
        outward = direction is Direction.EGRESS
        reached = of_subject if outward else {subject: of_subject.get(subject, [])}
        for member in chain.from_iterable(reached.values()):
            for port in redirected_ports(steered, member.identity if outward else None):
                found[(member.document.key, port)] = (member, port)
    by_address = {a: m for m in facts.members.all for a in m.addresses} if facts.world.carried else {}
    for _, address, port in facts.world.carried:
        carried = by_address.get(address)
        if carried is not None:
            found[(carried.document.key, port)] = (carried, port)
    return tuple(found[key] for key in sorted(found))
