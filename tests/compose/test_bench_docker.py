"""`penstock bench docker` in small: it measures all that it says. How fast anything is is not asked."""

from __future__ import annotations

from pathlib import Path

from penstock.bench import docker as bench
from penstock.bench.containers import IMAGE, NAME, crowd
from penstock.lab.engine import Engine

CONTAINERS = 6
ACTIONS = {"pause", "unpause", "connect", "disconnect", "stop", "start", "restart", "kill"}


def test_a_crowd_is_measured_and_nobody_loses_a_request(docker: Engine, tmp_path: Path) -> None:
    try:
        with crowd(docker, tmp_path, bench._manifests()) as there:
            figures = bench._crowd(there, CONTAINERS, lambda _: None)
            followed = bench._followed(there, 1)
        assert len(figures["steered"]) == CONTAINERS // 2
        assert all(0 < seconds < 20 for seconds in figures["steered"])
        assert figures["daemon_mb"] > 10
        assert figures["asked"] > 20
        assert figures["lost"] == 0, figures["seen"]
        assert followed.keys() == ACTIONS
        assert all(len(delays) == 1 for delays in followed.values())
    finally:
        for each in docker.request("GET", f'/containers/json?all=1&filters={{"ancestor":["{IMAGE}"]}}'):
            docker.request("DELETE", f"/containers/{each['Id']}?force=1")
        for each in docker.request("GET", "/networks"):
            if each["Name"] in ("bench", "bench-side"):
                docker.request("DELETE", f"/networks/{each['Id']}")
    assert not Path(f"/run/penstock-{NAME}").exists()
