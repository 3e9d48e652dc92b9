"""When a certificate is renewed, so that the renewals of many spread evenly, now and in every later round.

Time is cut into cycles of 0.45 of a certificate's life, and each certificate keeps a place in the cycle
(its phase). It is renewed whenever its place comes by, at half of its life at the latest: the first time
earlier, so that those which began together part, and then always at 0.45. Places are steps of the golden
ratio, which fall evenly into [0, 1) however many there are; independent draws would bunch, and times that
drift would in the end be independent. So on one node, where the mean is at least one in a second, no second
has more than three times the mean, whatever the moment each was made at, from the second round on. Pure.
"""

from __future__ import annotations

from math import ceil

FROM, CYCLE = 0.05, 0.45
"""Parts of a life: the youngest age at renewal, and how much later it may be."""
GOLDEN = 0.6180339887498949


def next_phase(phase: float) -> float:
    """The place of the next certificate after one at `phase`."""
    return (phase + GOLDEN) % 1


def due(issued: float, life: float, phase: float) -> float:
    """When one of `life` seconds, `issued` at that time, is renewed (seconds since the epoch)."""
    cycle, earliest = CYCLE * life, issued + FROM * life
    return (ceil(earliest / cycle - phase) + phase) * cycle
