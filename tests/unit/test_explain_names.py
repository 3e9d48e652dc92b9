"""`penstock explain` with a name of DNS for a destination: which rule means it, and what is recorded."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from worlds import policy, read, workload

from penstock.explain import Explanation, Planned, Question, UnknownPartyError, explain
from penstock.planner import Planner
from penstock.world import Address

PEOPLE = workload("web", "10.1.0.1") + workload("free", "10.1.0.2")
RULES = policy(
    "{endpointSelector: {matchLabels: {app: web}}, egress: ["
    "{toFQDNs: [{matchPattern: '*.example.com'}], toPorts: [{ports: [{port: 443}]}]},"
    "{toFQDNs: [{matchName: tls.example.org}],"
    " toPorts: [{ports: [{port: 443}], serverNames: [tls.example.org]}]},"
    "{toCIDR: [198.51.100.0/24], toPorts: [{ports: [{port: 444}]}]}]}",
    name="out",
)


class Recorded(Planned):
    """A Plan's tables, and what web learned under the first list of names."""

    def __init__(self, tables: object, name: str, address: str, lists: tuple[int, ...]) -> None:
        super().__init__(tables)  # type: ignore[arg-type]
        self._name, self._address, self._lists = name, ip_address(address), lists

    def names(self, ifindex: int, address: Address) -> tuple[int, ...]:
        return self._lists if address == self._address else ()

    def learned(self, ifindex: int, name: str) -> tuple[Address, ...]:
        return (self._address,) if name == self._name else ()


def asked(destination: str, source: str = "web", recorded: str = "", **more: str) -> Explanation:
    planner = Planner()
    _, plan = planner.plan(read(PEOPLE + RULES))
    facts = planner.facts
    assert facts is not None
    kernel: Planned = Planned(plan.kernel)
    if recorded:
        lists = tuple(n for names, n in facts.members.index.names.items() if names == ("*.example.com",))
        kernel = Recorded(plan.kernel, destination, recorded, lists)
    who, _, port = destination.partition(":")
    return explain(Question(source, who, port or "443", **more), facts, plan, kernel)


def names(said: Explanation) -> str:
    return "\n".join(step.text for step in said.steps if step.what == "name")


def test_the_rule_that_means_a_name_and_nothing_recorded() -> None:
    said = asked("API.example.com.")
    assert said.verdict == "ALLOWED"
    assert "api.example.com is meant by CiliumNetworkPolicy default/out (test.yaml:" in names(said)
    assert "no address is recorded now (it may ask for it by" in names(said)


@pytest.mark.parametrize("name", ["example.com", "evil.example.org"])
def test_a_name_that_no_rule_means(name: str) -> None:
    said = asked(name)
    assert (said.verdict, said.decisive.reason) == ("DENIED", "POLICY_DENIED_EGRESS")
    assert "is meant by no rule for names" in names(said)
    assert "no rule that watches its DNS lets it ask for the name" in names(said)


def test_a_port_that_the_rule_does_not_open() -> None:
    assert asked("api.example.com:80").verdict == "DENIED"


def test_what_is_recorded_is_what_is_judged() -> None:
    said = asked("api.example.com", recorded="203.0.113.7")
    assert said.verdict == "ALLOWED"
    assert "recorded now: 203.0.113.7" in names(said)
    assert any("203.0.113.7" in step.text for step in said.steps if step.what == "destination")


def test_a_name_and_a_server_name() -> None:
    assert asked("tls.example.org", server_name="tls.example.org").verdict == "ALLOWED"
    said = asked("tls.example.org", server_name="other.example.org")
    assert (said.verdict, said.decisive.reason) == ("DENIED", "SERVER_NAME")


def test_who_is_closed_by_nothing_may_speak_to_any_name() -> None:
    assert asked("evil.example.org", source="free").verdict == "ALLOWED"


def test_a_name_without_a_port_and_no_name_at_all() -> None:
    with pytest.raises(UnknownPartyError, match="which port"):
        asked("api.example.com:https")
    with pytest.raises(UnknownPartyError, match="nobody is called"):
        asked("nobody")
