"""The story: what is shown, in which order."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import dataclass

from penstock.demo import crossing, kernel, requests
from penstock.demo.mesh import Mesh
from penstock.demo.report import Check, Found, Step
from penstock.errors import PenstockError


@dataclass(frozen=True, slots=True)
class Act:
    """`show` does it and returns what it found."""

    name: str
    title: str
    show: Callable[[Mesh], Found]


ACTS = (
    Act("l4-allowed", "L4 allowed: it stays in the kernel, Envoy never sees it", kernel.kernel_only),
    Act(
        "l4-dropped",
        "L4 dropped: a client that no rule names gets silence, the operator gets the reason",
        kernel.kernel_drop,
    ),
    Act(
        "l7-allowed",
        "L7 allowed: what a rule or a route names goes through the node's Envoy",
        requests.request_allowed,
    ),
    Act(
        "l7-denied",
        "L7 denied: on one connection, what the policy names passes and the rest is 403",
        requests.request_denied,
    ),
    Act("split", "Traffic split: nine of ten requests to version 1, one to version 2", requests.split),
    Act("mtls", "Between nodes: mutual TLS with the workloads' own certificates", crossing.between_nodes),
    Act(
        "unauthorised",
        "Refused: an intruder on every way, and plain text from the other node",
        crossing.unauthorised,
    ),
    Act("live-change", "A route changed live, under load", requests.live_change),
)


def run(act: Act, mesh: Mesh) -> Step:
    """One step. Whatever stops it half-way is a claim that did not hold."""
    try:
        found = act.show(mesh)
    except (OSError, http.client.HTTPException, PenstockError) as error:
        found = Found(checks=(Check(f"it can be shown at all: {type(error).__name__}: {error}", False),))
    return Step(act.name, act.title, found)
