"""What `bench neighbour` makes of its samples."""

from __future__ import annotations

import re
from html import escape
from xml.etree import ElementTree

import pytest

from penstock.bench import histogram, neighbour
from penstock.bench.neighbour import ARMS, Sample

SETTINGS = {"rounds": 1}


def seen(p99: int, flood_rps: float = 0.0) -> list[Sample]:
    """Ninety-nine in a hundred of the requests took 100 us, the others `p99`."""
    return [Sample(histogram.Run(1.0, 200, 0, {100: 197, p99: 3}), flood_rps)]


def samples(limited: int) -> dict[str, list[Sample]]:
    slow = {"node-flooded": 9000, "node-limited": limited, "sidecar-flooded": 2000}
    return {arm: seen(slow.get(arm, 1000), 50.0 if arm in slow else 0.0) for arm in ARMS}


@pytest.mark.parametrize(("limited", "held"), [(1900, True), (2100, False)])
def test_the_bar_is_about_the_limited_flood(limited: int, held: bool) -> None:
    found = neighbour.result(samples(limited), SETTINGS)
    assert found.ratios["p99, flooded / alone"] == 9
    assert found.ratios["p99, sidecar: flooded / alone"] == 2
    assert [(bar.value, bar.held) for bar in found.bars] == [(limited / 1000, held)]
    assert found.arms["node-limited"]["flood_rps"] == 50


def test_the_page_tells_of_every_arm_and_draws_each() -> None:
    data = neighbour.result(samples(1500), SETTINGS).data()
    text = neighbour.reports(data)[".html"]
    assert all(escape(words) in text for words in ARMS.values())
    (plot,) = re.findall("<svg.*?</svg>", text, re.DOTALL)
    lines = [p for p in ElementTree.fromstring(plot) if p.get("stroke-width")]
    assert len(lines) == len(ARMS)
