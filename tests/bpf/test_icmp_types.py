"""ICMP messages are judged by their type, each for itself; an answer belongs to its question."""

from __future__ import annotations

import pytest
from bpf_kernel import REDIRECT, SHOT, Kernel
from packets import ICMP, ICMPV6, echo, frame, icmp, ip
from small_node import ALLOW, FAMILIES, IN, V4, V6, A, B, closed, rule, up

from penstock.observe.reasons import Reason

families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
DENIED = (SHOT, Reason.POLICY_DENIED_INGRESS)
IDENT = 0x0D
"""As an echo's identifier it is the number of a type too (13, in network byte order)."""


def _message(at: dict[int, str], source: int, target: int, kind: int, ident: int = IDENT) -> bytes:
    protocol = ICMP if at is V4 else ICMPV6
    return frame(ip(at[source], at[target], protocol, icmp(kind, 0, ident)))


def _from(kernel: Kernel, source: int, packet: bytes) -> tuple[int, Reason | None]:
    ran = kernel.run("from_workload", packet, "wa" if source == A else "wb")
    return ran.action, ran.reason


def _only(kernel: Kernel, at: dict[int, str], *kinds: int) -> None:
    """B takes messages of these types from A; A takes nothing from B that is not an answer."""
    policy = {k: v for k, v in closed(B, IN).items() if k.subject != A or k.direction != IN}
    for kind in kinds:
        policy |= rule(B, IN, ALLOW, peer=A, protocol=ICMP if at is V4 else ICMPV6, port=kind, bits=16)
    up(kernel, policy)


@pytest.mark.parametrize(("at", "asks", "answers"), [(V4, 8, 0), (V6, 128, 129), (V4, 13, 14), (V4, 17, 18)])
def test_an_answer_passes_with_its_question_and_not_without(
    kernel: Kernel, at: dict[int, str], asks: int, answers: int
) -> None:
    _only(kernel, at, asks)
    assert _from(kernel, B, _message(at, B, A, answers)) == DENIED
    assert _from(kernel, A, _message(at, A, B, asks))[0] == REDIRECT
    assert _from(kernel, B, _message(at, B, A, answers)) == (REDIRECT, None)
    # After a change it is judged as what it answers.
    _only(kernel, at, asks, 42)
    assert _from(kernel, B, _message(at, B, A, answers)) == (REDIRECT, None)
    _only(kernel, at, 42)
    assert _from(kernel, B, _message(at, B, A, answers))[0] == SHOT


@families
def test_a_type_opens_no_other(kernel: Kernel, at: dict[int, str]) -> None:
    first, second = (42, 43) if at is V4 else (160, 161)
    _only(kernel, at, first)
    assert _from(kernel, A, _message(at, A, B, first))[0] == REDIRECT
    assert _from(kernel, A, _message(at, A, B, second)) == DENIED
    assert _from(kernel, A, echo(at[A], at[B], IDENT)) == DENIED
    assert _from(kernel, B, _message(at, B, A, first)) == DENIED


def test_an_echo_opens_no_type_that_is_its_identifier(kernel: Kernel) -> None:
    _only(kernel, V4, 8)
    assert _from(kernel, A, _message(V4, A, B, 8, 13))[0] == REDIRECT
    assert _from(kernel, A, _message(V4, A, B, 13)) == DENIED
    assert _from(kernel, A, _message(V4, A, B, 8, 0xFFFF))[0] == REDIRECT
    assert _from(kernel, A, _message(V4, A, B, 13, 0xFFFF)) == DENIED


@pytest.mark.parametrize(("at", "asks", "answers"), [(V4, 8, 0), (V6, 128, 129)])
def test_who_asks_may_not_answer_too(kernel: Kernel, at: dict[int, str], asks: int, answers: int) -> None:
    _only(kernel, at, asks)
    assert _from(kernel, A, _message(at, A, B, asks))[0] == REDIRECT
    assert _from(kernel, A, _message(at, A, B, answers)) == DENIED


def test_an_answer_that_nobody_asked_for_opens_no_question(kernel: Kernel) -> None:
    _only(kernel, V4, 14)
    assert _from(kernel, A, _message(V4, A, B, 14))[0] == REDIRECT
    assert _from(kernel, B, _message(V4, B, A, 13)) == DENIED
