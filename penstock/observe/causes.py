"""Why the proxy itself answered a request, or cut it short, from what Envoy says about it.

Words of ours for words of Envoy's: the same that `penstock explain` uses. A backend's own answer has no cause
here, whatever its status. Source: Envoy 1.40, response flags and response code details.
"""

from __future__ import annotations

from enum import StrEnum

from penstock.observe.als import RequestRecord


class Cause(StrEnum):
    REQUEST_DENIED = "REQUEST_DENIED"
    RATE_LIMITED = "RATE_LIMITED"
    NOT_AUTHENTICATED = "NOT_AUTHENTICATED"
    NOT_AUTHORIZED = "NOT_AUTHORIZED"
    FAULT = "FAULT"
    DELAYED = "DELAYED"
    TIMEOUT = "TIMEOUT"
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    NO_HEALTHY_BACKEND = "NO_HEALTHY_BACKEND"
    NO_USABLE_BACKEND = "NO_USABLE_BACKEND"
    BACKEND_UNREACHABLE = "BACKEND_UNREACHABLE"
    BACKEND_RESET = "BACKEND_RESET"
    NO_ROUTE = "NO_ROUTE"


EXPLANATIONS = {
    Cause.REQUEST_DENIED: "no policy lets the client send this to the endpoint that was chosen",
    Cause.RATE_LIMITED: "more requests than a rate limit lets through",
    Cause.NOT_AUTHENTICATED: "no token that holds",
    Cause.NOT_AUTHORIZED: "the authorization service said no, or nothing",
    Cause.FAULT: "answered on purpose, by a fault",
    Cause.DELAYED: "delayed on purpose, by a fault",
    Cause.TIMEOUT: "no answer in the time that its route gives",
    Cause.CIRCUIT_OPEN: "more at once than a circuit breaker lets through",
    Cause.NO_HEALTHY_BACKEND: "no endpoint, or none that is healthy",
    Cause.NO_USABLE_BACKEND: "its route names a backend that cannot be used",
    Cause.BACKEND_UNREACHABLE: "no connection to the endpoint",
    Cause.BACKEND_RESET: "the endpoint ended the connection without an answer",
    Cause.NO_ROUTE: "no route is for it",
}

REFUSALS = frozenset(
    [Cause.REQUEST_DENIED, Cause.RATE_LIMITED, Cause.NOT_AUTHENTICATED, Cause.NOT_AUTHORIZED]
)
"""Somebody said no, rather than something went wrong."""

_DETAILS = (
    ("rbac", Cause.REQUEST_DENIED),
    ("local_rate_limited", Cause.RATE_LIMITED),
    ("jwt_authn", Cause.NOT_AUTHENTICATED),
    ("ext_authz", Cause.NOT_AUTHORIZED),
    ("fault_filter_abort", Cause.FAULT),
    ("cluster_not_found", Cause.NO_USABLE_BACKEND),
    ("route_not_found", Cause.NO_ROUTE),
    ("overflow", Cause.CIRCUIT_OPEN),
    ("response_timeout", Cause.TIMEOUT),
    ("per_try_timeout", Cause.TIMEOUT),
    ("stream_idle_timeout", Cause.TIMEOUT),
    ("no_healthy_upstream", Cause.NO_HEALTHY_BACKEND),
    ("connection_failure", Cause.BACKEND_UNREACHABLE),
    ("connection_timeout", Cause.BACKEND_UNREACHABLE),
    ("upstream_reset", Cause.BACKEND_RESET),
)
"""Parts of Envoy's words, the most telling first: a reset by overflow is the breaker's."""

_FLAGS = {
    "rate_limited": Cause.RATE_LIMITED,
    "fault_injected": Cause.FAULT,
    "upstream_overflow": Cause.CIRCUIT_OPEN,
    "upstream_request_timeout": Cause.TIMEOUT,
    "stream_idle_timeout": Cause.TIMEOUT,
    "no_healthy_upstream": Cause.NO_HEALTHY_BACKEND,
    "upstream_connection_failure": Cause.BACKEND_UNREACHABLE,
    "upstream_connection_termination": Cause.BACKEND_RESET,
    "no_route_found": Cause.NO_ROUTE,
    "delay_injected": Cause.DELAYED,
}


def cause(record: RequestRecord) -> Cause | None:
    """None where the answer is a backend's own, and nothing held it up."""
    said = record.details.lower()
    found = next((why for word, why in _DETAILS if word in said), None)
    if found is not None:
        return found
    return next((why for flag, why in _FLAGS.items() if flag in record.flags), None)
