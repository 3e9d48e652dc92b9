"""Addresses that a workload learned by names: what they open, in the kernel and in plain words."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from bpf_kernel import OK, REDIRECT, SHOT, Kernel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packets import UDP, frame, ip, tcp_frame, udp
from small_node import ALLOW, DENY, FAMILIES, HOST, OUT, STEER, WORLD, A, B, R, closed, rule, tables, up

from penstock.dns.kernel import MOST_LISTS, packed
from penstock.observe.reasons import Reason
from penstock.plan import DNS_LISTENER, IpcacheEntry, PolicyEntry, PolicyKey, Verdict
from penstock.policy.labels import DNS
from penstock.policy.lookup import find, longest
from penstock.redirect.libbpf import BpfMap

LISTS = [(1 << 24) + n for n in range(20)]
PORT = 443


@pytest.fixture
def names(kernel: Kernel) -> Iterator[BpfMap]:
    found = kernel.map("names")
    for key in list(found.keys()):
        found.delete(key)
    yield found
    for key in list(found.keys()):
        found.delete(key)
    found.close()


def learn(kernel: Kernel, names: BpfMap, address: str, *lists: int, device: str = "wa") -> None:
    value = struct.pack(f"={1 + MOST_LISTS}I", len(lists), *lists, *(0,) * (MOST_LISTS - len(lists)))
    names.put(struct.pack("=I", kernel.device[device]) + packed(address), value)


def passes(kernel: Kernel, source: str, target: str, port: int = PORT) -> bool:
    ran = kernel.run("from_workload", tcp_frame(source, target, 40000, port), "wa")
    assert ran.action in (OK, REDIRECT, SHOT)
    if ran.action == SHOT:
        assert ran.reason in (Reason.POLICY_DENIED_EGRESS, Reason.PROXY_NOT_READY)
    return ran.action != SHOT


@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
def test_a_name_opens_its_address_for_who_learned_it(
    kernel: Kernel, names: BpfMap, family: dict[int, str]
) -> None:
    up(kernel, closed(A, OUT) | rule(A, OUT, ALLOW, peer=LISTS[0], protocol=6, port=PORT))
    there = family[WORLD]
    assert not passes(kernel, family[A], there)
    learn(kernel, names, there, LISTS[0], device="wb")
    assert not passes(kernel, family[A], there)
    learn(kernel, names, there, LISTS[1])
    assert not passes(kernel, family[A], there)
    learn(kernel, names, there, LISTS[1], LISTS[0])
    assert not passes(kernel, family[A], there, PORT + 1)
    assert passes(kernel, family[A], there)


@pytest.mark.parametrize("whose", [B, R, HOST])
def test_no_name_opens_what_is_of_the_mesh(kernel: Kernel, names: BpfMap, whose: int) -> None:
    up(kernel, closed(A, OUT) | rule(A, OUT, ALLOW, peer=LISTS[0]))
    for family in FAMILIES:
        learn(kernel, names, family[whose], LISTS[0])
        assert not passes(kernel, family[A], family[whose])


def test_another_node_with_a_number_of_its_own_is_not_the_world(kernel: Kernel, names: BpfMap) -> None:
    policy = closed(A, OUT) | rule(A, OUT, ALLOW, peer=LISTS[0])
    number = LISTS[9]
    for node, opened in ((True, False), (False, True)):
        wanted = tables(kernel, policy)
        ipcache = {**wanted.ipcache, ip_network("198.51.100.1"): IpcacheEntry(number, number, node=node)}
        up(kernel, policy, ipcache=ipcache)
        learn(kernel, names, "198.51.100.1", LISTS[0])
        assert passes(kernel, FAMILIES[0][A], "198.51.100.1") is opened


def test_a_denial_that_is_spelled_out_stands(kernel: Kernel, names: BpfMap) -> None:
    denied = {PolicyKey(A, OUT, WORLD): PolicyEntry(DENY, (("policy", "line"),))}  # type: ignore[arg-type]
    up(kernel, closed(A, OUT) | denied | rule(A, OUT, ALLOW, peer=LISTS[0]))
    learn(kernel, names, FAMILIES[0][WORLD], LISTS[0])
    assert not passes(kernel, FAMILIES[0][A], FAMILIES[0][WORLD])


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_dns_without_its_proxy_is_closed(kernel: Kernel, protocol: str) -> None:
    steered = {PolicyKey(A, OUT, WORLD, number, 53, 16): PolicyEntry(STEER, dns=True) for number in (6, 17)}
    dns_address = "10.96.0.10"
    for listeners in ({}, {DNS_LISTENER: 15999}):
        wanted = tables(kernel, closed(A, OUT) | steered | rule(A, OUT, ALLOW, peer=DNS))
        ipcache = {**wanted.ipcache, ip_network(dns_address): IpcacheEntry(DNS, DNS, local=True)}
        up(kernel, wanted.policy, ipcache=ipcache, listeners=listeners)  # type: ignore[arg-type]
        for target in (FAMILIES[0][WORLD], dns_address):
            source = FAMILIES[0][A]
            packet = (
                tcp_frame(source, target, 40000, 53)
                if protocol == "TCP"
                else frame(ip(source, target, UDP, udp(40000, 53)))
            )
            ran = kernel.run("from_workload", packet, "wa")
            assert (ran.action, ran.reason) == (SHOT, Reason.PROXY_NOT_READY)


# --- the same in plain words --------------------------------------------------------------------------------

_PEERS = st.sampled_from([0, WORLD, *LISTS[:4]])
_ENTRIES = st.dictionaries(
    st.tuples(_PEERS, st.sampled_from([(0, 0, 0), (6, 0, 0), (6, PORT, 16), (6, 256, 8)])),
    st.sampled_from([ALLOW, DENY]),
    max_size=8,
)


@given(_ENTRIES, st.lists(st.sampled_from(LISTS[:5]), max_size=MOST_LISTS, unique=True))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kernel_and_words_agree(
    kernel: Kernel,
    names: BpfMap,
    entries: dict[tuple[int, tuple[int, int, int]], Verdict],
    learned: list[int],
) -> None:
    policy = {
        PolicyKey(A, OUT, peer, *place): PolicyEntry(verdict, (("policy", "line"),))  # type: ignore[arg-type]
        for (peer, place), verdict in entries.items()
    }
    kernel.forget()
    up(kernel, closed(A, OUT) | policy)
    family = FAMILIES[0]
    learn(kernel, names, family[WORLD], *learned)
    plain = find(policy, A, OUT, WORLD, 6, PORT)
    named = [hit[1].verdict for n in learned if (hit := longest(policy, A, OUT, n, 6, PORT)) is not None]
    wanted = plain[1].verdict if plain else max(named, default=DENY)
    if plain and plain[1].verdict is not DENY:
        wanted = max([plain[1].verdict, *named])
    assert passes(kernel, family[A], family[WORLD]) == (wanted is ALLOW)
