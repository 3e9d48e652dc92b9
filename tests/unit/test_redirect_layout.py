"""Bytes of the maps that need no kernel to be looked at; tests/bpf compares them with the header."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.manifests.document import ObjectKey, Origin
from penstock.observe.reasons import Reason
from penstock.plan import Direction, KernelTables, PolicyEntry, PolicyKey, ServiceEntry, ServiceKey, Verdict
from penstock.redirect import layout
from penstock.redirect.encoder import encode


@given(st.ip_addresses())
def test_addresses_come_back(address: object) -> None:
    if getattr(address, "ipv4_mapped", None) is None:
        assert layout.address_of(layout.address_bytes(address)) == address  # type: ignore[arg-type]


def test_prefixes_of_both_families_share_one_tree() -> None:
    assert layout.ipcache_key(ip_network("0.0.0.0/0"))[:4] == (96).to_bytes(4, "little")
    assert layout.ipcache_key(ip_network("::/0"))[:4] == bytes(4)
    assert layout.ipcache_key(ip_network("10.1.0.1/32"))[:4] == (128).to_bytes(4, "little")


def _origin(line: int) -> tuple[ObjectKey, Origin]:
    return ObjectKey("CiliumNetworkPolicy", "default", "p"), Origin("p.yaml", line)


def test_a_rule_number_stands_for_its_origins() -> None:
    one = PolicyEntry(Verdict.DENY, (_origin(3),))
    assert layout.rule_number(one) == layout.rule_number(PolicyEntry(Verdict.ALLOW, (_origin(3),)))
    assert layout.rule_number(one) != layout.rule_number(PolicyEntry(Verdict.DENY, (_origin(4),)))
    assert layout.rule_number(PolicyEntry(Verdict.DENY)) == 0


@given(
    st.integers(0, 16).flatmap(
        lambda bits: st.tuples(st.just(bits), st.integers(0, (1 << bits) - 1).map(lambda n: n << (16 - bits)))
    ),
    st.sampled_from([6, 17]),
    st.sampled_from(list(Direction)),
)
def test_policy_keys_differ_in_their_bytes(
    where: tuple[int, int], protocol: int, direction: Direction
) -> None:
    bits, port = where
    raw = layout.policy_key(PolicyKey(1, direction, 300, protocol, port, bits))
    assert int.from_bytes(raw[:4], "little") == layout.POLICY_FIXED_BITS + 8 + bits
    assert raw[12:] == bytes([direction, protocol]) + port.to_bytes(2, "big")


def test_backends_have_slots_from_zero() -> None:
    backends = tuple((ip_address(f"10.1.0.{n}"), 80) for n in range(1, 4))
    key = ServiceKey(ip_address("10.96.0.1"), 80, 6)
    found = encode(KernelTables(services={key: ServiceEntry(7, "s", backends)}))["backends"]
    assert sorted((int.from_bytes(k[:4], "little"), int.from_bytes(k[4:], "little")) for k in found) == [
        (7, 0),
        (7, 1),
        (7, 2),
    ]


def test_an_event_cut_short_is_no_event() -> None:
    with pytest.raises(Exception, match="requires a buffer"):
        layout.decode_event(bytes(layout.EVENT.size - 1))


def test_reasons_are_ways_or_drops_and_say_so() -> None:
    assert {r for r in Reason if r.is_drop} == {r for r in Reason if r >= 32}
    assert all(r.explanation for r in Reason)
    assert len({r.explanation for r in Reason}) == len(Reason)
