"""A request along the routes of a Service or of a host: which rule, what is done with it, where it may go."""

from __future__ import annotations

from penstock.explain import lines
from penstock.explain.direct import Direct
from penstock.explain.model import Outcome
from penstock.explain.parties import Party
from penstock.explain.requests import nearest, route_differences
from penstock.explain.rewriting import rewritten
from penstock.explain.sides import by
from penstock.explain.treated import balanced, of_service, treated
from penstock.plan import ListenerKey
from penstock.routing.http_policies import Target
from penstock.routing.model import ListenerKind, Route
from penstock.routing.treatment import Treatment
from penstock.world import Address


class Routed(Direct):
    """To the backends that a route names."""

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

    def _along(
        self,
        routes: tuple[Route, ...],
        about: Treatment | None,
        targets: tuple[Target, ...],
        source: Party,
        identity: int,
        home: str,
        ingress: bool = False,
    ) -> list[Outcome]:
        """By the first of `routes` that fits, or by all of its shares; `ingress` if they are of Ingresses."""
        self._of_ingress = ingress
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
            origins = lines.of_route(self._facts, fit[0], ingress=self._of_ingress)
            told = f", {by(origins)}" if origins else ""
            self._step("route", f"{fit[0].name} matches{drawn}{told}", node=home, origins=origins)
            return fit[: last + 1]
        near = nearest(tried)
        text, origins = "there is none", ()
        if near:
            origins = lines.of_route(self._facts, near[0], ingress=self._of_ingress)
            told = f", {by(origins)}" if origins else ""
            text = f"none matches; the nearest is {near[0].name}: {'; '.join(near[1])}{told}"
        self._step("route", text, ok=False, node=home, origins=origins)
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
        rule = lines.of_route(self._facts, route, ingress=self._of_ingress)
        total = sum(b.weight for b in route.backends)
        for backend in route.backends:
            cluster = clusters.get(backend.cluster or "")
            if not backend.weight:
                continue
            share = (
                f"{backend.weight} of {total} parts go to {backend.cluster or 'a backend that is not there'}"
            )
            usable = cluster is not None and bool(cluster.endpoints)
            origins = lines.of_backend(self._facts, rule, backend)
            told = f", {by(origins)}" if origins else ""
            self._step("route", f"{route.name}: {share}{told}", ok=usable, node=home, origins=origins)
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
