"""TLSRoutes and TCPRoutes on Gateways: which chains they become, and what their status says."""

from __future__ import annotations

import pytest
from test_manifests_checks import only, said
from test_routing_mesh import PEOPLE
from test_routing_services import service
from worlds import make

from penstock.manifests.document import ObjectKey
from penstock.plan import Plan
from penstock.routing.model import RouteBackend, TcpChain

SERVED = PEOPLE + service(
    "s", "{selector: {app: v1}, ports: [{name: t, port: 90}, {name: u, port: 91, protocol: UDP}]}"
)


def gateway(*listeners: str) -> str:
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: gw}}
spec: {{gatewayClassName: penstock, listeners: [{", ".join(listeners)}]}}
---"""


def route(
    kind: str, name: str, *, hostnames: str = "", refs: str = "{name: s, port: 90}", more: str = ""
) -> str:
    names = f"hostnames: [{hostnames}]," if hostnames else ""
    spec = f"parentRefs: [{{name: gw{more}}}], {names} rules: [{{backendRefs: [{refs}]}}]"
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {name}}}
spec: {{{spec}}}
---"""


TCP = "{name: t, port: 90, protocol: TCP}"
CLUSTER = "default/s:90/4/edge/tcp"


def tls(name: str = "p", hostname: str = "") -> str:
    named = f", hostname: '{hostname}'" if hostname else ""
    return f"{{name: {name}, port: 443, protocol: TLS, tls: {{mode: Passthrough}}{named}}}"


def chains(plan: Plan) -> dict[str | None, TcpChain]:
    return {c.sni: c for e in plan.proxy.edge for c in e.chains if isinstance(c, TcpChain)}


def conditions(plan: Plan, kind: str, name: str) -> dict[str, tuple[bool, str]]:
    ((_, found),) = plan.statuses[ObjectKey(kind, "default", name)].extra["parents"]  # type: ignore[misc]
    return {c.type: (c.status, c.reason) for c in found}


def test_a_tcp_route_is_a_chain_without_a_name() -> None:
    _, plan = make(SERVED + gateway(TCP) + route("TCPRoute", "r"))
    assert chains(plan)[None].backends == (RouteBackend(CLUSTER, 1),)
    (cluster,) = plan.proxy.clusters
    assert (cluster.name, cluster.stream, cluster.source is not None) == (CLUSTER, True, True)


def test_of_two_tcp_routes_the_first_counts() -> None:
    text = (
        SERVED + gateway(TCP) + route("TCPRoute", "b") + route("TCPRoute", "a", refs="{name: v1, port: 80}")
    )
    _, plan = make(text)
    assert chains(plan)[None].backends == (RouteBackend("default/v1:80/4/edge/tcp", 1),)


def test_a_tls_route_is_a_chain_for_each_name_that_meets_the_listener() -> None:
    text = SERVED + gateway(tls(hostname="*.example"))
    _, plan = make(text + route("TLSRoute", "r", hostnames="a.example, '*.b.example', other.org"))
    assert set(chains(plan)) == {"a.example", "*.b.example"}


def test_the_more_specific_name_of_a_route_comes_first_then_the_older() -> None:
    text = SERVED + gateway(tls())
    text += route("TLSRoute", "a", hostnames="'*.example'", refs="{name: v1, port: 80}")
    text += route("TLSRoute", "b", hostnames="x.example")
    _, plan = make(text)
    found = chains(plan)
    assert found["x.example"].backends[0].cluster == CLUSTER
    assert found["*.example"].backends[0].cluster == "default/v1:80/4/edge/tcp"


def test_a_name_belongs_to_the_most_specific_listener() -> None:
    text = SERVED + gateway(tls("wide", "*.example"), tls("close", "*.a.example"))
    text += route("TLSRoute", "w", hostnames="x.a.example, y.example", more=", sectionName: wide")
    text += route("TLSRoute", "c", hostnames="x.a.example", more=", sectionName: close")
    _, plan = make(text)
    names = [c.name for e in plan.proxy.edge for c in e.chains]
    assert len(names) == len(set(names)) == 2
    assert set(chains(plan)) == {"x.a.example", "y.example"}


@pytest.mark.parametrize(
    ("refs", "reason"),
    [
        ("{name: nobody, port: 1}", "BackendNotFound"),
        ("{name: s, port: 91}", "UnsupportedProtocol"),
        ("{name: s, port: 90, kind: Fancy, group: x.y}", "InvalidKind"),
        ("{name: away, namespace: other, port: 80}", "RefNotPermitted"),
    ],
)
def test_a_reference_that_cannot_be_used_keeps_its_share(refs: str, reason: str) -> None:
    _, plan = make(SERVED + gateway(TCP) + route("TCPRoute", "r", refs=f"{{name: s, port: 90}}, {refs}"))
    assert conditions(plan, "TCPRoute", "r")["ResolvedRefs"] == (False, reason)
    assert chains(plan)[None].backends == (RouteBackend(CLUSTER, 1), RouteBackend(None, 1))


def test_a_stream_needs_endpoints_that_are_open_for_every_byte() -> None:
    text = SERVED + gateway(TCP) + route("TCPRoute", "r")
    rule = "{fromEntities: [ingress], toPorts: [{ports: [{port: '90', protocol: TCP}]%s}]}"
    closed = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p}
spec: {endpointSelector: {matchLabels: {app: v1}}, ingress: [%s]}
---"""
    assert len(make(text + closed % (rule % ""))[1].proxy.clusters[0].endpoints) == 1
    some = ", rules: {http: [{path: /a}]}"
    assert make(text + closed % (rule % some))[1].proxy.clusters[0].endpoints == ()
    assert make(text + closed % "{}")[1].proxy.clusters[0].endpoints == ()


def test_datagrams_are_shared_out_among_endpoints() -> None:
    """Three quarters to one endpoint, a quarter to what cannot be used: that gets lost."""
    refs = "{name: s, port: 91, weight: 3}, {name: nobody, port: 91}"
    text = SERVED + gateway("{name: u, port: 91, protocol: UDP}") + route("UDPRoute", "r", refs=refs)
    _, plan = make(text)
    (cluster,) = plan.proxy.clusters
    weights = {str(e.address): e.weight for e in cluster.endpoints}
    assert weights["10.1.0.1"] == 3 * weights["127.0.0.1"]
    assert cluster.source is not None and cluster.source in plan.kernel.datagram_sources
    (listener,) = plan.proxy.edge
    assert (listener.protocol, listener.chains[0].backends[0].cluster) == ("UDP", cluster.name)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "body", "start"),
    [
        ("TLSRoute", "rules: [{backendRefs: [{name: s, port: 90}]}]", "spec.hostnames: holds 0"),
        (
            "TLSRoute",
            "hostnames: [10.0.0.1], rules: [{backendRefs: [{name: s, port: 90}]}]",
            "spec.hostnames[0]: ",
        ),
        ("TCPRoute", "rules: []", "spec.rules: holds 0"),
        ("TCPRoute", "rules: [{}]", "spec.rules[0].backendRefs: holds 0"),
        (
            "TCPRoute",
            "parentRefs: [{group: '', kind: Service, name: s}],"
            " rules: [{backendRefs: [{name: s, port: 90}]}]",
            "spec.parentRefs[0].kind: a Service as the parent",
        ),
    ],
)
def test_bad_routes(kind: str, body: str, start: str) -> None:
    only(said(kind, f"spec: {{{body}}}"), start)
