"""v1 Endpoints: where a Service without a selector has its backends, said in the older of the two ways.

What becomes of it stands in endpoints_mirror.py. Source: Kubernetes API v1 (Endpoints).
"""

from __future__ import annotations

from typing import Any, Literal

from penstock.manifests.base import Kind, ObjectMeta


class EndpointAddress(Kind, frozen=True):
    ip: str
    hostname: str | None = None
    node_name: str | None = None
    target_ref: Any = None


class EndpointPort(Kind, frozen=True):
    port: int
    name: str = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    app_protocol: str | None = None


class EndpointSubset(Kind, frozen=True):
    """Each of the addresses serves each of the ports."""

    addresses: list[EndpointAddress] = []
    not_ready_addresses: list[EndpointAddress] = []
    ports: list[EndpointPort] = []


class Endpoints(Kind, frozen=True):
    """Of the Service that has its name."""

    api_version: str
    kind: Literal["Endpoints"]
    metadata: ObjectMeta
    subsets: list[EndpointSubset] = []
