"""The kinds that Penstock acts on, as typed values.

Each class mirrors the published schema of its kind, cut to the fields that this version enforces;
field names follow the API in snake case and are camelCase on the wire. A value of these types is
what one document *says*: defaults of the API are filled in (a file has no API server to do it),
references are not resolved.

Sources: Kubernetes API v1.31 (Service, Node, EndpointSlice, NetworkPolicy, Namespace), Cilium 1.20
(CiliumNetworkPolicy and its clusterwide twin), Istio security/v1
(PeerAuthentication), and ../README.md (Workload).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from penstock.manifests.base import Kind, Labels, ObjectMeta
from penstock.manifests.endpoints_kinds import Endpoints
from penstock.manifests.gateway_kinds import ConfigMap, Gateway, GatewayClass, ListenerSet, Secret
from penstock.manifests.http_policy_kinds import HTTPPolicy
from penstock.manifests.ingress_kinds import Ingress, IngressClass
from penstock.manifests.l4_kinds import BackendTLSPolicy, TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.policy_kinds import (
    Authentication,
    CIDRGroupSpec,
    CIDRRule,
    CiliumCIDRGroup,
    CiliumClusterwideNetworkPolicy,
    CiliumNetworkPolicy,
    EgressDenyRule,
    EgressRule,
    EnableDefaultDeny,
    Entity,
    FQDNSelector,
    HeaderMatch,
    ICMPField,
    ICMPRule,
    IngressDenyRule,
    IngressRule,
    L7Rules,
    LabelSelector,
    LabelSelectorRequirement,
    NamedService,
    PolicyRule,
    PortDenyRule,
    PortHTTP,
    PortProtocol,
    PortRule,
    SelectedServices,
    ServiceRef,
)
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ReferenceGrant
from penstock.manifests.service_kinds import SessionAffinityConfig
from penstock.manifests.traffic_kinds import BackendPolicy, XBackendTrafficPolicy

__all__ = [
    "Authentication",
    "CIDRGroupSpec",
    "CIDRRule",
    "CiliumCIDRGroup",
    "CiliumClusterwideNetworkPolicy",
    "CiliumNetworkPolicy",
    "EgressDenyRule",
    "EgressRule",
    "EnableDefaultDeny",
    "Entity",
    "FQDNSelector",
    "HeaderMatch",
    "ICMPField",
    "ICMPRule",
    "IngressDenyRule",
    "IngressRule",
    "L7Rules",
    "LabelSelector",
    "LabelSelectorRequirement",
    "NamedService",
    "PolicyRule",
    "PortDenyRule",
    "PortHTTP",
    "PortProtocol",
    "PortRule",
    "SelectedServices",
    "ServiceRef",
]
"""What other modules may have from here although it stands in policy_kinds.py."""

# --- penstock.dev/v1alpha1 Workload ------------------------------------------------------------------


class ContainerPort(Kind, frozen=True):
    container_port: int
    name: str = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class WorkloadSpec(Kind, frozen=True):
    service_account_name: str = "default"
    node: str | None = None
    netns: str | None = None
    container: str | None = None
    interface: str | None = None
    addresses: list[str] = []
    ports: list[ContainerPort] = []
    ready: bool = True
    """False: it is a backend of no Service (its health check fails, or it is about to end)."""


class Workload(Kind, frozen=True):
    api_version: str
    kind: Literal["Workload"]
    metadata: ObjectMeta
    spec: WorkloadSpec = WorkloadSpec()
    status: Any = None


# --- v1 Node, v1 Service, discovery.k8s.io/v1 EndpointSlice --------------------------------------------


class NodeAddress(Kind, frozen=True):
    type: str
    address: str


class NodeSpec(Kind, frozen=True):
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] = msgspec.field(default_factory=list, name="podCIDRs")
    provider_id: str | None = msgspec.field(default=None, name="providerID")
    taints: list[Any] = []
    unschedulable: bool = False


class NodeStatus(Kind, frozen=True, forbid_unknown_fields=False):
    addresses: list[NodeAddress] = []


class Node(Kind, frozen=True):
    api_version: str
    kind: Literal["Node"]
    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ServicePort(Kind, frozen=True):
    port: int
    name: str = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    target_port: int | str | None = None
    app_protocol: str | None = None
    node_port: int | None = None


class ServiceSpec(Kind, frozen=True):
    ports: list[ServicePort] = []
    selector: Labels | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] = msgspec.field(default_factory=list, name="clusterIPs")
    ip_families: list[Literal["IPv4", "IPv6"]] = []
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = None
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    external_ips: list[str] = msgspec.field(default_factory=list, name="externalIPs")
    load_balancer_ip: str | None = msgspec.field(default=None, name="loadBalancerIP")
    session_affinity: Literal["None", "ClientIP"] = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    publish_not_ready_addresses: bool = False
    internal_traffic_policy: Literal["Cluster", "Local"] = "Cluster"
    external_traffic_policy: Literal["Cluster", "Local"] = "Cluster"
    allocate_load_balancer_node_ports: bool = True


class Service(Kind, frozen=True):
    api_version: str
    kind: Literal["Service"]
    metadata: ObjectMeta
    spec: ServiceSpec = ServiceSpec()
    status: Any = None


class EndpointConditions(Kind, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(Kind, frozen=True):
    addresses: list[str]
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None
    node_name: str | None = None
    target_ref: Any = None
    zone: str | None = None
    hints: Any = None
    deprecated_topology: Any = None


class SlicePort(Kind, frozen=True):
    port: int | None = None
    name: str = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    app_protocol: str | None = None


class EndpointSlice(Kind, frozen=True):
    api_version: str
    kind: Literal["EndpointSlice"]
    metadata: ObjectMeta
    address_type: Literal["IPv4", "IPv6"]
    endpoints: list[SliceEndpoint] = []
    ports: list[SlicePort] = []


# --- networking.k8s.io/v1 NetworkPolicy, v1 Namespace -------------------------------------------------------


class IPBlock(Kind, frozen=True):
    cidr: str
    except_: list[str] = msgspec.field(default_factory=list, name="except")


class NetworkPolicyPeer(Kind, frozen=True):
    """An ip_block alone, or pods: of pod_selector, in namespaces of namespace_selector (None: its own)."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class NetworkPolicyPort(Kind, frozen=True):
    port: int | str | None = None
    end_port: int | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class NetworkPolicyIngressRule(Kind, frozen=True):
    """Empty lists are as absent ones here: everyone, every port."""

    from_: list[NetworkPolicyPeer] = msgspec.field(default_factory=list, name="from")
    ports: list[NetworkPolicyPort] = []


class NetworkPolicyEgressRule(Kind, frozen=True):
    to: list[NetworkPolicyPeer] = []
    ports: list[NetworkPolicyPort] = []


class NetworkPolicySpec(Kind, frozen=True):
    pod_selector: LabelSelector = LabelSelector()
    ingress: list[NetworkPolicyIngressRule] = []
    egress: list[NetworkPolicyEgressRule] = []
    policy_types: list[Literal["Ingress", "Egress"]] = []


class NetworkPolicy(Kind, frozen=True):
    api_version: str
    kind: Literal["NetworkPolicy"]
    metadata: ObjectMeta
    spec: NetworkPolicySpec = NetworkPolicySpec()
    status: Any = None


class Namespace(Kind, frozen=True):
    """Only its labels count: policies select namespaces by them."""

    api_version: str
    kind: Literal["Namespace"]
    metadata: ObjectMeta
    spec: Any = None
    status: Any = None


# --- security.istio.io/v1 PeerAuthentication ------------------------------------------------------------


class MutualTLS(Kind, frozen=True):
    mode: Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"] = "UNSET"


class WorkloadSelector(Kind, frozen=True):
    match_labels: Labels = {}


class PeerAuthenticationSpec(Kind, frozen=True):
    selector: WorkloadSelector | None = None
    mtls: MutualTLS | None = None
    port_level_mtls: dict[str, MutualTLS] = {}


class PeerAuthentication(Kind, frozen=True):
    api_version: str
    kind: Literal["PeerAuthentication"]
    metadata: ObjectMeta
    spec: PeerAuthenticationSpec = PeerAuthenticationSpec()
    status: Any = None


AnyKind = (
    Workload
    | Node
    | Service
    | EndpointSlice
    | Endpoints
    | CiliumNetworkPolicy
    | CiliumClusterwideNetworkPolicy
    | CiliumCIDRGroup
    | NetworkPolicy
    | Namespace
    | HTTPRoute
    | GRPCRoute
    | ReferenceGrant
    | PeerAuthentication
    | GatewayClass
    | Gateway
    | ListenerSet
    | Secret
    | ConfigMap
    | TLSRoute
    | TCPRoute
    | UDPRoute
    | BackendTLSPolicy
    | Ingress
    | IngressClass
    | BackendPolicy
    | XBackendTrafficPolicy
    | HTTPPolicy
)
