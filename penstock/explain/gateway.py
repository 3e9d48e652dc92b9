"""The first hop of a request through a Gateway: what is decided before any backend is chosen.

A Gateway's own address is judged like an endpoint of identity ingress; what comes behind it is the Gateway's
request, whoever its client was, and so another question: that of reserved:ingress to the backend.
"""

from __future__ import annotations

from penstock.explain.kernel import Kernel
from penstock.explain.l7 import Crossing, Requests
from penstock.explain.model import Outcome, Request, Step
from penstock.explain.parties import Party
from penstock.explain.sides import Sides
from penstock.facts import Facts
from penstock.plan import Direction, ListenerKey, ServiceEntry, Verdict
from penstock.policy.labels import HOST, INGRESS
from penstock.policy.lookup import both_sides
from penstock.routing.model import ListenerKind


def first_hop(
    facts: Facts,
    kernel: Kernel,
    sides: Sides,
    requests: Requests,
    service: ServiceEntry,
    source: Party,
    identity: int,
    asked: tuple[str, int, Request | None],
    home: str,
) -> tuple[list[Step], Outcome]:
    """The steps from a client to the Gateway behind `service`; `asked` are protocol, port and request."""
    protocol, port, request = asked
    name = service.name.rpartition("/")[0]
    steps = [Step("gateway", f"{name}: the proxy listens there itself, as {sides.peer(INGRESS)}", True, home)]
    verdict = Verdict.ALLOW
    member = source.member if home == facts.world.node else None
    gateway = facts.members.ingress[0]
    words = [(member, Direction.EGRESS, INGRESS)] if member is not None else []
    if identity == HOST:
        steps.append(Step("ingress", "within the node nothing judges what is sent to a Gateway", True, home))
    else:
        words.append((gateway, Direction.INGRESS, identity))
    for subject, direction, peer in words:
        word = sides.word(subject, direction, peer, protocol, port)
        ok = word.verdict is not Verdict.DENY
        steps.append(Step(direction.name.lower(), word.text, ok, home, origins=word.origins))
        audited = sides.audited(subject, direction, peer, protocol, port) if ok else None
        if audited is not None:
            steps.append(Step("audit", audited.text, True, home, origins=audited.origins))
        if not ok:
            return steps, Outcome(False, f"POLICY_DENIED_{direction.name}")
        both = both_sides(verdict, word.verdict)
        if both in (None, Verdict.NAMES):
            clash = "a Gateway looks at no server names for rules: nothing passes"
            return [*steps, Step(direction.name.lower(), clash, False, home)], Outcome(False, "RULES_CLASH")
        assert both is not None
        verdict = both
    if verdict is Verdict.REDIRECT:
        listener = kernel.listener(ListenerKey(identity, ListenerKind.GATEWAY, service.service_id))
        if listener is None:
            why = f"there is no listener GATEWAY for class {identity} that is ready"
            return [*steps, Step("listener", why, False, home)], Outcome(False, "PROXY_NOT_READY")
        steps.append(Step("listener", f"steered to GATEWAY of class {identity}, port {listener}", True, home))
        said = requests.judge(Crossing(member, identity, gateway, INGRESS, port), request)
        steps.append(Step("request", said.text, said.allowed, home, origins=said.origins))
        if not said.allowed:
            return steps, Outcome(False, "REQUEST_DENIED", code=403)
    steps.append(
        Step("gateway", "from here on it is a request of reserved:ingress to the backend", True, home)
    )
    return steps, Outcome(True, "REDIRECTED" if verdict is Verdict.REDIRECT else "FORWARDED_STACK")
