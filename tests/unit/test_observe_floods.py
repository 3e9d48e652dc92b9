"""Floods are told while they last and for a minute after, and nothing else is."""

from __future__ import annotations

from penstock.observe.floods import MEMORY, Floods
from penstock.observe.reasons import Reason

DENIED, RESET, PASSED = (
    int(Reason.POLICY_DENIED_INGRESS),
    int(Reason.ANSWERED_RESET),
    int(Reason.FORWARDED_LOCAL),
)


def test_masses_that_serve_nobody_are_told_for_a_minute() -> None:
    floods = Floods()
    floods.look(0.0, {DENIED: 1_000_000})
    # What was counted before anybody looked is no rate.
    assert floods.warnings() == []
    floods.look(2.0, {DENIED: 1_006_000, RESET: 2_500, PASSED: 1_000_000})
    floods.look(4.0, {DENIED: 1_006_100, RESET: 2_500, PASSED: 2_000_000})
    denied, reset = sorted(floods.warnings(), key=lambda each: "RESET" in each)
    assert "3000 packets a second, POLICY_DENIED_INGRESS (no ingress rule of the receiver" in denied
    assert "1250 packets a second, ANSWERED_RESET" in reset
    floods.look(2.0 + MEMORY, {DENIED: 1_006_100})
    assert len(floods.warnings()) == 2
    floods.look(2.1 + MEMORY, {DENIED: 1_006_100})
    assert floods.warnings() == []


def test_a_trickle_is_no_flood() -> None:
    floods = Floods()
    for second in range(0, 60, 2):
        floods.look(float(second), {DENIED: second * 900})
    assert floods.warnings() == []
