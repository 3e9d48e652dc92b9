"""Facts → what the node's proxy must hold. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address
from itertools import chain
from typing import Literal

from penstock.facts import Facts
from penstock.manifests.document import ObjectKey
from penstock.plan import Direction, MeshMode, Verdict
from penstock.policy.entries import redirected_ports
from penstock.policy.identities import Member
from penstock.policy.labels import INGRESS
from penstock.policy.rights import Destination
from penstock.routing.edge import EdgeCluster, EdgeMix, EdgeTable
from penstock.routing.locality import priorities
from penstock.routing.mesh import RouteTable
from penstock.routing.model import (
    HostRoutes,
    HostTable,
    HttpChain,
    ListenerKind,
    ProxyCluster,
    ProxyEndpoint,
    ProxyListener,
    ProxyModel,
    Rights,
    ServiceTable,
)
from penstock.routing.services import Backend, ServedPort
from penstock.routing.traffic import Traffic


def proxy_model(facts: Facts, listeners: tuple[ProxyListener, ...]) -> ProxyModel:
    """The clusters that routes name, the routes, the workloads that are guarded, and the rights at each."""
    clusters = {s.name: s for t in facts.mesh.tables for s in t.clusters}
    reached = clusters | {each.name: each.served for each in facts.edge.clusters}
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
        _endpoint(facts, Backend(address, port, member))
        for member, port in guarded
        for address in member.addresses
    )
    copied = [_destination(facts, b) for name in mirrored for b in reached[name].backends]
    return ProxyModel(
        listeners=listeners,
        services=tuple(_table(facts, t) for t in facts.mesh.tables),
        clusters=(
            *(_mesh_cluster(facts, name, s) for name, s in sorted(clusters.items())),
            *(_edge_cluster(facts, each) for each in facts.edge.clusters),
            *(_mix(facts, each) for each in facts.edge.mixes),
            *_helpers(facts),
        ),
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


def _endpoints(
    facts: Facts, backends: tuple[Backend, ...], traffic: Traffic | None = None
) -> tuple[ProxyEndpoint, ...]:
    """Without what the proxy itself listens on: no hook would see it speak to itself (no way around it)."""
    backends = tuple(b for b in backends if b.address not in facts.edge.addresses)
    found = tuple(_endpoint(facts, b) for b in backends)
    if traffic is None or traffic.failover is None:
        return found
    mode, near = traffic.failover, facts.localities
    ranks = priorities(tuple(near.distance(b, mode) for b in backends))
    return tuple(replace(e, priority=rank) for e, rank in zip(found, ranks, strict=True))


def _mesh_cluster(facts: Facts, name: str, served: ServedPort) -> ProxyCluster:
    traffic = facts.services.policies.of(served)
    endpoints = _endpoints(facts, served.backends, traffic)
    policies = facts.edge.backend_tls
    if policies is None or not policies.applies(served):
        return ProxyCluster(name, served.family, endpoints, served.http2, traffic=traffic)
    tls = policies.of(served)
    usable = _plain(endpoints) if tls else ()
    return ProxyCluster(name, served.family, usable, served.http2, tls=tls, traffic=traffic)


def _helpers(facts: Facts) -> Iterator[ProxyCluster]:
    """What the proxy itself asks. It speaks for no workload, so mesh TLS is not for it."""
    facts.edge, facts.mesh  # noqa: B018  (their routes name some)
    for name, served in sorted(facts.services.http.helpers.items()):
        backends = tuple(b for b in served.backends if not _strict(facts, b))
        endpoints = tuple(replace(e, server_id=None) for e in _endpoints(facts, backends))
        yield ProxyCluster(name, served.family, endpoints, served.http2, helper=True)


def _plain(endpoints: tuple[ProxyEndpoint, ...]) -> tuple[ProxyEndpoint, ...]:
    """Without those of other nodes that are spoken to in mesh TLS: it cannot carry a backend's own TLS."""
    return tuple(e for e in endpoints if e.server_id is None)


def _edge_cluster(facts: Facts, each: EdgeCluster) -> ProxyCluster:
    served = each.served
    sources = [a for m in facts.members.ingress[:1] for a in m.addresses if a.version == served.family]
    source = sources[0] if sources else None
    backends = served.backends if sources else ()
    if served.stream:
        backends = tuple(b for b in backends if _open_to_edge(facts, b))
    if each.tls is not None:
        backends = tuple(b for b in backends if not _strict(facts, b))
    traffic = None if served.stream else facts.services.policies.of(served)
    endpoints = _endpoints(facts, backends, traffic)
    if each.tls is not None:
        endpoints = tuple(replace(e, server_id=None) for e in endpoints)
    return ProxyCluster(
        each.name, served.family, endpoints, served.http2, source, each.tls, served.stream, traffic
    )


def _strict(facts: Facts, backend: Backend) -> bool:
    """Whether an endpoint on another node takes nothing but mesh TLS, which cannot carry a backend's own."""
    member = backend.member
    return member is not None and member.mesh and facts.modes.of(member) is MeshMode.STRICT


_LOST = (IPv4Address("127.0.0.1"), 9)
"""Where nobody is (RFC 863): the share of datagrams whose backend cannot be used."""

_SCALE = 1 << 20


def _mix(facts: Facts, each: EdgeMix) -> ProxyCluster:
    """Endpoints of one family, each with its part of its share. The kernel judges what is sent to them."""
    families = [s.family for s, weight in each.shares if s is not None and weight and s.backends]
    family: Literal[4, 6] = families[0] if families else 4
    sources = [a for m in facts.members.ingress[:1] for a in m.addresses if a.version == family]
    found: list[ProxyEndpoint] = []
    for served, weight in each.shares:
        fits = served is not None and served.family == family
        endpoints = _endpoints(facts, served.backends) if fits and served is not None else ()
        if not weight:
            continue
        part = max(1, weight * _SCALE // max(len(endpoints), 1) // _total(each))
        found += [replace(e, weight=part, server_id=None) for e in endpoints]
        if not endpoints and families:
            found.append(ProxyEndpoint(*_LOST, "lost", weight=part))
    return ProxyCluster(each.name, family, tuple(found), source=sources[0] if sources else None, stream=True)


def _total(mix: EdgeMix) -> int:
    return sum(weight for _, weight in mix.shares) or 1


def _open_to_edge(facts: Facts, backend: Backend) -> bool:
    """Whether Gateways may send an endpoint anything: what only some requests may do, a stream may not."""
    return any(
        r.requests == () and (r.sources is None or INGRESS in r.sources)
        for r in facts.rights([_destination(facts, backend)])
    )


def _edge_table(facts: Facts, each: EdgeTable, guarded: int | None) -> HostTable:
    """With the rights of Gateways alone: no other class comes by it. `guarded` is the port that L7 rules of
    clients or about Gateways name."""
    reached = [_destination(facts, b) for s in each.clusters for b in s.backends]
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
            known = (each.table, frozenset().union(*map(_mirrors, each.table.hosts)))
            facts.mirrors_memo[each.table.name] = known
        found |= known[1]
    return tuple(sorted(found))


@lru_cache(maxsize=16384)
def _mirrors(host: HostRoutes) -> frozenset[str]:
    return host.mirrors


def _endpoint(facts: Facts, backend: Backend) -> ProxyEndpoint:
    member = backend.member
    # What goes through the proxy and leaves for another node of the mesh is mesh TLS (design §6).
    tls = member is not None and member.mesh and facts.modes.of(member, backend.port) is not MeshMode.OFF
    return ProxyEndpoint(
        backend.address,
        backend.port,
        _destination(facts, backend).policy_class,
        facts.spiffe_id(member) if member is not None and tls else None,
    )


def _destination(facts: Facts, backend: Backend) -> Destination:
    return facts.destination(facts.identity_of(backend.address, backend.member), backend.member, backend.port)


def _table(facts: Facts, table: RouteTable) -> ServiceTable:
    assert table.served.vip is not None
    reached = [_destination(facts, b) for s in table.clusters for b in s.backends]
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
