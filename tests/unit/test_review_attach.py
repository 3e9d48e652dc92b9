"""Warnings about how the edge hangs together: each is what the status would say, and says so beforehand."""

from __future__ import annotations

import pytest
from test_gateway_golden import API, BACKENDS, LISTENER_SET, gateway, route, rule, stream
from worlds import make

from penstock.manifests.document import ObjectKey
from penstock.manifests.loader import load
from penstock.routing.review import review_routes
from penstock.routing.review_attach import review_attachments

TCP = "{name: tcp, port: 90, protocol: TCP}"
HTTP = "{name: http, port: 80, protocol: HTTP, hostname: '*.example'}"
SETS = ", allowedListeners: {namespaces: {from: Same}}"


def policy(name: str, *, target: str = "api", ca: str = "absent", section: str = "") -> str:
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{{group: "", kind: Service, name: {target}{section}}}]
  validation: {{hostname: a.example, caCertificateRefs: [{{group: "", kind: ConfigMap, name: {ca}}}]}}
---
"""


def said(text: str) -> list[str]:
    loaded = load(BACKENDS + text, "f")
    assert not [p for p in loaded.problems if p.severity == "error"], loaded.problems
    found = review_attachments(loaded.documents)
    assert all(p.severity == "warning" and p.line > 1 for p in found)
    return [f"{p.name} {p.field} {p.code}" for p in found]


def test_what_is_in_order() -> None:
    assert (
        said(gateway(HTTP, TCP) + route(rule(), hosts="a.example") + stream("TCPRoute", API, name="s")) == []
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (route(rule(), hosts="elsewhere.org"), "NoMatchingListenerHostname"),
        (route(rule(), parent=", sectionName: absent"), "NoMatchingParent"),
        (route(rule(), parent=", port: 99"), "NoMatchingParent"),
        (stream("UDPRoute", API), "NotAllowedByListeners"),
        (route(rule()).replace("{name: r}", "{name: r, namespace: far}").replace("name: gw", "name: gw, "
         "namespace: default"), "NotAllowedByListeners"),
    ],
)  # fmt: skip
def test_routes_that_no_listener_takes(text: str, reason: str) -> None:
    """The reason is the one that the route's status then has."""
    assert said(gateway(HTTP, TCP) + text) == ["r spec.parentRefs[0] unattached"]
    loaded = load(BACKENDS + gateway(HTTP, TCP) + text, "f")
    assert f"({reason})" in review_attachments(loaded.documents)[0].message
    _, plan = make(BACKENDS + gateway(HTTP, TCP) + text)
    (key,) = [k for k in plan.statuses if k.name == "r"]
    ((_, conditions),) = plan.statuses[key].extra["parents"]  # type: ignore[misc]
    assert next(c.reason for c in conditions if c.type == "Accepted") == reason


def test_a_parent_that_is_not_there_or_not_ours() -> None:
    assert said(route(rule())) == ["r spec.parentRefs[0].name reference"]
    foreign = gateway(HTTP).replace("gatewayClassName: penstock", "gatewayClassName: foreign")
    assert said(foreign + route(rule(), hosts="elsewhere.org")) == []


def test_listeners_that_are_not_served() -> None:
    clash = "{name: more, port: 80, protocol: TCP}"
    odd = "{name: odd, port: 81, protocol: example.com/SSH}"
    kinds = "{name: kinds, port: 82, protocol: HTTP, allowedRoutes: {kinds: [{kind: TCPRoute}]}}"
    assert said(gateway(HTTP, clash, odd, kinds)) == [f"gw spec.listeners[{i}] listener" for i in range(4)]


def test_listener_sets() -> None:
    assert said(gateway(HTTP, more=SETS) + LISTENER_SET) == []
    assert said(gateway(HTTP) + LISTENER_SET) == ["more spec.parentRef unattached"]
    assert said(LISTENER_SET) == ["more spec.parentRef.name reference"]
    attached = route(rule(), parent=", kind: ListenerSet").replace("name: gw,", "name: more,")
    assert said(gateway(HTTP, more=SETS) + LISTENER_SET + attached) == []


def test_streams_behind_an_older_one() -> None:
    two = stream("TCPRoute", API, name="a") + stream("TCPRoute", API, name="b")
    assert said(gateway(TCP) + two) == ["b spec.parentRefs[0] shadowed"]
    # Of two listeners it has one for itself.
    other = "{name: other, port: 91, protocol: TCP}"
    apart = stream("TCPRoute", API, name="a", parent=", sectionName: tcp") + stream("TCPRoute", API, name="b")
    assert said(gateway(TCP, other) + apart) == []
    tls = "{name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}"
    names = stream("TLSRoute", API, name="a", hosts="x.example") + stream(
        "TLSRoute", API, name="b", hosts="y"
    )
    assert said(gateway(tls) + names) == []
    same = names.replace("hostnames: [y]", "hostnames: [x.example]")
    assert said(gateway(tls) + same) == ["b spec.parentRefs[0] shadowed"]


def test_backend_tls_policies() -> None:
    ca = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ca}\ndata: {ca.crt: x}\n---\n"
    assert said(ca + policy("p", ca="ca")) == []
    assert said(policy("p")) == ["p spec.validation.caCertificateRefs[0].name reference"]
    assert said(ca + policy("p", ca="ca", target="nobody")) == ["p spec.targetRefs[0].name reference"]
    assert said(ca + policy("p", ca="ca") + policy("q", ca="ca")) == ["q spec.targetRefs[0] shadowed"]
    one_port = policy("q", ca="ca", section=", sectionName: http")
    assert said(ca + policy("p", ca="ca") + one_port) == []


def test_a_match_is_shadowed_only_where_it_is_so_everywhere() -> None:
    def shadowed(text: str) -> list[str]:
        found = review_routes(load(BACKENDS + text, "f").documents)
        return [p.name for p in found if p.code == "shadowed"]

    one = route(rule(), hosts="a.example, b.example", name="a")
    assert shadowed(one + route(rule(), hosts="a.example", name="b")) == ["b"]
    assert shadowed(one + route(rule(), hosts="a.example, c.example", name="b")) == []
    two_parents = route(rule(), hosts="a.example", name="b").replace(
        "[{name: gw}]", "[{name: gw}, {name: h}]"
    )
    assert shadowed(one + two_parents) == []
    assert ObjectKey("HTTPRoute", "default", "b") in {d.key for d in load(two_parents, "f").documents}
