"""The renewals of 10,000 certificates through many rounds: in no second more than three times the mean."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.mtls import schedule

LEAVES = 10_000
NOW = 1_800_000_000.0
ROUNDS = 12


def renewals(life: float, issued: Callable[[int], float], nodes: int = 1) -> Counter[int]:
    """Second → renewals in it, from the first issue on, for ROUNDS lives. Each node spreads its own."""
    seed = random.Random(7)
    phases = [seed.random() for _ in range(nodes)]
    seen: Counter[int] = Counter()
    for leaf in range(LEAVES):
        node = leaf % nodes
        phases[node] = schedule.next_phase(phases[node])
        at = issued(leaf)
        while (at := schedule.due(at, life, phases[node])) < NOW + ROUNDS * life:
            seen[int(at - NOW)] += 1
    return seen


@pytest.mark.parametrize("nodes", [1, 3, 50])
@pytest.mark.parametrize(
    "issued",
    [
        lambda leaf: NOW,
        lambda leaf: NOW + leaf / 1000,
        lambda leaf: NOW + leaf / 10,
        lambda leaf: NOW + random.Random(leaf).random() * 3600,
    ],
    ids=["all at once", "1,000 a second", "10 a second", "at random"],
)
def test_no_second_sees_more_than_three_times_the_mean(issued: Callable[[int], float], nodes: int) -> None:
    life = 3600.0
    seen = renewals(life, issued, nodes)
    # In the long run a leaf is renewed once in 0.45 of its life.
    mean = LEAVES / (0.45 * life)
    assert sum(seen.values()) > LEAVES * (ROUNDS - 1) / 0.45
    assert max(seen.values()) <= 3 * mean


@given(
    leaves=st.integers(1, 3000),
    mean=st.floats(1, 50),
    start=st.floats(0, 1, exclude_max=True),
    offset=st.floats(0, 1, exclude_max=True),
    gone=st.sets(st.integers(0, 2999), max_size=5),
)
def test_from_a_mean_of_one_on_it_holds_for_any_number_and_any_second(
    leaves: int, mean: float, start: float, offset: float, gone: set[int]
) -> None:
    """Deterministically: two rounds, cut into seconds wherever it may be."""
    phase, seen = start, Counter[int]()
    cycle = leaves / mean
    for leaf in range(leaves):
        phase = schedule.next_phase(phase)
        if leaf not in gone:
            seen.update(int(offset + (around + phase) * cycle) for around in (0, 1))
    assert max(seen.values(), default=0) <= 3 * mean


def test_with_a_days_life_hardly_two_fall_into_one_second() -> None:
    """The mean is one in 3.9 s: less than one cannot be had."""
    seen = renewals(86400.0, lambda leaf: NOW)
    assert max(seen.values()) <= 2
    assert sum(1 for count in seen.values() if count == 2) < 0.2 * len(seen)


@given(
    issued=st.floats(1e9, 3e9),
    life=st.floats(2, 30 * 86400),
    phase=st.floats(0, 1, exclude_max=True),
)
def test_each_is_renewed_by_half_of_its_life_and_then_at_its_place(
    issued: float, life: float, phase: float
) -> None:
    first = schedule.due(issued, life, phase)
    assert 0.05 * life - 1e-3 <= first - issued <= 0.5 * life + 1e-3
    place = first
    for _ in range(5):
        after = schedule.due(place, life, phase)
        assert 0.05 * life - 1e-3 <= after - place <= 0.5 * life + 1e-3
        place = after
    assert abs((place - first) / (0.45 * life) - round((place - first) / (0.45 * life))) < 1e-3
