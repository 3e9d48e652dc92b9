"""The arithmetic of the benchmarks."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.stats import doubt, median, paired, percentile, ratio, summary, turns

SAMPLES = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.1, 1), (1, 1), (50, 50), (90, 90), (99, 99), (99.9, 100), (100, 100)]
)
def test_percentiles_of_one_to_a_hundred(share: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), share) == expected


def test_the_999th_of_a_thousand_is_no_rounding_error() -> None:
    assert percentile(range(1, 1001), 99.9) == 999


@given(SAMPLES, st.floats(0.1, 100))
def test_a_percentile_is_the_smallest_sample_with_that_share_at_or_below(
    samples: list[float], share: float
) -> None:
    found = percentile(samples, share)

    def share_up_to(value: float) -> float:
        return 100 * sum(s <= value for s in samples) / len(samples)

    assert found in samples
    assert share_up_to(found) >= share - 1e-6
    assert all(share_up_to(s) < share + 1e-6 for s in samples if s < found)


@pytest.mark.parametrize("share", [0, -1, 100.1])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError):
        percentile([1.0], share)


def test_medians() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5


@pytest.mark.parametrize("function", [median, lambda s: percentile(s, 50), summary])
def test_no_samples_are_refused(function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError):
        function([])


def test_the_summary_of_few_samples_has_their_maximum_as_p99() -> None:
    found = summary([1.234, 5.678, 2.0])
    assert found == {"median": 2.0, "p90": 5.68, "p99": 5.68, "max": 5.68, "samples": 3}


def test_a_ratio_is_one_of_medians() -> None:
    assert ratio([1, 97, 1000], [100, 100, 5]) == 0.97
    with pytest.raises(ValueError):
        ratio([1], [0])


def test_neighbours_in_time_are_compared() -> None:
    """A machine that slows down by half between rounds says nothing of the arms."""
    slow, fast = [100.0, 50.0, 200.0], [90.0, 45.0, 180.0]
    assert paired(fast, slow) == pytest.approx(0.9)
    assert doubt(slow, slow) == 0
    assert doubt([101.0, 50.0, 198.0], slow) == pytest.approx(1.4826 * 1.2533 * 0.01 / 3**0.5)
    assert doubt(fast, slow) == pytest.approx(0.1)
    with pytest.raises(ValueError):
        paired([1], [0])
    with pytest.raises(ValueError):
        paired([1, 2], [1])


@given(st.integers(1, 5), st.integers(1, 30))
def test_each_arm_is_in_each_round_and_about_as_often_in_each_place(count: int, rounds: int) -> None:
    arms = tuple("abcde"[:count])
    order = turns(arms, rounds)
    assert all(sorted(each) == sorted(arms) for each in order)
    for place in range(count):
        often = Counter(each[place] for each in order)
        assert max(often.values()) - min(often[arm] for arm in arms) <= 1
