"""NetworkPolicy and CiliumClusterwideNetworkPolicy: what sets them apart, each subtlety by name."""

from __future__ import annotations

import pytest
from worlds import identities, identity_of, make, policy, workload

from penstock.manifests.loader import load
from penstock.manifests.review import review
from penstock.plan import Direction, Verdict
from penstock.policy.lookup import look_up
from penstock.policy.policies import policies
from penstock.status import Transitions, view

IN, OUT = Direction.INGRESS, Direction.EGRESS
ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
TCP, UDP, ICMP = 6, 17, 1
PEOPLE = (
    """
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {team: blue}}
---"""
    + workload("web", "10.1.0.1", ports="{name: http, containerPort: 8080}")
    + workload("db", "10.1.0.2", ports="{name: http, containerPort: 9090}")
    + workload("alien", "10.1.0.3", namespace="other")
    + workload("third", "10.1.0.4", namespace="plain")
)


def plain(spec: str, name: str = "n", namespace: str = "default") -> str:
    return f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
---"""


def clusterwide(spec: str) -> str:
    return f"""
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {{name: c}}
spec: {spec}
---"""


class Ask:
    def __init__(self, text: str) -> None:
        self.world, self.plan = make(PEOPLE + text)
        self.numbers = identities(self.world)

    def __call__(
        self, subject: str, direction: Direction, peer: str, port: int = 80, protocol: int = TCP
    ) -> Verdict:
        at = next(e for e in self.plan.kernel.endpoints.values() if e.identity == self.numbers[subject])
        number = self.numbers[peer] if peer in self.numbers else identity_of(self.plan, peer)
        return look_up(self.plan.kernel.policy, at.subject, direction, number, protocol, port)

    def who_may(self, subject: str = "web") -> set[str]:
        return {p for p in (*self.numbers, "203.0.113.9") if self(subject, IN, p) is ALLOW}


WEB = "podSelector: {matchLabels: {app: web}}"


def test_without_rules_ingress_is_closed_and_egress_is_not() -> None:
    ask = Ask(plain(f"{{{WEB}}}"))
    assert ask.who_may() == set()
    assert ask("web", OUT, "db") is ALLOW
    assert ask("db", IN, "web") is ALLOW


def test_egress_rules_close_both_ways() -> None:
    ask = Ask(plain(f"{{{WEB}, egress: [{{to: [{{podSelector: {{matchLabels: {{app: db}}}}}}]}}]}}"))
    assert ask.who_may() == set()
    assert ask("web", OUT, "db") is ALLOW
    assert ask("web", OUT, "alien") is DENY


def test_policy_types_say_what_is_closed_and_which_rules_count() -> None:
    ask = Ask(plain(f"{{{WEB}, policyTypes: [Egress], ingress: [], egress: [{{}}]}}"))
    assert ask("web", OUT, "203.0.113.9") is ALLOW
    assert len(ask.who_may()) == 5
    ask = Ask(plain(f"{{{WEB}, policyTypes: [Egress], ingress: [{{}}]}}") + plain(f"{{{WEB}}}", "m"))
    assert ask.who_may() == set()
    assert ask("web", OUT, "db") is DENY


@pytest.mark.parametrize("rule", ["{}", "{from: []}", "{from: [], ports: []}"])
def test_empty_lists_are_everyone_and_every_port(rule: str) -> None:
    ask = Ask(plain(f"{{{WEB}, ingress: [{rule}]}}"))
    assert len(ask.who_may()) == 5
    assert ask("web", IN, "db", 8, ICMP) is ALLOW


@pytest.mark.parametrize(
    ("peer", "who"),
    [
        ("podSelector: {}", {"web", "db"}),
        ("podSelector: {matchLabels: {app: alien}}", set()),
        ("namespaceSelector: {}", {"web", "db", "alien", "third"}),
        ("namespaceSelector: {matchLabels: {team: blue}}", {"alien"}),
        ("namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: plain}}", {"third"}),
        (
            "namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}",
            {"web", "db", "third"},
        ),
        ("namespaceSelector: {}, podSelector: {matchLabels: {app: alien}}", {"alien"}),
        ("namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: alien}}", set()),
        ("ipBlock: {cidr: 0.0.0.0/0}", {"203.0.113.9"}),
        ("ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.8/29]}", set()),
    ],
)
def test_peers(peer: str, who: set[str]) -> None:
    assert Ask(plain(f"{{{WEB}, ingress: [{{from: [{{{peer}}}]}}]}}")).who_may() == who


def test_ports() -> None:
    ask = Ask(
        plain(
            f"{{{WEB}, ingress: [{{ports: [{{port: http}}, {{port: 90, endPort: 99}}, {{protocol: UDP}}]}}]}}"
        )
    )
    assert [p for p in (80, 89, 90, 99, 100, 8080, 9090) if ask("web", IN, "db", p) is ALLOW] == [
        90,
        99,
        8080,
    ]
    assert ask("web", IN, "db", 1, UDP) is ALLOW
    assert ask("web", IN, "db", 8, ICMP) is DENY


def test_a_port_name_on_the_way_out_is_the_peers() -> None:
    ask = Ask(plain(f"{{{WEB}, egress: [{{ports: [{{port: http}}]}}]}}"))
    assert ask("web", OUT, "db", 9090) is ALLOW
    assert ask("web", OUT, "db", 8080) is DENY


def test_kinds_are_ored_and_a_denial_of_one_holds_for_all() -> None:
    other = "{endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEntities: [world]}]}"
    deny = "{endpointSelector: {}, ingressDeny: [{fromEndpoints: [{matchLabels: {app: db}}]}]}"
    base = plain(f"{{{WEB}, ingress: [{{from: [{{podSelector: {{}}}}]}}]}}")
    assert Ask(base + policy(other)).who_may() == {"web", "db", "203.0.113.9"}
    assert Ask(base + policy(other) + clusterwide(deny)).who_may() == {"web", "203.0.113.9"}


def test_a_clusterwide_policy_is_for_every_namespace_and_never_the_world() -> None:
    ask = Ask(clusterwide("{endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}"))
    for subject in ("web", "alien", "third"):
        assert ask.who_may(subject) == {"web", "db", "alien", "third"}
    ask = Ask(
        clusterwide(
            "{endpointSelector: {matchLabels: {'io.kubernetes.pod.namespace': other}}, "
            "ingress: [{fromEndpoints: [{matchLabels: {app: db}}]}]}"
        )
    )
    assert ask.who_may("alien") == {"db"}
    assert len(ask.who_may("web")) == 5


def test_a_policy_of_a_namespace_is_about_no_other() -> None:
    ask = Ask(
        policy("{endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': other}}, ingress: [{}]}")
    )
    assert len(ask.who_may("alien")) == 5


def test_a_namespace_label_changes_who_is_meant() -> None:
    peer = "{matchLabels: {io.cilium.k8s.namespace.labels.team: blue}}"
    assert Ask(policy(f"{{endpointSelector: {{}}, ingress: [{{fromEndpoints: [{peer}]}}]}}")).who_may() == {
        "alien"
    }


def test_status() -> None:
    ask = Ask(plain(f"{{{WEB}}}") + clusterwide("{endpointSelector: {}, ingress: []}"))
    shown = {
        key.kind: view(ask.world, ask.plan, document, Transitions(), 0.0, in_force=True)
        for key, document in ask.world.documents.items()
    }
    assert shown["Namespace"]["status"] == {"phase": "Active"}
    for kind in ("NetworkPolicy", "CiliumClusterwideNetworkPolicy"):
        (condition,) = shown[kind]["status"]["conditions"]
        assert (condition["type"], condition["status"]) == ("Valid", "True")
    assert "namespace" not in shown["CiliumClusterwideNetworkPolicy"]["metadata"]


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("{ingress: [{from: [{}]}]}", "ingress[0].from[0]: needs podSelector, namespaceSelector or ipBlock"),
        (
            "{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
            "ingress[0].from[0].podSelector: cannot stand beside ipBlock in one peer; make two peers of it",
        ),
        (
            "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
            "egress[0].to[0].ipBlock.except[0]: 10.0.0.0/8 leaves nothing of 10.0.0.0/8",
        ),
        ("{ingress: [{ports: [{port: 0}]}]}", "ingress[0].ports[0].port: 0 is not a port (1 to 65535)"),
        (
            "{ingress: [{ports: [{port: 90, endPort: 80}]}]}",
            "ingress[0].ports[0].endPort: 80 is not a port from 90 to 65535",
        ),
        (
            "{ingress: [{ports: [{port: http, endPort: 80}]}]}",
            "ingress[0].ports[0].endPort: needs a port number to begin with",
        ),
        (
            '{ingress: [{ports: [{port: "80"}]}]}',
            'ingress[0].ports[0].port: "80" is not the name of a port: it must be '
            "lower case letters, digits and single '-', with at least one letter; write 80 without quotes",
        ),
        (
            "{podSelector: {matchLabels: {'k8s:app': web}}}",
            "podSelector.matchLabels[\"k8s:app\"]: must be letters, digits, '-', '_' and '.', "
            "beginning and ending with a letter or digit",
        ),
    ],
)
def test_what_is_wrong(spec: str, wrong: str) -> None:
    (problem,) = load(plain(spec), "f.yaml").problems
    assert str(problem).partition("spec.")[2] == wrong


def test_what_is_refused_of_a_clusterwide_policy() -> None:
    (problem,) = load(clusterwide("{nodeSelector: {}, ingress: []}"), "f.yaml").problems
    assert "spec.nodeSelector: is not supported by this version" in str(problem)
    (problem,) = load(clusterwide("{ingress: []}"), "f.yaml").problems
    assert str(problem).endswith("is missing; {} selects every workload of the mesh")


def test_rules_that_have_no_effect_and_selectors_that_find_nobody_are_told() -> None:
    found = load(plain(f"{{{WEB}, policyTypes: [Egress], ingress: [{{}}]}}"), "f.yaml")
    assert [(p.severity, p.field) for p in found.problems] == [("warning", "spec.ingress")]
    text = workload("web", "10.1.0.1") + plain(
        f"{{{WEB}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: wep}}}}}}]}}]}}"
    )
    (problem,) = review(load(text, "f.yaml").documents)
    assert problem.hint == 'did you mean "web"?'


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ("X-A", ("x-a", None)),
        ("X-A: b c", ("x-a", "b c")),
        ("X-A:b", ("x-a", "b")),
        (" X-A b c ", ("x-a", "b c")),
        ("X-A: http://b", ("x-a", "http://b")),
    ],
)
def test_a_header_means_what_its_check_reads(entry: str, meant: tuple[str, str | None]) -> None:
    """Cilium splits at the first space: without a colon, too, what follows is the value."""
    http = f"rules: {{http: [{{headers: ['{entry}']}}]}}"
    ports = f"toPorts: [{{ports: [{{port: '80', protocol: TCP}}], {http}}}]"
    world, _ = make(PEOPLE + policy(f"{{endpointSelector: {{}}, ingress: [{{{ports}}}]}}"))
    ((spec,),) = (each.specs for each in policies(world).read.values())
    assert spec.rules[0].http is not None
    assert spec.rules[0].http[0].headers == (meant,)
