"""Rules that cannot hold beside each other are told before they are in force, with both places."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from test_gateway_golden import gateway
from test_routing_gateways import NODES
from worlds import NODE, policy, read, workload

from penstock.cli.validate import validate
from penstock.diff import differences, planned
from penstock.explain.conflicts import review_conflicts
from penstock.manifests.store import Store
from penstock.policy.server_names import together

PEOPLE = NODES + workload("web", "10.244.1.11", node="node-a") + workload("api", "10.244.2.11", node="node-b")
AT = "toPorts: [{ports: [{port: 443, protocol: TCP}], %s}]"
NAMES, HTTP = AT % "serverNames: [one.example.com]", AT % "rules: {http: [{method: GET}]}"
PLAIN = "toPorts: [{ports: [{port: 443, protocol: TCP}]}]"


def into(*rules: str, name: str = "into") -> str:
    listed = ", ".join(f"{{fromEntities: [all], {rule}}}" for rule in rules)
    return policy(f"{{endpointSelector: {{matchLabels: {{app: api}}}}, ingress: [{listed}]}}", name=name)


def out(*rules: str, name: str = "out", peers: str = "toEndpoints: [{}]") -> str:
    listed = ", ".join(f"{{{peers}, {rule}}}" for rule in rules)
    return policy(f"{{endpointSelector: {{matchLabels: {{app: web}}}}, egress: [{listed}]}}", name=name)


def said(text: str) -> list[tuple[str, str, int, str]]:
    result = Store().apply({"f.yaml": PEOPLE + text})
    assert not [p for p in result.problems if p.severity == "error"], result.problems
    problems = review_conflicts(result.documents.values())
    return [(p.code, p.name, p.line, p.message) for p in problems]


AUTH = "authentication: {mode: %s}, " + PLAIN


@pytest.mark.parametrize(
    ("one", "two", "what"),
    [
        (AUTH % "required", AUTH % "disabled", "authentication.mode is disabled and required"),
        (HTTP, NAMES, "serverNames and rules.http"),
        (NAMES, HTTP, "rules.http and serverNames"),
    ],
)
@pytest.mark.parametrize("make", [into, out])
def test_a_rule_that_is_left_out_is_told_with_the_one_that_holds(make, one: str, two: str, what: str) -> None:
    text = make(one, name="a") + make(two, name="b")
    ((code, name, line, message),) = said(text)
    lines = (PEOPLE + text).splitlines()
    assert (code, name) == ("rules-conflict", "b")
    first, second = (n for n, each in enumerate(lines, 1) if each.startswith("spec: {endpointSelector"))
    assert line == second and f"default/a (f.yaml:{first} spec." in message and message.endswith(what)


@pytest.mark.parametrize(("there", "here"), [(NAMES, HTTP), (HTTP, NAMES)])
def test_what_two_sides_let_nothing_pass_by_is_told(there: str, here: str) -> None:
    ((code, name, _, message),) = said(out(there) + into(here))
    assert (code, name) == ("rules-clash", "out")
    assert "CiliumNetworkPolicy default/into (f.yaml:" in message and "RULES_CLASH" in message


@pytest.mark.parametrize(
    "text",
    [
        out(NAMES) + into(NAMES),
        out(NAMES, PLAIN) + into(HTTP),
        out(NAMES) + into(HTTP.replace("443", "80")),
        out(NAMES, peers="toCIDR: [192.0.2.0/24]") + into(HTTP),
        "",
    ],
)
def test_what_holds_beside_each_other_is_no_conflict(text: str) -> None:
    assert said(text) == []


def test_server_names_before_a_gateway() -> None:
    at_port_80 = NAMES.replace("443", "80")
    found = said(gateway() + out(at_port_80, peers="toEntities: [all]"))
    assert [(code, name) for code, name, _, _ in found] == [("rules-clash", "out")]
    assert said(gateway() + out(NAMES, peers="toEntities: [all]")) == []


def test_what_another_policy_allows_voids_a_rule() -> None:
    everybody = "{endpointSelector: {}, ingress: [{fromEntities: [%s], toPorts: [{ports: [{port: '%s'}]}]}]}"
    for peers, port in (("all", "443"), ("cluster, world", "0"), ("all", "0")):
        one = into(HTTP).replace("fromEntities: [all]", "fromEndpoints: [{}]")
        ((code, name, _, message),) = said(one + policy(everybody % (peers, port), name="open"))
        assert (code, name) == ("reference", "into")
        assert "is void for Workload default/api: CiliumNetworkPolicy default/open (f.yaml:" in message
    for peers, port in (("world", "443"), ("all", "80"), ("all", "http")):
        assert said(into(HTTP) + policy(everybody % (peers, port), name="open")) == []
    # Rules of the same subjects are told of by the manifests alone.
    assert said(into(HTTP) + into(PLAIN, name="open")) == []


def test_lists_of_server_names_that_are_not_joined_in_every_way() -> None:
    def names(count: int) -> str:
        at = [f"toFQDNs: [{{matchName: n{n}.com}}], {NAMES.replace('one', str(n))}" for n in range(count)]
        listed = ", ".join(f"{{{each}}}" for each in at)
        return policy(f"{{endpointSelector: {{matchLabels: {{app: web}}}}, egress: [{listed}]}}", name="out")

    assert said(names(8)) == []
    ((code, name, _, message),) = said(names(9))
    assert (code, name) == ("server-names", "out") and message.startswith("is one of 9 lists of server names")
    assert [together(n) for n in (0, 1, 2, 8, 9, 10, 11, 12, 40)] == [1, 1, 2, 8, 4, 3, 3, 2, 2]


def test_commands_say_it(tmp_path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(PEOPLE + out(NAMES) + into(HTTP))
    result = CliRunner().invoke(validate, ["-f", str(file), "-o", "json"])
    problems = json.loads(result.stdout)["problems"]
    assert result.exit_code == 0
    assert [(p["code"], p["severity"], p["file"]) for p in problems if p["code"] != "reference"] == [
        ("rules-clash", "warning", str(file))
    ]
    before = planned(read(PEOPLE + out(NAMES)).documents, NODE)
    after = planned(read(PEOPLE + out(NAMES) + into(HTTP)).documents, NODE, before)
    assert [w["code"] for w in differences(before, after)["warnings"]] == ["rules-clash"]
    assert differences(after, after)["warnings"] == []
