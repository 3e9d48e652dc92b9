"""The way of a connection and of a request on it, decision by decision, from the socket on.

A Service's address is translated, or keeps a route to itself; then each endpoint that may be chosen is a
destination of its own. Each decision is asked of the code that decides it.
"""

from __future__ import annotations

from penstock.explain import fqdn
from penstock.explain.direct import Direct
from penstock.explain.edge import door
from penstock.explain.gateway import first_hop
from penstock.explain.model import PROTOCOLS, Outcome
from penstock.explain.parties import Ends, Party
from penstock.explain.requests import nearest, route_differences
from penstock.explain.rewriting import rewritten
from penstock.explain.sides import by
from penstock.explain.treated import balanced, of_service, treated
from penstock.plan import ListenerKey, ServiceKey
from penstock.policy.labels import INGRESS
from penstock.routing.http_policies import Target
from penstock.routing.model import ListenerKind, Route
from penstock.routing.treatment import Treatment
from penstock.world import Address


class Way(Direct):
    """The whole of it. `walk` may be called once."""

    # --- from the socket ------------------------------------------------------------------------------

    def walk(self, ends: Ends) -> list[Outcome]:
        """How it ends at each endpoint that may be chosen."""
        self._protocol = ends.protocol
        assert ends.source.address is not None and ends.target.address is not None
        identity = self._kernel.who(ends.source.address).identity
        home = self._node_of(ends.source)
        where = f"on {home}" if home else "outside the mesh: nothing is judged where it sends"
        self._step(
            "source", f"{ends.source.name} ({ends.source.address}), {self._sides.peer(identity)}, {where}"
        )
        address, port = ends.target.address, ends.port
        member = ends.source.member
        if member is not None and member.local and self._kernel.endpoint(ends.source.address) is None:
            self._step(
                "source", "the kernel does not know it: whatever it sends is dropped", ok=False, node=home
            )
            return [Outcome(False, "SPOOFED_SOURCE")]
        if ends.target.served is not None and ends.target.served.vip is None:
            backends = [(b.address, b.port) for b in self._facts.served.of(ends.target.served).backends]
            self._step("service", f"{ends.target.name} is headless: its name stands for its endpoints")
            return self._each(ends.source, identity, backends)
        if ends.target.dns:
            return self._by_dns(ends, identity)
        service = self._kernel.service(ServiceKey(address, port, PROTOCOLS[ends.protocol]))
        if service is None:
            return [self._direct(self._hop(ends.source, identity, address, port))]
        if service.gateway:
            asked = (ends.protocol, port, self._request)
            judges = (self._facts, self._kernel, self._sides, self._requests)
            steps, outcome = first_hop(*judges, service, ends.source, identity, asked, home)
            self.steps += steps
            if not outcome.allowed or self._request is None or ends.protocol != "TCP":
                return [outcome]
            return self._behind(service.name) or [outcome]
        name = f"Service {service.name.rpartition('/')[0]} ({address})"
        if not home and service.outside is not None:
            near = service.outside.backends
            if not near and service.beyond is not None:
                self._step("service", f"{name}: sent on, as it is, to a node that has an endpoint")
                return self._each(ends.source, identity, list(service.beyond.backends))
            self._step("service", f"{name} is served to clients from outside, by endpoints of the node asked")
            return self._each(ends.source, identity, list(near))
        if not home:
            self._step("service", f"{name} is served to workloads of the mesh and to nodes only", ok=False)
            return [Outcome(False, "UNTRANSLATED_SERVICE")]
        if service.http and member is not None and service.alias is not None:
            address, port = service.alias.backends[0]
            self._step(
                "service", f"{name} becomes the Service's own address, since a route applies", node=home
            )
            return self._routed(ends.source, identity, address, port, home)
        if service.http and member is not None:
            self._step("service", f"{name}: a route applies, the packets keep this address", node=home)
            return self._routed(ends.source, identity, address, port, home)
        if not service.backends:
            self._step("service", f"{name} has no endpoint: the connection is refused", ok=False, node=home)
            return [Outcome(False, "NO_BACKEND")]
        shown = ", ".join(f"{self._parties.named(a)} ({a}:{p})" for a, p in service.backends)
        self._step("service", f"{name} becomes one of {shown} where the socket connects", node=home)
        return self._each(ends.source, identity, list(service.backends))

    def _by_dns(self, ends: Ends, identity: int) -> list[Outcome]:
        """To a name of DNS: which rules mean it, and what becomes of the addresses that it stands for."""
        name, member, home = ends.target.dns, ends.source.member, self._node_of(ends.source)
        address = ends.target.address
        assert address is not None
        if member is None or not home:
            self._step("name", f"{name}: names count for workloads of the mesh only")
            return [self._direct(self._hop(ends.source, identity, address, ends.port))]
        meaning = fqdn.rules(self._facts, member, name)
        origins = tuple(dict.fromkeys((rule.policy, rule.origin) for rule in meaning))
        text = f"is meant by {by(origins)}" if origins else "is meant by no rule for names (toFQDNs)"
        self._step("name", f"{name} {text}", node=home, origins=origins)
        here = self._kernel.endpoint(ends.source.address) if ends.source.address else None
        found = self._kernel.learned(here.ifindex, name) if here is not None else ()
        known = [a for a in found if a.version == address.version] or list(found)
        if known:
            self._step("name", f"recorded now: {', '.join(map(str, known))}", node=home)
            return [self._direct(self._hop(ends.source, identity, each, ends.port)) for each in known]
        asked = fqdn.asked(self._facts, member, name)
        self._step("name", f"no address is recorded now{asked}; as if it had asked", node=home)
        numbers = self._facts.members.index.names
        lists = tuple(numbers[r.peers.names] for r in meaning if r.peers is not None)
        self._sides.assume(address, lists)
        return [self._direct(self._hop(ends.source, identity, address, ends.port))]

    def _each(self, source: Party, identity: int, backends: list[tuple[Address, int]]) -> list[Outcome]:
        if not backends:
            self._step("service", "there is no endpoint", ok=False)
            return [Outcome(False, "NO_BACKEND")]
        return [self._direct(self._hop(source, identity, address, port)) for address, port in backends]

    # --- along a route --------------------------------------------------------------------------------

    def _routed(self, source: Party, identity: int, address: Address, port: int, home: str) -> list[Outcome]:
        if not self._listener(ListenerKey(identity, ListenerKind.HTTP_SERVICE), home, ""):
            return [Outcome(False, "PROXY_NOT_READY")]
        table = next((t for t in self._plan.proxy.services if (t.address, t.port) == (address, port)), None)
        if table is None:
            self._step("route", "Envoy has no route table for this address", ok=False, node=home)
            return [Outcome(False, "NO_ROUTE", code=404)]
        clients = (None, source.member.namespace if source.member else "")
        theirs = tuple(r for r in table.routes if r.match.namespace in clients)
        return self._along(theirs, table.treatment, of_service(table), source, identity, home)

    def _behind(self, name: str) -> list[Outcome]:
        """The second hop of a request through the Gateway's listener `name`: that of reserved:ingress."""
        assert self._request is not None
        home, gateway = self._facts.world.node, self._facts.members.ingress[0]
        found = door(self._facts, self._plan, name, self._request)
        if found is None:
            return []
        self._step("route", found.text, ok=found.outcome is None, node=home)
        if found.outcome is not None:
            return [found.outcome]
        assert found.routes is not None
        source = Party("reserved:ingress", gateway.addresses[0] if gateway.addresses else None, gateway)
        routes = found.routes
        return self._along(routes.routes, routes.treatment, found.targets, source, INGRESS, home)

    def _along(
        self,
        routes: tuple[Route, ...],
        about: Treatment | None,
        targets: tuple[Target, ...],
        source: Party,
        identity: int,
        home: str,
    ) -> list[Outcome]:
        """By the first of `routes` that fits, or by all of its shares."""
        taken = self._route(routes, source, home)
        if taken is None:
            return [Outcome(False, "NO_ROUTE", code=404)]
        return [
            outcome
            for route in taken
            for outcome in self._treated(about, targets, route, home)
            or self._shares(route, source, identity, home)
        ]

    def _treated(
        self, about: Treatment | None, targets: tuple[Target, ...], route: Route, home: str
    ) -> list[Outcome]:
        """What policies about traffic do with it; the outcome if that ends its way."""
        for text, outcome in treated(self._facts, about, targets, route, self._request):
            self._step("policy", text, ok=outcome is None, node=home)
            if outcome is not None:
                return [outcome]
        return []

    def _route(self, routes: tuple[Route, ...], source: Party, home: str) -> list[Route] | None:
        """The route that the request takes; all of them where no request is told."""
        if self._request is None:
            names = ", ".join(route.name for route in routes)
            self._step("route", f"one of {names}, by the request", node=home)
            return [r for r in routes if not r.actions.missing] or None
        namespace = source.member.namespace if source.member is not None else ""
        tried = [(r, route_differences(r.match, self._request, namespace)) for r in routes]
        fit = [route for route, differing in tried if not differing]
        if fit:
            last = next((i for i, route in enumerate(fit) if route.match.below is None), len(fit) - 1)
            drawn = f", by {last + 1} shares" if last else ""
            self._step("route", f"{fit[0].name} matches{drawn}", node=home)
            return fit[: last + 1]
        near = nearest(tried)
        text = (
            f"none matches; the nearest is {near[0].name}: {'; '.join(near[1])}" if near else "there is none"
        )
        self._step("route", text, ok=False, node=home)
        return None

    def _answered(self, route: Route, home: str) -> Outcome | None:
        """What the proxy answers of itself, without any backend."""
        if route.actions.missing:
            self._step("route", f"{route.name}: answered with 404", ok=False, node=home)
            return Outcome(False, "NO_ROUTE", code=404)
        if route.actions.redirect is not None:
            status = route.actions.redirect.status
            self._step("route", f"{route.name}: answered with a redirect, {status}", node=home)
            return Outcome(True, "REDIRECTED", code=status)
        return None

    def _shares(self, route: Route, source: Party, identity: int, home: str) -> list[Outcome]:
        answered = self._answered(route, home)
        if answered is not None:
            return [answered]
        clusters = {c.name: c for c in self._plan.proxy.clusters}
        outcomes = []
        total = sum(b.weight for b in route.backends)
        for backend in route.backends:
            cluster = clusters.get(backend.cluster or "")
            if not backend.weight:
                continue
            share = (
                f"{backend.weight} of {total} parts go to {backend.cluster or 'a backend that is not there'}"
            )
            usable = cluster is not None and bool(cluster.endpoints)
            self._step("route", f"{route.name}: {share}", ok=usable, node=home)
            if backend.cluster and (about := balanced(self._facts, backend.cluster)):
                self._step("policy", about, node=home)
            if cluster is None or not usable:
                code = 503 if cluster is not None else 500
                outcomes.append(Outcome(False, "NO_USABLE_BACKEND", str(backend.cluster or ""), code))
                continue
            self._own_tls = cluster.tls is not None
            if cluster.tls is not None:
                self._step("tls", f"the backend's own, for {cluster.tls.sni} (BackendTLSPolicy)", node=home)
            for endpoint in cluster.endpoints:
                hop = self._hop(source, identity, endpoint.address, endpoint.port)
                request = rewritten(self._request, route, backend) if self._request else None
                if not self._may(hop, home, request):
                    outcomes.append(Outcome(False, "REQUEST_DENIED", hop.label, 403))
                elif hop.target_node == home:
                    outcomes.append(Outcome(True, "REDIRECTED", hop.label))
                else:
                    outcomes.append(self._upstream(hop))
        return outcomes or [Outcome(False, "NO_USABLE_BACKEND", code=500)]
