"""Figures out of samples. Nothing is averaged: medians and percentiles only.

A percentile is the smallest sample that at least that share of all samples does not exceed (nearest rank):
a value that was measured, never one in between. So the 99th of fewer than 100 samples is their maximum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def percentile(samples: Sequence[float], share: float) -> float:
    """The nearest rank; `share` in percent, above 0 and at most 100. Raises ValueError if there are none."""
    if not samples:
        raise ValueError("no samples")
    if not 0 < share <= 100:
        raise ValueError(f"{share} is no percentage above 0")
    # Rounded first: 99.9 * 1000 / 100 is a little more than 999 in floating point.
    rank = math.ceil(round(share * len(samples) / 100, 9))
    return sorted(samples)[rank - 1]


def median(samples: Sequence[float]) -> float:
    """The middle sample, or halfway between the two in the middle. Raises ValueError if empty."""
    if not samples:
        raise ValueError("no samples")
    ordered, half = sorted(samples), len(samples) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def summary(samples: Sequence[float], digits: int = 2) -> dict[str, float]:
    """median, p90, p99 and max, rounded, and how many samples there were."""
    return {
        "median": round(median(samples), digits),
        "p90": round(percentile(samples, 90), digits),
        "p99": round(percentile(samples, 99), digits),
        "max": round(max(samples), digits),
        "samples": len(samples),
    }


def ratio(of: Sequence[float], against: Sequence[float]) -> float:
    """Median against median. Raises ValueError if one is empty or `against` is 0."""
    base = median(against)
    if not base:
        raise ValueError("the median to compare with is 0")
    return median(of) / base


def paired(of: Sequence[float], against: Sequence[float]) -> float:
    """The median of the ratios of samples that were taken one after the other.

    A machine that is given more time at some moments than at others gives it to both of a pair. Raises
    ValueError if one is empty or something in `against` is 0.
    """
    return median(_ratios(of, against))


def doubt(of: Sequence[float], against: Sequence[float]) -> float:
    """How far `paired` may be off: what it says of two measurements of the same thing.

    Its distance from 1 or, if that is more, about one standard error of the median, by the median absolute
    deviation (1.4826 of it is a standard deviation where samples are normal; 1.2533 is the median's factor).
    """
    found = _ratios(of, against)
    middle = median(found)
    spread = median([abs(each - middle) for each in found])
    return max(abs(middle - 1), 1.4826 * 1.2533 * spread / math.sqrt(len(found)))


def _ratios(of: Sequence[float], against: Sequence[float]) -> list[float]:
    if not all(against):
        raise ValueError("something to compare with is 0")
    return [a / b for a, b in zip(of, against, strict=True)]


def turns(arms: Sequence[str], rounds: int) -> list[tuple[str, ...]]:
    """The order of the arms in each round. Every arm is as often first as the others, or once more."""
    return [
        tuple(arms[(first + i) % len(arms)] for i in range(len(arms)))
        for first in (number % len(arms) for number in range(rounds))
    ]


def medians(samples: Mapping[str, Sequence[float]], digits: int = 2) -> dict[str, float]:
    return {name: round(median(values), digits) for name, values in samples.items()}
