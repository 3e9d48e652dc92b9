"""What a monitoring system asks for, in Prometheus' text format: expiries, failures, ages, counters.

A source is a function that gives metric families when somebody looks; who has something to count adds one.
Names follow prometheus.io/docs/practices/naming: base units, `_total` for what only grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

Source = Callable[[], Iterable[Metric]]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Sources(Collector):
    def __init__(self) -> None:
        self.all: list[Source] = []

    def collect(self) -> Iterator[Metric]:
        for source in self.all:
            yield from source()


class Metrics:
    """One for a daemon."""

    def __init__(self) -> None:
        self._sources = _Sources()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._sources)

    def add(self, source: Source) -> None:
        self._sources.all.append(source)

    def text(self) -> bytes:
        return generate_latest(self._registry)


def gauge(name: str, said: str, value: float | None) -> GaugeMetricFamily:
    """One value without labels; no sample at all for None."""
    found = GaugeMetricFamily(f"penstock_{name}", said)
    if value is not None:
        found.add_metric([], value)
    return found


def gauges(name: str, said: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    found = GaugeMetricFamily(f"penstock_{name}", said, labels=[label])
    for key, value in values.items():
        found.add_metric([key], value)
    return found


def counters(name: str, said: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    found = CounterMetricFamily(f"penstock_{name}", said, labels=[label])
    for key, value in values.items():
        found.add_metric([key], value)
    return found


def of_status(status: Mapping[str, Any]) -> Iterator[Metric]:
    """What `penstock status` knows: the kernel's counters, what is settled, Envoy, the tables' fill."""
    yield gauge("settled", "1 when every object is settled", status["settled"])
    yield gauge("errors", "Errors of our own that keep a change from being in force", len(status["errors"]))
    states: dict[str, float] = dict.fromkeys(("in force", "pending", "refused", "applying"), 0)
    for each in status["objects"]:
        states[each["state"]] = states.get(each["state"], 0) + 1
    yield gauges("objects", "Objects by their state", "state", states)
    by_reason = status["counters"]
    packets = {reason: n["packets"] for reason, n in by_reason.items()}
    sizes = {reason: n["bytes"] for reason, n in by_reason.items()}
    yield counters("packets", "Packets (refused connections, for the proxy) by reason", "reason", packets)
    yield counters("bytes", "Bytes of those packets", "reason", sizes)
    yield gauge("envoy_connected", "1 while Envoy has its configuration stream", status["envoy"]["connected"])
    nacks = CounterMetricFamily("penstock_envoy_refusals", "Configuration that Envoy refused")
    nacks.add_metric([], status["envoy"]["nacks"])
    yield nacks
    lost = CounterMetricFamily("penstock_requests_not_recorded", "Requests that `observe` was not told of")
    lost.add_metric([], status["requests_not_recorded"])
    yield lost
    dns = status["dns"]
    yield gauge("dns_ready", "1 while the DNS proxy knows what is in force, or none is needed", _ready(dns))
    yield gauge("dns_addresses", "Addresses that workloads learned by names", dns.get("addresses", 0))
    hung = CounterMetricFamily("penstock_dns_hung", "DNS proxies that were replaced, since they hung")
    hung.add_metric([], dns["hung"])
    yield hung
    answers = dns.get("answers", {})
    yield counters("dns_answers", "Questions by what became of them", "rcode", answers)
    limits = status["limits"]
    yield gauges("table_entries", "Entries in use", "table", {k: used for k, (used, _) in limits.items()})
    yield gauges("table_limit", "Entries there may be", "table", {k: most for k, (_, most) in limits.items()})
    full = "Entries that were wanted of a table that holds fewer: what needs them is not in force"
    yield gauges("table_refused", full, "table", status["overflow"])
    yield gauge("tables_full", "Tables that forget who is idle, and are full", len(status["pressure"]))
    floods = "Kinds of packets that served nobody and came in masses within the last minute"
    yield gauge("floods", floods, len(status["floods"]))
    last = max(status["last_apply_ms"].values(), default=0.0) / 1000
    yield gauge("last_apply_seconds", "Time that the last change took", last)


def _ready(dns: Mapping[str, Any]) -> bool:
    return bool(dns["ready"] or not dns["needed"])


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
