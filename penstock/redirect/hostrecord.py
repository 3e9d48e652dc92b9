"""What was changed of the node's own settings, written down, so that `down` takes back exactly that."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from penstock.files import write_atomically


class Done(msgspec.Struct):
    """Sysctl → value before, routes to other nodes (direct, and by a tunnel),
    addresses of Gateways, and addresses of Services that are answered for."""

    sysctls: dict[str, str] = {}
    routes: dict[str, str] = {}
    tunnels: dict[str, str] = {}
    addresses: list[str] = []
    answered: list[str] = []


class HostRecord:
    """`file` is what `down` reads; it may be another process that changed something."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.done = Done()
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            self.done = msgspec.json.decode(file.read_bytes(), type=Done)

    def sysctl(self, name: str, value: str) -> None:
        """Set it where it is not so already. Raises OSError."""
        before = sysctl(name)
        if before == value:
            return
        Path("/proc/sys", name).write_text(value)
        self.done.sysctls.setdefault(name, before)

    def save(self) -> None:
        write_atomically(self._file, msgspec.json.encode(self.done), durable=False)

    def take_back(self) -> None:
        """The sysctls; and nothing is written down any more."""
        for name, before in self.done.sysctls.items():
            with suppress(OSError):
                Path("/proc/sys", name).write_text(before + "\n")
        self.done = Done()
        self._file.unlink(missing_ok=True)


def sysctl(name: str) -> str:
    """As `sysctl -n` prints it, with single blanks. Raises OSError."""
    return " ".join(Path("/proc/sys", name).read_text().split())
