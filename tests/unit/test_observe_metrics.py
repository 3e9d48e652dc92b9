"""The metrics as text, read back by Prometheus' own parser."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.errors import HostError, UsageError
from penstock.metrics import served
from penstock.observe.metrics import Metrics, gauge, of_certificates, of_status

STATUS = {
    "settled": True,
    "errors": [],
    "objects": [{"state": "in force"}, {"state": "in force"}, {"state": "refused"}],
    "counters": {"POLICY_DENIED_INGRESS": {"packets": 3, "bytes": 180}},
    "envoy": {"connected": True, "nacks": 2},
    "requests_not_recorded": 7,
    "dns": {"needed": True, "ready": True, "hung": 1, "addresses": 3, "answers": {"REFUSED": 1}},
    "limits": {"map policy": [10, 1000]},
    "overflow": {"services": 70_000},
    "pressure": ["the table conntrack is full"],
    "floods": ["a flood"],
    "last_apply_ms": {"built": 1.0, "done": 12.0},
}
HEALTH = {
    "nearest_expiry_seconds": 60.5,
    "oldest_age_seconds": 9.0,
    "failures": [{}],
    "warnings": [],
    "root_expiry_seconds": 86400,
    "intermediate_expiry_seconds": 3600,
}
ENTRY = {"workload": 'default/we"b', "spiffe_id": "spiffe://x/ns/default/sa/web", "remaining_seconds": 60}


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_what_status_knows_and_every_expiry() -> None:
    metrics = Metrics()
    metrics.add(lambda: of_status(STATUS))
    metrics.add(lambda: of_certificates(HEALTH, [ENTRY]))
    found = samples(metrics)
    assert found["penstock_packets_total", "POLICY_DENIED_INGRESS"] == 3
    assert found["penstock_objects", "in force"] == 2
    assert found["penstock_objects", "pending"] == 0
    assert found["penstock_envoy_refusals_total",] == 2
    assert found["penstock_table_limit", "map policy"] == 1000
    assert found["penstock_table_refused", "services"] == 70_000
    assert found["penstock_tables_full",] == 1
    assert found["penstock_floods",] == 1
    assert found["penstock_last_apply_seconds",] == pytest.approx(0.012)
    assert found["penstock_certificate_remaining_seconds", str(ENTRY["spiffe_id"]), 'default/we"b'] == 60
    assert found["penstock_ca_remaining_seconds", "root"] == 86400
    assert found["penstock_certificate_failures",] == 1


def test_without_certificates_there_is_no_sample_rather_than_a_wrong_one() -> None:
    metrics = Metrics()
    metrics.add(lambda: of_certificates({**HEALTH, "nearest_expiry_seconds": None}, []))
    assert ("penstock_certificate_nearest_expiry_seconds",) not in samples(metrics)


def test_others_add_their_own() -> None:
    metrics = Metrics()
    metrics.add(lambda: [gauge("of_a_lane", "said", 4)])
    assert samples(metrics) == {("penstock_of_a_lane",): 4}


async def test_they_are_served_over_http() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(HostError, match="cannot be served"):
            async with served(f"127.0.0.1:{port}", lambda: b""):
                pass
    async with served(f"127.0.0.1:{port}", lambda: b"a 1\n"), aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert (answer.status, await answer.read()) == (200, b"a 1\n")
        async with session.get(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 404
    with pytest.raises(UsageError):
        async with served("nowhere", lambda: b""):
            pass
