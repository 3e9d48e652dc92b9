"""The benchmarks end with figures and leave nothing, however they end. How fast anything is is not asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock.bench import handshake, issue, latency, rotation
from penstock.bench.ways import ARMS

pytestmark = pytest.mark.alone

PENSTOCK = (sys.executable, "-m", "penstock.cli")


def left() -> list[str]:
    """What a benchmark made that is still there: mounts, processes, run directories, namespaces."""
    mounts = [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/penstock-bench" in line
    ]
    commands = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"/run/penstock-bench" in _read(path) or b"penstock.bench.answer" in _read(path)
    ]
    files = [*Path("/run").glob("penstock-bench*"), *Path("/run/netns").glob("bench-*")]
    return [*mounts, *commands, *map(str, files)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def start(arguments: Sequence[str], directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PENSTOCK, "bench", *arguments, "--results", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_policy_latency_is_measured_and_kept(tmp_path: Path) -> None:
    done = start(["policy", "--quick", "-o", "json"], tmp_path)
    out, err = done.communicate(timeout=180)
    assert done.returncode == 0, err
    found = json.loads(out)
    assert len(found["raw"]["l4_ms"]) == len(found["raw"]["l7_ms"]) == 15
    # The connection through Envoy lives through every change of its rule.
    assert found["arms"]["l7_connections_lost"]["count"] == 0
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == found
    assert left() == []


def test_one_that_is_ended_takes_everything_down(tmp_path: Path) -> None:
    running = start(["policy", "--quick"], tmp_path)
    assert running.stderr is not None
    for line in running.stderr:
        if "10/30 changes" in line:
            break
    assert left() != []
    os.kill(running.pid, signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert left() == []


def test_every_arm_of_latency_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "QUICK_ROUNDS", 1)
    monkeypatch.setattr(latency, "QUICK_SECONDS", 1)
    result = latency.run(lambda _: None, quick=True)
    assert list(result.arms) == list(ARMS)
    for arm, loads in result.arms.items():
        for figures in loads.values():
            assert figures["errors"] == 0
            assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["p999_us"]
            # What has no proxy spends nothing in one.
            proxied = "node" in arm or "sidecar" in arm
            assert (figures["proxy_cpu_ms_per_1k"] > 0) is (figures["rss_mb"] > 0) is proxied
    assert len(result.raw["sidecar"]["32"]) == 1
    assert left() == []


def test_latency_that_is_ended_takes_everything_down(tmp_path: Path) -> None:
    running = start(["latency", "--quick"], tmp_path)
    assert running.stderr is not None
    for line in running.stderr:
        if "idle" in line:
            break
    os.kill(running.pid, signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert left() == []


def test_memory_of_sidecars_is_measured(tmp_path: Path) -> None:
    done = start(["memory-sidecars", "--quick", "-o", "json"], tmp_path)
    out, err = done.communicate(timeout=180)
    assert done.returncode == 0, err
    found = json.loads(out)
    node, sidecars = found["arms"]["node"], found["arms"]["sidecars"]
    assert 0 < node["rss_mb"] < sidecars["rss_mb"]
    assert 0 < sidecars["pss_mb"] < sidecars["rss_mb"]
    assert left() == []


def test_certificates_and_roots_are_replaced_and_nothing_fails() -> None:
    """The short form of the bar: three nodes, one restarted in the middle, one down for a stage."""
    result = rotation.run(lambda _: None, quick=True)
    every = result.arms["all"]
    assert (every["failed"], every["closed"]) == (0, 0), result.raw["counts"]
    assert len(result.raw["leaf_ms"]) == rotation.QUICK_LEAVES
    assert len(result.raw["root_ms"]) == rotation.ROOTS
    for kind in ("keep-alive", "connection each", "handshake each", "gRPC stream", "TCP"):
        assert result.arms[kind]["done"] > 100
    for kind in ("keep-alive", "gRPC stream", "TCP"):
        assert result.arms[kind]["opened"] == 2
    assert left() == []


def test_handshakes_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "QUICK_ROUNDS", 1)
    result = handshake.run(lambda _: None, quick=True)
    assert result.arms["plain"]["handshakes"] == result.arms["plain-http"]["handshakes"] == 0
    assert result.arms["mtls"]["handshakes_each"] == pytest.approx(1, abs=0.2)
    assert result.arms["mtls-http"]["handshakes_each"] < 0.5
    assert result.arms["crypto"]["resumed_us"] < result.arms["crypto"]["full_us"]
    assert left() == []


def test_issuing_is_measured() -> None:
    result = issue.run(lambda _: None, quick=True)
    renewals = {name: arm for name, arm in result.arms.items() if name.startswith("renewals")}
    assert {
        name: arm["a_second"] > 0 for name, arm in result.arms.items() if name not in renewals
    } == dict.fromkeys(("node", "sign", "read", "all"), True)
    assert all(each["ratio"] <= 3 for each in renewals.values() if each["mean"] >= 1)
    assert any(each["mean"] >= 1 for each in renewals.values())
