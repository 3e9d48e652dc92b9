"""What one workload may ask of the proxy in a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from bpf_kernel import SHOT, SOURCE_PORTS, Kernel
from packets import TCP, frame, ip, tcp, tcp_frame
from small_node import FAMILIES, IN, OPEN, STEER, A, B, rule, up

from penstock.observe.reasons import Reason
from penstock.plan import ListenerKey
from penstock.redirect import layout
from penstock.redirect.libbpf import BpfMap
from penstock.routing.model import ListenerKind

families = pytest.mark.parametrize("at", FAMILIES, ids=["v4", "v6"])
RATE = 50
BURST = 1
"""Packets: less than two have room, 20 ms apart."""
MANY = 40
STEERED = OPEN | rule(B, IN, STEER, protocol=TCP, port=80)
LISTENERS = {ListenerKey(source, ListenerKind.HTTP_WORKLOAD): 15001 for source in (A, B)}
"""Known to the kernel; no socket is there."""


@pytest.fixture(autouse=True)
def limit(kernel: Kernel) -> Iterator[None]:
    """A limit of `RATE` from the next `up` on; nobody has asked for anything yet."""
    unlimited = kernel.tables._config
    kernel.tables._config = lambda epoch: layout.config(
        epoch, SOURCE_PORTS, host_access=True, proxy_rate=RATE
    )
    paces = BpfMap(kernel.pins / "paces", 4, 16)
    for key in list(paces.keys()):
        paces.delete(key)
    yield
    kernel.tables._config = unlimited
    up(kernel)


def sent(kernel: Kernel, packet: bytes, device: str, times: int) -> Counter[Reason]:
    """Why packets did not pass, counted: no listener is there, so none does."""
    before = Counter(kernel.counted())
    for _ in range(times):
        assert kernel.run("from_workload", packet, device).action == SHOT
    return Counter(kernel.counted()) - before


@families
def test_a_burst_passes_and_what_is_beyond_is_dropped_and_told_once(
    kernel: Kernel, at: dict[int, str]
) -> None:
    up(kernel, STEERED, listeners=LISTENERS)
    syn = tcp_frame(at[A], at[B], 40000, 80)
    assert sent(kernel, syn, "wa", BURST) == {Reason.PROXY_NOT_READY: BURST}
    over = kernel.counted().get(Reason.PROXY_OVERUSED, 0)
    told = [event for _ in range(MANY) for event in kernel.run("from_workload", syn, "wa").events]
    assert kernel.counted()[Reason.PROXY_OVERUSED] - over > MANY // 2
    assert [event.reason for event in told].count(Reason.PROXY_OVERUSED) == 1


@families
def test_others_have_their_own_share(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, STEERED | rule(A, IN, STEER, protocol=TCP, port=80), listeners=LISTENERS)
    assert sent(kernel, tcp_frame(at[A], at[B], 40000, 80), "wa", MANY // 2)[Reason.PROXY_OVERUSED]
    found = sent(kernel, tcp_frame(at[B], at[A], 40000, 80), "wb", BURST)
    assert found == {Reason.PROXY_NOT_READY: BURST}


@families
def test_acknowledgements_pass_and_data_does_not(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, STEERED, listeners=LISTENERS)
    assert sent(kernel, tcp_frame(at[A], at[B], 40000, 80), "wa", MANY // 2)[Reason.PROXY_OVERUSED]
    assert Reason.PROXY_OVERUSED not in sent(kernel, tcp_frame(at[A], at[B], 40000, 80, "A"), "wa", MANY)
    data = frame(ip(at[A], at[B], TCP, tcp(40000, 80, "A", b"GET / HTTP/1.1\r\n\r\n")))
    assert sent(kernel, data, "wa", MANY // 2)[Reason.PROXY_OVERUSED]


@families
def test_what_is_not_steered_has_no_limit(kernel: Kernel, at: dict[int, str]) -> None:
    up(kernel, STEERED, listeners=LISTENERS)
    before = kernel.counted().get(Reason.PROXY_OVERUSED, 0)
    for _ in range(MANY // 2):
        kernel.run("from_workload", tcp_frame(at[A], at[B], 40000, 81), "wa")
    assert kernel.counted().get(Reason.PROXY_OVERUSED, 0) == before
