"""From manifests to kernel entries: each subtlety of the API by name, in small worlds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import identities, make, policy, workload

from penstock.manifests.loader import load
from penstock.plan import Direction, PolicyEntry, PolicyKey, Verdict
from penstock.policy.entries import port_prefixes, redirected_ports
from penstock.policy.labels import HOST, INGRESS, REMOTE_NODE, WORLD
from penstock.policy.lookup import look_up
from penstock.world import Enforcement, Settings

IN, OUT = Direction.INGRESS, Direction.EGRESS
ALLOW, STEER, DENY = Verdict.ALLOW, Verdict.REDIRECT, Verdict.DENY
TCP, UDP, SCTP, ICMP = 6, 17, 132, 1
RESERVED = {"world": WORLD, "host": HOST, "remote-node": REMOTE_NODE, "ingress": INGRESS}
PEOPLE = (
    workload("web", "10.1.0.1", ports="{name: http, containerPort: 8080}")
    + workload("db", "10.1.0.2", ports="{name: http, containerPort: 9090}, {name: sql, containerPort: 5432}")
    + workload("far", "10.2.0.1", node="node-b", ports="{name: http, containerPort: 7070}")
    + workload("alien", "10.1.0.3", namespace="other")
)


class Ask:
    """The verdicts about one workload of a small world."""

    def __init__(self, *specs: str, **more: object) -> None:
        text = PEOPLE + "".join(policy(spec, name=f"p{n}") for n, spec in enumerate(specs))
        self.world, self.plan = make(text, **more)
        self.numbers = {**RESERVED, **identities(self.world)}

    def __call__(
        self, subject: str, direction: Direction, peer: str, port: int = 80, protocol: int = TCP
    ) -> Verdict:
        entry = next(e for e in self.plan.kernel.endpoints.values() if e.identity == self.numbers[subject])
        number = self.numbers[peer]
        return look_up(self.plan.kernel.policy, entry.subject, direction, number, protocol, port)


WEB = "endpointSelector: {matchLabels: {app: web}}"


def test_nothing_selects_all_is_open() -> None:
    ask = Ask()
    for peer in ("db", "far", "alien", "world", "host"):
        assert ask("web", IN, peer) is ALLOW
        assert ask("web", OUT, peer, protocol=ICMP) is ALLOW


@pytest.mark.parametrize(
    "ingress", ["ingress: [{}]", "ingress: [{fromEndpoints: []}]", "ingress: [{toPorts: []}]"]
)
def test_default_deny_that_allows_nothing(ingress: str) -> None:
    ask = Ask(f"{{{WEB}, {ingress}}}")
    for peer in ("db", "world", "host", "web"):
        assert ask("web", IN, peer) is DENY
        assert ask("web", OUT, peer) is ALLOW
        assert ask("db", IN, peer) is ALLOW


@pytest.mark.parametrize("section", ["ingress", "egress", "ingressDeny"])
def test_an_empty_section_says_nothing(section: str) -> None:
    ask = Ask(f"{{{WEB}, {section}: []}}")
    assert ask("web", IN, "db") is ALLOW
    assert ask("web", OUT, "db") is ALLOW


def test_a_deny_rule_closes_its_direction_too() -> None:
    ask = Ask(f"{{{WEB}, ingressDeny: [{{fromEntities: [world]}}]}}")
    assert ask("web", IN, "db") is DENY
    ask = Ask(f"{{{WEB}, ingressDeny: [{{fromEntities: [world]}}], enableDefaultDeny: {{ingress: false}}}}")
    assert ask("web", IN, "db") is ALLOW
    assert ask("web", IN, "world") is DENY


def test_one_policy_that_closes_closes_for_all() -> None:
    open_ = f"{{{WEB}, ingress: [{{fromEntities: [world]}}], enableDefaultDeny: {{ingress: false}}}}"
    assert Ask(open_)("web", IN, "db") is ALLOW
    ask = Ask(open_, f"{{{WEB}, ingress: [{{fromEntities: [host]}}]}}")
    assert ask("web", IN, "db") is DENY
    assert ask("web", IN, "world") is ALLOW


def test_default_deny_of_a_direction_without_rules() -> None:
    ask = Ask(f"{{{WEB}, ingress: [], enableDefaultDeny: {{egress: true}}}}")
    assert ask("web", OUT, "db") is DENY
    assert ask("web", IN, "db") is ALLOW


def test_deny_beats_allow_across_peers_and_port_prefixes() -> None:
    ask = Ask(
        f"{{{WEB}, ingress: [{{fromEndpoints: [{{matchLabels: {{app: db}}}}], toPorts: "
        "[{ports: [{port: 80, protocol: TCP}]}]}],"
        " ingressDeny: [{toPorts: [{ports: [{port: 64, endPort: 127, protocol: TCP}]}]}]}"
    )
    assert ask("web", IN, "db", 80) is DENY
    # The other way round: a narrow denial of one peer under a wide allowance of all.
    ask = Ask(
        f"{{{WEB}, ingress: [{{fromEntities: [all]}}], ingressDeny: "
        "[{fromEndpoints: [{matchLabels: {app: db}}], toPorts: [{ports: [{port: 80, protocol: TCP}]}]}]}"
    )
    assert ask("web", IN, "db", 80) is DENY
    assert ask("web", IN, "db", 81) is ALLOW
    assert ask("web", IN, "far", 80) is ALLOW


def test_a_wide_denial_is_not_hidden_by_a_narrow_allowance_of_the_same_peer() -> None:
    ask = Ask(
        f"{{{WEB}, ingress: [{{fromEndpoints: [{{}}], toPorts: [{{ports: [{{port: 80, protocol: TCP}}]}}]}}],"
        " ingressDeny: [{fromEndpoints: [{}]}]}"
    )
    assert ask("web", IN, "db", 80) is DENY


def test_an_l7_rule_beside_a_broad_allowance_stays_proxied() -> None:
    ask = Ask(
        f"{{{WEB}, ingress: [{{fromEndpoints: [{{}}], toPorts: [{{ports: [{{port: 80, protocol: TCP}}], "
        "rules: {http: [{method: GET}]}}]}, {fromEntities: [all]}]}"
    )
    assert ask("web", IN, "db", 80) is STEER
    assert ask("web", IN, "alien", 80) is ALLOW
    assert ask("web", IN, "db", 81) is ALLOW
    assert ask("web", IN, "db", 80, UDP) is ALLOW


def test_an_l7_rule_steers_tcp_alone() -> None:
    ask = Ask(f"{{{WEB}, ingress: [{{toPorts: [{{ports: [{{port: 80}}], rules: {{http: [{{}}]}}}}]}}]}}")
    assert ask("web", IN, "db", 80) is STEER
    assert ask("web", IN, "db", 80, UDP) is DENY


def test_peers_without_ports_are_every_protocol() -> None:
    ask = Ask(f"{{{WEB}, ingress: [{{fromEndpoints: [{{}}]}}]}}")
    for protocol in (TCP, UDP, SCTP, ICMP):
        assert ask("web", IN, "db", 9, protocol) is ALLOW
    assert ask("web", IN, "alien") is DENY
    assert ask("web", IN, "world") is DENY


def test_port_zero_and_any() -> None:
    ask = Ask(f"{{{WEB}, ingress: [{{toPorts: [{{ports: [{{port: '0', protocol: UDP}}]}}]}}]}}")
    assert ask("web", IN, "db", 9, UDP) is ALLOW
    assert ask("web", IN, "db", 9, TCP) is DENY
    ask = Ask(f"{{{WEB}, ingress: [{{toPorts: [{{ports: [{{port: 9}}]}}]}}]}}")
    for protocol in (TCP, UDP, SCTP):
        assert ask("web", IN, "db", 9, protocol) is ALLOW
    assert ask("web", IN, "db", 9, ICMP) is DENY


@pytest.mark.parametrize("item", ["{}", "{ports: []}"])
def test_an_empty_list_of_ports_selects_none(item: str) -> None:
    ask = Ask(f"{{{WEB}, ingress: [{{fromEndpoints: [{{}}], toPorts: [{item}]}}]}}")
    assert ask("web", IN, "db") is DENY


def test_port_zero_has_no_end() -> None:
    """0 means all ports: with an end it would open more than it says."""
    spec = f"{{{WEB}, ingress: [{{toPorts: [{{ports: [{{port: '0', endPort: 100}}]}}]}}]}}"
    (problem,) = load(policy(spec), "test.yaml").problems
    assert problem.severity == "error"
    assert "endPort" in problem.field


def test_a_range() -> None:
    ask = Ask(f"{{{WEB}, ingress: [{{toPorts: [{{ports: [{{port: 79, endPort: 90, protocol: TCP}}]}}]}}]}}")
    verdicts = {port: ask("web", IN, "db", port) for port in range(76, 94)}
    assert {p for p, v in verdicts.items() if v is ALLOW} == set(range(79, 91))


@pytest.mark.parametrize(
    ("entity", "who"),
    [
        ("all", {"db", "far", "alien", "world", "host", "remote-node"}),
        ("world", {"world"}),
        ("cluster", {"db", "far", "alien", "host", "remote-node"}),
        ("host", {"host"}),
        ("remote-node", {"remote-node"}),
        ("none", set()),
        ("health", set()),
    ],
)
def test_entities(entity: str, who: set[str]) -> None:
    ask = Ask(f"{{{WEB}, ingress: [{{fromEntities: [{entity}]}}], egress: [{{toEntities: [{entity}]}}]}}")
    for direction in Direction:
        found = {p for p in ("db", "far", "alien", *RESERVED) if ask("web", direction, p) is ALLOW}
        assert found - {"ingress"} == who


def test_named_ports_of_the_subject_and_of_each_peer() -> None:
    ports = "toPorts: [{ports: [{port: http, protocol: TCP}]}]"
    ask = Ask(f"{{{WEB}, ingress: [{{fromEndpoints: [{{}}], {ports}}}]}}")
    assert ask("web", IN, "db", 8080) is ALLOW
    assert ask("web", IN, "db", 9090) is DENY
    ask = Ask(f"{{{WEB}, egress: [{{toEndpoints: [{{}}], {ports}}}]}}")
    assert ask("web", OUT, "db", 9090) is ALLOW
    assert ask("web", OUT, "db", 8080) is DENY
    assert ask("web", OUT, "far", 7070) is ALLOW
    assert ask("web", OUT, "alien", 7070) is DENY


def test_a_named_port_of_any_peer() -> None:
    """Found by the property test: without peers the name was looked up on nobody, and a denial lost."""
    ports = "toPorts: [{ports: [{port: http, protocol: TCP}]}]"
    ask = Ask(f"{{{WEB}, egress: [{{{ports}}}]}}")
    assert ask("web", OUT, "db", 9090) is ALLOW
    assert ask("web", OUT, "far", 9090) is DENY
    ask = Ask(f"{{{WEB}, egressDeny: [{{{ports}}}], enableDefaultDeny: {{egress: false}}}}")
    assert ask("web", OUT, "db", 9090) is DENY
    assert ask("web", OUT, "far", 7070) is DENY
    assert ask("web", OUT, "db", 7070) is ALLOW


def test_a_name_that_nobody_has_selects_nothing() -> None:
    ask = Ask(f"{{{WEB}, ingress: [{{toPorts: [{{ports: [{{port: nope, protocol: TCP}}]}}]}}]}}")
    assert {ask("web", IN, "db", port) for port in (80, 8080, 9090)} == {DENY}


def test_workloads_of_one_identity_with_other_named_ports() -> None:
    labels = "app: twin"
    text = (
        workload("one", "10.1.0.1", labels=labels, ports="{name: http, containerPort: 81}")
        + workload("two", "10.1.0.2", labels=labels, ports="{name: http, containerPort: 82}")
        + policy("{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]}")
    )
    world, plan = make(text)
    identity = identities(world)["one"]
    assert identity == identities(world)["two"]
    found = {}
    for address, entry in plan.kernel.endpoints.items():
        verdicts = {p: look_up(plan.kernel.policy, entry.subject, IN, identity, TCP, p) for p in (81, 82)}
        found[str(address)] = {p for p, v in verdicts.items() if v is ALLOW}
    assert found == {"10.1.0.1": {81}, "10.1.0.2": {82}}


def test_a_sender_knows_the_names_of_an_identity() -> None:
    """Found by the property test: twins share an identity, so egress cannot tell their named ports apart."""
    text = (
        workload("web", "10.1.0.1")
        + workload("one", "10.1.0.2", labels="app: twin", ports="{name: http, containerPort: 81}")
        + workload("two", "10.1.0.3", labels="app: twin")
        + policy(f"{{{WEB}, egress: [{{toEndpoints: [{{}}], toPorts: [{{ports: [{{port: http}}]}}]}}]}}")
    )
    world, plan = make(text)
    numbers = identities(world)
    assert numbers["one"] == numbers["two"]
    subject = next(e.subject for e in plan.kernel.endpoints.values() if e.identity == numbers["web"])
    verdicts = {p: look_up(plan.kernel.policy, subject, OUT, numbers["two"], TCP, p) for p in (80, 81)}
    assert verdicts == {80: DENY, 81: ALLOW}


def test_an_entry_names_the_rules_that_it_came_from() -> None:
    ask = Ask(f"{{{WEB}, ingressDeny: [{{fromEndpoints: [{{matchLabels: {{app: db}}}}]}}]}}")
    ((key, origin),) = next(e.origins for e in ask.plan.kernel.policy.values() if e.verdict is DENY)
    assert (key.kind, key.name) == ("CiliumNetworkPolicy", "p0")
    assert (origin.file, origin.rule) == ("test.yaml", "spec.ingressDeny[0]")


# --- parts -------------------------------------------------------------------------------------------


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_port_prefixes_cover_just_the_range(a: int, b: int) -> None:
    first, last = min(a, b), max(a, b)
    at = first
    for port, bits in port_prefixes(first, last):
        size = 1 << (16 - bits)
        assert (port, port % size) == (at, 0)
        at += size
    assert at == last + 1
    assert len(list(port_prefixes(first, last))) <= 30


def test_port_prefixes_are_few() -> None:
    assert list(port_prefixes(0, 65535)) == [(0, 0)]
    assert list(port_prefixes(80, 80)) == [(80, 16)]
    assert list(port_prefixes(1024, 65535)) == [
        (1024, 6),
        (2048, 5),
        (4096, 4),
        (8192, 3),
        (16384, 2),
        (32768, 1),
    ]


def test_redirected_ports() -> None:
    table = {
        PolicyKey(1, OUT, 0, TCP, 80, 16): PolicyEntry(STEER),
        PolicyKey(1, OUT, 300, TCP, 96, 14): PolicyEntry(STEER),
        PolicyKey(1, OUT, 301, TCP, 443, 16): PolicyEntry(STEER),
        PolicyKey(1, OUT, 300, TCP, 22, 16): PolicyEntry(ALLOW),
    }
    assert redirected_ports(table, 300) == {80, 96, 97, 98, 99}
    assert redirected_ports(table) == {80, 96, 97, 98, 99, 443}


def test_the_longest_prefix_of_a_peer_and_the_stronger_of_two_peers() -> None:
    table = {
        PolicyKey(1, IN, 300): PolicyEntry(DENY),
        PolicyKey(1, IN, 300, TCP, 64, 10): PolicyEntry(STEER),
        PolicyKey(1, IN, 300, TCP, 80, 16): PolicyEntry(ALLOW),
        PolicyKey(1, IN, 0, TCP, 81, 16): PolicyEntry(DENY),
        PolicyKey(1, IN, 0, TCP, 80, 16): PolicyEntry(ALLOW),
    }
    assert look_up(table, 1, IN, 300, TCP, 80) is ALLOW
    assert look_up(table, 1, IN, 300, TCP, 82) is STEER
    assert look_up(table, 1, IN, 300, TCP, 81) is DENY
    assert look_up(table, 1, IN, 300, UDP, 80) is DENY
    assert look_up(table, 1, IN, 301, TCP, 80) is ALLOW
    assert look_up(table, 1, OUT, 300, TCP, 80) is DENY
    assert look_up(table, 2, IN, 300, TCP, 80) is DENY


L7 = "toPorts: [{ports: [{port: 80, protocol: TCP}], rules: {http: [{method: GET}]}}]"


@pytest.mark.parametrize(("mode", "chosen", "others"), [("always", STEER, DENY), ("never", ALLOW, ALLOW)])
def test_modes_of_enforcement(mode: Enforcement, chosen: Verdict, others: Verdict) -> None:
    ask = Ask(
        f"{{{WEB}, enableDefaultDeny: {{ingress: false}}, ingress: [{{{L7}}}], egressDeny: [{{}}]}}",
        settings=Settings(policy_enforcement=mode),
    )
    assert ask("web", IN, "db") is chosen
    for subject, direction, peer in (("web", IN, "world"), ("db", IN, "web"), ("db", OUT, "world")):
        assert ask(subject, direction, peer, 81) is others
    # The proxy judges by the same: a connection that it carries from before is no way around.
    assert bool(ask.plan.proxy.listeners) == (mode == "always")


def test_icmp_messages_by_number_and_name() -> None:
    fields = "{type: EchoRequest}, {type: 13}, {type: EchoRequest, family: IPv6}"
    ask = Ask(f"{{{WEB}, ingress: [{{fromEndpoints: [{{}}], icmps: [{{fields: [{fields}]}}]}}]}}")
    assert [t for t in range(256) if ask("web", IN, "db", t, ICMP) is ALLOW] == [8, 13]
    assert [t for t in range(256) if ask("web", IN, "db", t, 58) is ALLOW] == [128]
    assert ask("web", IN, "db", 8, TCP) is DENY
    assert ask("web", IN, "world", 8, ICMP) is DENY


def test_a_denied_message_beside_everything_else() -> None:
    ask = Ask(
        f"{{{WEB}, ingressDeny: [{{icmps: [{{fields: [{{type: 13}}]}}]}}], "
        "ingress: [{fromEntities: [all]}]}"
    )
    assert ask("web", IN, "db", 13, ICMP) is DENY
    assert ask("web", IN, "db", 8, ICMP) is ALLOW
    assert ask("web", IN, "db", 13, UDP) is ALLOW


def test_no_messages_are_none() -> None:
    ask = Ask(f"{{{WEB}, ingress: [{{icmps: []}}]}}")
    assert ask("web", IN, "db", 8, ICMP) is DENY
