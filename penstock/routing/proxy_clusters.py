"""Facts → the clusters that the node's proxy must hold, and the endpoints of each. Pure.

There may be thousands, and of most nothing changes: what a cluster was put together from is kept beside it.
Where that is the same, so is the cluster itself, which tells whoever builds Envoy's resources that there is
nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from itertools import chain
from typing import Literal

from penstock.facts import Facts
from penstock.plan import MeshMode
from penstock.policy.labels import INGRESS
from penstock.policy.rights import Destination
from penstock.routing.edge import EdgeCluster, EdgeMix
from penstock.routing.locality import priorities
from penstock.routing.model import ProxyCluster, ProxyEndpoint
from penstock.routing.services import Backend, ServedPort
from penstock.routing.traffic import Traffic
from penstock.world import Address

_LOST = (IPv4Address("127.0.0.1"), 9)
"""Where nobody is (RFC 863): the share of datagrams whose backend cannot be used."""

_SCALE = 1 << 20


def of_mesh(facts: Facts) -> dict[str, ServedPort]:
    """The backends that routes of the mesh name, by cluster."""
    return {s.name: s for t in facts.mesh.tables for s in t.clusters}


def destinations(facts: Facts, ports: Iterable[ServedPort]) -> Iterable[Destination]:
    """One endpoint of each class behind these ports."""
    found: dict[str, Destination] = {}
    for port in ports:
        found.update(facts.reached(port).destinations)
    return found.values()


class Clusters:
    """Those of one compilation."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._before = facts.clusters_memo
        self._now: dict[str, tuple[tuple[object, ...], ProxyCluster]] = {}
        facts.clusters_memo = self._now
        # No hook would see the proxy speak to itself: there is no way around a policy by that.
        self._own = {v: {int(a) for a in facts.edge.addresses if a.version == v} for v in (4, 6)}
        self._sources = {a.version: a for m in facts.members.ingress[:1] for a in reversed(m.addresses)}

    def all(self) -> tuple[ProxyCluster, ...]:
        edge = self._facts.edge
        return (
            *(self._mesh(name, served) for name, served in sorted(of_mesh(self._facts).items())),
            *map(self._edge, edge.clusters),
            *map(self._mix, edge.mixes),
            *map(self._helper, self._helpers()),
        )

    # --- what is kept ------------------------------------------------------------------------------------

    def _kept(
        self, name: str, inputs: tuple[object, ...] | None, make: Callable[[], ProxyCluster]
    ) -> ProxyCluster:
        """The cluster of before if it follows from the same, or is equal; `inputs` None tells nothing."""
        known = self._before.get(name)
        if known is None or inputs is None or known[0] != (*inputs, self._facts.edge.addresses):
            made = make()
            same = known is not None and known[1] == made
            known = ((*(inputs or ()), self._facts.edge.addresses), known[1] if known and same else made)
        self._now[name] = known
        return known[1]

    def _inputs(
        self, served: ServedPort, traffic: Traffic | None, *more: object
    ) -> tuple[object, ...] | None:
        if traffic is not None and traffic.failover is not None:
            return None  # what is near is told by Nodes
        return (served, self._facts.reached(served), traffic, *more)

    # --- endpoints ---------------------------------------------------------------------------------------

    def _endpoints(
        self,
        served: ServedPort,
        traffic: Traffic | None = None,
        fits: Callable[[Backend], bool] | None = None,
    ) -> tuple[ProxyEndpoint, ...]:
        reached, own = self._facts.reached(served), self._own[served.family]
        if fits is None and (traffic is None or traffic.failover is None):
            return tuple(e for e in reached.endpoints if int(e.address) not in own)
        pairs = [
            (backend, endpoint)
            for backend, endpoint in zip(reached.ends.backends, reached.endpoints, strict=True)
            if int(backend.address) not in own and (fits is None or fits(backend))
        ]
        if traffic is None or traffic.failover is None:
            return tuple(endpoint for _, endpoint in pairs)
        mode, near = traffic.failover, self._facts.localities
        ranks = priorities(tuple(near.distance(backend, mode) for backend, _ in pairs))
        return tuple(replace(e, priority=rank) for (_, e), rank in zip(pairs, ranks, strict=True))

    def _strict(self, backend: Backend) -> bool:
        """Whether it is on another node and takes nothing but mesh TLS."""
        member = backend.member
        return member is not None and member.mesh and self._facts.modes.of(member) is MeshMode.STRICT

    def _lenient(self, backend: Backend) -> bool:
        return not self._strict(backend)

    def _open(self, backend: Backend) -> bool:
        """Whether Gateways may send it anything: what only some requests may do, a stream may not."""
        _, to = self._facts.endpoint(backend.address, backend.port, backend.member)
        return any(
            r.requests == () and (r.sources is None or INGRESS in r.sources) for r in self._facts.rights([to])
        )

    # --- clusters ----------------------------------------------------------------------------------------

    def _mesh(self, name: str, served: ServedPort) -> ProxyCluster:
        traffic, policies = self._facts.services.policies.of(served), self._facts.edge.backend_tls
        own = policies is not None and policies.applies(served)
        tls = policies.of(served) if policies is not None and own else None

        def make() -> ProxyCluster:
            endpoints = self._endpoints(served, traffic)
            if own and not tls:
                endpoints = ()
            return ProxyCluster(name, served.family, endpoints, served.http2, tls=tls, traffic=traffic)

        return self._kept(name, self._inputs(served, traffic, own, tls), make)

    def _edge(self, each: EdgeCluster) -> ProxyCluster:
        served, tls, source = each.served, each.tls, self._sources.get(each.served.family)
        traffic = None if served.stream else self._facts.services.policies.of(served)

        def fits(backend: Backend) -> bool:
            return self._open(backend)

        def make() -> ProxyCluster:
            asked = fits if served.stream else None
            served_here = source is not None and not each.lost
            endpoints = self._endpoints(served, traffic, asked) if served_here else ()
            return ProxyCluster(
                each.name,
                served.family,
                endpoints,
                served.http2,
                source,
                tls,
                served.stream,
                traffic,
            )

        # Who may be reached by a stream is a matter of policy.
        inputs = None if served.stream else self._inputs(served, traffic, tls, source, each.lost)
        return self._kept(each.name, inputs, make)

    def _mix(self, each: EdgeMix) -> ProxyCluster:
        """Endpoints of one family, each with its part of its share. The kernel judges what they are sent."""
        return self._kept(each.name, None, partial(self._mixed, each))

    def _mixed(self, each: EdgeMix) -> ProxyCluster:
        families = [
            s.family
            for s, weight in each.shares
            if s is not None and weight and self._facts.served.of(s).backends
        ]
        family: Literal[4, 6] = families[0] if families else 4
        found: list[ProxyEndpoint] = []
        total = sum(weight for _, weight in each.shares) or 1
        for served, weight in each.shares:
            fits = served is not None and served.family == family
            endpoints = self._endpoints(served) if fits and served is not None else ()
            if not weight:
                continue
            part = max(1, weight * _SCALE // max(len(endpoints), 1) // total)
            found += [replace(e, weight=part, server_id=None) for e in endpoints]
            if not endpoints and families:
                found.append(ProxyEndpoint(*_LOST, "lost", weight=part))
        source: Address | None = self._sources.get(family)
        return ProxyCluster(each.name, family, tuple(found), source=source, stream=True)

    def _helpers(self) -> list[ServedPort]:
        """What the proxy itself asks: for policies, and for rules of routes."""
        facts = self._facts
        found = dict(facts.services.http.helpers)
        named = (*(t.helpers for t in facts.mesh.tables), *(t.helpers for t in facts.edge.tables))
        found.update({helper.name: helper for helper in chain.from_iterable(named)})
        return [served for _, served in sorted(found.items())]

    def _helper(self, served: ServedPort) -> ProxyCluster:
        """It speaks for no workload, so mesh TLS is not for it."""

        def make() -> ProxyCluster:
            found = self._endpoints(served, fits=self._lenient)
            endpoints = tuple(replace(e, server_id=None) for e in found)
            return ProxyCluster(served.name, served.family, endpoints, served.http2, helper=True)

        return self._kept(served.name, self._inputs(served, None), make)
