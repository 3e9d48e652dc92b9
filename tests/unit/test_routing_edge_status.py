"""What Gateways, ListenerSets and their routes are told: conditions and reasons as the API has them."""

from __future__ import annotations

import pytest
from test_gateway_golden import API, BACKENDS, CERTIFICATE, LISTENER_SET, gateway, stream
from worlds import make

from penstock.manifests.document import ObjectKey
from penstock.plan import Plan

FAR = CERTIFICATE.replace("{name: cert}", "{name: cert, namespace: far}", 1)
TORN = CERTIFICATE.replace("tls.crt: ", 'tls.crt: "", x: ', 1)


def told(plan: Plan, kind: str, name: str, namespace: str = "default") -> dict[str, tuple[bool, str]]:
    status = plan.statuses[ObjectKey(kind, namespace, name)]
    return {c.type: (c.status, c.reason) for c in status.conditions}


def parent(plan: Plan, kind: str, name: str) -> dict[str, tuple[bool, str]]:
    ((_, conditions),) = plan.statuses[ObjectKey(kind, "default", name)].extra["parents"]  # type: ignore[misc]
    return {c.type: (c.status, c.reason) for c in conditions}


@pytest.mark.parametrize(
    ("text", "ref", "reason"),
    [
        (CERTIFICATE, "name: cert", "ResolvedRefs"),
        (CERTIFICATE, "name: absent", "InvalidClientCertificateRef"),
        (CERTIFICATE, "name: cert, group: example.com", "InvalidClientCertificateRef"),
        (CERTIFICATE, "name: cert, kind: ConfigMap", "InvalidClientCertificateRef"),
        (TORN, "name: cert", "InvalidClientCertificateRef"),
        (FAR, "name: cert, namespace: far", "RefNotPermitted"),
    ],
)
def test_a_bad_client_certificate_is_the_gateways(text: str, ref: str, reason: str) -> None:
    """It is accepted all the same, and goes on without one."""
    _, plan = make(text + gateway(more=f", tls: {{backend: {{clientCertificateRef: {{{ref}}}}}}}"))
    found = told(plan, "Gateway", "gw")
    assert found["ResolvedRefs"] == (reason == "ResolvedRefs", reason)
    assert found["Accepted"] == (True, "Accepted")
    assert found["Programmed"] == (True, "Programmed")


L4_SET = LISTENER_SET.replace("port: 8090, protocol: HTTP, hostname: more.example", "port: 90, protocol: {}")


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [("TCPRoute", "TCP"), ("UDPRoute", "UDP"), ("TLSRoute", "TLS, tls: {mode: Passthrough}")],
)
def test_streams_and_datagrams_through_a_listener_set(kind: str, protocol: str) -> None:
    dns = """
apiVersion: v1
kind: Service
metadata: {name: dns}
spec: {selector: {app: api}, ports: [{port: 80, targetPort: 9053, protocol: UDP}]}
---
"""
    backend = "{name: dns, port: 80}" if kind == "UDPRoute" else API
    hosts = "a.example" if kind == "TLSRoute" else ""
    one = stream(kind, backend, hosts=hosts, parent=", kind: ListenerSet").replace("name: gw,", "name: more,")
    other = stream(kind, backend, hosts=hosts, name="s", parent=", kind: ListenerSet, sectionName: absent")
    _, plan = make(
        BACKENDS
        + dns
        + gateway(more=", allowedListeners: {namespaces: {from: Same}}")
        + L4_SET.replace("{}", protocol)
        + one
        + other.replace("name: gw,", "name: more,")
    )
    assert parent(plan, kind, "r") == {
        "Accepted": (True, "Accepted"),
        "ResolvedRefs": (True, "ResolvedRefs"),
    }
    assert parent(plan, kind, "s")["Accepted"] == (False, "NoMatchingParent")
    (listener,) = plan.statuses[ObjectKey("ListenerSet", "default", "more")].extra["listeners"]  # type: ignore[misc]
    assert listener.attached == 1
    spoken = "UDP" if kind == "UDPRoute" else "TCP"
    assert f"gateway/default/gw:90/{spoken}" in {each.name for each in plan.proxy.edge}


@pytest.mark.parametrize(
    ("listener", "kind", "reason"),
    [
        ("{name: l, port: 80, protocol: HTTP}", "TLSRoute", "NotAllowedByListeners"),
        ("{name: l, port: 80, protocol: HTTP}", "TCPRoute", "NotAllowedByListeners"),
        ("{name: l, port: 80, protocol: UDP}", "TCPRoute", "NotAllowedByListeners"),
        ("{name: l, port: 80, protocol: TCP}", "UDPRoute", "NotAllowedByListeners"),
        (
            "{name: l, port: 443, protocol: TLS, hostname: b.example, tls: {mode: Passthrough}}",
            "TLSRoute",
            "NoMatchingListenerHostname",
        ),
        (
            "{name: l, port: 443, protocol: TLS, tls: {mode: Passthrough}, "
            "allowedRoutes: {kinds: [{kind: HTTPRoute}]}}",
            "TLSRoute",
            "NotAllowedByListeners",
        ),
    ],
)
def test_routes_that_no_listener_takes(listener: str, kind: str, reason: str) -> None:
    hosts = "a.example" if kind == "TLSRoute" else ""
    _, plan = make(BACKENDS + gateway(listener) + stream(kind, API, hosts=hosts))
    assert parent(plan, kind, "r")["Accepted"] == (False, reason)
    (found,) = plan.statuses[ObjectKey("Gateway", "default", "gw")].extra["listeners"]  # type: ignore[misc]
    assert found.attached == 0


@pytest.mark.parametrize("host", ["", "hostname: a.example, "], ids=["neither", "one"])
def test_https_and_tls_do_not_stand_beside_each_other_without_names(host: str) -> None:
    ended = "tls: {certificateRefs: [{name: cert}]}"
    _, plan = make(
        CERTIFICATE
        + gateway(
            "{name: control, port: 443, protocol: TLS, tls: {mode: Passthrough}}",
            f"{{name: https, port: 8443, protocol: HTTPS, {ended}}}",
            f"{{name: tls, port: 8443, {host}protocol: TLS, tls: {{mode: Passthrough}}}}",
        )
    )
    listeners = plan.statuses[ObjectKey("Gateway", "default", "gw")].extra["listeners"]
    found = {each.name: {c.type: (c.status, c.reason) for c in each.conditions} for each in listeners}  # type: ignore[attr-defined]
    assert found["control"]["Accepted"] == (True, "Accepted")
    for name in ("https", "tls"):
        assert found[name]["Conflicted"] == (True, "ProtocolConflict")
        assert found[name]["Accepted"] == (False, "Invalid")
        assert not found[name]["Programmed"][0]
