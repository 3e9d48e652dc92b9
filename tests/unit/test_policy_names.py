"""toFQDNs and rules.dns: what is refused, which entries they become, and what the DNS proxy is told."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from worlds import identity_of, make, policy, workload

from penstock.dns.model import Client, DnsPlan, Grant
from penstock.explain import Planned, explain
from penstock.explain.model import Question
from penstock.explain.offline import compiled
from penstock.manifests.loader import load
from penstock.plan import DNS_LISTENER, Direction, Plan, PolicyEntry, PolicyKey, Verdict
from penstock.policy.labels import DNS
from penstock.routing.model import ListenerKind
from penstock.world import Settings

OWN = Settings(dns_addresses=(ip_address("10.96.0.10"),))
PEOPLE = workload("web", "10.1.0.1") + workload("api", "10.1.0.2")
TO_NAMES = (
    "{toFQDNs: [{matchName: API.example.com.}, {matchPattern: '*.cdn.net'}], "
    "toPorts: [{ports: [{port: 443, protocol: TCP}]}]}"
)
NAMES = ("*.cdn.net", "api.example.com")


def out(*rules: str, more: str = "") -> str:
    return policy(f"{{endpointSelector: {{matchLabels: {{app: web}}}}, egress: [{', '.join(rules)}]{more}}}")


def entries(plan: Plan) -> dict[tuple[int, int, int, int], PolicyEntry]:
    """(peer, protocol, port, bits) → entry, of what web sends."""
    subject = plan.kernel.endpoints[ip_address("10.1.0.1")].subject
    return {
        (k.identity, k.protocol, k.port, k.port_bits): e
        for k, e in plan.kernel.policy.items()
        if k[:2] == (subject, Direction.EGRESS)
    }


def test_a_list_of_names_is_a_peer_of_its_own() -> None:
    world, plan = make(PEOPLE + out(TO_NAMES), settings=OWN)
    number = world.allocations.prefixes[f"names {' '.join(NAMES)}"]
    found = entries(plan)
    assert found[number, 6, 443, 16].verdict is Verdict.ALLOW
    # Without a further rule the node's own DNS may be asked, and nothing else.
    assert {(k, e.verdict, e.dns) for k, e in found.items() if k[0] != number} == {
        ((DNS, protocol, 53, 16), Verdict.REDIRECT, True) for protocol in (6, 17)
    }
    assert plan.dns.lists == {number: NAMES}
    subject = plan.kernel.endpoints[ip_address("10.1.0.1")].subject
    assert plan.dns.learns == {subject: (number,)}
    assert plan.dns.rules == {subject: tuple(Grant((DNS,), p, 53, 53, NAMES) for p in (6, 17))}
    assert plan.dns.clients["10.1.0.1"] == Client(10, subject, "default", "web")
    assert identity_of(plan, "10.96.0.10") == DNS


def test_dns_that_is_allowed_is_watched_and_the_rest_is_not_touched() -> None:
    _, plan = make(PEOPLE + out(TO_NAMES, "{toEntities: [world]}"), settings=OWN)
    found = entries(plan)
    for protocol in (6, 17):
        assert found[2, protocol, 53, 16].verdict is Verdict.REDIRECT
        assert found[2, protocol, 53, 16].dns
    assert found[2, 0, 0, 0] == PolicyEntry(Verdict.ALLOW, found[2, 0, 0, 0].origins)


def test_who_is_not_closed_is_watched_towards_everyone() -> None:
    _, plan = make(PEOPLE + out(TO_NAMES, more=", enableDefaultDeny: {egress: false}"), settings=OWN)
    found = entries(plan)
    assert {k for k, e in found.items() if e.dns} == {(p, n, 53, 16) for p in (0, DNS) for n in (6, 17)}
    assert found[0, 0, 0, 0].verdict is Verdict.ALLOW


def test_a_rule_about_dns_steers_udp_and_tcp_to_the_dns_proxy_and_to_no_listener_of_envoy() -> None:
    rule = (
        "{toEndpoints: [{matchLabels: {app: api}}], toPorts: [{ports: [{port: 53}], "
        "rules: {dns: [{matchPattern: '*'}]}}]}"
    )
    _, plan = make(PEOPLE + out(rule))
    api = identity_of(plan, "10.1.0.2")
    assert {k: (e.verdict, e.dns) for k, e in entries(plan).items()} == {
        (api, protocol, 53, 16): (Verdict.REDIRECT, True) for protocol in (6, 17)
    }
    assert not [x for x in plan.proxy.listeners if x.kind is ListenerKind.HTTP_WORKLOAD]
    assert plan.kernel.listeners[DNS_LISTENER] == plan.dns.port


def test_the_rule_for_kube_dns_means_the_nodes_own_dns() -> None:
    rule = (
        "{toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system, "
        "'k8s:k8s-app': kube-dns}}], toPorts: [{ports: [{port: 53}], rules: {dns: [{matchName: a.b}]}}]}"
    )
    _, plan = make(PEOPLE + out(rule), settings=OWN)
    assert {k[0] for k in entries(plan)} == {DNS}


def test_without_a_rule_or_an_address_there_is_no_dns() -> None:
    _, plan = make(PEOPLE)
    assert plan.dns == DnsPlan()
    assert DNS_LISTENER not in plan.kernel.listeners


def test_a_number_of_a_list_stays_while_others_come_and_go() -> None:
    world, _ = make(PEOPLE + out(TO_NAMES))
    both = "{toFQDNs: [{matchName: aaa.example.com}]}"
    again, _ = make(PEOPLE + out(both, TO_NAMES), allocations=world.allocations)
    key = f"names {' '.join(NAMES)}"
    assert again.allocations.prefixes[key] == world.allocations.prefixes[key]


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("{toFQDNs: [{}]}", "toFQDNs[0]: needs either matchName or matchPattern"),
        ("{toFQDNs: [{matchName: a, matchPattern: b}]}", "toFQDNs[0]: needs either"),
        ("{toFQDNs: [{matchName: '*.a'}]}", 'toFQDNs[0].matchName: "*.a" is no name'),
        ("{toFQDNs: [{matchPattern: 'a b'}]}", 'toFQDNs[0].matchPattern: "a b" is no name'),
        ("{toFQDNs: [{matchName: a..b}]}", 'toFQDNs[0].matchName: "a..b" has an empty label'),
        ("{toFQDNs: [{matchName: a}], toCIDR: [192.0.2.0/24]}", "cannot stand beside"),
        (
            "{toFQDNs: [{matchName: a}], toPorts: [{ports: [{port: 80}], rules: {http: [{}]}}]}",
            "toPorts[0].rules.http: cannot stand in a rule with toFQDNs",
        ),
        (
            "{toFQDNs: [{matchName: a}], toPorts: [{ports: [{port: 53}], rules: {dns: [{matchName: a}]}}]}",
            "toPorts[0].rules.dns: cannot stand in a rule with toFQDNs",
        ),
        ("{toPorts: [{rules: {dns: [{matchName: a}]}}]}", "toPorts[0].rules.dns: needs ports"),
        (
            "{toPorts: [{ports: [{port: 53, protocol: SCTP}], rules: {dns: [{matchName: a}]}}]}",
            "rules.dns needs UDP or TCP",
        ),
        ("{toPorts: [{ports: [{port: 0}], rules: {dns: [{matchName: a}]}}]}", "needs a port other than 0"),
        (
            "{toPorts: [{ports: [{port: 53}], rules: {dns: [{matchName: a}], http: [{}]}}]}",
            "toPorts[0].rules.dns: cannot stand beside rules.http",
        ),
        ("{toPorts: [{ports: [{port: 53}], rules: {dns: [{matchname: a}]}}]}", "matchname: is not a field"),
    ],
)
def test_what_is_refused(rule: str, wrong: str) -> None:
    problems = [str(p) for p in load(out(rule), "f.yaml").problems if p.severity == "error"]
    assert problems
    assert all(p.startswith("f.yaml:") for p in problems)
    assert any(wrong in p for p in problems), problems


def test_names_are_judged_where_they_are_asked_for() -> None:
    rule = "{toPorts: [{ports: [{port: 53}], rules: {dns: [{matchName: a}]}}]}"
    text = policy(f"{{endpointSelector: {{}}, ingress: [{rule}]}}")
    assert any("cannot stand in an ingress rule" in str(p) for p in load(text, "f.yaml").problems)


def test_a_deny_rule_knows_no_names() -> None:
    text = policy("{endpointSelector: {}, egressDeny: [{toFQDNs: [{matchName: a}]}]}")
    assert any("deny rules know no names" in str(p) for p in load(text, "f.yaml").problems)


def test_explain_says_which_names_would_open_an_address() -> None:
    world, _ = make(PEOPLE + out(TO_NAMES), settings=OWN)
    facts, plan = compiled(world)
    kernel = Planned(plan.kernel)
    found = explain(Question("web", "192.0.2.1", "443", "TCP"), facts, plan, kernel)
    assert found.verdict != "ALLOWED"
    assert any("it has asked for no name of *.cdn.net, api.example.com" in s.text for s in found.steps)
    found = explain(Question("web", "10.96.0.10", "53", "UDP"), facts, plan, kernel)
    assert found.verdict == "ALLOWED"
    assert any("judges each name" in s.text for s in found.steps)


def test_a_key_without_names_is_as_before() -> None:
    _, plan = make(PEOPLE + out("{toCIDR: [192.0.2.0/24]}"))
    subject = plan.kernel.endpoints[ip_address("10.1.0.1")].subject
    peer = identity_of(plan, "192.0.2.1")
    assert plan.kernel.policy[PolicyKey(subject, Direction.EGRESS, peer)].dns is False
