"""What every part of the way has: the steps that were taken, and who stands where."""

from __future__ import annotations

from penstock.explain.hop import Hop, Missing
from penstock.explain.kernel import Kernel
from penstock.explain.l7 import Requests
from penstock.explain.model import Request, Step
from penstock.explain.parties import Parties, Party, name_of
from penstock.explain.sides import Origins, Sides, Word
from penstock.facts import Facts
from penstock.plan import Direction, Plan
from penstock.policy.labels import HOST
from penstock.world import Address


class Walker:
    """Collects `steps`, what is `missing`, and which rules denied it."""

    def __init__(
        self,
        facts: Facts,
        plan: Plan,
        kernel: Kernel,
        parties: Parties,
        request: Request | None,
        server_name: str | None = None,
    ) -> None:
        self._facts, self._plan, self._kernel = facts, plan, kernel
        self._parties, self._request = parties, request
        self._server_name = server_name
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
        # The lists of server names that a connection is under, and the rules that have them.
        self._names: dict[Direction, Word] = {}
        # Whether what goes there is a backend's own TLS, and whether routes are those of Ingresses.
        self._own_tls = self._of_ingress = False

    def _step(
        self, what: str, text: str, *, ok: bool = True, node: str = "", at: str = "", origins: Origins = ()
    ) -> None:
        self.steps.append(Step(what, text, ok, node, at, origins))

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
