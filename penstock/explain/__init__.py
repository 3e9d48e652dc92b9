"""Why a connection or a request is allowed or denied, decision by decision. Pure.

Nothing is decided here: entries, look-ups, rights, routes and listeners are asked of the code that makes them
(policy/, routing/), and the kernel's tables of whoever holds them, a Plan or the kernel itself.
"""

from __future__ import annotations

from penstock.explain.advice import manifest
from penstock.explain.errors import UnknownPartyError
from penstock.explain.kernel import Kernel, Planned
from penstock.explain.model import Explanation, Question, Request, plain, sentence
from penstock.explain.parties import Ends, Parties, split
from penstock.explain.requests import normalized
from penstock.explain.sides import by
from penstock.explain.way import Way
from penstock.facts import Facts
from penstock.plan import Plan

__all__ = ["Explanation", "Planned", "Question", "UnknownPartyError", "explain", "plain", "sentence", "split"]


def explain(question: Question, facts: Facts, plan: Plan, kernel: Kernel) -> Explanation:
    """Walk the way of `question`. `plan` and `facts` are of one World. Raises UnknownPartyError."""
    parties = Parties(facts)
    ends = parties.ends(question)
    way = Way(facts, plan, kernel, parties, _request(question, ends), question.server_name)
    outcomes = way.walk(ends)
    request = f" {question.method} {question.path}" if question.method else ""
    return Explanation(
        source=ends.source.name,
        destination=f"{ends.target.name}:{ends.port}/{ends.protocol}{request}",
        steps=tuple(way.steps),
        outcomes=tuple(outcomes),
        live=kernel.live,
        advice="" if way.denied_by else manifest(way.missing),
        hint=_hint(way, {o.reason for o in outcomes if not o.allowed}),
    )


def _request(question: Question, ends: Ends) -> Request | None:
    """The request as it reaches the proxy; the Host is the address that is dialled, if none is said."""
    if question.method is None or question.protocol != "TCP":
        return None
    address = f"[{ends.target.address}]" if ":" in str(ends.target.address) else str(ends.target.address)
    address = ends.target.dns or address
    headers = {":authority": address if ends.port == 80 else f"{address}:{ends.port}"}
    for name, value in question.headers:
        own = ":authority" if name.lower() == "host" else name.lower()
        headers[own] = value
    return Request(question.method, normalized(question.path or "/"), headers)


def _hint(way: Way, reasons: set[str]) -> str:
    if way.denied_by:
        return f"a deny rule wins over every rule that allows: change {by(way.denied_by[0])}"
    if "PROXY_NOT_READY" in reasons:
        return "penstock status says what Envoy waits for, or what it refused"
    if "PLAINTEXT_TO_STRICT" in reasons:
        return "send from a workload of a mesh node, or set the receiver's PeerAuthentication to PERMISSIVE"
    if "UNAUTHENTICATED" in reasons:
        return "only workloads of mesh nodes can prove who they are, over TCP, and where mesh TLS is not off"
    if reasons & {"NO_BACKEND", "NO_USABLE_BACKEND"}:
        return "penstock service list shows each Service with its endpoints"
    if "UNTRANSLATED_SERVICE" in reasons:
        return "a Service address has a meaning only where a socket connects: in a workload, or on a node"
    if "NO_ROUTE" in reasons:
        return "penstock get httproute -A -o yaml shows the matches of each route"
    return ""
