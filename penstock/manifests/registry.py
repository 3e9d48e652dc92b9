"""Which kinds there are: those that Penstock acts on, those it passes over, those it refuses by name.

A kind is never ignored silently: what would change traffic if it were enforced is refused, what
could not is passed over with a notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.manifests.endpoints_kinds import Endpoints
from penstock.manifests.gateway_kinds import ConfigMap, Gateway, GatewayClass, ListenerSet, Secret
from penstock.manifests.http_policy_kinds import HTTPPolicy
from penstock.manifests.ingress_kinds import Ingress, IngressClass
from penstock.manifests.kinds import (
    AnyKind,
    CiliumCIDRGroup,
    CiliumClusterwideNetworkPolicy,
    CiliumNetworkPolicy,
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    PeerAuthentication,
    Service,
    Workload,
)
from penstock.manifests.l4_kinds import BackendTLSPolicy, TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ReferenceGrant
from penstock.manifests.traffic_kinds import BackendPolicy, XBackendTrafficPolicy


@dataclass(frozen=True, slots=True)
class ServedKind:
    """A kind that this version acts on.

    `custom`: the API server holds it as a custom resource, whose schema refuses null where a
    built-in kind takes it for "absent".
    """

    type: type[AnyKind]
    api_version: str
    plural: str
    short: tuple[str, ...] = ()
    namespaced: bool = True
    custom: bool = True
    older: tuple[str, ...] = ()
    """Further apiVersions with the same schema."""

    @property
    def name(self) -> str:
        return self.type.__name__


SERVED: Mapping[str, ServedKind] = {
    served.name: served
    for served in (
        ServedKind(Workload, "penstock.dev/v1alpha1", "workloads", ("wl",)),
        ServedKind(Node, "v1", "nodes", ("no",), namespaced=False, custom=False),
        ServedKind(Service, "v1", "services", ("svc",), custom=False),
        ServedKind(EndpointSlice, "discovery.k8s.io/v1", "endpointslices", ("eps",), custom=False),
        ServedKind(Endpoints, "v1", "endpoints", ("ep",), custom=False),
        ServedKind(CiliumNetworkPolicy, "cilium.io/v2", "ciliumnetworkpolicies", ("cnp", "ciliumnp")),
        ServedKind(
            CiliumClusterwideNetworkPolicy,
            "cilium.io/v2",
            "ciliumclusterwidenetworkpolicies",
            ("ccnp",),
            namespaced=False,
        ),
        ServedKind(
            CiliumCIDRGroup,
            "cilium.io/v2",
            "ciliumcidrgroups",
            ("ccg",),
            namespaced=False,
            older=("cilium.io/v2alpha1",),
        ),
        ServedKind(NetworkPolicy, "networking.k8s.io/v1", "networkpolicies", ("netpol",), custom=False),
        ServedKind(Namespace, "v1", "namespaces", ("ns",), namespaced=False, custom=False),
        ServedKind(
            HTTPRoute,
            "gateway.networking.k8s.io/v1",
            "httproutes",
            older=("gateway.networking.k8s.io/v1beta1",),
        ),
        ServedKind(GRPCRoute, "gateway.networking.k8s.io/v1", "grpcroutes"),
        ServedKind(
            ReferenceGrant,
            "gateway.networking.k8s.io/v1",
            "referencegrants",
            ("refgrant",),
            older=("gateway.networking.k8s.io/v1beta1",),
        ),
        ServedKind(PeerAuthentication, "security.istio.io/v1", "peerauthentications", ("pa",)),
        ServedKind(
            GatewayClass,
            "gateway.networking.k8s.io/v1",
            "gatewayclasses",
            ("gc",),
            namespaced=False,
            older=("gateway.networking.k8s.io/v1beta1",),
        ),
        ServedKind(
            Gateway,
            "gateway.networking.k8s.io/v1",
            "gateways",
            ("gtw",),
            older=("gateway.networking.k8s.io/v1beta1",),
        ),
        ServedKind(ListenerSet, "gateway.networking.k8s.io/v1", "listenersets", ("lset",)),
        ServedKind(
            TLSRoute,
            "gateway.networking.k8s.io/v1",
            "tlsroutes",
            older=("gateway.networking.k8s.io/v1alpha3", "gateway.networking.k8s.io/v1alpha2"),
        ),
        ServedKind(
            TCPRoute,
            "gateway.networking.k8s.io/v1",
            "tcproutes",
            older=("gateway.networking.k8s.io/v1alpha2",),
        ),
        ServedKind(
            BackendTLSPolicy,
            "gateway.networking.k8s.io/v1",
            "backendtlspolicies",
            ("btlspolicy",),
            older=("gateway.networking.k8s.io/v1alpha3",),
        ),
        ServedKind(
            UDPRoute,
            "gateway.networking.k8s.io/v1",
            "udproutes",
            older=("gateway.networking.k8s.io/v1alpha2",),
        ),
        ServedKind(Ingress, "networking.k8s.io/v1", "ingresses", ("ing",), custom=False),
        ServedKind(IngressClass, "networking.k8s.io/v1", "ingressclasses", namespaced=False, custom=False),
        ServedKind(Secret, "v1", "secrets", custom=False),
        ServedKind(ConfigMap, "v1", "configmaps", ("cm",), custom=False),
        ServedKind(BackendPolicy, "penstock.dev/v1alpha1", "backendpolicies", ("bpol",)),
        ServedKind(HTTPPolicy, "penstock.dev/v1alpha1", "httppolicies", ("hpol",)),
        ServedKind(
            XBackendTrafficPolicy,
            "gateway.networking.x-k8s.io/v1alpha1",
            "xbackendtrafficpolicies",
            ("xbtrafficpolicy",),
        ),
    )
}

PASSED_OVER: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "Event",
            "LimitRange",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "Pod",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "ServiceAccount",
        ),
        ("v1",),
    ),
    **dict.fromkeys(
        ("ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"), ("apps/v1",)
    ),
    **dict.fromkeys(("CronJob", "Job"), ("batch/v1",)),
    **dict.fromkeys(
        ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"), ("rbac.authorization.k8s.io/v1",)
    ),
    **dict.fromkeys(
        ("CSIDriver", "CSINode", "CSIStorageCapacity", "StorageClass", "VolumeAttachment"),
        ("storage.k8s.io/v1",),
    ),
    **dict.fromkeys(
        (
            "MutatingWebhookConfiguration",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
            "ValidatingWebhookConfiguration",
        ),
        ("admissionregistration.k8s.io/v1",),
    ),
    "APIService": ("apiregistration.k8s.io/v1",),
    "CertificateSigningRequest": ("certificates.k8s.io/v1",),
    "CustomResourceDefinition": ("apiextensions.k8s.io/v1",),
    "FlowSchema": ("flowcontrol.apiserver.k8s.io/v1",),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "autoscaling/v1"),
    "Lease": ("coordination.k8s.io/v1",),
    "PodDisruptionBudget": ("policy/v1",),
    "PriorityClass": ("scheduling.k8s.io/v1",),
    "PriorityLevelConfiguration": ("flowcontrol.apiserver.k8s.io/v1",),
    "RuntimeClass": ("node.k8s.io/v1",),
}
"""Kinds of Kubernetes that Penstock has no use for: a notice."""

API_VERSIONS: Mapping[str, tuple[str, ...]] = {
    **PASSED_OVER,
    **{name: (served.api_version, *served.older) for name, served in SERVED.items()},
}
"""Every known kind with its apiVersions, the best one first."""


def served_kind(word: str) -> ServedKind | None:
    """The kind that a command line names: in any case, singular, plural or short."""
    lower = word.lower()
    for served in SERVED.values():
        if lower in (served.name.lower(), served.plural, *served.short):
            return served
    return None
