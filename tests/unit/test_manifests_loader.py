"""Documents and problems: every kind of bad input with its file, line, object, field and suggestion."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.manifests import kinds
from penstock.manifests.document import ObjectKey
from penstock.manifests.fields import UNSUPPORTED_FIELDS, UNSUPPORTED_VALUES
from penstock.manifests.kinds import EndpointSlice
from penstock.manifests.loader import load
from penstock.manifests.registry import API_VERSIONS, PASSED_OVER, SERVED, served_kind

POLICY = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
"""


def said(text: str) -> list[str]:
    return [str(problem) for problem in load(text, "a.yaml").problems]


def policy(rules: str) -> list[str]:
    """What is said about a policy with these rules, which begin on line 6."""
    return said(POLICY + rules)


def test_a_good_document_has_its_key_line_and_origin() -> None:
    result = load("# one\n" + POLICY + "  ingress:\n  - fromEndpoints: [{}]\n", "dir/a.yaml", since=5.0)
    assert not result.problems
    (document,) = result.documents
    assert document.key == ObjectKey("CiliumNetworkPolicy", "shop", "web")
    assert (document.line, document.since, document.generation) == (2, 5.0, 1)
    assert (
        str(document.origin("spec", "ingress", 0, "fromEndpoints", 0))
        == "dir/a.yaml:8 spec.ingress[0].fromEndpoints[0]"
    )


def test_a_syntax_error() -> None:
    text = POLICY + "  ingress: []\n---\na: b: c\n"
    (line,) = said(text)
    assert line.startswith("a.yaml:8: mapping values are not allowed")
    assert len(load(text, "a.yaml").documents) == 1


def test_an_unknown_kind() -> None:
    assert said(POLICY.replace("CiliumNetworkPolicy", "CiliumNetworkPolcy")) == [
        'a.yaml:2: CiliumNetworkPolcy shop/web: kind: "CiliumNetworkPolcy" of cilium.io/v2 is not known; '
        'did you mean "CiliumNetworkPolicy"?'
    ]


@pytest.mark.parametrize("version", ["networking.cilium.io/v1", "cilium.io/v1"])
def test_a_wrong_api_version(version: str) -> None:
    assert said(POLICY.replace("cilium.io/v2", version)) == [
        f'a.yaml:1: CiliumNetworkPolicy shop/web: apiVersion: "{version}" is not the apiVersion of '
        "CiliumNetworkPolicy; write cilium.io/v2"
    ]


def test_an_unknown_field_with_the_nearest() -> None:
    assert said(POLICY.replace("matchLabels", "matchLabel") + "  ingress: []\n") == [
        "a.yaml:5: CiliumNetworkPolicy shop/web: spec.endpointSelector.matchLabel: is not a field here; "
        'did you mean "matchLabels"?'
    ]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("  ingress: {}\n", 'spec.ingress: must be a list, not a mapping; start each item with "- "'),
        ("  ingress:\n", "spec.ingress: has no value; leave it out, or write what it holds"),
        (
            "  ingress: [{fromEndpoints: [{matchLabels: {app: 1}}]}]\n",
            "spec.ingress[0].fromEndpoints[0].matchLabels.app: must be a string, not the number 1; "
            'quote it: "1"',
        ),
        (
            "  ingress: [{fromEndpoints: [{matchLabels: {app: }}]}]\n",
            "spec.ingress[0].fromEndpoints[0].matchLabels.app: must be a string, not nothing; "
            'write "" for the empty string',
        ),
        (
            "  enableDefaultDeny: {ingress: maybe}\n",
            'spec.enableDefaultDeny.ingress: must be true or false, not "maybe"',
        ),
        (
            "  ingress: [{toPorts: [{ports: [{port: 80, protocol: tcp}]}]}]\n",
            'spec.ingress[0].toPorts[0].ports[0].protocol: "tcp" is not one of ANY, SCTP, TCP, UDP; '
            'did you mean "TCP"?',
        ),
    ],
)
def test_a_wrong_type(rules: str, message: str) -> None:
    assert policy(rules) == [f"a.yaml:6: CiliumNetworkPolicy shop/web: {message}"]


def test_a_bad_regular_expression() -> None:
    (line,) = policy(
        "  ingress:\n  - toPorts:\n    - ports: [{port: '80'}]\n      rules:\n"
        "        http:\n        - path: '/a('\n"
    )
    assert line == (
        "a.yaml:11: CiliumNetworkPolicy shop/web: spec.ingress[0].toPorts[0].rules.http[0].path: "
        '"/a(" is not a regular expression (RE2): missing ): /a('
    )


def test_all_faults_of_a_document_are_listed_in_the_order_of_its_lines() -> None:
    lines = policy("  ingres: []\n  egress:\n  - toGroups: []\n    toPort: []\n")
    assert [line.split(": ")[2] for line in lines] == [
        "spec.ingres",
        "spec.egress[0].toGroups",
        "spec.egress[0].toPort",
    ]


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ("fromRequires: [{}]", "fromRequires"),
        ("fromGroups: [{}]", "fromGroups"),
        ("toPorts: [{terminatingTLS: {}}]", "toPorts[0].terminatingTLS"),
        ("toPorts: [{rules: {l7: []}}]", "toPorts[0].rules.l7"),
        (
            "toPorts: [{ports: [{port: 80}], rules: {http: [{headerMatches: "
            "[{name: a, secret: {name: b}}]}]}}]",
            "toPorts[0].rules.http[0].headerMatches[0].secret",
        ),
    ],
)
def test_what_is_not_enforced_is_refused_by_name(rule: str, field: str) -> None:
    (line,) = policy(f"  ingress:\n  - {rule}\n")
    assert line.startswith(
        f"a.yaml:7: CiliumNetworkPolicy shop/web: spec.ingress[0].{field}: "
        "is not supported by this version of Penstock"
    )


def test_kafka_is_said_to_be_gone() -> None:
    (line,) = policy("  ingress: [{toPorts: [{rules: {kafka: []}}]}]\n")
    assert line.endswith("rules.kafka: was removed from Cilium in 1.20")


def test_what_is_not_served_of_a_load_balancer_is_refused() -> None:
    lines = said(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n"
        "spec:\n  type: LoadBalancer\n  loadBalancerSourceRanges: [10.0.0.0/8]\n"
        "  healthCheckNodePort: 30001\n  ports: [{port: 80}]\n"
    )
    assert [line.partition("Service default/a: ")[2] for line in lines] == [
        "spec.loadBalancerSourceRanges: is not supported by this version of Penstock",
        "spec.healthCheckNodePort: is not supported by this version of Penstock",
    ]


def test_a_service_as_an_api_server_writes_it_is_taken() -> None:
    result = load(
        """\
apiVersion: v1
kind: Service
metadata:
  name: web
  creationTimestamp: null
  annotations:
  managedFields: [{manager: kubectl}]
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7]
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4]
  ipFamilyPolicy: SingleStack
  ports: [{port: 80, protocol: TCP, targetPort: http}]
  selector: {app: web}
  sessionAffinity: None
  type: ClusterIP
status: {loadBalancer: {}}
""",
        "a.yaml",
    )
    assert [str(p) for p in result.problems] == []
    assert len(result.documents) == 1


@pytest.mark.parametrize("kind", sorted(PASSED_OVER))
def test_kinds_without_use_are_passed_over_with_one_line(kind: str) -> None:
    result = load(f"apiVersion: {PASSED_OVER[kind][0]}\nkind: {kind}\nmetadata: {{name: a}}\n", "a.yaml")
    assert [p.severity for p in result.problems] == ["notice"]
    assert str(result.problems[0]) == f"a.yaml:1: {kind} a: passed over: Penstock has no use for this kind"


def test_a_list_is_expanded_with_the_lines_of_its_items() -> None:
    result = load(
        "apiVersion: v1\nkind: List\nitems:\n"
        "- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec: {ports: [{port: 80}]}\n"
        "- apiVersion: v1\n  kind: Service\n  metadata: {name: b}\n  spec:\n    ports: [{port: 0}]\n",
        "l.yaml",
    )
    assert [(d.key.name, d.line, d.lines["spec",]) for d in result.documents] == [("a", 4, 7)]
    assert [str(p) for p in result.problems] == [
        "l.yaml:12: Service default/b: spec.ports[0].port: 0 is not a port (1 to 65535)"
    ]


def test_things_that_are_no_objects() -> None:
    assert said("just text") == ["a.yaml:1: is not an object: it has no apiVersion and kind"]
    assert said("apiversion: v1\nkind: Node\n") == [
        'a.yaml:1: Node (no name): apiVersion: is missing; is "apiversion" meant?'
    ]
    assert said("apiVersion: v1\nkind: Node\nmetadata: {}\n") == [
        "a.yaml:3: Node (no name): metadata.name: is missing"
    ]


def test_a_node_has_no_namespace() -> None:
    text = "apiVersion: v1\nkind: Node\nmetadata: {name: a%s}\nspec: {podCIDRs: [10.1.0.0/24]}\n"
    (document,) = load(text % "", "a.yaml").documents
    assert document.key == ObjectKey("Node", "", "a")
    assert said(text % ", namespace: b") == [
        "a.yaml:3: Node a: metadata.namespace: a Node has no namespace; leave it out"
    ]


def test_no_served_field_is_listed_as_unsupported() -> None:
    for kind, names in UNSUPPORTED_FIELDS.items():
        served = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert not served & names.keys(), kind
    for kind, name in UNSUPPORTED_VALUES:
        assert name in {field.encode_name for field in msgspec.structs.fields(kind)}, (kind, name)


def test_the_registry_knows_every_kind_once() -> None:
    assert set(SERVED) == {kind.__name__ for kind in kinds.AnyKind.__args__}
    assert not set(SERVED) & set(PASSED_OVER)
    for word in ("svc", "Services", "SERVICE"):
        found = served_kind(word)
        assert found is not None and found.type is kinds.Service
    assert served_kind("nothing") is None


# --- nothing raises ------------------------------------------------------------------------------------

_KEYS = (
    st.sampled_from(["apiVersion", "kind", "metadata", "spec", "specs", "items", "name", "labels", "status"])
    | st.sampled_from(["ingress", "toPorts", "ports", "port", "rules", "http", "path", "selector"])
    | st.sampled_from(["endpointSelector", "matchLabels", "parentRefs", "backendRefs", "addresses"])
)
_WORDS = st.sampled_from([*API_VERSIONS, *{v for vs in API_VERSIONS.values() for v in vs}, "List", "a", "80"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(_KEYS, _VALUES, max_size=5), st.sampled_from(sorted(SERVED)))
def test_no_yaml_raises(value: dict[str, object], kind: str) -> None:
    value = {"apiVersion": SERVED[kind].api_version, "kind": kind} | value
    for problem in load(json.dumps(value), "a.yaml").problems:
        assert str(problem).startswith(f"a.yaml:{problem.line}: ")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8") | st.sampled_from("{}[]:-&*\n ")))
def test_no_text_raises(text: str) -> None:
    for problem in load(text, "a.yaml").problems:
        assert problem.line >= 1


def test_the_modules_stay_offline() -> None:
    """Validation must run where nothing of the data plane is installed."""
    root = Path(kinds.__file__).parent
    for module in root.glob("*.py"):
        text = module.read_text()
        assert "import grpc" not in text and "pyroute2" not in text and "asyncio" not in text, module


ENDPOINTS = """apiVersion: v1
kind: Endpoints
metadata: {name: far, namespace: shop}
subsets:
- addresses: [{ip: 192.0.2.1, nodeName: a}, {ip: "2001:db8::1"}]
  notReadyAddresses: [{ip: 192.0.2.2}]
  ports: [{name: http, port: 80}]
- addresses: [{ip: 192.0.2.3}]
  ports: [{port: 53, protocol: UDP}]
"""


def test_endpoints_are_mirrored_into_slices() -> None:
    result = load(ENDPOINTS, "a.yaml")
    whole, *slices = result.documents
    assert not result.problems and str(whole.key) == "Endpoints shop/far"
    found = []
    for document in slices:
        value = document.value
        assert isinstance(value, EndpointSlice)
        assert value.metadata.labels["kubernetes.io/service-name"] == "far"
        ends = [(e.addresses[0], e.conditions.ready) for e in value.endpoints]
        found.append((document.key.namespace, document.line, value.address_type, ends, value.ports[0].port))
    assert found == [
        ("shop", 5, "IPv4", [("192.0.2.1", True), ("192.0.2.2", False)], 80),
        ("shop", 5, "IPv6", [("2001:db8::1", True)], 80),
        ("shop", 8, "IPv4", [("192.0.2.3", True)], 53),
    ]


@pytest.mark.parametrize(
    "metadata",
    [
        'labels: {endpointslice.kubernetes.io/skip-mirror: "true"}',
        "annotations: {control-plane.alpha.kubernetes.io/leader: x}",
    ],
)
def test_endpoints_that_are_not_to_be_mirrored(metadata: str) -> None:
    text = ENDPOINTS.replace("namespace: shop", f"namespace: shop, {metadata}")
    assert [d.key.kind for d in load(text, "a.yaml").documents] == ["Endpoints"]


def test_wrong_endpoints() -> None:
    assert said(ENDPOINTS.replace("192.0.2.3", "127.0.0.1"))[0].startswith(
        "a.yaml:8: Endpoints shop/far: subsets[1].addresses[0].ip: "
    )
    assert said(ENDPOINTS.replace("notReadyAddresses", "notReadyAddress")) == [
        "a.yaml:6: Endpoints shop/far: subsets[0].notReadyAddress: is not a field here; "
        'did you mean "notReadyAddresses"?'
    ]


@pytest.mark.parametrize("null", ["null", "~", "Null"])
def test_a_null_that_is_written_is_left_out(null: str) -> None:
    """As an API server prunes it; without any value it is a line that was not finished."""
    text = (
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\n"
        f"spec:\n  hostnames: {null}\n  parentRefs: [{{name: gw}}]\n"
    )
    for whole in (text, "apiVersion: v1\nkind: List\nitems:\n- " + text.replace("\n", "\n  ")):
        result = load(whole, "a.yaml")
        assert not result.problems and len(result.documents) == 1
    assert load(text.replace(f" {null}", ""), "a.yaml").problems
