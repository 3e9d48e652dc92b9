"""`penstock bench issue`: how fast one CA process issues leaves, and where the time goes.

A node makes the key and the request; the CA checks the request, signs, and notes what it signed. Each part is
timed by itself over the same leaves, in turns of a hundred, and so is the whole.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from penstock.bench.record import Bar, Result
from penstock.mtls import certificates, svid
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.verify import verify

LEAVES, QUICK_LEAVES = 10_000, 1_000
TURN = 100
DOMAIN = "bench.test"

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    leaves = QUICK_LEAVES if quick else LEAVES
    raw: dict[str, list[float]] = {"node": [], "sign": [], "read": []}
    with tempfile.TemporaryDirectory(prefix="penstock-issue-") as folder:
        ca = CertificateAuthority.open(Path(folder) / "ca", DOMAIN)
        for begin in range(0, leaves, TURN):
            _turn(ca, range(begin, begin + TURN), raw)
        tell(f"{leaves} leaves")
    total = {part: sum(samples) for part, samples in raw.items()}
    rate = leaves / total["sign"]
    return Result(
        bench="issue",
        method="one CA process, its directory on disk: a hundred keys with their requests, then a hundred "
        "signatures (request checked, signed, noted), then a hundred chains read back, and so on",
        settings={"leaves": leaves},
        arms={
            part: {"ms_each": round(1000 * spent / leaves, 4), "a_second": round(leaves / spent, 1)}
            for part, spent in {**total, "all": sum(total.values())}.items()
        },
        bars=(Bar("leaves that one CA process signs", round(rate, 1), 1000, "/s", above=True),),
        raw=raw,
    )


def _turn(ca: CertificateAuthority, numbers: range, raw: dict[str, list[float]]) -> None:
    began = time.perf_counter()
    made = [certificates.new_key() for _ in numbers]
    asked = [certificates.signing_request(key) for key in made]
    raw["node"].append(time.perf_counter() - began)
    began = time.perf_counter()
    chains = [
        ca.sign(csr, _id(number), timedelta(hours=24), owner=f"default/w{number}")
        for number, csr in zip(numbers, asked, strict=True)
    ]
    raw["sign"].append(time.perf_counter() - began)
    began = time.perf_counter()
    for number, chain, key in zip(numbers, chains, made, strict=True):
        svid.read(("default", f"w{number}"), _id(number), chain, certificates.key_pem(key))
    raw["read"].append(time.perf_counter() - began)
    verify(chains[0], ca.bundle_pem, now=time.time(), spiffe_id=_id(numbers[0]))


def _id(number: int) -> str:
    return f"spiffe://{DOMAIN}/ns/default/sa/w{number}"


COLUMNS = ("PART", "MS EACH", "A SECOND")
_WORDS = {
    "node": "key and request, on the node",
    "sign": "signed and noted, by the CA",
    "read": "read back, on the node",
    "all": "all, in one process",
}


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: one line for each part."""
    return [(_WORDS[part], each["ms_each"], each["a_second"]) for part, each in data["arms"].items()]
