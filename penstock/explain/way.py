"""The way of a connection and of a request on it, decision by decision, from the socket on.

A Service's address is translated, or keeps a route to itself; then each endpoint that may be chosen is a
destination of its own. Each decision is asked of the code that decides it.
"""

from __future__ import annotations

from penstock.explain import fqdn
from penstock.explain.behind import Behind
from penstock.explain.gateway import first_hop
from penstock.explain.model import PROTOCOLS, Outcome
from penstock.explain.parties import Ends, Party
from penstock.explain.sides import by
from penstock.plan import ServiceKey
from penstock.world import Address


class Way(Behind):
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
        if service is None and address in self._facts.edge.addresses:
            return self._no_listener(address, port, ends.protocol, home)
        if service is None:
            return [self._direct(self._hop(ends.source, identity, address, port))]
        if service.gateway:
            asked = (ends.protocol, port, self._request)
            judges = (self._facts, self._kernel, self._sides, self._requests)
            steps, outcome = first_hop(*judges, service, ends.source, identity, asked, home)
            self.steps += steps
            if not outcome.allowed:
                return [outcome]
            self._protocol = ends.protocol
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
