"""CiliumNetworkPolicy, its clusterwide twin and CiliumCIDRGroup, as typed values; see kinds.py for how.

None (absent) and [] mean different things in a rule: see penstock/policy.

Source: Cilium 1.20, pkg/policy/api and pkg/k8s/apis/cilium.io.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from penstock.manifests.base import Kind, Labels, ObjectMeta


class LabelSelectorRequirement(Kind, frozen=True):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = []


class LabelSelector(Kind, frozen=True):
    """matchLabels and matchExpressions, ANDed. The empty selector selects everything."""

    match_labels: Labels = {}
    match_expressions: list[LabelSelectorRequirement] = []


Entity = Literal[
    "all",
    "world",
    "cluster",
    "host",
    "remote-node",
    "kube-apiserver",
    "ingress",
    "health",
    "init",
    "unmanaged",
    "none",
]


class HeaderMatch(Kind, frozen=True):
    """A header that a request must have, with exactly this value; `mismatch` LOG: else it is only told."""

    name: str
    value: str = ""
    mismatch: Literal["LOG"] | None = None


class PortHTTP(Kind, frozen=True):
    """One entry of rules.http: fields AND; method, path and host are regular expressions (RE2, full)."""

    method: str = ""
    path: str = ""
    host: str = ""
    headers: list[str] = []
    header_matches: list[HeaderMatch] = []


class FQDNSelector(Kind, frozen=True):
    """A name, or names by a pattern; case does not count."""

    match_name: str = ""
    match_pattern: str = ""


class L7Rules(Kind, frozen=True):
    http: list[PortHTTP] = []
    dns: list[FQDNSelector] = []


class PortProtocol(Kind, frozen=True):
    port: str | int = "0"
    end_port: int | None = None
    protocol: Literal["TCP", "UDP", "SCTP", "ANY"] = "ANY"


class PortRule(Kind, frozen=True):
    """`server_names`: only TLS whose SNI is one of these, or fits a pattern."""

    ports: list[PortProtocol] = []
    rules: L7Rules | None = None
    server_names: list[str] | None = None


class PortDenyRule(Kind, frozen=True):
    ports: list[PortProtocol] = []


class ICMPField(Kind, frozen=True):
    """A type of ICMP messages, by number or by name."""

    type: int | str
    family: Literal["IPv4", "IPv6"] = "IPv4"


class ICMPRule(Kind, frozen=True):
    fields: list[ICMPField] = []


class CIDRRule(Kind, frozen=True):
    """The addresses of `cidr`, or of the groups that are meant, that are in no prefix of `except`."""

    cidr: str | None = None
    cidr_group_ref: str | None = None
    cidr_group_selector: LabelSelector | None = None
    except_: list[str] = msgspec.field(default_factory=list, name="except")


class NamedService(Kind, frozen=True):
    service_name: str
    namespace: str = ""


class SelectedServices(Kind, frozen=True):
    selector: LabelSelector
    namespace: str = ""


class ServiceRef(Kind, frozen=True):
    """A Service by its name, or Services by their labels; without a namespace those of the policy's own."""

    k8s_service: NamedService | None = None
    k8s_service_selector: SelectedServices | None = None


class Authentication(Kind, frozen=True):
    mode: Literal["required", "disabled"]


class IngressRule(Kind, frozen=True):
    from_endpoints: list[LabelSelector] | None = None
    from_entities: list[Entity] | None = None
    from_cidr: list[str] | None = msgspec.field(default=None, name="fromCIDR")
    from_cidr_set: list[CIDRRule] | None = msgspec.field(default=None, name="fromCIDRSet")
    from_nodes: list[LabelSelector] | None = None
    to_ports: list[PortRule] | None = None
    icmps: list[ICMPRule] | None = None
    authentication: Authentication | None = None


class IngressDenyRule(Kind, frozen=True):
    from_endpoints: list[LabelSelector] | None = None
    from_entities: list[Entity] | None = None
    from_cidr: list[str] | None = msgspec.field(default=None, name="fromCIDR")
    from_cidr_set: list[CIDRRule] | None = msgspec.field(default=None, name="fromCIDRSet")
    from_nodes: list[LabelSelector] | None = None
    to_ports: list[PortDenyRule] | None = None
    icmps: list[ICMPRule] | None = None


class EgressRule(Kind, frozen=True):
    to_endpoints: list[LabelSelector] | None = None
    to_entities: list[Entity] | None = None
    to_cidr: list[str] | None = msgspec.field(default=None, name="toCIDR")
    to_cidr_set: list[CIDRRule] | None = msgspec.field(default=None, name="toCIDRSet")
    to_nodes: list[LabelSelector] | None = None
    to_services: list[ServiceRef] | None = None
    to_fqdns: list[FQDNSelector] | None = msgspec.field(default=None, name="toFQDNs")
    to_ports: list[PortRule] | None = None
    icmps: list[ICMPRule] | None = None
    authentication: Authentication | None = None


class EgressDenyRule(Kind, frozen=True):
    to_endpoints: list[LabelSelector] | None = None
    to_entities: list[Entity] | None = None
    to_cidr: list[str] | None = msgspec.field(default=None, name="toCIDR")
    to_cidr_set: list[CIDRRule] | None = msgspec.field(default=None, name="toCIDRSet")
    to_nodes: list[LabelSelector] | None = None
    to_services: list[ServiceRef] | None = None
    to_ports: list[PortDenyRule] | None = None
    icmps: list[ICMPRule] | None = None


class EnableDefaultDeny(Kind, frozen=True):
    ingress: bool | None = None
    egress: bool | None = None


class PolicyRule(Kind, frozen=True):
    """One `spec` of a CiliumNetworkPolicy. None (absent) and [] mean different things: see policy/."""

    endpoint_selector: LabelSelector | None = None
    ingress: list[IngressRule] | None = None
    ingress_deny: list[IngressDenyRule] | None = None
    egress: list[EgressRule] | None = None
    egress_deny: list[EgressDenyRule] | None = None
    enable_default_deny: EnableDefaultDeny = EnableDefaultDeny()
    description: str = ""
    labels: list[Any] = []


class CiliumNetworkPolicy(Kind, frozen=True):
    api_version: str
    kind: Literal["CiliumNetworkPolicy"]
    metadata: ObjectMeta
    spec: PolicyRule | None = None
    specs: list[PolicyRule] | None = None
    status: Any = None


class CiliumClusterwideNetworkPolicy(Kind, frozen=True):
    api_version: str
    kind: Literal["CiliumClusterwideNetworkPolicy"]
    metadata: ObjectMeta
    spec: PolicyRule | None = None
    specs: list[PolicyRule] | None = None
    status: Any = None


class CIDRGroupSpec(Kind, frozen=True):
    external_cidrs: list[str] = msgspec.field(default_factory=list, name="externalCIDRs")


class CiliumCIDRGroup(Kind, frozen=True):
    """Networks that policies name together."""

    api_version: str
    kind: Literal["CiliumCIDRGroup"]
    metadata: ObjectMeta
    spec: CIDRGroupSpec = CIDRGroupSpec()
    status: Any = None
