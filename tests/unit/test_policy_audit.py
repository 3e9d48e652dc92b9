"""penstock.dev/audit: a policy of which it is told what it would deny, and which denies nothing."""

from __future__ import annotations

import random
from ipaddress import ip_address

import policy_cases as cases
import policy_words as words_of
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import POLICIES, Policy
from policy_parties import HOST, OTHERS, PROTOCOL_NUMBERS, Party, parties
from worlds import identity_of, make, policy, read, workload

from penstock.explain import Planned, explain
from penstock.explain.model import Question
from penstock.explain.offline import compiled
from penstock.manifests.loader import load
from penstock.plan import AUDIT_VIEW, Direction, ListenerKey, Plan, Verdict
from penstock.policy.lookup import look_up
from penstock.routing.model import ListenerKind, Rights

PEOPLE = workload("web", "10.1.0.1") + workload("api", "10.1.0.2") + workload("db", "10.1.0.3")
AUDITED = 'namespace: default, annotations: {penstock.dev/audit: "true"}}'


def audited(spec: str, name: str = "a") -> str:
    return policy(spec, name=name).replace("namespace: default}", AUDITED)


INTO_API = "{endpointSelector: {matchLabels: {app: api}}, ingress: [%s]}"
FROM_WEB = "{fromEndpoints: [{matchLabels: {app: web}}]}"
FROM_WEB_GET = (
    "{fromEndpoints: [{matchLabels: {app: web}}], "
    "toPorts: [{ports: [{port: 80}], rules: {http: [{method: GET}]}}]}"
)


def verdicts(plan: Plan, source: str, target: str) -> tuple[Verdict, Verdict | None]:
    """Enforced, and in the view."""
    entry = plan.kernel.endpoints[ip_address(target)]
    packet = (Direction.INGRESS, identity_of(plan, source), 6, 80)
    view = None
    if Direction.INGRESS in entry.audit:
        view = look_up(plan.kernel.policy, entry.subject | AUDIT_VIEW, *packet)
    return look_up(plan.kernel.policy, entry.subject, *packet), view


def test_a_policy_in_audit_closes_nothing_and_its_view_does() -> None:
    _, plan = make(PEOPLE + audited(INTO_API % FROM_WEB))
    assert verdicts(plan, "10.1.0.1", "10.1.0.2") == (Verdict.ALLOW, Verdict.ALLOW)
    assert verdicts(plan, "10.1.0.3", "10.1.0.2") == (Verdict.ALLOW, Verdict.DENY)
    assert verdicts(plan, "10.1.0.3", "10.1.0.1") == (Verdict.ALLOW, None)


def test_a_policy_in_audit_opens_nothing_either() -> None:
    _, plan = make(PEOPLE + policy(INTO_API % "{}") + audited(INTO_API % FROM_WEB))
    assert verdicts(plan, "10.1.0.1", "10.1.0.2") == (Verdict.DENY, Verdict.ALLOW)


def test_l7_rules_in_audit_are_judged_in_the_shadow() -> None:
    _, plan = make(PEOPLE + audited(INTO_API % FROM_WEB_GET))
    web = identity_of(plan, "10.1.0.1")
    assert verdicts(plan, "10.1.0.1", "10.1.0.2") == (Verdict.ALLOW, Verdict.REDIRECT)
    assert ListenerKey(web, ListenerKind.HTTP_WORKLOAD) in plan.kernel.listeners
    (right,) = plan.proxy.workload_rights
    assert (right.sources, right.requests) == (None, ())
    assert plan.proxy.workload_audit is not None
    named = [r for r in plan.proxy.workload_audit if r.sources and web in r.sources]
    assert [m.method for r in named for group in r.requests for m in group] == ["GET"]


HEADER_TOLD = (
    "{fromEndpoints: [{matchLabels: {app: web}}], toPorts: [{ports: [{port: 80}], rules: {http: "
    "[{method: GET, headerMatches: [{name: X-Team, value: blue, mismatch: LOG}, "
    "{name: X-Day, value: '1'}]}]}}]}"
)


def test_a_header_whose_mismatch_is_only_logged() -> None:
    """It is asked for in the view alone; the others are asked for in both."""
    _, plan = make(PEOPLE + policy(INTO_API % HEADER_TOLD))
    web = identity_of(plan, "10.1.0.1")

    def headers(rights: tuple[Rights, ...] | None) -> list[tuple[str, str | None]]:
        (found,) = [
            match.headers
            for right in rights or ()
            if right.sources and web in right.sources
            for group in right.requests
            for match in group
        ]
        return list(found)

    assert headers(plan.proxy.workload_rights) == [("x-day", "1")]
    assert headers(plan.proxy.workload_audit) == [("x-team", "blue"), ("x-day", "1")]
    assert verdicts(plan, "10.1.0.1", "10.1.0.2") == (Verdict.REDIRECT, Verdict.REDIRECT)
    assert verdicts(plan, "10.1.0.3", "10.1.0.2") == (Verdict.DENY, Verdict.DENY)


@pytest.mark.parametrize("mismatch", ["ADD", "DELETE", "REPLACE"])
def test_a_policy_changes_no_request(mismatch: str) -> None:
    text = policy(INTO_API % HEADER_TOLD.replace("LOG", mismatch))
    (problem,) = [p for p in load(text, "a.yaml").problems if p.severity == "error"]
    assert problem.field.endswith("headerMatches[0].mismatch")
    assert mismatch in problem.message


def test_without_audit_nothing_is_there_for_it() -> None:
    _, plan = make(PEOPLE + policy(INTO_API % FROM_WEB_GET))
    assert plan.proxy.workload_audit is None
    assert not any(e.audit for e in plan.kernel.endpoints.values())
    assert not any(k.subject & AUDIT_VIEW for k in plan.kernel.policy)


@pytest.mark.parametrize("kind", ["CiliumNetworkPolicy", "NetworkPolicy"])
def test_the_annotation_is_true_or_false(kind: str) -> None:
    text = audited(INTO_API % FROM_WEB).replace('"true"', '"yes"')
    if kind == "NetworkPolicy":
        text = text.replace("cilium.io/v2", "networking.k8s.io/v1").replace("CiliumNetworkPolicy", kind)
        text = text[: text.index("spec:")] + "spec: {podSelector: {}}"
    (problem,) = [p for p in load(text, "a.yaml").problems if p.severity == "error"]
    assert '"yes" is not "true" or "false"' in problem.message


@pytest.mark.parametrize(
    ("method", "last"),
    [(None, "looks at each request"), ("GET", "looks at each request"), ("POST", "would deny this request")],
)
def test_explain_says_what_would_be_denied(method: str | None, last: str) -> None:
    facts, plan = compiled(read(PEOPLE + audited(INTO_API % FROM_WEB_GET)))
    said = explain(
        Question("web", "api", "80", method=method, path="/" if method else None),
        facts,
        plan,
        Planned(plan.kernel),
    )
    assert said.verdict == "ALLOWED"
    found = [step.text for step in said.steps if step.what == "audit"]
    assert last in found[-1]
    said = explain(Question("db", "api", "80"), facts, plan, Planned(plan.kernel))
    assert said.verdict == "ALLOWED"
    (step,) = [step for step in said.steps if step.what == "audit"]
    assert "would deny it by CiliumNetworkPolicy default/a (test.yaml:" in step.text


@given(parties(), POLICIES, st.integers(0, 2**32))
def test_enforced_and_view_are_what_they_would_be_alone(
    everyone: list[Party], policies: list[Policy], seed: int
) -> None:
    """Verdicts are as if those in audit were not there, the view is as if all were enforced."""
    chosen = random.Random(seed)
    marked = [(p, chosen.random() < 0.5) for p in policies]
    documents = cases.manifests(everyone, policies).split("\n---\n")
    first = len(documents) - len(policies)
    for number, (_, audit) in enumerate(marked):
        if audit:
            documents[first + number] = documents[first + number].replace(
                '"metadata": {', '"metadata": {"annotations": {"penstock.dev/audit": "true"}, ', 1
            )
    where = {"node_addresses": (ip_address(HOST.address),)}
    _, plan = make("\n---\n".join(documents), **where)
    enforced = [p for p, audit in marked if not audit]
    numbers = {p.name: identity_of(plan, p.address) for p in [*everyone, *OTHERS]}
    answers = {Verdict.ALLOW: "allow", Verdict.REDIRECT: "proxy", Verdict.DENY: "deny"}
    answers[Verdict.NAMES] = "names"
    for subject in (p for p in everyone if p.local):
        entry = plan.kernel.endpoints[ip_address(subject.address)]
        for peer in [*everyone, *OTHERS]:
            for direction in Direction:
                for protocol, number in PROTOCOL_NUMBERS.items():
                    for port in (79, 80, 95, 443) if protocol != "ICMP" else (8, 13):
                        packet = (direction, numbers[peer.name], number, port)
                        words = (subject, peer, direction.name.lower(), protocol, port, "default")
                        found = look_up(plan.kernel.policy, entry.subject, *packet)
                        assert answers[found] == words_of.side(enforced, *words)
                        view = entry.subject | (AUDIT_VIEW if direction in entry.audit else 0)
                        found = look_up(plan.kernel.policy, view, *packet)
                        assert answers[found] == words_of.side(policies, *words)
