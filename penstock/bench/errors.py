"""Errors of the benchmarks."""

from __future__ import annotations

from penstock.errors import HostError, PenstockError


class BenchError(PenstockError):
    """What was to be measured did not happen."""


class ToolMissingError(HostError):
    """A load generator or a server is not installed."""
