"""The way of a connection and of a request on it, decision by decision.

The order is that of judge() in bpf/flow.h and of the proxy behind it: translation where the socket
connects, the sender's egress, the receiver's ingress, then the listener, the route, the rights at the
endpoint, and what the receiver's node says to what comes from this one. Each is asked of the code that
decides it.
"""

from __future__ import annotations

from penstock.explain.edge import door
from penstock.explain.gateway import first_hop
from penstock.explain.hop import Hop, Missing, far_end
from penstock.explain.kernel import Kernel
from penstock.explain.l7 import Crossing, Judgement, Requests
from penstock.explain.model import PROTOCOLS, Outcome, Request, Step
from penstock.explain.parties import Ends, Parties, Party, name_of
from penstock.explain.requests import nearest, route_differences
from penstock.explain.rewriting import rewritten
from penstock.explain.sides import Origins, Sides
from penstock.explain.treated import balanced, of_service, treated
from penstock.facts import Facts
from penstock.plan import DNS_LISTENER, Direction, ListenerKey, MeshMode, Plan, ServiceKey, Verdict
from penstock.policy.entries import DNS_PORT
from penstock.policy.identities import Member
from penstock.policy.labels import DNS, HOST, INGRESS, REMOTE_NODE
from penstock.routing.http_policies import Target
from penstock.routing.model import ListenerKind, Route
from penstock.routing.treatment import Treatment
from penstock.world import Address


class Way:
    """Collects `steps` while it walks. `walk` may be called once."""

    def __init__(
        self, facts: Facts, plan: Plan, kernel: Kernel, parties: Parties, request: Request | None
    ) -> None:
        self._facts, self._plan, self._kernel = facts, plan, kernel
        self._parties, self._request = parties, request
        self._sides = Sides(facts, kernel)
        self._requests = Requests(facts, self._sides)
        self.steps: list[Step] = []
        self.missing: list[Missing] = []
        self.denied_by: list[Origins] = []
        self._protocol = "TCP"
        # Whether a rule on the way demands authentication.
        self._proof = False
        # Whether the sender's rules steer to the DNS proxy.
        self._named = False
        # Whether a policy in audit names requests.
        self._watched = False

    def _step(
        self, what: str, text: str, *, ok: bool = True, node: str = "", at: str = "", origins: Origins = ()
    ) -> None:
        self.steps.append(Step(what, text, ok, node, at, origins))

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

    def _each(self, source: Party, identity: int, backends: list[tuple[Address, int]]) -> list[Outcome]:
        if not backends:
            self._step("service", "there is no endpoint", ok=False)
            return [Outcome(False, "NO_BACKEND")]
        return [self._direct(self._hop(source, identity, address, port)) for address, port in backends]

    def _node_of(self, party: Party) -> str:
        if party.member is not None:
            return self._sides.node_of(party.member)
        return self._facts.world.node if party.identity == HOST or self._is_host(party) else ""

    def _is_host(self, party: Party) -> bool:
        return party.address is not None and self._kernel.who(party.address).identity == HOST

    def _hop(self, source: Party, identity: int, address: Address, port: int) -> Hop:
        target = self._parties.at(address)
        label = f"{name_of(target) if target else address}:{port}"
        return Hop(
            source, identity, address, port, target, self._node_of(source), self._sides.node_of(target), label
        )

    # --- in the kernel --------------------------------------------------------------------------------

    def _direct(self, hop: Hop) -> Outcome:
        target = self._kernel.who(hop.address)
        self._proof = self._watched = self._named = False
        where = f"on {hop.target_node}" if hop.target_node else "outside the mesh"
        self._step("destination", f"{hop.label}, {self._sides.peer(target.identity)}, {where}", at=hop.label)
        verdict = Verdict.ALLOW
        sender = hop.source.member
        if sender is not None and hop.source_node:
            verdict = self._side(hop, sender, Direction.EGRESS, target.identity, hop.source_node)
            if verdict is Verdict.DENY:
                return Outcome(False, "POLICY_DENIED_EGRESS", hop.label)
            if target.identity == DNS:
                return self._asked(hop)
            if self._unproven(hop, target.identity):
                return Outcome(False, "UNAUTHENTICATED", hop.label)
        if hop.target_node and hop.target_node == hop.source_node:
            verdict = max(verdict, self._ingress(hop, hop.identity))
            if verdict is Verdict.DENY:
                return Outcome(False, "POLICY_DENIED_INGRESS", hop.label)
            if verdict is Verdict.REDIRECT and sender is None:
                self._step("listener", "what the node itself sends cannot be steered", ok=False, at=hop.label)
                return Outcome(False, "PROXY_NOT_READY", hop.label)
            if self._named:
                return self._asked(hop)
            if verdict is Verdict.REDIRECT:
                return self._proxied(hop, ListenerKind.HTTP_WORKLOAD, hop.source_node)
            if self._looked_at(hop):
                return self._proxied(hop, ListenerKind.HTTP_WORKLOAD, hop.source_node)
            return Outcome(True, "FORWARDED_LOCAL", hop.label)
        if self._named:
            return self._asked(hop)
        if sender is not None and verdict is Verdict.REDIRECT:
            return self._proxied(hop, ListenerKind.HTTP_WORKLOAD, hop.source_node)
        if sender is not None and hop.source_node and self._protocol == "TCP" and self._strict(hop):
            return self._proxied(hop, ListenerKind.TCP_MTLS, hop.source_node)
        if sender is not None and self._looked_at(hop):
            return self._proxied(hop, ListenerKind.HTTP_WORKLOAD, hop.source_node)
        return self._arrive(hop, tls=False)

    def _side(self, hop: Hop, subject: Member, direction: Direction, peer: int, node: str) -> Verdict:
        address = hop.address if direction is Direction.EGRESS else None
        word = self._sides.word(subject, direction, peer, self._protocol, hop.port, address)
        self._named = self._named or word.dns
        ok = word.verdict is not Verdict.DENY
        self._proof = self._proof or (ok and word.authenticated)
        self._step(direction.name.lower(), word.text, ok=ok, node=node, at=hop.label, origins=word.origins)
        if not ok:
            other = hop.target if direction is Direction.EGRESS else hop.source.member
            if word.by_default:
                # The proxy serves workloads only: to any other address a rule can open no more than the port.
                request = self._request if hop.target is not None else None
                self.missing.append(
                    Missing(
                        subject,
                        direction,
                        other,
                        peer,
                        far_end(hop, direction),
                        self._protocol,
                        hop.port,
                        request,
                    )
                )
            elif word.origins:
                self.denied_by.append(word.origins)
        audited = self._sides.audited(subject, direction, peer, self._protocol, hop.port) if ok else None
        if audited is not None:
            self._watched = self._watched or audited.verdict is Verdict.REDIRECT
            self._step("audit", audited.text, node=node, at=hop.label, origins=audited.origins)
        return word.verdict

    def _asked(self, hop: Hop) -> Outcome:
        """What the DNS proxy takes: it may be asked, and judges each name."""
        if hop.port != DNS_PORT and not self._named:
            self._step("dns", f"nothing is served at port {hop.port}", ok=False, at=hop.label)
            return Outcome(False, "UNTRANSLATED_SERVICE", hop.label)
        here = hop.source_node == self._facts.world.node
        ready = not here or self._kernel.listener(DNS_LISTENER) is not None
        text = "the DNS proxy judges each name" if ready else "the DNS proxy is not ready"
        self._step("dns", text, ok=ready, node=hop.source_node, at=hop.label)
        return Outcome(ready, "REDIRECTED" if ready else "PROXY_NOT_READY", hop.label)

    def _looked_at(self, hop: Hop) -> bool:
        """Whether the proxy takes it for a policy in audit alone; it does only where it is ready."""
        here = hop.source_node == self._facts.world.node
        key = ListenerKey(hop.identity, ListenerKind.HTTP_WORKLOAD)
        return self._watched and here and self._kernel.listener(key) is not None

    def _unproven(self, hop: Hop, peer: int) -> bool:
        """Whether a rule of the sender demands a proof that no mesh TLS can give."""
        if not self._proof or peer == HOST or hop.target_node == hop.source_node:
            return False
        spoken = self._sides.meshed(hop.target) and self._mode(hop) is not MeshMode.OFF
        if self._protocol == "TCP" and spoken:
            return False
        self._step("mesh", "authentication is required and mesh TLS is not spoken", ok=False, at=hop.label)
        return True

    def _ingress(self, hop: Hop, identity: int) -> Verdict:
        assert hop.target is not None
        if identity == HOST and self._facts.world.settings.host_access:
            self._step(
                "ingress", "the node itself may reach its workloads", node=hop.target_node, at=hop.label
            )
            return Verdict.ALLOW
        return self._side(hop, hop.target, Direction.INGRESS, identity, hop.target_node)

    def _mode(self, hop: Hop) -> MeshMode:
        own = self._facts.modes.ports(hop.target).get(hop.port) if hop.target is not None else None
        if own is not None:
            return own
        here = self._kernel.endpoint(hop.address)
        if here is not None:
            return here.mode
        return self._facts.modes.of(hop.target) if hop.target is not None else MeshMode.OFF

    def _strict(self, hop: Hop) -> bool:
        if hop.target is None or not self._sides.meshed(hop.target):
            return False
        toward = self._facts.toward.of(hop.target, hop.port)
        return self._proof or MeshMode.STRICT in (self._mode(hop), toward)

    def _arrive(self, hop: Hop, *, tls: bool, judged: bool = False) -> Outcome:
        """What the receiver's node says to what comes from outside it; `judged` if a proxy let it go."""
        if not hop.target_node or hop.target is None:
            text = "nobody judges what arrives there" if not judged else "the proxy connects in plain text"
            self._step("ingress", text, at=hop.label)
            return Outcome(True, "REDIRECTED" if judged else "FORWARDED_STACK", hop.label)
        identity = hop.identity
        if identity == HOST and hop.source_node != hop.target_node:
            identity = REMOTE_NODE
        self._proof = False
        verdict = self._ingress(hop, identity)
        if verdict is Verdict.DENY:
            return Outcome(False, "POLICY_DENIED_INGRESS", hop.label)
        if self._proof and not tls and identity != HOST:
            text = "authentication is required and this is not mesh TLS"
            self._step("mesh", text, ok=False, node=hop.target_node, at=hop.label)
            return Outcome(False, "UNAUTHENTICATED", hop.label)
        if tls:
            kind = ListenerKind.TLS_HTTP if verdict is Verdict.REDIRECT else ListenerKind.TLS_TCP
            self._step("mesh", "mesh TLS: both certificates are verified", node=hop.target_node, at=hop.label)
            return self._proxied(hop, kind, hop.target_node)
        mode = self._mode(hop)
        if self._protocol == "TCP":
            strict = mode is MeshMode.STRICT and identity != HOST
            text = f"plain TCP, and port {hop.port} of {name_of(hop.target)} is {mode.name}"
            self._step("mesh", text, ok=not strict, node=hop.target_node, at=hop.label)
            if strict:
                return Outcome(False, "PLAINTEXT_TO_STRICT", hop.label)
        if verdict is Verdict.REDIRECT:
            return self._proxied(hop, ListenerKind.HTTP_WORKLOAD, hop.target_node)
        return Outcome(True, "REDIRECTED" if judged else "FORWARDED_STACK", hop.label)

    # --- in the proxy ---------------------------------------------------------------------------------

    def _listener(
        self, kind: ListenerKind, source_class: int, node: str, at: str, destination: int = 0
    ) -> bool:
        name = kind.name
        if node != self._facts.world.node:
            self._step("listener", f"steered to {name} of class {source_class} there", node=node, at=at)
            return True
        port = self._kernel.listener(ListenerKey(source_class, kind, destination))
        if port is None:
            text = f"there is no listener {name} for class {source_class} that is ready"
            self._step("listener", text, ok=False, node=node, at=at)
            return False
        ready = "ready" if self._kernel.live else "as planned"
        self._step(
            "listener", f"steered to {name} of class {source_class}, port {port}, {ready}", node=node, at=at
        )
        return True

    def _proxied(self, hop: Hop, kind: ListenerKind, node: str) -> Outcome:
        destination = hop.target.identity if kind is ListenerKind.TCP_MTLS and hop.target else 0
        if not self._listener(kind, hop.identity, node, hop.label, destination):
            return Outcome(False, "PROXY_NOT_READY", hop.label)
        if kind in (ListenerKind.HTTP_WORKLOAD, ListenerKind.TLS_HTTP) and not self._may(
            hop, node, self._request
        ):
            return Outcome(False, "REQUEST_DENIED", hop.label, 403)
        if kind in (ListenerKind.TLS_HTTP, ListenerKind.TLS_TCP) or node == hop.target_node:
            return Outcome(True, "REDIRECTED", hop.label)
        return self._upstream(hop)

    def _upstream(self, hop: Hop) -> Outcome:
        """From the sender's proxy on: the request, or the connection, was let through there."""
        tls = self._sides.meshed(hop.target) and self._mode(hop) is not MeshMode.OFF
        return self._arrive(hop, tls=tls, judged=True)

    def _may(self, hop: Hop, node: str, request: Request | None) -> bool:
        peer = self._facts.identity_of(hop.address, hop.target)
        crossing = Crossing(hop.source.member, hop.identity, hop.target, peer, hop.port)
        said: Judgement = self._requests.judge(crossing, request)
        self._step("request", said.text, ok=said.allowed, node=node, at=hop.label, origins=said.origins)
        if said.allowed and not self._requests.audited(crossing, request):
            text = "a policy in audit would deny this request; it is let through"
            self._step("audit", text, node=node, at=hop.label)
        if said.explicit:
            self.denied_by.append(said.origins)
            return False
        for direction in said.failing:
            subject, other = crossing.subject(direction), crossing.subject(Direction(1 - direction))
            identity = crossing.peer if direction is Direction.EGRESS else crossing.identity
            assert subject is not None
            address = far_end(hop, direction)
            self.missing.append(
                Missing(subject, direction, other, identity, address, "TCP", hop.port, request)
            )
        return said.allowed

    # --- along a route --------------------------------------------------------------------------------

    def _routed(self, source: Party, identity: int, address: Address, port: int, home: str) -> list[Outcome]:
        if not self._listener(ListenerKind.HTTP_SERVICE, identity, home, ""):
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
