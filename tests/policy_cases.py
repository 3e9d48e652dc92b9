"""Random policies, and a naive reading of what they mean.

The evaluator works on the manifests as plain data and asks, for one packet at a time, each rule in turn,
as the API's documentation words it. It knows nothing of entries, prefixes, identities or verdict numbers,
and shares no code with penstock.policy: that is its worth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from hypothesis import strategies as st
from worlds import NODE

Json = dict[str, Any]
Answer = Literal["deny", "allow", "proxy"]
NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
NAMESPACES: dict[str, dict[str, str]] = {
    "default": {"kubernetes.io/metadata.name": "default", "team": "x"},
    "other": {"kubernetes.io/metadata.name": "other"},
}
ACCOUNT = "io.cilium.k8s.policy.serviceaccount"

PROTOCOL_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}
ICMP_TYPES = (0, 8, 13, 17)
ICMP_NAMES = {"EchoReply": 0, "EchoRequest": 8, "Echo": 8, "Timestamp": 13}
RESERVED = {"host": 1, "world": 2, "remote-node": 6}
ADDRESSES = {"host": "10.1.0.254", "remote-node": "192.0.2.2", "world": "203.0.113.9"}


# --- who there is ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Party:
    """A workload, or one of the reserved (then `labels` is its one label).

    `known_ports` are the named ports of all workloads of its identity: a sender knows peers by identity.
    """

    name: str
    address: str
    labels: Mapping[str, str]
    namespace: str = ""
    ports: tuple[tuple[str, int, str], ...] = ()
    local: bool = False
    known_ports: tuple[tuple[str, int, str], ...] = ()

    @property
    def workload(self) -> bool:
        return bool(self.namespace)

    @property
    def stranger(self) -> bool:
        """Of the world: neither a workload's address nor a node's."""
        return "reserved:world" in self.labels


HOST, WORLD, REMOTE_NODE = (
    Party(name, ADDRESSES[name], {f"reserved:{name}": ""}) for name in ("host", "world", "remote-node")
)
STRANGERS = [
    WORLD,
    *(Party(f"world-{n}", f"198.51.100.{n}", WORLD.labels) for n in (7, 130)),
]
OTHERS = [HOST, REMOTE_NODE, *STRANGERS]
LABELS = st.fixed_dictionaries(
    {}, optional={"app": st.sampled_from(["a", "b", "c"]), "tier": st.sampled_from(["x", "y"])}
)
PORT_NUMBERS = st.sampled_from([79, 80, 81, 88, 95, 96, 443, 8080])
NAMED = st.sampled_from(["http", "dns"])


@st.composite
def parties(draw: st.DrawFn) -> list[Party]:
    found = []
    for number, local in enumerate((True, True, True, False)):
        ports = draw(
            st.lists(
                st.tuples(NAMED, PORT_NUMBERS, st.sampled_from(["TCP", "UDP"])),
                max_size=2,
                unique_by=lambda p: p[0],
            )
        )
        found.append(
            Party(
                f"w{number}",
                f"10.{1 if local else 2}.0.{number + 1}",
                draw(LABELS),
                draw(st.sampled_from(["default", "default", "other"])),
                tuple(ports),
                local,
            )
        )
    return [
        replace(
            p,
            known_ports=tuple(
                port
                for twin in found
                if (twin.namespace, twin.labels) == (p.namespace, p.labels)
                for port in twin.ports
            ),
        )
        for p in found
    ]


# --- what they are told -------------------------------------------------------------------------------------

KEYS = st.sampled_from(["app", "k8s:app", "any:tier", "tier"])
VALUES = st.sampled_from(["a", "b", "x", "y"])
EXPRESSIONS = st.one_of(
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(VALUES, min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries({"key": KEYS, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)
SELECTORS = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"matchLabels": st.dictionaries(KEYS, VALUES, min_size=1, max_size=1)}),
    st.fixed_dictionaries({"matchExpressions": st.lists(EXPRESSIONS, min_size=1, max_size=2)}),
)
PEER_SELECTORS = st.one_of(
    SELECTORS,
    st.just({"matchLabels": {f"k8s:{NAMESPACE}": "other"}}),
    st.just({"matchLabels": {ACCOUNT: "default"}}),
    st.just({"matchLabels": {f"{NAMESPACE_LABELS}team": "x"}}),
    st.just({"matchLabels": {f"k8s:{NAMESPACE_LABELS}kubernetes.io/metadata.name": "other"}}),
    st.just({"matchExpressions": [{"key": f"k8s:{NAMESPACE}", "operator": "Exists"}]}),
    st.just({"matchLabels": {"reserved:host": ""}}),
)
ENTITIES = st.sampled_from(["all", "world", "cluster", "host", "remote-node", "none", "health"])


# Inside each other, around the strangers, and also where workloads and nodes have their addresses.
CIDRS = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/24",
    "192.0.2.0/24",
    "198.51.0.0/16",
    "198.51.100.0/24",
    "198.51.100.0/25",
    "198.51.100.128/25",
    "198.51.100.7/32",
    "203.0.113.9/32",
]


@st.composite
def cidr_sets(draw: st.DrawFn) -> Json:
    cidr = draw(st.sampled_from(CIDRS))
    inside = [c for c in CIDRS if ip_network(c).subnet_of(ip_network(cidr))]  # type: ignore[arg-type]
    excepted = draw(st.lists(st.sampled_from(inside), max_size=2))
    return {"cidr": cidr, "except": excepted} if excepted or draw(st.booleans()) else {"cidr": cidr}


@st.composite
def ports(draw: st.DrawFn, *, http: bool) -> Json:
    protocol = draw(st.sampled_from(["TCP", "ANY", None] if http else ["TCP", "UDP", "SCTP", "ANY", None]))
    found: Json = {} if protocol is None else {"protocol": protocol}
    what = draw(st.sampled_from(["number", "range", "name"] if http else ["number", "range", "name", "all"]))
    if what == "name":
        found["port"] = draw(NAMED)
    elif what == "all":
        found["port"] = "0"
    else:
        number = draw(PORT_NUMBERS)
        found["port"] = draw(st.sampled_from([number, str(number)]))
        if what == "range":
            found["endPort"] = number + draw(st.integers(0, 20))
    return found


REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["GET", "POST", "GET|HEAD"]),
        "path": st.sampled_from(["/", "/a.*", "/b"]),
    },
)


@st.composite
def port_rules(draw: st.DrawFn, *, deny: bool) -> Json:
    http = not deny and draw(st.booleans())
    found: Json = {"ports": draw(st.lists(ports(http=http), min_size=int(http), max_size=2))}
    if http:
        found["rules"] = {"http": draw(st.lists(REQUESTS, min_size=1, max_size=2))}
    return found


ICMP_FIELDS = st.fixed_dictionaries(
    {"type": st.sampled_from([*ICMP_TYPES, "8", *ICMP_NAMES])},
    optional={"family": st.just("IPv4")},
) | st.fixed_dictionaries(
    {"type": st.sampled_from([8, 13, "EchoRequest", "EchoReply"]), "family": st.just("IPv6")}
)


@st.composite
def rules(draw: st.DrawFn, way: str, *, deny: bool) -> Json:
    found: Json = {}
    kind = draw(st.sampled_from(["endpoints", "endpoints", "entities", "cidr", "cidr set", "absent"]))
    if kind == "endpoints":
        found[f"{way}Endpoints"] = draw(st.lists(PEER_SELECTORS, max_size=2))
    elif kind == "entities":
        found[f"{way}Entities"] = draw(st.lists(ENTITIES, max_size=2))
    elif kind == "cidr":
        found[f"{way}CIDR"] = draw(st.lists(st.sampled_from(CIDRS), max_size=2))
    elif kind == "cidr set":
        found[f"{way}CIDRSet"] = draw(st.lists(cidr_sets(), max_size=2))
    if draw(st.booleans()):
        found["toPorts"] = draw(st.lists(port_rules(deny=deny), min_size=1, max_size=2))
    elif draw(st.integers(0, 3)) == 0:
        fields = st.lists(ICMP_FIELDS, min_size=int(deny), max_size=3)
        found["icmps"] = draw(
            st.lists(st.fixed_dictionaries({"fields": fields}), min_size=int(deny), max_size=2)
        )
    return found


@st.composite
def specs(draw: st.DrawFn) -> Json:
    found: Json = {"endpointSelector": draw(SELECTORS)}
    for section, way, deny in (
        ("ingress", "from", False),
        ("ingressDeny", "from", True),
        ("egress", "to", False),
        ("egressDeny", "to", True),
    ):
        if draw(st.integers(0, 3)) >= (3 if deny else 1):
            found[section] = draw(st.lists(rules(way, deny=deny), max_size=2))
    if not found.keys() & {"ingress", "ingressDeny", "egress", "egressDeny"}:
        found["ingress"] = []
    closes = draw(
        st.fixed_dictionaries({}, optional={"ingress": st.booleans(), "egress": st.booleans()})
        if draw(st.booleans())
        else st.none()
    )
    if closes is not None:
        found["enableDefaultDeny"] = closes
    return found


@dataclass(frozen=True)
class Policy:
    """`namespace` is '' for a clusterwide one."""

    namespace: str
    spec: Json
    kind: str = "CiliumNetworkPolicy"


POD_SELECTORS = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"matchLabels": st.dictionaries(st.sampled_from(["app", "tier"]), VALUES, min_size=1, max_size=1)}
    ),
    st.just({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}),
)
NAMESPACE_SELECTORS = st.sampled_from(
    [
        {},
        {"matchLabels": {"team": "x"}},
        {"matchLabels": {"kubernetes.io/metadata.name": "other"}},
        {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]},
    ]
)


@st.composite
def plain_peers(draw: st.DrawFn) -> Json:
    if draw(st.integers(0, 2)) == 0:
        block = draw(cidr_sets())
        block["except"] = [c for c in block.get("except", []) if c != block["cidr"]]
        return {"ipBlock": block}
    return draw(
        st.sampled_from(["podSelector", "namespaceSelector", "both"]).flatmap(
            lambda which: st.fixed_dictionaries(
                {
                    name: strategy
                    for name, strategy in (
                        ("podSelector", POD_SELECTORS),
                        ("namespaceSelector", NAMESPACE_SELECTORS),
                    )
                    if which in (name, "both")
                }
            )
        )
    )


@st.composite
def plain_ports(draw: st.DrawFn) -> Json:
    found: Json = draw(
        st.fixed_dictionaries({}, optional={"protocol": st.sampled_from(["TCP", "UDP", "SCTP"])})
    )
    what = draw(st.sampled_from(["number", "range", "name", "absent"]))
    if what == "name":
        found["port"] = draw(NAMED)
    elif what != "absent":
        found["port"] = draw(PORT_NUMBERS)
        if what == "range":
            found["endPort"] = found["port"] + draw(st.integers(0, 20))
    return found


def _plain_rules(way: str) -> st.SearchStrategy[list[Json]]:
    optional = {way: st.lists(plain_peers(), max_size=2), "ports": st.lists(plain_ports(), max_size=2)}
    return st.lists(st.fixed_dictionaries({}, optional=optional), max_size=2)


PLAIN_SPECS = st.fixed_dictionaries(
    {"podSelector": POD_SELECTORS},
    optional={
        "ingress": _plain_rules("from"),
        "egress": _plain_rules("to"),
        "policyTypes": st.lists(st.sampled_from(["Ingress", "Egress"]), max_size=2, unique=True),
    },
)
OWN = st.sampled_from(["default", "default", "other"])
POLICIES = st.lists(
    st.one_of(
        st.builds(Policy, OWN, specs()),
        st.builds(Policy, OWN, specs()),
        st.builds(Policy, OWN, PLAIN_SPECS, st.just("NetworkPolicy")),
        st.builds(Policy, st.just(""), specs(), st.just("CiliumClusterwideNetworkPolicy")),
    ),
    max_size=4,
)


def manifests(everyone: list[Party], policies: list[Policy]) -> str:
    """The same as a user would write it (JSON is YAML)."""
    documents: list[Json] = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "node-b"},
            "status": {"addresses": [{"type": "InternalIP", "address": REMOTE_NODE.address}]},
        }
    ]
    for party in everyone:
        spec: Json = {
            "addresses": [party.address],
            "node": NODE if party.local else "node-b",
            "ports": [{"name": n, "containerPort": p, "protocol": t} for n, p, t in party.ports],
        }
        if party.local:
            spec["netns"] = f"/run/netns/{party.name}"
        documents.append(
            {
                "apiVersion": "penstock.dev/v1alpha1",
                "kind": "Workload",
                "metadata": {"name": party.name, "namespace": party.namespace, "labels": dict(party.labels)},
                "spec": spec,
            }
        )
    for name, labels in NAMESPACES.items():
        own = {k: v for k, v in labels.items() if not k.startswith("kubernetes.io/")}
        if own:
            documents.append(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": own}}
            )
    for number, policy in enumerate(policies):
        namespaced = {"namespace": policy.namespace} if policy.namespace else {}
        plain = policy.kind == "NetworkPolicy"
        documents.append(
            {
                "apiVersion": "networking.k8s.io/v1" if plain else "cilium.io/v2",
                "kind": policy.kind,
                "metadata": {"name": f"p{number}", **namespaced},
                "spec": policy.spec,
            }
        )
    return "\n---\n".join(json.dumps(d) for d in documents)


# --- what it means ---------------------------------------------------------------------------


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
    lists = {name: rule.get(f"{way}{name}") for name in ("Endpoints", "Entities", "CIDR", "CIDRSet")}
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
    for cidr in lists["CIDR"] or []:
        if _in_block(party, cidr, []):
            return True
    return any(_in_block(party, each["cidr"], each.get("except", [])) for each in lists["CIDRSet"] or [])


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
) -> tuple[bool, bool, bool, list[Json]]:
    """Of all rules about `subject`: denied, plainly allowed, closed unless allowed, allowed requests."""
    way = "from" if direction == "ingress" else "to"
    denied = allowed = closed = False
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
                if not rule or not _is_peer(peer, rule, way, policy.namespace):
                    continue
                if "icmps" in rule:
                    if _is_message(rule["icmps"], protocol, number):
                        denied |= deny
                        allowed |= not deny
                    continue
                named = subject.ports if direction == "ingress" else peer.known_ports
                for item in rule.get("toPorts", [None]):
                    http = item["rules"]["http"] if item and "rules" in item else None
                    if item is not None and not any(
                        _on_port(p, protocol, number, named, http=http is not None) for p in item["ports"]
                    ):
                        continue
                    denied |= deny
                    if http is not None:
                        requests += http
                    else:
                        allowed |= not deny
    return denied, allowed, closed, requests


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
    denied, allowed, closed, requests = _says(policies, subject, peer, direction, protocol, number)
    if denied:
        return "deny"
    if requests:
        return "proxy"
    return "allow" if allowed or not (closed or mode == "always") else "deny"


def packet(policies: list[Policy], source: Party, target: Party, protocol: str, number: int) -> Answer:
    """Both sides; the host may always reach local workloads. Sides that are not local judge elsewhere."""
    answers: list[Answer] = []
    if source.local:
        answers.append(side(policies, source, target, "egress", protocol, number))
    if target.local and source is not HOST:
        answers.append(side(policies, target, source, "ingress", protocol, number))
    for answer in ("deny", "proxy"):
        if answer in answers:
            return answer
    return "allow"


def request(
    policies: list[Policy], source: Party, target: Party, number: int, method: str, path: str
) -> bool:
    """Whether a request on a connection of `source` may be served by `target` at TCP port `number`."""

    def allows(subject: Party, peer: Party, direction: str) -> bool:
        denied, allowed, closed, requests = _says(policies, subject, peer, direction, "TCP", number)
        if denied or allowed or not closed:
            return not denied
        return any(
            all(re.fullmatch(r.get(k, ".*"), v) for k, v in (("method", method), ("path", path)))
            for r in requests
        )

    out = not source.workload or allows(source, target, "egress")
    into = not target.workload or source is HOST or allows(target, source, "ingress")
    return out and into
