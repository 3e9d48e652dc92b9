"""A connection to one endpoint: what the kernel says to it, and the proxy behind.

The order is that of judge() in bpf/judge.h: the sender's egress, the receiver's ingress, what mesh TLS asks,
then the listener, and what the receiver's node says to what comes from this one.
"""

from __future__ import annotations

from penstock.explain import names
from penstock.explain.hop import Hop, Missing, far_end
from penstock.explain.l7 import Crossing, Judgement
from penstock.explain.model import Outcome, Request
from penstock.explain.parties import name_of
from penstock.explain.walker import Walker
from penstock.plan import DNS_LISTENER, Direction, ListenerKey, MeshMode, Verdict
from penstock.policy.entries import DNS_PORT
from penstock.policy.identities import Member
from penstock.policy.labels import DNS, HOST, REMOTE_NODE, WORLD
from penstock.policy.lookup import both_sides
from penstock.policy.server_names import number
from penstock.routing.model import ListenerKind


class Direct(Walker):
    """To an address that is an endpoint's own, or the choice of a Service or a route."""

    # --- in the kernel --------------------------------------------------------------------------------

    def _direct(self, hop: Hop) -> Outcome:
        target = self._kernel.who(hop.address)
        self._proof = self._watched = self._named = self._own_tls = False
        self._names = {}
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
            word = both_sides(verdict, self._ingress(hop, hop.identity))
            if word is None:
                return self._clash(hop)
            verdict = word
            if verdict is Verdict.DENY:
                return Outcome(False, "POLICY_DENIED_INGRESS", hop.label)
            if verdict in (Verdict.REDIRECT, Verdict.NAMES) and sender is None:
                self._step("listener", "what the node itself sends cannot be steered", ok=False, at=hop.label)
                return Outcome(False, "PROXY_NOT_READY", hop.label)
            if self._named:
                return self._asked(hop)
            if verdict is Verdict.NAMES:
                return self._by_server_name(hop, ListenerKind.NAMES, hop.source_node)
            if verdict is Verdict.REDIRECT:
                return self._proxied(hop, ListenerKind.HTTP_WORKLOAD, hop.source_node)
            if self._looked_at(hop):
                return self._proxied(hop, ListenerKind.HTTP_WORKLOAD, hop.source_node)
            return Outcome(True, "FORWARDED_LOCAL", hop.label)
        if self._named:
            return self._asked(hop)
        if sender is not None and verdict is Verdict.REDIRECT:
            return self._proxied(hop, ListenerKind.HTTP_WORKLOAD, hop.source_node)
        if sender is not None and verdict is Verdict.NAMES:
            found = self._by_server_name(hop, ListenerKind.NAMES, hop.source_node)
            return self._upstream(hop) if found.allowed else found
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
        if word.verdict is Verdict.NAMES:
            self._names[direction] = word
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

    def _clash(self, hop: Hop) -> Outcome:
        text = "one side asks for server names and the other for requests: nothing can be both"
        self._step("ingress", text, ok=False, node=hop.target_node, at=hop.label)
        return Outcome(False, "RULES_CLASH", hop.label)

    def _by_server_name(self, hop: Hop, kind: ListenerKind, node: str) -> Outcome:
        """What a listener says that looks at the SNI alone."""
        outward, inward = (
            self._names[d].names if d in self._names else () for d in (Direction.EGRESS, Direction.INGRESS)
        )
        to, meshed = 0, self._sides.meshed(hop.target) and hop.target_node != node
        if kind is ListenerKind.NAMES and meshed and self._mode(hop) is not MeshMode.OFF:
            to = hop.target.identity if hop.target is not None else 0
        elif kind is ListenerKind.NAMES and self._sides.outside(self._kernel.who(hop.address).identity):
            to = WORLD
        key = ListenerKey(hop.identity, kind, to, number(outward), number(inward))
        if not self._listener(key, node, hop.label):
            return Outcome(False, "PROXY_NOT_READY", hop.label)
        for each in self._names.values():
            text, ok = names.said(each, self._server_name)
            self._step("server name", text, ok=ok, node=node, at=hop.label, origins=each.origins)
            if not ok:
                return Outcome(False, "SERVER_NAME", hop.label)
        return Outcome(True, "REDIRECTED", hop.label)

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
        self._names = {}
        verdict = self._ingress(hop, identity)
        if verdict is Verdict.DENY:
            return Outcome(False, "POLICY_DENIED_INGRESS", hop.label)
        if self._proof and not tls and identity != HOST:
            text = "authentication is required and this is not mesh TLS"
            self._step("mesh", text, ok=False, node=hop.target_node, at=hop.label)
            return Outcome(False, "UNAUTHENTICATED", hop.label)
        if self._own_tls and verdict is Verdict.REDIRECT:
            text = "an L7 rule judges requests here, and sees nothing but the backend's own TLS"
            self._step("request", text, ok=False, node=hop.target_node, at=hop.label)
            return Outcome(False, "TLS_UNSEEN", hop.label, 503)
        if tls:
            kind = ListenerKind.TLS_HTTP if verdict is Verdict.REDIRECT else ListenerKind.TLS_TCP
            self._step("mesh", "mesh TLS: both certificates are verified", node=hop.target_node, at=hop.label)
            if verdict is Verdict.NAMES:
                return self._by_server_name(hop, ListenerKind.TLS_NAMES, hop.target_node)
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
        if verdict is Verdict.NAMES:
            return self._by_server_name(hop, ListenerKind.NAMES, hop.target_node)
        return Outcome(True, "REDIRECTED" if judged else "FORWARDED_STACK", hop.label)

    # --- in the proxy ---------------------------------------------------------------------------------

    def _listener(self, key: ListenerKey, node: str, at: str) -> bool:
        name, source_class = key.kind.name, key.source_class
        if node != self._facts.world.node:
            self._step("listener", f"steered to {name} of class {source_class} there", node=node, at=at)
            return True
        port = self._kernel.listener(key)
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
        if not self._listener(ListenerKey(hop.identity, kind, destination), node, hop.label):
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
