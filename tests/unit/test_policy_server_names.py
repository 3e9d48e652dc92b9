"""Rules about server names: what is read, what the kernel and Envoy are told, and what is explained."""

from __future__ import annotations

import re

import pytest
from worlds import identity_of, make, read

from penstock.dns.patterns import matches, name_list
from penstock.explain import Planned, Question, explain
from penstock.facts import Facts
from penstock.manifests.loader import load
from penstock.plan import Direction, ListenerKey, Plan, Verdict
from penstock.planner import Planner
from penstock.policy.server_names import expression, joined, number, union, unions
from penstock.redirect.stage import InKernel, before_proxy
from penstock.routing.model import ListenerKind
from penstock.routing.names_listeners import Wanted, named

WORKLOADS = """
apiVersion: penstock.dev/v1alpha1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {netns: /run/netns/web, node: node-a, addresses: [10.1.0.1]}
---
apiVersion: penstock.dev/v1alpha1
kind: Workload
metadata: {name: api, labels: {app: api}}
spec: {netns: /run/netns/api, node: node-a, addresses: [10.1.0.2]}
---
"""
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: %s}
spec:
  endpointSelector: {matchLabels: {app: %s}}
  %s
"""


def out(*rules: str, name: str = "out") -> str:
    return POLICY % (name, "web", "egress: [" + ", ".join(rules) + "]")


def at(*names: str, port: int = 443) -> str:
    return f"{{ports: [{{port: {port}}}], serverNames: [{', '.join(map(repr, names))}]}}"


def facts_of(text: str) -> tuple[Facts, Plan]:
    planner = Planner()
    _, plan = planner.plan(read(text))
    assert planner.facts is not None
    return planner.facts, plan


def compiled(*policies: str) -> Plan:
    return make(WORKLOADS + "---\n".join(policies))[1]


@pytest.mark.parametrize(
    "pattern", ["a.example.com", "*.example.com", "**.example.com", "a*b.example.com", "*", "**.*.com"]
)
@pytest.mark.parametrize(
    "name", ["a.example.com", "b.a.example.com", "example.com", "aXb.example.com", "a.example.com.", "com"]
)
def test_the_expression_means_what_the_pattern_means(pattern: str, name: str) -> None:
    assert (re.fullmatch(expression(pattern), name.lower()) is not None) == matches(pattern, name.lower())


@pytest.mark.parametrize(
    ("ports", "said"),
    [
        ("{ports: [{port: 443, protocol: UDP}], serverNames: [a]}", "serverNames needs TCP, not UDP"),
        ("{ports: [{port: 0}], serverNames: [a]}", "needs a port other than 0"),
        ("{serverNames: [a]}", "needs ports"),
        ("{ports: [{port: 443}], serverNames: ['']}", "is no name"),
        ("{ports: [{port: 443}], serverNames: [a.**.b]}", "only stand at the beginning"),
        (
            "{ports: [{port: 443}], serverNames: [a], rules: {http: [{}]}}",
            "cannot stand beside rules.http",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(ports: str, said: str) -> None:
    problems = load(POLICY % ("p", "web", f"egress: [{{toPorts: [{ports}]}}]"), "p.yaml").problems
    assert any(said in str(p) and str(p).startswith("p.yaml:7:") for p in problems), problems


def test_a_list_has_one_number_for_good_and_an_edit_makes_another() -> None:
    a, b = name_list(["B.example", "a.example."]), name_list(["a.example", "b.example"])
    assert number(a) == number(b) != number(name_list(["a.example"])) and number(()) == 0


def test_lists_that_meet_are_written_down_together() -> None:
    lists = [(f"{n}.example",) for n in range(3)]
    family = joined(lists)
    assert len(family) == 7
    found = unions([family])
    for a in family:
        for b in family - {a}:
            key = tuple(sorted((number(a), number(b))))
            assert found[key] == number(union(a, b))  # type: ignore[index]
    many = joined((f"{n}.example",) for n in range(20))
    assert len(many) == 20 + 190


def test_entries_carry_the_names_and_listeners_stand_for_them() -> None:
    plan = compiled(
        out(f"{{toEndpoints: [{{}}], toPorts: [{at('b.example', 'a.example')}]}}"),
        POLICY % ("into", "api", f"ingress: [{{toPorts: [{at('*.example')}]}}]"),
    )
    web, api = identity_of(plan, "10.1.0.1"), identity_of(plan, "10.1.0.2")
    by_subject = {(k.direction, k.identity): e for k, e in plan.kernel.policy.items() if k.port == 443}
    entry = by_subject[Direction.EGRESS, api]
    assert (entry.verdict, entry.names) == (Verdict.NAMES, ("a.example", "b.example"))
    both = (number(("a.example", "b.example")), number(("*.example",)))
    assert ListenerKey(web, ListenerKind.NAMES, 0, *both) in plan.kernel.listeners
    assert ListenerKey(web, ListenerKind.NAMES, 0, 0, both[1]) in plan.kernel.listeners


def test_a_listeners_name_says_what_it_stands_for() -> None:
    for wanted in (
        Wanted(ListenerKind.NAMES, 256, 2, ("*.a", "b"), ()),
        Wanted(ListenerKind.TLS_NAMES, 257, 0, (), ("a",)),
        Wanted(ListenerKind.NAMES_AUDIT, 257, 0, ("a",), ("c",)),
    ):
        assert named(wanted.name) == wanted
    assert named(Wanted(ListenerKind.HTTP_WORKLOAD, 256).name) is None


def test_what_else_allows_it_voids_the_names() -> None:
    rule = f"{{toPorts: [{at('a.example')}]}}"
    plan = compiled(out(rule, "{toEndpoints: [{matchLabels: {app: api}}]}"))
    api = identity_of(plan, "10.1.0.2")
    found = {k.identity: e.verdict for k, e in plan.kernel.policy.items() if k.direction is Direction.EGRESS}
    assert found[api] is Verdict.ALLOW


def test_what_was_allowed_goes_on_until_the_listener_is_there() -> None:
    plan = compiled(out(f"{{toPorts: [{at('a.example')}]}}", "{toCIDR: [192.0.2.0/24]}"))
    before = compiled(out("{toPorts: [{ports: [{port: 443}]}]}", "{toCIDR: [192.0.2.0/24]}"))
    now = InKernel(before.kernel.policy, {}, (), before.kernel.ipcache)
    (key,) = (k for k, e in plan.kernel.policy.items() if e.verdict is Verdict.NAMES)
    held = before_proxy(plan.kernel, now)
    assert held.policy[key].verdict is Verdict.ALLOW and held.policy[key].names == ()
    closed = before_proxy(plan.kernel, InKernel({}, {}, (), {}))
    assert closed.policy[key].verdict is Verdict.NAMES


@pytest.mark.parametrize(
    ("server_name", "verdict", "reason"),
    [
        (None, "ALLOWED", "REDIRECTED"),
        ("A.example", "ALLOWED", "REDIRECTED"),
        ("a.example.", "DENIED", "SERVER_NAME"),
        ("b.example", "DENIED", "SERVER_NAME"),
        ("", "DENIED", "SERVER_NAME"),
    ],
)
def test_explain_knows_the_server_name(server_name: str | None, verdict: str, reason: str) -> None:
    facts, plan = facts_of(WORKLOADS + out(f"{{toPorts: [{at('a.example')}]}}"))
    asked = Question("web", "api", "443", server_name=server_name)
    said = explain(asked, facts, plan, Planned(plan.kernel))
    assert (said.verdict, said.decisive.reason) == (verdict, reason)
    assert any("test.yaml:" in step.text for step in said.steps if step.what == "server name")


def test_server_names_and_requests_on_two_sides_clash() -> None:
    http = "{ports: [{port: 443}], rules: {http: [{}]}}"
    facts, plan = facts_of(
        WORKLOADS
        + out(f"{{toPorts: [{at('a.example')}]}}")
        + "---\n"
        + POLICY % ("into", "api", f"ingress: [{{toPorts: [{http}]}}]")
    )
    said = explain(Question("web", "api", "443"), facts, plan, Planned(plan.kernel))
    assert (said.verdict, said.decisive.reason) == ("DENIED", "RULES_CLASH")


# --- conflicts ----------------------------------------------------------------------------------------------

REQUIRED, DISABLED = "authentication: {mode: required}", "authentication: {mode: disabled}"
HTTP = "toPorts: [{ports: [{port: 443}], rules: {http: [{}]}}]"
NAMES = f"toPorts: [{at('a.example')}]"
DNS = "toPorts: [{ports: [{port: 443}], rules: {dns: [{matchPattern: '*'}]}}]"


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (f"{{toPorts: [{{ports: [{{port: 443}}]}}], {REQUIRED}}}", f"{{{NAMES}, {DISABLED}}}", "mode"),
        (f"{{{HTTP}}}", f"{{toEndpoints: [{{}}], {NAMES}}}", "serverNames and rules.http"),
        (f"{{{NAMES}}}", f"{{toEndpoints: [{{}}], {HTTP}}}", "rules.http and serverNames"),
        (f"{{toEndpoints: [{{}}], {NAMES}}}", f"{{{DNS}}}", "rules.dns and serverNames"),
    ],
)
def test_of_two_rules_that_conflict_the_second_is_left_out(first: str, second: str, what: str) -> None:
    open_ = "{toEndpoints: [{}], toPorts: [{ports: [{port: 81}]}]}"
    facts, plan = facts_of(
        WORKLOADS + out(first, name="a") + "---\n" + out(second, open_, name="b") + "---\n" + out(name="c")
    )
    alone, _ = facts_of(WORKLOADS + out(first, name="a") + "---\n" + out(open_, name="b"))
    status = {k.name: s for k, s in plan.statuses.items() if k.kind == "CiliumNetworkPolicy"}
    said = status["b"].pending
    assert what in said and "default/a" in said
    # Both lines, with their file.
    assert len(re.findall(r"test.yaml:\d+", said)) == 2
    assert not status["a"].pending and not status["c"].pending
    # Closed: as if only the rule were not there.
    member = next(m for m in facts.members.all if m.document.key.name == "web")
    verdicts = {k: e.verdict for k, e in facts.entries[member.subject, Direction.EGRESS].items()}
    wanted = {k: e.verdict for k, e in alone.entries[member.subject, Direction.EGRESS].items()}
    assert verdicts == wanted


@pytest.mark.parametrize(
    "second",
    [
        "{toPorts: [{ports: [{port: 444}], rules: {http: [{}]}}]}",
        "{toEndpoints: [{matchLabels: {app: nobody}}], " + HTTP + "}",
        "{toPorts: [{ports: [{port: 443}]}]}",
    ],
)
def test_no_conflict_where_they_do_not_meet(second: str) -> None:
    first = f"{{toEndpoints: [{{matchLabels: {{app: api}}}}], {NAMES}}}"
    plan = compiled(out(first, name="a"), out(second, name="b"))
    assert not any(s.pending for k, s in plan.statuses.items() if k.kind == "CiliumNetworkPolicy")
