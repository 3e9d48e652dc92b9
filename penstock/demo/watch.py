"""What a daemon tells, as it happens: flows and requests are waited for, never slept for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.control import ControlClient
from penstock.errors import PenstockError
from penstock.observe.flows import KEPT

Record = dict[str, Any]


class Watch:
    """Follows `penstock observe` of one node in a thread of its own. Use as a context manager."""

    def __init__(self, run_dir: Path) -> None:
        self._client = ControlClient(run_dir)
        self._records: list[Record] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name=f"observe {run_dir.name}", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.__exit__()
        self._thread.join(5)

    def _follow(self) -> None:
        try:
            for record in self._client.stream("observe", last=KEPT, follow=True):
                with self._changed:
                    self._records.append(record)
                    self._changed.notify_all()
        except (PenstockError, ValueError):
            pass  # the channel was closed, or the daemon ended; who waits for a record will miss it

    def mark(self) -> int:
        """The present end, to give to `after`."""
        with self._changed:
            return len(self._records)

    def after(self, mark: int, fits: Callable[[Record], bool], seconds: float = 5.0) -> Record | None:
        """The first record after `mark` that `fits`, waited for at most `seconds`; None if none came."""

        def found() -> Record | None:
            return next((r for r in self._records[mark:] if fits(r)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None, seconds)
            return found()


def flow(source: str, destination: str, port: int) -> Callable[[Record], bool]:
    """Fits the kernel's record of a flow. Parties are names as `observe` prints them, or addresses."""

    def fits(record: Record) -> bool:
        return (
            record["type"] == "flow"
            and source in (record["source"]["name"], record["source"]["address"])
            and destination in (record["destination"]["name"], record["destination"]["address"])
            and record["destination"]["port"] == port
        )

    return fits


def request(source: str, path: str) -> Callable[[Record], bool]:
    """Fits Envoy's record of a request."""

    def fits(record: Record) -> bool:
        return (
            record["type"] == "request"
            and source in (record["source"]["name"], record["source"]["address"])
            and record.get("path") == path
        )

    return fits
