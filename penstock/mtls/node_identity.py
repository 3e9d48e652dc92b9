"""The node's own key and certificate, by which it proves itself to a CA that is served elsewhere.

    node.pem      the key and the chain
    join.key      the key that a join token is used for, until there is a certificate for it

What it keeps true: a key never leaves this directory; a certificate is replaced only by a newer one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from cryptography import x509

from penstock.files import write_atomically
from penstock.mtls import certificates, show

_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
NEAR = 1 / 3
"""Of the certificate's life: with less left than this there is a warning."""


class NodeIdentity:
    """What `directory` holds; `chain` is empty before the node has joined. `clock` gives epoch seconds."""

    def __init__(self, directory: Path, clock: Callable[[], float]) -> None:
        self._directory, self._clock = directory, clock
        self.key, mark, chain = _text(directory / "node.pem").partition(_CERTIFICATE)
        self.chain = mark + chain

    @cached_property
    def _leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificates(self.chain.encode())[0]

    @property
    def _end(self) -> float:
        return self._leaf.not_valid_after_utc.timestamp()

    @property
    def over(self) -> bool:
        return self._end < self._clock()

    @property
    def until_renewal(self) -> float:
        """Seconds until half of its life is over."""
        return (self._leaf.not_valid_before_utc.timestamp() + self._end) / 2 - self._clock()

    def remaining(self, now: float) -> float | None:
        """Seconds until its end; None before the node has joined."""
        return self._end - now if self.chain else None

    def warnings(self, now: float) -> list[str]:
        left = self.remaining(now)
        if left is None or left >= NEAR * (self._end - self._leaf.not_valid_before_utc.timestamp()):
            return []
        return [
            f"this node's own certificate was not renewed: {show.remaining(left)} left; "
            "when it is over the node must join again"
        ]

    def joining_key(self) -> str:
        """Kept before it is used: a token is good for one key, and the answer may be lost."""
        file = self._directory / "join.key"
        key = _text(file)
        if not key:
            key = certificates.key_pem(certificates.new_key()).decode()
            write_atomically(file, key.encode())
        return key

    def keep(self, key: str, chain: str) -> None:
        write_atomically(self._directory / "node.pem", (key + chain).encode())
        self.key, self.chain = key, chain
        self.__dict__.pop("_leaf", None)
        (self._directory / "join.key").unlink(missing_ok=True)


def after_first(chain: str) -> str:
    """The certificates of a chain in PEM without the first."""
    return chain[chain.index(_CERTIFICATE, 1) :]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
