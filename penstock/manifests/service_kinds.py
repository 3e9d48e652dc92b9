"""The finer fields of a v1 Service, and what annotations of ours say about one.

Sources: Kubernetes API v1.31 (SessionAffinityConfig); Maglev: A Fast and Reliable Software Network Load
Balancer (NSDI 2016), 5.3, for the table's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from penstock.manifests.base import Kind

if TYPE_CHECKING:
    from penstock.manifests.kinds import Service

ALGORITHM = "penstock.dev/load-balancing"
TABLE_SIZE = "penstock.dev/maglev-table-size"
ALGORITHMS = ("random", "maglev")
TABLE_SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381)
"""Primes below the powers of two. A table should be some hundred times as large as there are backends."""
DEFAULT_TABLE_SIZE = 16381
AFFINITY_SECONDS = 10800


class ClientIPConfig(Kind, frozen=True):
    timeout_seconds: int | None = None


class SessionAffinityConfig(Kind, frozen=True):
    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


def affinity_seconds(service: Service) -> int:
    """How long a client stays with its backend after its last connection; 0 where it does not."""
    if service.spec.session_affinity != "ClientIP":
        return 0
    config = service.spec.session_affinity_config
    given = config.client_ip.timeout_seconds if config and config.client_ip else None
    return AFFINITY_SECONDS if given is None else given


def maglev_size(service: Service) -> int:
    """The size of the Service's Maglev table; 0 where backends are chosen at random."""
    notes = service.metadata.annotations
    if notes.get(ALGORITHM) != "maglev":
        return 0
    return int(notes.get(TABLE_SIZE, DEFAULT_TABLE_SIZE))
