"""Facts → what the node's proxy must hold. Pure."""

from __future__ import annotations

from itertools import chain

from penstock.facts import Facts
from penstock.manifests.document import ObjectKey
from penstock.plan import Direction, MeshMode, Verdict
from penstock.policy.entries import redirected_ports
from penstock.policy.identities import Member
from penstock.policy.rights import Destination
from penstock.routing.mesh import RouteTable
from penstock.routing.model import ProxyCluster, ProxyEndpoint, ProxyListener, ProxyModel, ServiceTable
from penstock.routing.services import Backend


def proxy_model(facts: Facts, listeners: tuple[ProxyListener, ...]) -> ProxyModel:
    """The clusters that routes name, the routes, the workloads that are guarded, and the rights at each."""
    clusters = {s.name: s for t in facts.mesh.tables for s in t.clusters}
    mirrored = _mirrored(facts)
    guarded = _guarded(facts)
    workloads = (
        _endpoint(facts, Backend(address, port, member))
        for member, port in guarded
        for address in member.addresses
    )
    return ProxyModel(
        listeners=listeners,
        services=tuple(_table(facts, t) for t in facts.mesh.tables),
        clusters=tuple(
            ProxyCluster(name, s.family, tuple(_endpoint(facts, b) for b in s.backends), s.http2)
            for name, s in sorted(clusters.items())
        ),
        workloads=tuple(workloads),
        mirrored=mirrored,
        mirror_rights=facts.rights(
            _destination(facts, b) for name in mirrored for b in clusters[name].backends
        ),
        workload_rights=facts.rights(Destination(m.identity, m, port) for m, port in guarded),
    )


def _mirrored(facts: Facts) -> tuple[str, ...]:
    routes = chain.from_iterable(table.routes for table in facts.mesh.tables)
    return tuple(sorted({mirror.cluster for route in routes for mirror in route.actions.mirrors}))


def _endpoint(facts: Facts, backend: Backend) -> ProxyEndpoint:
    member = backend.member
    # What goes through the proxy and leaves for another node of the mesh is mesh TLS (design §6).
    tls = member is not None and member.mesh and facts.modes.of(member) is not MeshMode.OFF
    return ProxyEndpoint(
        backend.address,
        backend.port,
        _destination(facts, backend).policy_class,
        facts.spiffe_id(member) if member is not None and tls else None,
    )


def _destination(facts: Facts, backend: Backend) -> Destination:
    return Destination(facts.identity_of(backend.address, backend.member), backend.member, backend.port)


def _table(facts: Facts, table: RouteTable) -> ServiceTable:
    assert table.served.vip is not None
    return ServiceTable(
        name=table.served.name,
        address=table.served.vip,
        port=table.served.port.port,
        routes=table.routes,
        rights=facts.rights(_destination(facts, b) for s in table.clusters for b in s.backends),
    )


def _guarded(facts: Facts) -> tuple[tuple[Member, int], ...]:
    """Every (workload, port) that a connection may reach through the proxy at its own address."""
    of_subject: dict[int, list[Member]] = {}
    for member in facts.members.all:
        if member.present:
            of_subject.setdefault(member.subject, []).append(member)
    found: dict[tuple[ObjectKey, int], tuple[Member, int]] = {}
    for (subject, direction), table in facts.entries.items():
        steered = {key: e for key, e in table.items() if e.verdict is Verdict.REDIRECT}
        if not steered:
            continue
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
