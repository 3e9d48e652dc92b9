"""Fields and values that the APIs know and this version does not enforce.

They are refused by name, never ignored: a policy that is half enforced is worse than one that is refused.
Keyed by the type in kinds.py that would carry the field, so that a field that is served one day cannot
stay here unseen (a test compares).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from penstock.manifests import ingress_kinds, kinds, route_kinds, shared_kinds

NOT_YET = "is not supported by this version of Penstock"


def _not_yet(names: str, **others: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), NOT_YET) | others


_INGRESS_PEERS = "fromRequires fromGroups"
_EGRESS_PEERS = "toRequires toGroups"
_NO_L7_IN_DENY = {"rules": "cannot stand in a deny rule: deny rules know no L7"}

_NO_SECRET_VALUE = (
    f"{NOT_YET}: the value would stand in Envoy's configuration, and so in every dump of it; "
    "an HTTPPolicy can ask for a token instead"
)
_NO_MUTATION = (
    "a policy changes no request: what it says is known only when the endpoint is chosen, where Envoy judges "
    "but changes nothing; an HTTPRoute's RequestHeaderModifier does that"
)
_NO_HOST_POLICY = (
    f"{NOT_YET}: what the nodes' own processes send and get is judged at the workloads only: name the nodes "
    "in rules of workloads (entities host and remote-node, fromNodes, toNodes), and close the nodes by a "
    "firewall of their own"
)

UNSUPPORTED_FIELDS: Mapping[type[msgspec.Struct], Mapping[str, str]] = {
    kinds.ServiceSpec: _not_yet(
        "externalName healthCheckNodePort loadBalancerClass "
        "loadBalancerSourceRanges topologyKeys trafficDistribution"
    ),
    kinds.NodeSpec: _not_yet("configSource externalID"),
    kinds.PolicyRule: _not_yet("log", nodeSelector=_NO_HOST_POLICY),
    kinds.IngressRule: _not_yet(_INGRESS_PEERS),
    kinds.EgressRule: _not_yet(_EGRESS_PEERS),
    kinds.IngressDenyRule: _not_yet(_INGRESS_PEERS),
    kinds.EgressDenyRule: _not_yet(
        _EGRESS_PEERS, toFQDNs="cannot stand in a deny rule: deny rules know no names"
    ),
    kinds.PortRule: _not_yet("listener originatingTLS terminatingTLS"),
    kinds.PortDenyRule: _NO_L7_IN_DENY,
    kinds.L7Rules: _not_yet("l7 l7proto", kafka="was removed from Cilium in 1.20"),
    kinds.HeaderMatch: {"secret": _NO_SECRET_VALUE},
    route_kinds.HTTPRouteFilter: _not_yet("extensionRef"),
    shared_kinds.SessionPersistence: _not_yet("idleTimeout"),
    ingress_kinds.IngressBackend: {"resource": f"as a backend {NOT_YET}: only Services can be backends"},
}
"""Wire name of a field → why it is refused."""

UNSUPPORTED_VALUES: Mapping[tuple[type[msgspec.Struct], str], tuple[str, ...]] = {
    (kinds.ServiceSpec, "type"): ("ExternalName",),
    (kinds.EndpointSlice, "addressType"): ("FQDN",),
    (route_kinds.HTTPRouteFilter, "type"): ("ExtensionRef",),
    (kinds.Authentication, "mode"): ("test-always-fail",),
    (kinds.HeaderMatch, "mismatch"): ("ADD", "DELETE", "REPLACE"),
    (kinds.PortProtocol, "protocol"): ("ICMP", "ICMPv6", "VRRP", "IGMP"),
}
"""(type, wire name of a field with fixed values) → values that the API knows and this version does not."""

WHY: Mapping[tuple[type[msgspec.Struct], str], str] = {(kinds.HeaderMatch, "mismatch"): _NO_MUTATION}
"""The reason, where there is more to say than that."""
