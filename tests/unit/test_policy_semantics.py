"""Compiled policy says what a naive reading of the manifests says: each packet, each request."""

from __future__ import annotations

import re
from ipaddress import ip_address

import policy_cases as cases
import policy_words as words_of
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import POLICIES, Policy
from policy_parties import HOST, ICMP_TYPES, OTHERS, PROTOCOL_NUMBERS, Party, parties
from worlds import identity_of, make

from penstock.plan import Direction, Verdict
from penstock.policy.lookup import look_up
from penstock.policy.rights import Destination
from penstock.routing.model import RequestMatch, Rights
from penstock.world import Enforcement, Settings

VERDICTS = {Verdict.ALLOW: "allow", Verdict.REDIRECT: "proxy", Verdict.DENY: "deny"}
VERDICTS[Verdict.NAMES] = "names"
NODE_ADDRESSES = (ip_address(HOST.address),)
PORTS = (79, 80, 81, 90, 96, 443, 8080, 65535)


@given(parties(), POLICIES, st.sampled_from(["default", "default", "always", "never"]))
def test_entries_say_what_the_manifests_say(
    everyone: list[Party], policies: list[Policy], mode: Enforcement
) -> None:
    _, plan = make(
        cases.manifests(everyone, policies),
        node_addresses=NODE_ADDRESSES,
        settings=Settings(policy_enforcement=mode),
    )
    numbers = {p.name: identity_of(plan, p.address) for p in [*everyone, *OTHERS]}
    subjects = {str(address): e.subject for address, e in plan.kernel.endpoints.items()}
    for subject in everyone:
        if not subject.local:
            continue
        for peer in [*everyone, *OTHERS]:
            for direction in Direction:
                for protocol, number in PROTOCOL_NUMBERS.items():
                    for port in PORTS if protocol != "ICMP" else ICMP_TYPES:
                        found = look_up(
                            plan.kernel.policy,
                            subjects[subject.address],
                            direction,
                            numbers[peer.name],
                            number,
                            port,
                        )
                        wanted = words_of.side(
                            policies, subject, peer, direction.name.lower(), protocol, port, mode
                        )
                        assert VERDICTS[found] == wanted, (subject, peer, direction, protocol, port)


def _matches(match: RequestMatch, method: str, path: str) -> bool:
    return all(
        pattern is None or re.fullmatch(pattern, value)
        for pattern, value in ((match.method, method), (match.path, path))
    )


def _granted(rights: tuple[Rights, ...], source: int, to: str, method: str, path: str) -> bool:
    return any(
        to in r.destinations
        and (r.sources is None or source in r.sources)
        and all(any(_matches(m, method, path) for m in group) for group in r.requests)
        for r in rights
    )


@given(parties(), POLICIES)
def test_rights_say_what_the_manifests_say(everyone: list[Party], policies: list[Policy]) -> None:
    _, plan = make(cases.manifests(everyone, policies), node_addresses=NODE_ADDRESSES)
    numbers = {p.name: identity_of(plan, p.address) for p in [*everyone, *OTHERS]}
    classes = {(str(e.address), e.port): e.policy_class for e in plan.proxy.workloads}
    for target in everyone:
        for port in PORTS:
            to = classes.get((target.address, port))
            for source in [*everyone, *OTHERS]:
                steered = words_of.packet(policies, source, target, "TCP", port) == "proxy"
                # A connection that is steered must find its destination behind the proxy; to another node it
                # may be steered for mesh TLS alone, which carries it without a look at requests.
                steered = steered and not words_of.by_name(policies, source, target, port)
                assert not steered or to is not None or not target.local, (source, target, port)
                if to is None:
                    continue
                for method, path in (("GET", "/"), ("GET", "/abc"), ("POST", "/b"), ("HEAD", "/a")):
                    found = _granted(plan.proxy.workload_rights, numbers[source.name], to, method, path)
                    wanted = words_of.request(policies, source, target, port, method, path)
                    assert found == wanted, (source, target, port, method, path)


def test_the_class_of_an_address_that_is_nobodys() -> None:
    assert Destination(2, None, 80).policy_class == "world:80"
    assert Destination(1 << 24, None, 80).policy_class == "identity-16777216:80"
