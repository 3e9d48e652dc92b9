"""Fifty workloads, each with a policy: the node that the bars of policy and memory speak of.

Workload w00 is the client. w01 serves HTTP behind an L7 rule; w02 is a plain backend behind an L4 rule.
All others have a policy of their own of the common sorts, by turns: an L4 allow, an L7 rule, an egress rule.
"""

from __future__ import annotations

import sys
from typing import Any

from penstock.bench.serving import HTTP_PORT
from penstock.bench.site import allow, policy, workload

CLIENT, HTTP_SERVER, PLAIN_SERVER = "w00", "w01", "w02"
PLAIN_PORT, OTHER_PORT = 7000, 7999
LIVE_PATH, OTHER_PATH = "/live", "/other"
WORKLOADS = 50


def workloads(count: int = WORKLOADS) -> list[dict[str, Any]]:
    """In HTTP_SERVER runs a server of HTTP_PORT; the others run nothing."""
    server = [sys.executable, "-m", "penstock.bench.answer", str(HTTP_PORT)]
    ports = [{"name": "http", "containerPort": HTTP_PORT}]
    return [
        workload(name, ports=ports, run=[server] if name == HTTP_SERVER else [], serviceAccountName=name)
        for name in (f"w{number:02}" for number in range(count))
    ]


def policies(count: int = WORKLOADS) -> list[dict[str, Any]]:
    """A policy for each workload but the two servers, whose policies change."""
    found = []
    for number in range(count):
        name, peer = f"w{number:02}", f"w{(number + 7) % count:02}"
        if name in (HTTP_SERVER, PLAIN_SERVER):
            continue
        if name == CLIENT or number % 3 == 0:
            found.append(policy(name, name, ingress=[allow(peer, (8080, "TCP"), (9000, "UDP"))]))
        elif number % 3 == 1:
            rule = {"method": "GET", "path": f"/{name}/.*"}
            found.append(policy(name, name, ingress=[allow(peer, (8080, "TCP"), http=[rule])]))
        else:
            to = {"toEndpoints": [{"matchLabels": {"app": peer}}]}
            found.append(policy(name, name, egress=[to], ingress=[allow(peer, (9000, "TCP"))]))
    return found


def plain_policy(allowed: bool) -> dict[str, Any]:
    """The client may come to PLAIN_PORT (UDP and TCP), or to another port only."""
    port = PLAIN_PORT if allowed else OTHER_PORT
    return policy("plain", PLAIN_SERVER, ingress=[allow(CLIENT, (port, "UDP"), (port, "TCP"))])


def http_policy(allowed: bool) -> dict[str, Any]:
    """The client may GET LIVE_PATH, or another path only."""
    path = LIVE_PATH if allowed else OTHER_PATH
    return policy(
        "http",
        HTTP_SERVER,
        ingress=[allow(CLIENT, (HTTP_PORT, "TCP"), http=[{"method": "GET", "path": path}])],
    )
