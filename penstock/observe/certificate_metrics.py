"""Metrics of certificates and of the CA: every expiry, failure and age, on nodes and where a CA is served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from penstock.observe.metrics import counters, gauge, gauges

JWT_AGE = "Since the key that signs JWTs was made"


def of_certificates(health: Mapping[str, Any], entries: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    """Expiries, ages and failures of certificates."""
    left = GaugeMetricFamily(
        "penstock_certificate_remaining_seconds",
        "Until a workload's certificate ends",
        labels=["workload", "spiffe_id"],
    )
    for each in entries:
        left.add_metric([each["workload"], each["spiffe_id"]], each["remaining_seconds"])
    yield left
    nearest = health["nearest_expiry_seconds"]
    yield gauge("certificate_nearest_expiry_seconds", "Until the first certificate ends", nearest)
    oldest = health["oldest_age_seconds"]
    yield gauge("certificate_oldest_age_seconds", "Since the oldest one in use was signed", oldest)
    yield gauge("certificate_failures", "Certificates that could not be had", len(health["failures"]))
    yield gauge("certificate_warnings", "What `status` warns of", len(health["warnings"]))
    ends = {role: health[f"{role}_expiry_seconds"] for role in ("root", "intermediate")}
    yield gauges("ca_remaining_seconds", "Until a certificate of the CA ends", "role", ends)
    trusted = health["roots_expiry_seconds"]
    yield gauges("trusted_root_remaining_seconds", "Until a trusted root ends", "serial", trusted)
    failed = GaugeMetricFamily(
        "penstock_certificate_failed_attempts",
        "Attempts in a row at a certificate that have failed",
        labels=["workload", "spiffe_id"],
    )
    for each in health["attempts"]:
        failed.add_metric([each["workload"], each["spiffe_id"]], each["failed"])
    yield failed
    age = health["rotation_age_seconds"]
    under_way = {health["rotation"]: age} if age is not None else {}
    yield gauges("ca_rotation_age_seconds", "Since a rotation of the CA was begun", "stage", under_way)
    yield gauge("jwt_key_age_seconds", JWT_AGE, health["jwt_key_age_seconds"])
    left_of_key = health["jwt_key_expiry_seconds"]
    yield gauge("jwt_key_remaining_seconds", "Until another key signs JWTs", left_of_key)
    yield gauge("revocations", "Number of the last change of what is revoked", health["revocations"])
    in_force = health["revocations_in_force"]
    yield gauge("revocations_in_force", "Number of the last such change that this node enforces", in_force)
    link = health["ca_link"]
    yield gauge("ca_connected", "1 while the CA server is connected", link.get("connected"))
    yield gauge("ca_silent_seconds", "Since the CA server was connected", link.get("silent"))
    own = link.get("node_certificate")
    yield gauge("node_certificate_remaining_seconds", "Until the node's own certificate ends", own)


def of_authority(counted: Mapping[str, Any]) -> Iterator[Metric]:
    """What a CA server counts, and when what it signs with ends (`AuthorityServer.counted`)."""
    ends = {role: counted[f"{role}_expiry_seconds"] for role in ("root", "intermediate", "server")}
    yield gauges("ca_remaining_seconds", "Until a certificate of the CA ends", "role", ends)
    yield gauge("jwt_key_age_seconds", JWT_AGE, counted["jwt_key_age_seconds"])
    yield gauge("ca_nodes_connected", "Nodes that follow the CA", counted["nodes"])
    yield counters("ca_answers", "Calls of nodes by what became of them", "outcome", counted["answers"])
    age = counted["rotation_age_seconds"]
    under_way = {counted["rotation"]: age} if age is not None else {}
    yield gauges("ca_rotation_age_seconds", "Since a rotation of the CA was begun", "stage", under_way)
