"""The metrics as text, read back by Prometheus' own parser."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.errors import HostError, UsageError
from penstock.metrics import served
from penstock.observe.certificate_metrics import of_authority, of_certificates
from penstock.observe.metrics import Metrics, gauge, of_status

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
    "attempts": [{"workload": "default/web", "spiffe_id": "spiffe://x/ns/default/sa/web", "failed": 4}],
    "roots_expiry_seconds": {"ab12": 86400, "cd34": 864000},
    "rotation_age_seconds": 12,
    "rotation": "root trust",
    "jwt_key_age_seconds": 3 * 86400,
    "jwt_key_expiry_seconds": 27 * 86400,
    "revocations": 7,
    "revocations_in_force": 6,
    "ca_link": {"connected": 0.0, "silent": 33.0, "node_certificate": 4000.0},
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
    assert found["penstock_certificate_failed_attempts", "spiffe://x/ns/default/sa/web", "default/web"] == 4
    assert found["penstock_trusted_root_remaining_seconds", "cd34"] == 864000
    assert found["penstock_ca_rotation_age_seconds", "root trust"] == 12
    assert found["penstock_jwt_key_age_seconds",] == 3 * 86400
    assert found["penstock_jwt_key_remaining_seconds",] == 27 * 86400
    assert found["penstock_revocations",] - found["penstock_revocations_in_force",] == 1
    assert found["penstock_ca_connected",] == 0
    assert found["penstock_ca_silent_seconds",] == 33
    assert found["penstock_node_certificate_remaining_seconds",] == 4000


def test_without_certificates_there_is_no_sample_rather_than_a_wrong_one() -> None:
    metrics = Metrics()
    absent = {"nearest_expiry_seconds": None, "rotation_age_seconds": None, "ca_link": {}}
    metrics.add(lambda: of_certificates({**HEALTH, **absent}, []))
    found = {name for name, *_ in samples(metrics)}
    assert "penstock_jwt_key_age_seconds" in found
    for name in ("certificate_nearest_expiry", "ca_rotation_age", "ca_silent", "node_certificate_remaining"):
        assert f"penstock_{name}_seconds" not in found


def test_what_a_ca_server_counts() -> None:
    counted = {
        "answers": {"answered": 9, "refused": 2, "failed": 1},
        "nodes": 3,
        "root_expiry_seconds": 86400,
        "intermediate_expiry_seconds": 3600,
        "server_expiry_seconds": 60,
        "jwt_key_age_seconds": 5,
        "rotation_age_seconds": None,
        "rotation": "",
    }
    metrics = Metrics()
    metrics.add(lambda: of_authority(counted))
    found = samples(metrics)
    assert found["penstock_ca_answers_total", "refused"] == 2
    assert found["penstock_ca_remaining_seconds", "server"] == 60
    assert found["penstock_ca_nodes_connected",] == 3
    assert found["penstock_jwt_key_age_seconds",] == 5


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
