"""Rule sets of a given size for `penstock bench scale`: ours, and the same in iptables."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from penstock import lab
from penstock.bench.errors import BenchError
from penstock.bench.serving import HTTP_PORT
from penstock.bench.site import NODE, DaemonUnderTest, Site, allow, policy

CLIENT, SERVER = "client", "server"
VIP, VIP_PORT = "10.96.200.1", 80
IPTABLES_VIP = "10.98.255.254"
_SETTLE = 180.0
_RULES_IN_POLICY = 100


def _stranger(number: int) -> str:
    return f"10.{200 + number // 65536}.{number // 256 % 256}.{number % 256}"


def few_rules() -> dict[str, Any]:
    """What lets the client in at all."""
    return policy("server", SERVER, ingress=[allow(CLIENT, (HTTP_PORT, "TCP"))])


def fill(running: DaemonUnderTest, size: int) -> None:
    """So many rules, each for a network of its own, and so many Services."""
    ports = [{"ports": [{"port": str(HTTP_PORT), "protocol": "TCP"}]}]
    rules = [{"fromCIDR": [f"{_stranger(n)}/32"], "toPorts": ports} for n in range(size - 1)]
    documents: list[dict[str, Any]] = [
        policy(f"many-{first}", SERVER, ingress=rules[first : first + _RULES_IN_POLICY])
        for first in range(0, len(rules), _RULES_IN_POLICY)
    ]
    for number in range(size):
        spec: dict[str, Any] = {
            "selector": {"app": SERVER},
            "ports": [{"port": VIP_PORT, "targetPort": HTTP_PORT}],
        }
        if number == size // 2:
            spec["clusterIP"] = VIP
        documents.append(
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"s{number}"}, "spec": spec}
        )
    # As JSON, which is YAML too, and much faster written.
    part = running.config / "many.part"
    part.write_text("\n---\n".join(map(json.dumps, documents)))
    os.rename(part, running.config / "many.yaml")
    running.settle(_SETTLE)


def iptables(place: Site, size: int) -> None:
    """The same in the tables of the node: one rule each, what is meant in the middle."""
    client, server = place.address(CLIENT), place.address(SERVER)
    meant = size // 2
    filters, services, targets = [], [], []
    for number in range(size):
        source = client if number == meant else _stranger(number)
        filters.append(f"-A POLICY -s {source}/32 -d {server}/32 -p tcp -m tcp --dport {HTTP_PORT} -j ACCEPT")
        vip = IPTABLES_VIP if number == meant else f"10.98.{number // 250}.{number % 250 + 1}"
        services.append(f"-A SERVICES -d {vip}/32 -p tcp -m tcp --dport {VIP_PORT} -j SVC-{number}")
        targets.append(f"-A SVC-{number} -p tcp -m tcp -j DNAT --to-destination {server}:{HTTP_PORT}")
    text = "\n".join(
        (
            "*nat",
            ":SERVICES - [0:0]",
            *(f":SVC-{n} - [0:0]" for n in range(size)),
            "-A PREROUTING -j SERVICES",
            *services,
            *targets,
            "COMMIT",
            "*filter",
            ":POLICY - [0:0]",
            "-A FORWARD -j POLICY",
            "-A POLICY -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            *filters,
            f"-A POLICY -d {server}/32 -j DROP",
            "COMMIT",
            "",
        )
    )
    process = lab.run_in(
        place.spec.node(NODE).netns,
        ["iptables-restore"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, _ = process.communicate(text, timeout=_SETTLE)
    if process.returncode:
        raise BenchError(f"iptables-restore: {said.strip()[-500:]}")
