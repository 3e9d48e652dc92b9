"""The `.status` of GatewayClasses, Gateways and ListenerSets as `penstock get` shows it. Pure.

What compile found is said here in the API's own words; what is not in force yet is not called Programmed.

Source: Gateway API v1.6, GatewayStatus, ListenerStatus, GatewayClassStatus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from penstock.manifests.base import ObjectMeta
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import Gateway, GatewayClass, GatewayClassSpec
from penstock.plan import Condition, ObjectStatus
from penstock.policy.ingress import CLASS, CONTROLLER
from penstock.routing.attach import ListenerStatus

FEATURES = (
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSAndTLSPassthroughSamePort",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayInfrastructurePropagation",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
)
"""What the GatewayClass says that it can do, in the order of names (the API wants it so)."""

Render = Callable[[Document, str, Condition], dict[str, Any]]


def built_in() -> Document:
    """The GatewayClass that is there without a manifest."""
    value = GatewayClass(
        api_version="gateway.networking.k8s.io/v1",
        kind="GatewayClass",
        metadata=ObjectMeta(name=CLASS),
        spec=GatewayClassSpec(controller_name=CONTROLLER),
    )
    return Document(ObjectKey("GatewayClass", "", CLASS), value, "(built in)", 1)


def fill(shown: dict[str, Any], document: Document, status: ObjectStatus, render: Render) -> None:
    """Puts the status of `document` into `shown`."""
    conditions = [render(document, "", c) for c in status.conditions]
    if isinstance(document.value, GatewayClass):
        if document.value.spec.controller_name == CONTROLLER:
            accepted = render(document, "", Condition("Accepted", True, "Accepted"))
            shown["status"] = {
                "conditions": conditions or [accepted],
                "supportedFeatures": [{"name": name} for name in FEATURES],
            }
        return
    listeners: Any = status.extra.get("listeners", ())
    shown["status"] = {
        "conditions": conditions,
        "listeners": [_listener(document, each, render) for each in listeners],
    }
    if isinstance(document.value, Gateway):
        addresses: Any = status.extra.get("addresses", ())
        shown["status"]["addresses"] = [{"type": "IPAddress", "value": str(a)} for a in addresses]
        shown["status"]["attachedListenerSets"] = status.extra.get("attached_sets", 0)


def _listener(document: Document, each: ListenerStatus, render: Render) -> dict[str, Any]:
    return {
        "name": each.name,
        "supportedKinds": [{"group": k.group, "kind": k.kind} for k in each.supported],
        "attachedRoutes": each.attached,
        "conditions": [render(document, each.name, c) for c in each.conditions],
    }


def programmed(status: ObjectStatus, ready: Callable[[str], str]) -> ObjectStatus:
    """`status` with Programmed only where the proxy serves.

    `ready` says what a listener of the proxy still waits for; '' if it serves.
    """
    listeners: Any = status.extra.get("listeners")
    if listeners is None:
        return status
    waiting: list[str] = []

    def settle(conditions: Iterable[Condition], why: str) -> tuple[Condition, ...]:
        return tuple(
            Condition("Programmed", False, "Pending", why)
            if why and c.type == "Programmed" and c.status
            else c
            for c in conditions
        )

    settled = []
    for each in listeners:
        standing = any(c.type == "Programmed" and c.status for c in each.conditions)
        why = ready(each.serves) if standing and each.serves else ""
        waiting += [why] if why else []
        settled.append(replace(each, conditions=settle(each.conditions, why)))
    conditions = settle(status.conditions, waiting[0] if waiting else "")
    return replace(status, conditions=conditions, extra={**status.extra, "listeners": tuple(settled)})
