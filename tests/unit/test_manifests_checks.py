"""The rules of single documents that types cannot say."""

from __future__ import annotations

import pytest

from penstock.manifests.loader import load

KINDS = {
    "CiliumNetworkPolicy": "cilium.io/v2",
    "HTTPRoute": "gateway.networking.k8s.io/v1",
    "Workload": "penstock.dev/v1alpha1",
    "Service": "v1",
    "Node": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "PeerAuthentication": "security.istio.io/v1",
    "TLSRoute": "gateway.networking.k8s.io/v1",
    "TCPRoute": "gateway.networking.k8s.io/v1",
    "UDPRoute": "gateway.networking.k8s.io/v1",
    "BackendTLSPolicy": "gateway.networking.k8s.io/v1",
    "Ingress": "networking.k8s.io/v1",
}


def said(kind: str, body: str, name: str = "a") -> list[str]:
    """Field and message of every error in an object of `kind` with these fields."""
    text = f"apiVersion: {KINDS[kind]}\nkind: {kind}\nmetadata: {{name: {name}}}\n{body}\n"
    result = load(text, "f.yaml")
    errors = [p for p in result.problems if p.severity == "error"]
    assert bool(errors) != bool(result.documents)
    return [f"{p.field}: {p.message}" for p in errors]


def only(found: list[str], start: str) -> None:
    assert len(found) == 1 and found[0].startswith(start), found


def ingress(entry: str) -> str:
    return f"spec: {{endpointSelector: {{}}, ingress: [{entry}]}}"


def ports(entry: str, rules: str = "") -> str:
    return ingress(f"{{toPorts: [{{ports: [{entry}]{rules}}}]}}")


@pytest.mark.parametrize(
    "body",
    [
        "spec: {endpointSelector: {}, ingress: []}",
        "spec: {endpointSelector: {}, ingress: [{}]}",
        "specs: [{endpointSelector: {}, egressDeny: [{toEntities: [world]}]}]",
        ingress("{fromEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': b, 'any:app': c}}]}"),
        ingress("{fromEndpoints: [{matchLabels: {'reserved:host': ''}}]}"),
        ingress("{icmps: [{fields: [{type: 8}, {type: '13'}, {type: EchoRequest, family: IPv6}]}]}"),
        ports("{port: 9899, protocol: SCTP}"),
        ingress("{fromCIDR: [10.0.0.0/8, 192.0.2.1, '2001:db8::/32']}"),
        ingress("{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.0.0.0/8]}]}"),
        ports("{port: http}"),
        ports("{port: '0'}"),
        ports("{port: '8000', endPort: 9000, protocol: TCP}"),
        ports("{port: 80}", ", rules: {http: [{}, {method: GET, path: /a/.*, headers: [X-A, 'X-B: c d']}]}"),
    ],
)
def test_good_policies(body: str) -> None:
    assert said("CiliumNetworkPolicy", body) == []


@pytest.mark.parametrize(
    ("body", "start"),
    [
        ("", ": needs spec or specs"),
        ("spec: {ingress: []}", "spec.endpointSelector: is missing"),
        ("spec: {endpointSelector: {}}", "spec: needs at least one of ingress"),
        (
            ingress("{fromEndpoints: [{}], fromEntities: [host]}"),
            "spec.ingress[0].fromEntities: cannot stand beside",
        ),
        (ingress("{fromEntities: [wrld]}"), 'spec.ingress[0].fromEntities[0]: "wrld" is not one of'),
        (
            "spec: {endpointSelector: {matchExpressions: [{key: a, operator: In}]}, ingress: []}",
            "spec.endpointSelector.matchExpressions[0].values: In needs values",
        ),
        (
            "spec: {endpointSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}, "
            "ingress: []}",
            "spec.endpointSelector.matchExpressions[0].values: Exists takes no values",
        ),
        (
            "spec: {endpointSelector: {matchLabels: {'foo:a': b}}, ingress: []}",
            'spec.endpointSelector.matchLabels["foo:a"]: the source "foo"',
        ),
        (
            "spec: {endpointSelector: {matchLabels: {app: 'a b'}}, ingress: []}",
            'spec.endpointSelector.matchLabels.app: "a b" must be',
        ),
        (ports("{port: 70000}"), "spec.ingress[0].toPorts[0].ports[0].port: 70000 is not a port"),
        (ports("{port: '-1'}"), "spec.ingress[0].toPorts[0].ports[0].port: -1 is not a port"),
        (ports("{port: No_Name}"), 'spec.ingress[0].toPorts[0].ports[0].port: "No_Name" is neither a port'),
        (
            ports("{port: 80, endPort: 79}"),
            "spec.ingress[0].toPorts[0].ports[0].endPort: 79 is below port 80",
        ),
        (
            ports("{port: http, endPort: 90}"),
            "spec.ingress[0].toPorts[0].ports[0].endPort: needs a port number",
        ),
        (
            ports(", ".join(["{port: 1}"] * 41)),
            "spec.ingress[0].toPorts[0].ports: holds 41 ports, at most 40",
        ),
        (
            ports("{port: 80, protocol: UDP}", ", rules: {http: [{}]}"),
            "spec.ingress[0].toPorts[0].ports[0].protocol: rules.http needs TCP",
        ),
        (
            ports("{port: '0', protocol: TCP}", ", rules: {http: [{}]}"),
            "spec.ingress[0].toPorts[0].ports[0].port: rules.http needs a port other than 0",
        ),
        (
            ingress("{toPorts: [{rules: {http: [{}]}}]}"),
            "spec.ingress[0].toPorts[0].rules.http: needs ports",
        ),
        (
            ports("{port: 80}", ", rules: {http: [{method: '(?=GET)'}]}"),
            'spec.ingress[0].toPorts[0].rules.http[0].method: "(?=GET)" is not a regular expression',
        ),
        (
            ports("{port: 80}", ", rules: {http: [{host: '*.a'}]}"),
            'spec.ingress[0].toPorts[0].rules.http[0].host: "*.a" is not a regular expression',
        ),
        (
            ports("{port: 80}", ", rules: {http: [{headers: ['a@b: c']}]}"),
            'spec.ingress[0].toPorts[0].rules.http[0].headers[0]: "a@b" is not the name of a header',
        ),
        (
            "spec: {endpointSelector: {}, ingressDeny: [{toPorts: [{rules: {http: []}}]}]}",
            "spec.ingressDeny[0].toPorts[0].rules: cannot stand in a deny rule",
        ),
    ],
)
def test_bad_policies(body: str, start: str) -> None:
    only(said("CiliumNetworkPolicy", body), start)


PARENT = "parentRefs: [{group: '', kind: Service, name: web}]"


def rule(entry: str) -> str:
    return f"spec: {{{PARENT}, rules: [{entry}]}}"


@pytest.mark.parametrize(
    "body",
    [
        f"spec: {{{PARENT}}}",
        "spec: {hostnames: ['*.a.example']}",
        rule("{backendRefs: [{name: a, port: 80, weight: 0}]}"),
        rule(
            "{matches: [{path: {type: RegularExpression, value: '/a[0-9]+'}, "
            "headers: [{name: A, value: b}]}]}"
        ),
        rule("{backendRefs: [{kind: Other, group: x.io, name: a}]}"),
    ],
)
def test_good_routes(body: str) -> None:
    assert said("HTTPRoute", body) == []


@pytest.mark.parametrize(
    ("body", "start"),
    [
        (
            "spec: {parentRefs: [{name: gw, kind: Mesh}]}",
            'spec.parentRefs[0].kind: a parent of kind "Mesh" is not supported',
        ),
        (
            "spec: {parentRefs: [{kind: Service, name: a}]}",
            "spec.parentRefs[0].group: a Service is not of the group",
        ),
        ("spec: {hostnames: [10.0.0.1]}", 'spec.hostnames[0]: "10.0.0.1" must be a name'),
        (
            f"spec: {{{PARENT}, rules: [{', '.join(['{}'] * 17)}]}}",
            "spec.rules: holds 17 entries, at most 16",
        ),
        (rule("{name: a}, {name: a}"), "spec.rules: holds the same entry twice"),
        (rule("{matches: [{path: {value: a}}]}"), 'spec.rules[0].matches[0].path.value: "a" does not begin'),
        (
            rule("{matches: [{path: {value: /a//b}}]}"),
            'spec.rules[0].matches[0].path.value: "/a//b" holds "//"',
        ),
        (rule("{matches: [{path: {value: '/a b'}}]}"), "spec.rules[0].matches[0].path.value: "),
        (
            rule("{matches: [{path: {type: RegularExpression, value: '('}}]}"),
            'spec.rules[0].matches[0].path.value: "(" is not a regular expression',
        ),
        (
            rule("{matches: [{headers: [{name: A, value: '[', type: RegularExpression}]}]}"),
            'spec.rules[0].matches[0].headers[0].value: "[" is not a regular',
        ),
        (
            rule("{matches: [{headers: [{name: A, value: b}, {name: a, value: c}]}]}"),
            "spec.rules[0].matches[0].headers: holds the same entry twice",
        ),
        (rule("{backendRefs: [{name: a}]}"), "spec.rules[0].backendRefs[0].port: is missing"),
        (
            rule("{backendRefs: [{name: a, port: 80, weight: 1000001}]}"),
            "spec.rules[0].backendRefs[0].weight: ",
        ),
        (
            rule("{sessionPersistence: {idleTimeout: 5s}}"),
            "spec.rules[0].sessionPersistence.idleTimeout: is not supported",
        ),
    ],
)
def test_bad_routes(body: str, start: str) -> None:
    only(said("HTTPRoute", body), start)


@pytest.mark.parametrize(
    ("kind", "body", "start"),
    [
        (
            "Workload",
            "spec: {netns: /a, container: b}",
            "spec.container: a workload has a netns or a container",
        ),
        ("Workload", "spec: {netns: a}", 'spec.netns: "a" is not an absolute path'),
        (
            "Workload",
            "spec: {addresses: [10.0.0.1/24]}",
            'spec.addresses[0]: "10.0.0.1/24" is not an IP address',
        ),
        ("Workload", "spec: {interface: longer-than-fifteen}", "spec.interface: "),
        (
            "Workload",
            "spec: {ports: [{name: a, containerPort: 1}, {name: a, containerPort: 2}]}",
            'spec.ports: the port name "a" is given 2 times',
        ),
        (
            "Workload",
            "spec: {ports: [{containerPort: 65536}]}",
            "spec.ports[0].containerPort: 65536 is not a port",
        ),
        ("Node", "spec: {podCIDRs: [10.0.0.1/24]}", 'spec.podCIDRs[0]: "10.0.0.1/24" is not a network'),
        ("Node", "status: {addresses: [{type: InternalIP, address: x}]}", "status.addresses[0].address: "),
        ("Service", "spec: {}", "spec.ports: a Service needs at least one port"),
        (
            "Service",
            "spec: {ports: [{port: 80}], clusterIP: 10.0.0}",
            'spec.clusterIP: "10.0.0" is not an IP',
        ),
        ("Service", "spec: {ports: [{port: 80}, {port: 81, name: b}]}", "spec.ports[0].name: is missing"),
        (
            "Service",
            "spec: {ports: [{port: 80, nodePort: 30000}]}",
            "spec.ports[0].nodePort: stands only in a Service of type NodePort",
        ),
        ("Service", "spec: {ports: [{port: 80, targetPort: a_b}]}", "spec.ports[0].targetPort: must be"),
        (
            "EndpointSlice",
            "addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]",
            'endpoints[0].addresses[0]: "fd00::1" is not an IPv4 address',
        ),
        ("EndpointSlice", "addressType: FQDN", 'addressType: "FQDN" is not supported'),
        (
            "PeerAuthentication",
            "spec: {portLevelMtls: {8080: {mode: STRICT}}}",
            "spec.portLevelMtls: is for the workloads that a selector selects",
        ),
        (
            "PeerAuthentication",
            "spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {web: {mode: STRICT}}}",
            "spec.portLevelMtls.web: is not a port number",
        ),
        (
            "PeerAuthentication",
            "spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {70000: {mode: STRICT}}}",
            'spec.portLevelMtls["70000"]: 70000 is not a port (1 to 65535)',
        ),
        (
            "PeerAuthentication",
            "spec: {mtls: {mode: strict}}",
            'spec.mtls.mode: "strict" is not one of DISABLE, PERMISSIVE, STRICT, UNSET',
        ),
    ],
)
def test_other_kinds(kind: str, body: str, start: str) -> None:
    only(said(kind, body), start)


@pytest.mark.parametrize(
    ("kind", "name"), [("Service", "a.b"), ("Service", "1a"), ("Workload", "A"), ("Workload", "a_b")]
)
def test_names(kind: str, name: str) -> None:
    body = "spec: {ports: [{port: 80}]}" if kind == "Service" else ""
    only(said(kind, body, name), f'metadata.name: "{name}" must be')


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0"])
def test_an_endpoint_is_somebody_that_others_can_reach(address: str) -> None:
    text = f"""apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: s, labels: {{kubernetes.io/service-name: s}}}}
addressType: IPv4
endpoints: [{{addresses: ["{address}"]}}]
"""
    (problem,) = load(text, "a.yaml").problems
    assert problem.field == "endpoints[0].addresses[0]"
    assert address in problem.message


@pytest.mark.parametrize(
    ("peers", "start"),
    [
        ("fromCIDR: [10.0.0.0/33]", 'fromCIDR[0]: "10.0.0.0/33" is not a network'),
        ("fromCIDR: ['fe80::1%1/64']", 'fromCIDR[0]: "fe80::1%1/64" '),
        ("fromCIDR: [10.0.0.0/255.0.0.0]", 'fromCIDR[0]: "10.0.0.0/255.0.0.0" has no plain length'),
        ("fromCIDR: ['::ffff:10.0.0.0/104']", 'fromCIDR[0]: "::ffff:10.0.0.0/104" is IPv4 written as IPv6'),
        ("fromCIDRSet: [{cidr: 10.0.0.1}]", 'fromCIDRSet[0].cidr: "10.0.0.1" has no length'),
        (
            "fromCIDRSet: [{cidr: 10.1.0.0/16, except: [10.0.0.0/8]}]",
            "fromCIDRSet[0].except[0]: 10.0.0.0/8 is not inside 10.1.0.0/16",
        ),
        (
            "fromCIDRSet: [{cidr: 10.1.0.0/16, except: ['fd00::/8']}]",
            "fromCIDRSet[0].except[0]: fd00::/8 is not inside 10.1.0.0/16",
        ),
        (
            "fromCIDR: [10.0.0.0/8], fromEntities: [host]",
            "fromCIDR: cannot stand beside fromEntities in one rule",
        ),
    ],
)
def test_networks_of_a_policy(peers: str, start: str) -> None:
    only(said("CiliumNetworkPolicy", ingress(f"{{{peers}}}")), f"spec.ingress[0].{start}")


def test_bits_behind_the_length_are_told() -> None:
    head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\n"
    text = head + ingress("{fromCIDR: [10.0.0.1/8]}")
    result = load(text, "f.yaml")
    assert len(result.documents) == 1
    assert [str(p) for p in result.problems] == [
        "f.yaml:4: CiliumNetworkPolicy default/a: spec.ingress[0].fromCIDR[0]: "
        "10.0.0.1/8 has bits behind its length: it is read as 10.0.0.0/8"
    ]


@pytest.mark.parametrize(
    ("rule", "start"),
    [
        (
            "{icmps: [{fields: [{type: 256}]}]}",
            'icmps[0].fields[0].type: "256" is not a type of ICMP message',
        ),
        (
            "{icmps: [{fields: [{type: Pong}]}]}",
            'icmps[0].fields[0].type: "Pong" is not a type of ICMP message',
        ),
        (
            "{icmps: [{fields: [{type: PacketTooBig}]}]}",
            'icmps[0].fields[0].type: "PacketTooBig" is not a type of ICMP message of IPv4',
        ),
        ("{icmps: [], toPorts: []}", "icmps: cannot stand beside toPorts in one rule"),
        (f"{{icmps: [{{fields: [{', '.join(['{type: 8}'] * 41)}]}}]}}", "icmps[0].fields: holds 41 types"),
    ],
)
def test_messages_of_a_policy(rule: str, start: str) -> None:
    only(said("CiliumNetworkPolicy", ingress(rule)), f"spec.ingress[0].{start}")


def test_a_denial_of_no_message() -> None:
    body = "spec: {endpointSelector: {}, ingressDeny: [{icmps: [{fields: []}]}]}"
    only(said("CiliumNetworkPolicy", body), "spec.ingressDeny[0].icmps: is empty: nothing is denied")


def test_http_over_sctp() -> None:
    found = said("CiliumNetworkPolicy", ports("{port: 80, protocol: SCTP}", ", rules: {http: [{}]}"))
    only(found, "spec.ingress[0].toPorts[0].ports[0].protocol: rules.http needs TCP, not SCTP")


@pytest.mark.parametrize(
    ("body", "start"),
    [
        (
            "endpointSelector: {}, ingressDeny: [{}]",
            "spec.ingressDeny[0]: names nobody and no port: it closes",
        ),
        ("endpointSelector: {}, egressDeny: [{}]", "spec.egressDeny[0]: names nobody and no port: it closes"),
        (
            "endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: '443'}], serverNames: []}]}]",
            "spec.ingress[0].toPorts[0].serverNames: is empty: every server name is allowed",
        ),
    ],
)
def test_what_says_less_than_it_seems_to_is_told(body: str, start: str) -> None:
    text = f"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: a}}\nspec: {{{body}}}\n"
    result = load(text, "f.yaml")
    assert result.documents and {p.severity for p in result.problems} == {"warning"}
    only([f"{p.field}: {p.message}" for p in result.problems], start)
