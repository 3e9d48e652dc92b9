"""Numbers stay with their names, whatever comes and goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from penstock.allocate import AllocationError, allocate
from penstock.world import Address, Allocations, Network, Settings

SMALL = Settings(
    service_ranges=(ip_network("10.96.0.0/28"), ip_network("fd00:10:96::/124")),
    proxy_listen_ports=(15001, 15006),
)


def run(
    previous: Allocations = Allocations(),  # noqa: B008  (frozen)
    *,
    identities: Iterable[str] = (),
    vips: Mapping[str, Address | None] | None = None,
    listeners: Iterable[str] = (),
    services: Iterable[str] = (),
    prefixes: Iterable[str] = (),
    settings: Settings = SMALL,
) -> Allocations:
    return allocate(
        previous,
        identities=identities,
        vips=vips or {},
        listener_names=listeners,
        service_names=services,
        prefixes=prefixes,
        settings=settings,
    )


def test_numbers_begin_where_the_design_says() -> None:
    got = run(identities=["b", "a"], listeners=["l"], services=["s"])
    assert got.identities == {"a": 256, "b": 257}
    assert got.listener_ports == {"l": 15001}
    assert got.service_ids == {"s": 1}


def test_a_vanished_name_keeps_its_number_while_there_are_others() -> None:
    first = run(listeners=["a", "b"])
    without = run(first, listeners=["c"])
    assert without.listener_ports == {"a": 15001, "b": 15002, "c": 15003}
    assert run(without, listeners=["b"]).listener_ports["b"] == 15002


def test_an_exhausted_pool_takes_from_the_vanished_only_what_it_needs() -> None:
    full = run(listeners=list("abcdef"))
    got = run(full, listeners=["b", "c", "d", "e", "g"])
    assert got.listener_ports == {"b": 15002, "c": 15003, "d": 15004, "e": 15005, "f": 15006, "g": 15001}


def test_too_many_is_an_error_with_the_range_in_it() -> None:
    with pytest.raises(AllocationError, match=r"7 listener ports .* only 6 \(15001-15006\)"):
        run(listeners=list("abcdefg"))


def test_the_whole_pool_of_identities_can_be_used() -> None:
    names = [f"n{i}" for i in range(65280)]
    got = run(identities=names)
    assert set(got.identities.values()) == set(range(256, 65536))
    with pytest.raises(AllocationError, match="identities"):
        run(got, identities=[*names, "one more"])
    swapped = run(got, identities=[*names[1:], "one more"])
    assert swapped.identities["one more"] == got.identities["n0"]


def test_a_number_outside_new_settings_is_given_anew() -> None:
    before = run(listeners=["a"], vips={"default/x/4": None})
    settings = replace(SMALL, proxy_listen_ports=(16000, 16001), service_ranges=(ip_network("10.97.0.0/24"),))
    after = run(before, listeners=["a"], vips={"default/x/4": None}, settings=settings)
    assert after.listener_ports == {"a": 16000}
    assert IPv4Address(after.vips["default/x/4"]) in ip_network("10.97.0.0/24")


def test_a_full_range_holds_every_usable_address_and_then_says_so() -> None:
    names = [f"default/s{i}/{family}" for i in range(14) for family in (4, 6)]
    got = run(vips=dict.fromkeys(names))
    v4 = {IPv4Address(got.vips[name]) for name in names if name.endswith("4")}
    v6 = {IPv6Address(got.vips[name]) for name in names if name.endswith("6")}
    assert v4 == {IPv4Address("10.96.0.0") + i for i in range(1, 15)}
    assert len(v6) == 14
    assert IPv6Address("fd00:10:96::") not in v6
    with pytest.raises(AllocationError, match=r"default/z/4 .*10\.96\.0\.0/28"):
        run(got, vips=dict.fromkeys([*names, "default/z/4"]))
    with pytest.raises(AllocationError, match="there is none"):
        run(vips={"default/z/6": None}, settings=replace(SMALL, service_ranges=SMALL.service_ranges[:1]))


def test_several_ranges_of_a_family_are_filled_one_and_all() -> None:
    settings = replace(SMALL, service_ranges=(ip_network("10.96.0.0/30"), ip_network("10.99.0.4/31")))
    got = run(vips=dict.fromkeys(f"default/s{i}/4" for i in range(4)), settings=settings)
    assert set(got.vips.values()) == {"10.96.0.1", "10.96.0.2", "10.99.0.4", "10.99.0.5"}


def test_a_fixed_address_evicts_an_allocated_one() -> None:
    before = run(vips={"default/old/4": None, "default/other/4": None})
    taken = ip_address(before.vips["default/old/4"])
    after = run(before, vips={"default/old/4": None, "default/other/4": None, "default/new/4": taken})
    assert after.vips["default/new/4"] == str(taken)
    assert after.vips["default/old/4"] != str(taken)
    assert after.vips["default/other/4"] == before.vips["default/other/4"]


def test_a_fixed_address_is_taken_as_given_also_outside_the_ranges_and_twice() -> None:
    address = IPv4Address("192.0.2.7")
    got = run(vips={"default/a/4": address, "default/b/4": address})
    assert got.vips == {"default/a/4": "192.0.2.7", "default/b/4": "192.0.2.7"}
    later = run(got, vips={"default/a/4": None})
    assert later.vips["default/a/4"] != "192.0.2.7"


def test_a_large_range_is_not_walked() -> None:
    settings = replace(SMALL, service_ranges=(ip_network("fd00::/8"),))
    address = run(vips={"default/x/6": None}, settings=settings).vips["default/x/6"]
    assert IPv6Address(address) in ip_network("fd00::/8")


NAMES = st.sets(st.sampled_from("abcdefgh"), max_size=6)
RANGES: tuple[Network, ...] = (ip_network("10.96.0.0/29"), ip_network("fd00::/125"))
FIXED = st.none() | st.sampled_from(
    [IPv4Address("10.96.0.1"), IPv4Address("10.96.0.2"), IPv4Address("192.0.2.1")]
)
VIPS = st.dictionaries(st.sampled_from([f"d/{c}/4" for c in "abcdef"]), FIXED, max_size=5)


@hypothesis_settings(deadline=None)
@given(st.lists(st.tuples(NAMES, NAMES, VIPS), max_size=8))
def test_through_any_history_numbers_are_stable_unique_and_repeatable(
    history: list[tuple[set[str], set[str], dict[str, Address | None]]],
) -> None:
    settings = replace(SMALL, service_ranges=RANGES)
    held = Allocations()
    wanted_before: tuple[set[str], set[str], dict[str, Address | None]] = (set(), set(), {})
    for identities, listeners, vips in history:
        got = run(held, identities=identities, vips=vips, listeners=listeners, settings=settings)
        shuffled = run(
            held,
            identities=sorted(identities, reverse=True),
            vips=dict(sorted(vips.items(), reverse=True)),
            listeners=sorted(listeners, reverse=True),
            settings=settings,
        )
        assert got == shuffled
        assert run(got, identities=identities, vips=vips, listeners=listeners, settings=settings) == got
        assert identities <= got.identities.keys()
        assert listeners <= got.listener_ports.keys()
        assert vips.keys() == got.vips.keys()
        for numbers in (got.identities, got.listener_ports):
            assert len(set(numbers.values())) == len(numbers)
        assert all(got.identities[name] == held.identities[name] for name in held.identities)
        for name in listeners & wanted_before[1]:
            assert got.listener_ports[name] == held.listener_ports[name]
        fixed = {str(address) for address in vips.values() if address}
        free = [address for name, address in got.vips.items() if vips[name] is None]
        assert len(set(free)) == len(free)
        assert fixed.isdisjoint(free)
        for name in vips.keys() & wanted_before[2].keys():
            if vips[name] is None and wanted_before[2][name] is None and held.vips[name] not in fixed:
                assert got.vips[name] == held.vips[name]
        held, wanted_before = got, (identities, listeners, vips)
