"""Random policies, as a user would write them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_network

from hypothesis import strategies as st
from policy_parties import (
    ACCOUNT,
    ICMP_NAMES,
    ICMP_TYPES,
    NAMED,
    NAMESPACE,
    NAMESPACE_LABELS,
    NAMESPACES,
    PORT_NUMBERS,
    REMOTE_NODE,
    ZONES,
    Json,
    Party,
)
from worlds import NODE

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


GROUP = ["198.51.100.0/24", "10.0.0.0/8"]
"""The networks of the one CiliumCIDRGroup there is."""
SERVICE = ("default", {"app": "a"})
"""Namespace and selector of the one Service there is."""
NODE_SELECTORS = st.sampled_from([{}, {"matchLabels": {"zone": "a"}}, {"matchLabels": {"zone": "b"}}])


@st.composite
def rules(draw: st.DrawFn, way: str, *, deny: bool) -> Json:
    found: Json = {}
    kinds = ["endpoints", "endpoints", "entities", "cidr", "cidr set", "group", "nodes", "absent"]
    kind = draw(st.sampled_from([*kinds, "services"] if way == "to" else kinds))
    if kind == "endpoints":
        found[f"{way}Endpoints"] = draw(st.lists(PEER_SELECTORS, max_size=2))
    elif kind == "entities":
        found[f"{way}Entities"] = draw(st.lists(ENTITIES, max_size=2))
    elif kind == "cidr":
        found[f"{way}CIDR"] = draw(st.lists(st.sampled_from(CIDRS), max_size=2))
    elif kind == "cidr set":
        found[f"{way}CIDRSet"] = draw(st.lists(cidr_sets(), max_size=2))
    elif kind == "group":
        found[f"{way}CIDRSet"] = [{"cidrGroupRef": draw(st.sampled_from(["group", "group", "nobody"]))}]
    elif kind == "nodes":
        found[f"{way}Nodes"] = draw(st.lists(NODE_SELECTORS, max_size=2))
    elif kind == "services":
        found["toServices"] = [{"k8sService": {"serviceName": "service", "namespace": SERVICE[0]}}]
    if not deny and draw(st.integers(0, 5)) == 0:
        found["authentication"] = {"mode": draw(st.sampled_from(["required", "required", "disabled"]))}
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
_ANY_POLICIES = st.lists(
    st.one_of(
        st.builds(Policy, OWN, specs()),
        st.builds(Policy, OWN, specs()),
        st.builds(Policy, OWN, PLAIN_SPECS, st.just("NetworkPolicy")),
        st.builds(Policy, st.just(""), specs(), st.just("CiliumClusterwideNetworkPolicy")),
    ),
    max_size=4,
)
SERVER_NAMES = ("one.example.com", "*.example.com", "**.example.org")


def _of_one_kind(policies: list[Policy], by_name: frozenset[str], mode: str) -> list[Policy]:
    """The same without conflicts: in each direction requests or server names are asked for (`by_name`),
    and authentication has one mode. Which rule of a conflict holds is another question."""
    found = []
    for policy in policies:
        spec = json.loads(json.dumps(policy.spec))
        for section in ("ingress", "egress") if policy.kind != "NetworkPolicy" else ():
            for rule in spec.get(section) or ():
                if "authentication" in rule:
                    rule["authentication"] = {"mode": mode}
                for item in rule.get("toPorts", ()) if section in by_name else ():
                    if requests := item.pop("rules", {}).get("http"):
                        item["serverNames"] = [SERVER_NAMES[len(json.dumps(each)) % 3] for each in requests]
        found.append(Policy(policy.namespace, spec, policy.kind))
    return found


POLICIES = st.builds(
    _of_one_kind,
    _ANY_POLICIES,
    st.frozensets(st.sampled_from(["ingress", "egress"])),
    st.sampled_from(["required", "required", "disabled"]),
)


def manifests(everyone: list[Party], policies: list[Policy]) -> str:
    """The same as a user would write it (JSON is YAML)."""
    documents: list[Json] = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "node-b", "labels": ZONES["remote-node"]},
            "status": {"addresses": [{"type": "InternalIP", "address": REMOTE_NODE.address}]},
        },
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": ZONES["host"]}},
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumCIDRGroup",
            "metadata": {"name": "group"},
            "spec": {"externalCIDRs": GROUP},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "service", "namespace": SERVICE[0]},
            "spec": {"selector": SERVICE[1], "ports": [{"port": 4444}]},
        },
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
