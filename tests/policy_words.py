"""A naive reading of what policies mean.

It works on the manifests as plain data and asks, for one packet at a time, each rule in turn, as the API's
documentation words it. It knows nothing of entries, prefixes, identities or verdict numbers, and shares no
code with penstock.policy: that is its worth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Literal

from policy_cases import GROUP, SERVICE, Policy
from policy_parties import (
    ACCOUNT,
    HOST,
    ICMP_NAMES,
    NAMESPACE,
    NAMESPACE_LABELS,
    NAMESPACES,
    ZONES,
    Json,
    Party,
)

Answer = Literal["deny", "allow", "proxy", "names"]
"""Proxy: requests are judged; names: the server names of TLS are."""


def _label(party: Party, key: str) -> str | None:
    key = re.sub("^(k8s|any):", "", key)
    if party.workload and key == NAMESPACE:
        return party.namespace
    if party.workload and key == ACCOUNT:
        return "default"
    if party.workload and key.startswith(NAMESPACE_LABELS):
        return NAMESPACES[party.namespace].get(key.removeprefix(NAMESPACE_LABELS))
    return party.labels.get(key)


def _matches(label: Callable[[str], str | None], selector: Json) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if label(key) != value:
            return False
    for e in selector.get("matchExpressions", []):
        value = label(e["key"])
        match e["operator"]:
            case "In" if value is None or value not in e["values"]:
                return False
            case "NotIn" if value is not None and value in e["values"]:
                return False
            case "Exists" if value is None:
                return False
            case "DoesNotExist" if value is not None:
                return False
    return True


def _selected(party: Party, selector: Json) -> bool:
    return _matches(lambda key: _label(party, key), selector)


def _in_block(party: Party, cidr: str, excepted: list[str]) -> bool:
    if not party.stranger:
        return False
    address = ip_address(party.address)
    return address in ip_network(cidr) and not any(address in ip_network(e) for e in excepted)


def _is_peer(party: Party, rule: Json, way: str, namespace: str) -> bool:
    names = ("Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes", "Services")
    lists = {name: rule.get(f"{way}{name}") for name in names}
    if all(listed is None for listed in lists.values()):
        return True
    for selector in lists["Endpoints"] or []:
        text = json.dumps(selector)
        elsewhere = not party.workload or namespace not in ("", party.namespace)
        if elsewhere and not any(k in text for k in (NAMESPACE, "reserved:", NAMESPACE_LABELS)):
            continue
        if _selected(party, selector):
            return True
    for entity in lists["Entities"] or []:
        if entity in ("all", party.name):
            return True
        if entity == "world" and party.stranger:
            return True
        if entity == "cluster" and not party.stranger:
            return True
    for selector in lists["Nodes"] or []:
        if party.name in ZONES and _matches(ZONES[party.name].get, selector):
            return True
    if lists["Services"] and party.namespace == SERVICE[0] and SERVICE[1].items() <= party.labels.items():
        return True
    for cidr in lists["CIDR"] or []:
        if _in_block(party, cidr, []):
            return True
    for each in lists["CIDRSet"] or []:
        cidrs = [each["cidr"]] if "cidr" in each else GROUP if each["cidrGroupRef"] == "group" else []
        if any(_in_block(party, cidr, each.get("except", [])) for cidr in cidrs):
            return True
    return False


def _on_port(
    port: Json, protocol: str, number: int, named: tuple[tuple[str, int, str], ...], *, http: bool
) -> bool:
    of = port.get("protocol", "ANY")
    if http and protocol != "TCP":
        return False
    if port["port"] == "0" and of == "ANY":
        return True
    if of not in ("ANY", protocol):
        return False
    # A port without protocol is one of TCP, UDP and SCTP: ICMP has none.
    if protocol not in ("TCP", "UDP", "SCTP"):
        return False
    if port["port"] == "0":
        return True
    if not str(port["port"]).isdigit():
        return (port["port"], number, protocol) in named
    first = int(port["port"])
    return first <= number <= port.get("endPort", first)


def _is_message(icmps: list[Json], protocol: str, number: int) -> bool:
    """Of IPv4: no packet of these tests is ICMPv6."""
    return protocol == "ICMP" and any(
        field.get("family", "IPv4") == "IPv4"
        and ICMP_NAMES.get(field["type"], field["type"]) in (number, str(number))
        for each in icmps
        for field in each["fields"]
    )


def _plain_peer(party: Party, wanted: Json, namespace: str) -> bool:
    if "ipBlock" in wanted:
        return _in_block(party, wanted["ipBlock"]["cidr"], wanted["ipBlock"].get("except", []))
    if not party.workload:
        return False
    if "namespaceSelector" in wanted:
        if not _matches(NAMESPACES[party.namespace].get, wanted["namespaceSelector"]):
            return False
    elif party.namespace != namespace:
        return False
    return _matches(party.labels.get, wanted.get("podSelector", {}))


def _plainly(
    policy: Policy, subject: Party, peer: Party, direction: str, protocol: str, number: int
) -> tuple[bool, bool]:
    """Of a NetworkPolicy: whether it isolates `subject` in this direction, and whether it allows."""
    spec = policy.spec
    types = spec.get("policyTypes") or ["Ingress"] + ["Egress"] * bool(spec.get("egress"))
    if direction.capitalize() not in types or not _matches(subject.labels.get, spec["podSelector"]):
        return False, False
    named = subject.ports if direction == "ingress" else peer.known_ports
    for rule in spec.get(direction, []):
        peers, listed = rule.get("from" if direction == "ingress" else "to"), rule.get("ports")
        if peers and not any(_plain_peer(peer, each, policy.namespace) for each in peers):
            continue
        if not listed:
            return True, True
        for port in listed:
            if port.get("protocol", "TCP") != protocol:
                continue
            if "port" not in port:
                return True, True
            if isinstance(port["port"], str):
                if (port["port"], number, protocol) in named:
                    return True, True
            elif port["port"] <= number <= port.get("endPort", port["port"]):
                return True, True
    return True, False


def _says(
    policies: list[Policy], subject: Party, peer: Party, direction: str, protocol: str, number: int
) -> tuple[bool, bool, bool, list[Json], bool]:
    """Of all rules about `subject`: denied, plainly allowed, closed unless allowed, allowed requests, and
    whether authentication is demanded."""
    way = "from" if direction == "ingress" else "to"
    denied = allowed = closed = proof = False
    requests: list[Json] = []
    for policy in policies:
        if policy.namespace not in ("", subject.namespace):
            continue
        if policy.kind == "NetworkPolicy":
            closes, allows = _plainly(policy, subject, peer, direction, protocol, number)
            closed |= closes
            allowed |= allows
            continue
        if not _selected(subject, policy.spec["endpointSelector"]):
            continue
        sections = {
            deny: policy.spec.get(direction + ("Deny" if deny else "")) or [] for deny in (True, False)
        }
        closed |= policy.spec.get("enableDefaultDeny", {}).get(direction, any(sections.values()))
        for deny, listed in sections.items():
            for rule in listed:
                # A rule without peers, ports and messages allows nothing.
                if not rule.keys() - {"authentication"} or not _is_peer(peer, rule, way, policy.namespace):
                    continue
                demands = rule.get("authentication", {}).get("mode") == "required"
                if "icmps" in rule:
                    if _is_message(rule["icmps"], protocol, number):
                        denied |= deny
                        allowed |= not deny
                        proof |= demands
                    continue
                named = subject.ports if direction == "ingress" else peer.known_ports
                for item in rule.get("toPorts", [None]):
                    http = item["rules"]["http"] if item and "rules" in item else None
                    if item and "serverNames" in item:
                        http = [{"serverNames": item["serverNames"]}]
                    if item is not None and not any(
                        _on_port(p, protocol, number, named, http=http is not None) for p in item["ports"]
                    ):
                        continue
                    denied |= deny
                    proof |= demands
                    if http is not None:
                        requests += http
                    else:
                        allowed |= not deny
    return denied, allowed, closed, requests, proof


def side(
    policies: list[Policy],
    subject: Party,
    peer: Party,
    direction: str,
    protocol: str,
    number: int,
    mode: str = "default",
) -> Answer:
    """What one side says about a packet that begins a flow to port `number`."""
    if mode == "never":
        return "allow"
    denied, allowed, closed, requests, _ = _says(policies, subject, peer, direction, protocol, number)
    if denied:
        return "deny"
    if any("serverNames" not in each for each in requests):
        return "proxy"
    if allowed or not (closed or mode == "always"):
        return "allow"
    return "names" if requests else "deny"


def by_name(policies: list[Policy], source: Party, target: Party, number: int) -> bool:
    """Whether a rule of this node's sides looks at the server name of TCP to port `number`."""
    answers = [side(policies, source, target, "egress", "TCP", number)] if source.local else []
    if target.local and source is not HOST:
        answers.append(side(policies, target, source, "ingress", "TCP", number))
    return "names" in answers


def packet(policies: list[Policy], source: Party, target: Party, protocol: str, number: int) -> Answer:
    """Both sides; the host may always reach local workloads. Sides that are not local judge elsewhere."""
    answers: list[Answer] = []
    if source.local:
        answers.append(side(policies, source, target, "egress", protocol, number))
    if target.local and source is not HOST:
        answers.append(side(policies, target, source, "ingress", protocol, number))
    if "deny" in answers or {"proxy", "names"} <= {*answers}:
        return "deny"
    steered = "proxy" in answers or "names" in answers
    between = source.local is not target.local and HOST not in (source, target)
    if between and _demanded(policies, source, target, protocol, number):
        # Only TCP to a workload of another node can be proven: a tunnel begins here. What comes from there in
        # plain text is not proven.
        return "proxy" if source.local and target.workload and protocol == "TCP" else "deny"
    if source.local and target.workload and not target.local and protocol == "TCP":
        # Who demands it of anybody is spoken to over mesh TLS by all of the other nodes.
        return "proxy" if steered or _demands(policies, target) else "allow"
    return "proxy" if steered else "allow"


def _demands(policies: list[Policy], subject: Party) -> bool:
    """Whether any ingress rule about a workload demands authentication."""
    return any(
        rule.get("authentication", {}).get("mode") == "required" and len(rule) > 1
        for policy in policies
        if policy.kind != "NetworkPolicy" and policy.namespace in ("", subject.namespace)
        if _selected(subject, policy.spec["endpointSelector"])
        for rule in policy.spec.get("ingress") or []
    )


def _demanded(policies: list[Policy], source: Party, target: Party, protocol: str, number: int) -> bool:
    """Whether a rule of this node's side demands authentication."""
    if source.local:
        return _says(policies, source, target, "egress", protocol, number)[4]
    return _says(policies, target, source, "ingress", protocol, number)[4]


def request(
    policies: list[Policy], source: Party, target: Party, number: int, method: str, path: str
) -> bool:
    """Whether a request on a connection of `source` may be served by `target` at TCP port `number`."""

    def allows(subject: Party, peer: Party, direction: str) -> bool:
        denied, allowed, closed, requests, _ = _says(policies, subject, peer, direction, "TCP", number)
        if denied or allowed or not closed:
            return not denied
        return any(
            "serverNames" not in r
            and all(re.fullmatch(r.get(k, ".*"), v) for k, v in (("method", method), ("path", path)))
            for r in requests
        )

    out = not source.workload or allows(source, target, "egress")
    into = not target.workload or source is HOST or allows(target, source, "ingress")
    return out and into
