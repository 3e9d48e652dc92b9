"""Latency as wrk saw it, whole: how many requests took how many microseconds.

wrk itself prints no percentile above the 99th. A script that runs once, at its end, writes out all it has
recorded; it defines no function for requests or responses, so the load is the same as without it.

wrk 4.1 corrects for what it calls coordinated omission: a stall of n times the mean interval of a connection
counts n times. It does so in every arm.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.bench.errors import BenchError

SCRIPT = """\
function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format("penstock-run %d %d %d", summary.duration, summary.requests,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
  for i = 1, #latency do
    local value, count = latency(i)
    print(string.format("penstock-us %d %d", value, count))
  end
end
"""

Histogram = Mapping[int, int]
"""Microseconds → requests; three significant digits."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the load generator: requests that were answered, requests that failed, seconds it took."""

    seconds: float
    requests: int
    errors: int
    histogram: Histogram

    @property
    def rps(self) -> float:
        return self.requests / self.seconds


def read(text: str) -> Run:
    """What wrk with SCRIPT prints. Raises BenchError if it is something else."""
    found = re.search(r"^penstock-run (\d+) (\d+) (\d+)$", text, re.MULTILINE)
    if found is None or not int(found[2]):
        raise BenchError(f"wrk said something else: {text[-500:]}")
    counts: Counter[int] = Counter()
    for value, count in re.findall(r"^penstock-us (\d+) (\d+)$", text, re.MULTILINE):
        counts[rounded(int(value))] += int(count)
    return Run(int(found[1]) / 1e6, int(found[2]), int(found[3]), dict(sorted(counts.items())))


def rounded(value: int) -> int:
    """To three significant digits."""
    unit = int(10 ** max(len(str(value)) - 3, 0))
    return round(value / unit) * unit


def merge(histograms: Iterable[Histogram]) -> Histogram:
    merged: Counter[int] = Counter()
    for each in histograms:
        merged.update(each)
    return dict(sorted(merged.items()))


def percentile(histogram: Histogram, share: float) -> int:
    """The nearest rank, in µs; `share` in percent. Raises ValueError if the histogram is empty."""
    total = sum(histogram.values())
    if total == 0:
        raise ValueError("no samples")
    seen = 0
    for value in sorted(histogram):
        seen += histogram[value]
        if seen * 100 >= share * total - 1e-6:
            return value
    return max(histogram)


def text(histogram: Histogram) -> str:
    """One line, for files: `52:103 53:240 …`."""
    return " ".join(f"{value}:{count}" for value, count in histogram.items())


def read_text(line: str) -> Histogram:
    """What `text` wrote."""
    pairs = (pair.split(":") for pair in line.split())
    return {int(value): int(count) for value, count in pairs}
