"""What the benchmarks of many objects share: their manifests, and folders of them that come all at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.bench.site import DaemonUnderTest
from penstock.bench.stats import median

GATEWAY_API = "gateway.networking.k8s.io/v1"
_SETTLE = 120.0
"""Seconds that a whole folder may take until all of it is in force."""


def service(name: str, target: int, **spec: Any) -> dict[str, Any]:
    """A Service with one port, 80."""
    spec = {**spec, "ports": [{"name": "http", "port": 80, "targetPort": target}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def gateway(name: str) -> dict[str, Any]:
    listener = {"name": "http", "port": 80, "protocol": "HTTP"}
    spec = {"gatewayClassName": "penstock", "listeners": [listener]}
    return {"apiVersion": GATEWAY_API, "kind": "Gateway", "metadata": {"name": name}, "spec": spec}


def route(name: str, parent: Mapping[str, str], backend: str, path: str = "/") -> dict[str, Any]:
    """An HTTPRoute of one rule."""
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": path}}],
        "backendRefs": [{"name": backend, "port": 80}],
    }
    spec = {"parentRefs": [dict(parent)], "rules": [rule]}
    return {"apiVersion": GATEWAY_API, "kind": "HTTPRoute", "metadata": {"name": name}, "spec": spec}


def load(running: DaemonUnderTest, name: str, files: Mapping[str, str]) -> None:
    """Put all `files` in force at once: a directory that is renamed into place."""
    part = running.config.with_suffix(f".{name}")
    part.mkdir()
    for file, text in files.items():
        (part / file).write_text(text)
    os.rename(part, running.config / name)
    running.settle(_SETTLE)


def steps_of(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The medians of what a daemon says of the steps of its changes, in milliseconds."""
    return {name: round(median([step[name] for step in steps]), 2) for name in steps[0]}
