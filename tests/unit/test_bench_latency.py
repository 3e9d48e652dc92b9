"""What `bench latency` makes of its samples, and what its sidecars are told."""

from __future__ import annotations

import json
import re
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench import histogram, latency, sidecar
from penstock.bench.cpu import Spent
from penstock.bench.errors import BenchError
from penstock.bench.serving import HTTP2_PORT, HTTP_PORT
from penstock.bench.stats import percentile
from penstock.bench.ways import ARMS

WRK = """\
Running 2s test @ http://10.244.1.11:8080/
  2000 requests in 2.00s, 2.4MB read
penstock-run 2000123 2000 {errors}
penstock-us 52 1500
penstock-us 20437 499
penstock-us 20441 1
"""


def test_wrk_says_everything() -> None:
    run = histogram.read(WRK.format(errors=0))
    assert (run.requests, run.errors) == (2000, 0)
    assert run.rps == pytest.approx(999.9, abs=0.1)
    # Three digits are kept.
    assert run.histogram == {52: 1500, 20400: 500}


def test_wrk_tells_of_errors() -> None:
    assert histogram.read(WRK.format(errors=7)).errors == 7


@pytest.mark.parametrize("said", ["unable to connect", "penstock-run 2000123 0 0\n"])
def test_a_run_without_answers_is_no_measurement(said: str) -> None:
    with pytest.raises(BenchError):
        histogram.read(said)


@given(st.lists(st.lists(st.integers(1, 5000), min_size=1, max_size=50), min_size=1, max_size=4))
def test_percentiles_of_merged_histograms_are_those_of_all_samples(rounds: list[list[int]]) -> None:
    merged = histogram.merge(Counter(samples) for samples in rounds)
    everything = [sample for samples in rounds for sample in samples]
    for share in (50, 90, 99, 99.9, 100):
        assert histogram.percentile(merged, share) == percentile(everything, share)


@given(st.dictionaries(st.integers(1, 10**7), st.integers(1, 10**6)))
def test_a_histogram_is_kept_as_text(found: dict[int, int]) -> None:
    assert histogram.read_text(histogram.text(found)) == found


def test_no_samples_have_no_percentile() -> None:
    with pytest.raises(ValueError):
        histogram.percentile({}, 50)


def test_what_the_idle_machine_spends_is_taken_off_and_never_more() -> None:
    spent = Spent(user=2.0, system=1.0, softirq=0.1).without(Spent(0.1, 0.1, 0.1), seconds=2)
    assert (spent.user, spent.system, spent.softirq) == (1.8, 0.8, 0.0)


def sample(us: int, rps: float, **more: Any) -> dict[str, Any]:
    requests = round(rps * 2)
    return {
        "seconds": 2.0, "requests": requests, "errors": 0, "rps": rps, "user_ms": 1000, "system_ms": 500,
        "softirq_ms": 500, "proxies_ms": 600, "receivers_ms": 10, "workers_ms": [[300, 200]], "rss_mb": 70.0,
        "histogram_us": {us: requests}, **more,
    }  # fmt: skip


# Latency at one connection, throughput at 32.
FIGURES = {
    "none": (50, 100_000), "self": (51, 99_000), "programs": (51, 98_000), "node": (140, 40_000),
    "none-remote": (60, 90_000), "node-remote": (260, 20_000), "node-remote-mtls": (310, 15_000),
    "sidecar": (250, 20_000), "sidecar-mtls": (350, 16_000),
}  # fmt: skip


SETTINGS = {"arms": dict(ARMS), "idle_cpu_ms_per_s": 20.0}


def samples() -> dict[str, dict[int, list[dict[str, Any]]]]:
    return {arm: {1: [sample(us, 1e6 / us)], 32: [sample(us * 4, rps)]} for arm, (us, rps) in FIGURES.items()}


def test_the_arms_are_those_that_are_told_of() -> None:
    assert list(FIGURES) == list(FIGURES | dict.fromkeys(ARMS)) and set(FIGURES) == set(ARMS)


def test_ratios_and_bars() -> None:
    result = latency.result(samples(), SETTINGS)
    ratios = result.ratios
    assert ratios["added p50, node / sidecar"] == round(90 / 200, 4)
    assert ratios["added p50, node / sidecar-mtls"] == 0.3
    # Between nodes what is added is added to the way between nodes.
    assert ratios["added p50, node-remote / sidecar"] == 1.0
    assert ratios["throughput, node / sidecar-mtls"] == 2.5
    assert ratios["cpu, node / sidecar-mtls"] == 0.4
    assert ratios["workers at 32"] == 0.667
    held = {bar.name: bar.held for bar in result.bars}
    assert held["added p50, node / sidecar-mtls"] and held["throughput, node / sidecar"]
    assert not held["workers at 32"]


def test_a_busy_machine_says_nothing_of_processor_time() -> None:
    busy = latency.result(samples(), {**SETTINGS, "idle_cpu_ms_per_s": 500.0})
    for result, clear in ((latency.result(samples(), SETTINGS), True), (busy, False)):
        assert [bar.clear for bar in result.bars if bar.name == "cpu, node / sidecar-mtls"] == [clear]


def test_medians_of_rounds_and_whole_distributions() -> None:
    found = latency.summary([sample(100, 1000), sample(100, 1000), sample(900, 500, errors=1)])
    assert (found["p50_us"], found["p99_us"]) == (100, 900)
    assert (found["rps"], found["errors"]) == (1000, 1)
    assert found["cpu_ms_per_1k"] == 1000.0
    assert found["proxy_cpu_ms_per_1k"] == 300.0


def test_a_run_with_failures_is_no_result() -> None:
    bad = samples()
    bad["node"][32][0]["errors"] = 3
    with pytest.raises(BenchError, match="node"):
        latency.result(bad, SETTINGS)


def test_the_report_names_every_arm_and_every_bar() -> None:
    data = latency.result(samples(), SETTINGS).data()
    text = latency.markdown(data)
    for words in (*ARMS.values(), *(bar["name"] for bar in data["bars"])):
        assert words in text
    assert json.dumps(data)


def test_the_page_is_well_formed_and_tells_of_every_arm() -> None:
    data = latency.result(samples(), SETTINGS).data()
    text = latency.reports(data)[".html"]
    plots = re.findall("<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) == 5
    for plot in plots:
        drawing = ElementTree.fromstring(plot)
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", " ".join(p.get("d", "") for p in drawing))]
        # Nothing is drawn outside.
        assert all(0 <= number <= 640 for number in numbers)
    assert all(escape(words) in text for words in ARMS.values())


def test_a_sidecar_goes_to_its_peer_and_takes_only_get() -> None:
    config = json.loads(sidecar.bootstrap("10.0.0.1", "10.0.0.2", Path("/run/als.sock")))
    clusters = {cluster["name"]: json.dumps(cluster) for cluster in config["static_resources"]["clusters"]}
    for port in (HTTP_PORT, HTTP2_PORT):
        inward, outward = clusters[f"inbound-{port}"], clusters[f"outbound-{port}"]
        assert '"10.0.0.1"' in inward and '"127.0.0.6"' in inward
        assert '"10.0.0.2"' in outward
    outbound, inbound = (json.dumps(listener) for listener in config["static_resources"]["listeners"])
    assert "filters.http.rbac" in inbound and "filters.http.rbac" not in outbound
    assert "transport_socket" not in inbound
    assert "http_grpc" in inbound and "http_grpc" in outbound


def test_a_sidecar_with_an_identity_demands_its_peers() -> None:
    identity = sidecar.Identity("spiffe://cluster.local/ns/default/sa/own", "c", "k", "b")
    config = sidecar.bootstrap("10.0.0.1", "10.0.0.2", Path("/s"), identity=identity, peer_id="spiffe://peer")
    resources = json.loads(config)["static_resources"]
    _, inbound = resources["listeners"]
    for chain in inbound["filter_chains"]:
        assert chain["transport_socket"]["typed_config"]["require_client_certificate"] is True
    assert config.count('"exact": "spiffe://peer"') == 2 * len(inbound["filter_chains"])
