"""What is asked, and what is answered: plain values, the same offline and live.

An explanation is a list of steps in the order of the way. Each step says what was decided, where, and by
which line of which manifest; the first one that denies ends the way to its endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.manifests.document import ObjectKey, Origin
from penstock.observe.reasons import Reason

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPV6": 58}

HTTP_REASONS: Mapping[str, str] = {
    "REQUEST_DENIED": "no L7 rule allows this request at the endpoint: Envoy answers 403",
    "NO_ROUTE": "a route applies to the Service and none of its matches is met: Envoy answers 404",
    "NO_USABLE_BACKEND": "the route leads to no endpoint: Envoy answers 500 or 503",
    "NO_STREAM": "no listener, route or backend is there for it: the proxy closes the connection",
    "FAULT": "an HTTPPolicy breaks it on purpose",
    "NOT_AUTHENTICATED": "an HTTPPolicy wants a token that it has not: 401, or 500 without keys",
    "TLS_UNSEEN": "an L7 rule judges there and sees only the backend's own TLS: Envoy answers 503",
    "SERVER_NAME": "no rule about server names allows it: Envoy resets the connection",
    "NOT_AUTHORIZED": "an HTTPPolicy names a service to ask that is not there: Envoy answers 500",
}
"""What the proxy answers, and the kernel has no number for."""


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request as it is sent; names of headers are in lower case, ``:authority`` among them."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """`port` is a number, the name of a port, or None where it is the only one there is."""

    source: str
    destination: str
    port: str | None = None
    protocol: str = "TCP"
    method: str | None = None
    path: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    server_name: str | None = None
    """The SNI of TLS; '' is none."""


@dataclass(frozen=True, slots=True)
class Step:
    """One decision. `ok` is False for the one that ends the way; `origins` are the lines behind it."""

    what: str
    text: str
    ok: bool = True
    node: str = ""
    endpoint: str = ""
    origins: tuple[tuple[ObjectKey, Origin], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ends at one endpoint. `code` is what Envoy answers of itself, None if it does not."""

    allowed: bool
    reason: str
    endpoint: str = ""
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """`advice` is a manifest that would allow it, or empty; `hint` says in a sentence what to do."""

    source: str
    destination: str
    steps: tuple[Step, ...]
    outcomes: tuple[Outcome, ...]
    live: bool
    advice: str = ""
    hint: str = ""

    @property
    def verdict(self) -> str:
        """ALLOWED, DENIED, or PARTLY where it depends on the endpoint that is chosen."""
        allowed = [outcome.allowed for outcome in self.outcomes]
        return "ALLOWED" if all(allowed) else "PARTLY" if any(allowed) else "DENIED"

    @property
    def decisive(self) -> Outcome:
        """The outcome that the verdict is about: the first denial, if there is one."""
        return next((o for o in self.outcomes if not o.allowed), self.outcomes[0])

    @property
    def steered(self) -> bool:
        """Whether Envoy is on the way."""
        return any(step.what == "listener" for step in self.steps)


def sentence(reason: str) -> str:
    """What a reason means."""
    return HTTP_REASONS.get(reason) or Reason[reason].explanation


def plain(explanation: Explanation) -> dict[str, Any]:
    """As JSON has it."""
    decisive = explanation.decisive
    return {
        "source": explanation.source,
        "destination": explanation.destination,
        "live": explanation.live,
        "verdict": explanation.verdict,
        "reason": decisive.reason,
        "code": decisive.code,
        "why": sentence(decisive.reason),
        "steps": [
            {
                "what": step.what,
                "ok": step.ok,
                "text": step.text,
                "node": step.node,
                "endpoint": step.endpoint,
                "rules": [
                    {
                        "kind": key.kind,
                        "namespace": key.namespace,
                        "name": key.name,
                        "file": origin.file,
                        "line": origin.line,
                        "field": origin.rule,
                    }
                    for key, origin in step.origins
                ],
            }
            for step in explanation.steps
        ],
        "endpoints": [
            {"endpoint": o.endpoint, "allowed": o.allowed, "reason": o.reason, "code": o.code}
            for o in explanation.outcomes
        ],
        "advice": explanation.advice,
        "hint": explanation.hint,
    }
