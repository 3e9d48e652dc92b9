"""What comes behind the door of a Gateway or of the Ingresses: a request along its routes, or a stream.

A stream has nothing to choose by but the server name of its TLS. What Gateways may send an endpoint without
anybody looking into it decides which endpoints a stream has; of datagrams the kernel decides each.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.explain import lines
from penstock.explain.edge import door
from penstock.explain.hop import Hop
from penstock.explain.model import Outcome
from penstock.explain.parties import Party
from penstock.explain.routed import Routed
from penstock.explain.sides import Origins, by
from penstock.manifests.document import ObjectKey
from penstock.plan import Direction, MeshMode, Verdict
from penstock.policy.labels import INGRESS
from penstock.routing import hosts
from penstock.routing.edge import EdgeCluster
from penstock.routing.model import EdgeListener, HttpChain, RouteBackend, TcpChain
from penstock.routing.services import Backend, ServedPort
from penstock.world import Address


class Behind(Routed):
    """The second hop: that of reserved:ingress."""

    def _behind(self, name: str) -> list[Outcome]:
        """From the proxy's listener `name` on; nothing where only the first hop can be told."""
        listener = next((each for each in self._plan.proxy.edge if each.name == name), None)
        if listener is None:
            return []
        streams = [c for c in listener.chains if isinstance(c, TcpChain)]
        if not streams or (self._request is not None and len(streams) < len(listener.chains)):
            return self._requested(name) if self._request is not None else self._unasked(name, listener)
        chains = self._chosen(listener, streams)
        return [outcome for chain in chains for outcome in self._stream(listener, chain)] or [
            Outcome(False, "NO_STREAM")
        ]

    def _no_listener(self, address: Address, port: int, protocol: str, home: str) -> list[Outcome]:
        """Nothing is served at this port of a Gateway's address: which one, and what it has."""
        statuses = self._facts.edge.statuses
        key = next((k for k, s in statuses.items() if address in s.extra.get("addresses", ())), None)  # type: ignore[operator]
        if key is None or key.kind != "Gateway":
            whose = "Ingresses" if key is not None else "the node's Gateways"
            text = f"{address} is the address of {whose}: nothing is served at {port}/{protocol}"
            self._step("gateway", text, ok=False, node=home)
            return [Outcome(False, "NO_STREAM")]
        here = [
            (document, i, each)
            for document, i, each in lines.listeners(self._facts, key)
            if each.port == port and (each.protocol.upper() == "UDP") == (protocol == "UDP")
        ]
        origins = tuple((d.key, d.origin("spec", "listeners", i)) for d, i, _ in here)
        if here:
            text = f"{key}: listener {here[0][2].name} serves nothing: {self._idle(key, here[0][2].name)}"
            text += f", {by(origins)}"
        else:
            document = self._facts.world.documents[key]
            origins = ((key, document.origin("spec", "listeners")),)
            text = f"{key} has no listener at {port}/{protocol}, {by(origins)}"
        self._step("gateway", text, ok=False, node=home, origins=origins)
        return [Outcome(False, "NO_STREAM")]

    def _idle(self, key: ObjectKey, name: str) -> str:
        """Why nothing of a listener is served."""
        told = self._facts.edge.statuses[key].extra.get("listeners", ())
        own = next((s for s in told if s.name == name), None)  # type: ignore[attr-defined]
        bad = [c for c in own.conditions if c.type != "Conflicted" and not c.status] if own else []
        return bad[0].message or bad[0].reason if bad else "no route is attached to it"

    # --- requests -------------------------------------------------------------------------------------

    def _unasked(self, name: str, listener: EdgeListener) -> list[Outcome]:
        """Without a request: the hosts that there are."""
        tables = {each.name: each for each in self._plan.proxy.tables}
        known = [c.table for c in listener.chains if isinstance(c, HttpChain)]
        told = {h.host or "every host": len(h.routes) for t in known for h in tables[t].hosts if h.routes}
        text = ", ".join(f"{host} ({count} matches)" for host, count in sorted(told.items()))
        text = text or "there is none: every request gets 404"
        _, origins = lines.of_listener(self._facts, name, listener.port, "", listener.protocol)
        self._step("route", f"by the request (METHOD PATH): {text}", node=self._home, origins=origins)
        return []

    def _requested(self, name: str) -> list[Outcome]:
        assert self._request is not None
        found = door(self._facts, self._plan, name, self._request)
        if found is None:
            return []
        text = f"{found.text}, {by(found.origins)}" if found.origins else found.text
        self._step("route", text, ok=found.outcome is None, node=self._home, origins=found.origins)
        if found.outcome is not None:
            return [found.outcome]
        assert found.routes is not None
        ingress = lines.gateway_of(name) is None
        routes = found.routes
        return self._along(
            routes.routes, routes.treatment, found.targets, self._gateway(), INGRESS, self._home, ingress
        )

    @property
    def _home(self) -> str:
        return self._facts.world.node

    def _gateway(self, version: int = 4) -> Party:
        gateway = self._facts.members.ingress[0]
        addresses = sorted(gateway.addresses, key=lambda a: a.version != version)
        return Party("reserved:ingress", addresses[0] if addresses else None, gateway)

    # --- streams --------------------------------------------------------------------------------------

    def _chosen(self, listener: EdgeListener, streams: Sequence[TcpChain]) -> Sequence[TcpChain]:
        """The chain of the connection's server name; all of them where none is said."""
        if all(chain.sni is None for chain in streams):
            return streams
        names = ", ".join(
            chain.sni or "any server name" for chain in listener.chains if chain.sni is not None
        )
        if self._server_name is None:
            text = f"one of {names}, by the server name (--server-name)"
            self._step("listener", text, node=self._home)
            return streams
        fit = [c for c in listener.chains if c.sni is not None and hosts.covers(c.sni, self._server_name)]
        best = max(fit, key=lambda c: hosts.specific(c.sni or ""), default=None)
        asked = f"server name {self._server_name}" if self._server_name else "no server name"
        if best is None:
            text = f"{asked} is none of {names}: the connection is closed"
            self._step("listener", text, ok=False, node=self._home)
            return ()
        if isinstance(best, HttpChain):
            text = f"{asked} is that of an HTTPS listener: say METHOD PATH"
            self._step("listener", text, ok=False, node=self._home)
            return ()
        return (best,)

    def _stream(self, listener: EdgeListener, chain: TcpChain) -> list[Outcome]:
        words, origins = lines.of_listener(
            self._facts, listener.name, listener.port, chain.sni or "", listener.protocol
        )
        of = "" if chain.sni is None else f", server name {chain.sni or 'of any kind'}"
        does = "" if chain.sni is None else ", TLS ends here" if chain.tls else ", TLS is passed on as it is"
        told = f", {by(origins)}" if origins else ""
        self._step("listener", f"{words}{of}{does}{told}", node=self._home, origins=origins)
        rule: Origins = ()
        if chain.route is not None:
            document = self._facts.world.documents[chain.route]
            rule = ((document.key, document.origin("spec", "rules", 0)),)
            self._step("route", by(rule), node=self._home, origins=rule)
        if listener.protocol == "UDP":
            return self._datagrams(chain, rule)
        total = sum(share.weight for share in chain.backends)
        if not total:
            text = "there is no backend with a weight: the connection is closed"
            self._step("route", text, ok=False, node=self._home, origins=rule)
            return [Outcome(False, "NO_STREAM")]
        clusters = {each.name: each for each in self._facts.edge.clusters}
        return [
            outcome
            for share in chain.backends
            if share.weight
            for outcome in self._share(share, total, clusters.get(share.cluster or ""), rule)
        ]

    def _share(
        self, share: RouteBackend, total: int, cluster: EdgeCluster | None, rule: Origins
    ) -> list[Outcome]:
        origins = lines.of_backend(self._facts, rule, share)
        where = share.cluster or "a backend that is not there"
        backends = () if cluster is None else self._facts.served.of(cluster.served).backends
        usable = cluster is not None and bool(backends) and not cluster.lost
        text = f"{share.weight} of {total} parts go to {where}{f', {by(origins)}' if origins else ''}"
        self._step("route", text, ok=usable, node=self._home, origins=origins)
        if cluster is None or not usable:
            return [Outcome(False, "NO_STREAM", share.cluster or "")]
        if cluster.tls is not None:
            self._step("tls", f"the backend's own, for {cluster.tls.sni} (BackendTLSPolicy)", node=self._home)
        self._own_tls = False
        found = [self._streamed(backend) for backend in backends]
        # Envoy has those only that are open to Gateways, whatever they are sent.
        return [o for o in found if o.allowed] or found

    def _datagrams(self, chain: TcpChain, rule: Origins) -> list[Outcome]:
        name = chain.backends[0].cluster
        mix = next(each for each in self._facts.edge.mixes if each.name == name)
        total = sum(weight for _, weight in mix.shares)
        outcomes = []
        for served, weight in mix.shares:
            if weight:
                outcomes += self._mixed(served, weight, total, rule)
        if not outcomes:
            text = "there is no backend with a weight: datagrams are lost"
            self._step("route", text, ok=False, node=self._home, origins=rule)
        return outcomes

    def _mixed(self, served: ServedPort | None, weight: int, total: int, rule: Origins) -> list[Outcome]:
        backends = self._facts.served.of(served).backends if served is not None else ()
        share = RouteBackend(served.name if served is not None else None, weight)
        origins = lines.of_backend(self._facts, rule, share)
        where = share.cluster or "a backend that is not there"
        text = f"{weight} of {total} parts go to {where}{f', {by(origins)}' if origins else ''}"
        self._step("route", text, ok=bool(backends), node=self._home, origins=origins)
        return [self._streamed(each) for each in backends] or [Outcome(False, "NO_STREAM", where)]

    def _streamed(self, backend: Backend) -> Outcome:
        """One endpoint: its node's kernel judges what comes from Gateways there."""
        hop = self._to(backend.address, backend.port)
        if hop.target is not None and hop.target_node == self._home:
            verdict = self._side(hop, hop.target, Direction.INGRESS, INGRESS, self._home)
            if verdict is Verdict.DENY:
                return Outcome(False, "POLICY_DENIED_INGRESS", hop.label)
            if verdict in (Verdict.REDIRECT, Verdict.NAMES):
                text = (
                    "nobody can look into a stream of a Gateway: what only some requests may do, it may not"
                )
                self._step("request", text, ok=False, node=self._home, at=hop.label)
                return Outcome(False, "REQUEST_DENIED", hop.label)
            return Outcome(True, "REDIRECTED", hop.label)
        over_mesh = self._protocol == "TCP" and self._sides.meshed(hop.target)
        return self._arrive(hop, tls=over_mesh and self._mode(hop) is not MeshMode.OFF, judged=True)

    def _to(self, address: Address, port: int) -> Hop:
        return self._hop(self._gateway(address.version), INGRESS, address, port)
