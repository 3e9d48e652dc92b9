"""Clients that keep asking over kept-alive connections, and a count of every answer.

A request that did not end with 200 failed, and so did one whose connection broke: nothing is tried again.
"""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from penstock.demo.client import Client


@dataclass(slots=True)
class Outcome:
    """What all clients saw. `pods` counts good answers by backend, `failures` tells each bad one."""

    pods: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    connections: int = 0

    @property
    def total(self) -> int:
        return self.pods.total() + len(self.failures)

    def told(self) -> tuple[str, ...]:
        """The counts, and the most frequent failures."""
        by_pod = ", ".join(f"{count} from {pod}" for pod, count in sorted(self.pods.items()))
        worst = Counter(self.failures).most_common(3)
        return (f"{by_pod}, {len(self.failures)} failed", *(f"{count} × {text}" for text, count in worst))


class Running:
    """`clients` threads, each with a connection of its own out of `netns`, until the block ends or each has
    sent `requests`, with `pause` seconds between two. `outcome` is complete after the block."""

    def __init__(
        self, netns: Path, address: str, path: str, *, clients: int, requests: int = 0, pause: float = 0.0
    ) -> None:
        self.outcome = Outcome()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        arguments = (netns, address, path, requests, pause)
        self._threads = [
            threading.Thread(target=self._ask, args=arguments, name=f"client {n}") for n in range(clients)
        ]

    def __enter__(self) -> Running:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _ask(self, netns: Path, address: str, path: str, requests: int, pause: float) -> None:
        client = Client(netns, address)
        sent = 0
        while not self._stop.wait(pause) and (not requests or sent < requests):
            sent += 1
            try:
                answer = client.ask(path)
                failure = "" if answer.status == 200 else f"{answer.status} {answer.body[:80]!r}"
            except (OSError, http.client.HTTPException) as error:
                client.close()
                failure = f"{type(error).__name__}: {error}"
            with self._lock:
                if failure:
                    self.outcome.failures.append(failure)
                else:
                    self.outcome.pods[answer.pod] += 1
        client.close()
        with self._lock:
            self.outcome.connections += client.connections


def run(netns: Path, address: str, path: str, *, clients: int, requests: int) -> Outcome:
    """Each of `clients` sends `requests`, one after the other."""
    running = Running(netns, address, path, clients=clients, requests=requests)
    running.__enter__()
    running.join()
    return running.outcome
