"""What is explained is what a naive reading of the manifests says, and the advice given does what it says."""

from __future__ import annotations

from ipaddress import ip_address

import policy_cases as cases
import policy_words as words_of
import yaml
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import POLICIES, Policy
from policy_parties import HOST, ICMP_TYPES, OTHERS, PROTOCOL_NUMBERS, WORLD, Party, parties
from worlds import make

from penstock.explain import Explanation, Planned, Question, explain
from penstock.facts import Facts
from penstock.manifests.loader import load

PORTS = st.sampled_from((79, 80, 81, 90, 96, 443, 8080, 65535))
REQUESTS = st.sampled_from((("GET", "/"), ("GET", "/abc"), ("POST", "/b"), ("HEAD", "/a")))


class Told:
    """Explanations of one set of manifests."""

    def __init__(self, text: str) -> None:
        world, self._plan = make(text, node_addresses=(ip_address(HOST.address),))
        self._facts = Facts(world)

    def __call__(self, source: Party, target: Party, protocol: str, port: int, *request: str) -> Explanation:
        question = Question(source.address, target.address, str(port), protocol, *request)
        return explain(question, self._facts, self._plan, Planned(self._plan.kernel))


def _word(found: Explanation) -> str:
    if any(step.what == "listener" for step in found.steps):
        return "proxy"
    return "allow" if found.verdict == "ALLOWED" else "deny"


@given(parties(), POLICIES, PORTS, st.sampled_from(sorted(PROTOCOL_NUMBERS)))
def test_each_packet(everyone: list[Party], policies: list[Policy], port: int, protocol: str) -> None:
    told = Told(cases.manifests(everyone, policies))
    for source in [*everyone, *OTHERS]:
        for target in [*everyone, *OTHERS]:
            if source is target or not (source.local or target.local):
                continue
            number = port if protocol != "ICMP" else ICMP_TYPES[port % len(ICMP_TYPES)]
            wanted = words_of.packet(policies, source, target, protocol, number)
            assert _word(told(source, target, protocol, number)) == wanted, (source, target, protocol)


@given(parties(), POLICIES, PORTS, REQUESTS)
def test_each_request(
    everyone: list[Party], policies: list[Policy], port: int, request: tuple[str, str]
) -> None:
    told = Told(cases.manifests(everyone, policies))
    for source in [*everyone, *OTHERS]:
        for target in everyone:
            if source is target or not (source.local or target.local):
                continue
            packet = words_of.packet(policies, source, target, "TCP", port)
            # Towards another node mesh TLS alone may steer: no request is looked at on this node then.
            unread = (
                not target.local and words_of.side(policies, source, target, "egress", "TCP", port) != "proxy"
            )
            # What is inside TLS nobody looks at.
            unread = unread or words_of.by_name(policies, source, target, port)
            passes = packet == "allow" or (
                packet == "proxy" and (unread or words_of.request(policies, source, target, port, *request))
            )
            found = told(source, target, "TCP", port, *request)
            assert (found.verdict == "ALLOWED") == passes, (source, target, found)


@given(parties(), POLICIES, PORTS, REQUESTS, st.booleans())
def test_the_advice_is_a_manifest_that_allows_it(
    everyone: list[Party], policies: list[Policy], port: int, request: tuple[str, str], http: bool
) -> None:
    text = cases.manifests(everyone, policies)
    told = Told(text)
    asked = request if http else ()
    for source in [*everyone, *OTHERS]:
        for target in everyone:
            if source is target or not (source.local or target.local):
                continue
            found = told(source, target, "TCP", port, *asked)
            if not found.advice:
                continue
            assert found.verdict == "DENIED"
            assert [p for p in load(found.advice, "advice.yaml").problems if p.severity == "error"] == []
            # One side may hide what the other says: at most one more piece of advice for each.
            more, now = text, found
            while now.advice:
                assert more.count("enableDefaultDeny") < text.count("enableDefaultDeny") + 3
                more += "\n---\n" + now.advice
                now = Told(more)(source, target, "TCP", port, *asked)
            assert now.verdict == "ALLOWED" or now.hint, (source, target, found, now)
            return


def test_the_advice_names_are_names() -> None:
    text = cases.manifests(
        [Party("w0", "10.1.0.1", {}, "default", (), True)],
        [Policy("default", {"endpointSelector": {}, "ingress": [{}]})],
    )
    found = Told(text)(WORLD, Party("w0", "10.1.0.1", {}), "TCP", 80)
    document = yaml.safe_load(found.advice)
    assert document["metadata"] == {"name": "w0-ingress-world", "namespace": "default"}
    assert document["spec"]["ingress"] == [
        {"fromEntities": ["world"], "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}
    ]
