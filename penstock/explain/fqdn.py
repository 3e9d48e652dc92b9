"""What the rules of a workload say of a name of DNS."""

from __future__ import annotations

from penstock.dns.patterns import any_matches
from penstock.explain.sides import by
from penstock.facts import Facts
from penstock.policy.identities import Member
from penstock.policy.rules import Rule


def rules(facts: Facts, member: Member, name: str) -> tuple[Rule, ...]:
    """Those that open the addresses of `name`."""
    return tuple(
        rule
        for rule in facts.stances.egress[member.subject].rules
        if rule.peers is not None and rule.peers.names and any_matches(rule.peers.names, name)
    )


def asked(facts: Facts, member: Member, name: str) -> str:
    """Whether the workload may ask for it, for the end of a sentence; empty if nothing watches its DNS."""
    stance = facts.stances.egress[member.subject]
    watching = [r for r in stance.rules if r.dns is not None or (r.peers is not None and r.peers.names)]
    if not watching:
        return ""
    allowing = [r for r in watching if r.dns is not None and any_matches(r.dns, name)]
    allowing += rules(facts, member, name)
    if not allowing:
        return ", and no rule that watches its DNS lets it ask for the name"
    return f" (it may ask for it by {by(tuple((r.policy, r.origin) for r in allowing[:1]))})"
