"""What other programs and the kernel say, as the benchmarks read it; and the result they make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.bench.errors import BenchError
from penstock.bench.memory import read_rollup
from penstock.bench.record import Bar, Result, save
from penstock.bench.serving import HttpLoad, read_wrk

WRK = """\
Running 4s test @ http://10.244.1.11:8080/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   412.57us    1.07ms  20.11ms   98.04%
    Req/Sec   103.45k     5.22k  112.10k    70.00%
  Latency Distribution
     50%  281.00us
     75%  330.00us
     90%    1.40ms
     99%    1.02s
  411799 requests in 4.00s, 468.74MB read
{errors}Requests/sec: 102934.49
Transfer/sec:    117.17MB
"""


def test_wrk() -> None:
    assert read_wrk(WRK.format(errors="")) == HttpLoad(102934.49, 281.0, 1400.0, 1020000.0, 0)


def test_wrk_with_errors() -> None:
    errors = "  Socket errors: connect 1, read 2, write 0, timeout 4\n  Non-2xx or 3xx responses: 10\n"
    assert read_wrk(WRK.format(errors=errors)).errors == 17


def test_wrk_that_could_not_connect() -> None:
    with pytest.raises(BenchError, match="unable to connect"):
        read_wrk("unable to connect to 10.244.1.11:8080 Connection refused\n")


def test_memory_of_a_process() -> None:
    text = (
        "00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss:   92160 kB\nPss:   51200 kB\nAnonymous: 1024 kB\n"
    )
    assert read_rollup(text) == {"rss_mb": 90.0, "pss_mb": 50.0, "own_mb": 1.0}


def test_bars() -> None:
    assert Bar("rss", 89.9, 90.0).held
    assert not Bar("rss", 90.0, 90.0).held
    assert Bar("ratio", 0.97, 0.97, above=True).held
    assert not Bar("ratio", 0.969, 0.97, above=True).held


def test_a_bar_within_the_noise_is_not_clear() -> None:
    assert Bar("ratio", 1.0, 0.97, above=True, noise=0.01).clear
    assert not Bar("ratio", 1.0, 0.97, above=True, noise=0.04).clear
    assert Bar("rss", 90.0, 90.0).clear


def test_results_are_kept_as_data(tmp_path: Path) -> None:
    bars = (Bar("median", 12.5, 50.0, "ms"),)
    result = Result(
        "policy", "how", {"changes": 1}, {"l4": {"median": 12.5}}, bars=bars, raw={"l4_ms": [12.5]}
    )
    path = save(result.data(), tmp_path / "results")
    kept = json.loads(path.read_text())
    assert path.name.startswith("policy-2")
    assert kept["raw"] == {"l4_ms": [12.5]}
    assert kept["bars"][0]["held"] is True
    assert kept["machine"]["cpus"] >= 1 and kept["machine"]["kernel"]
