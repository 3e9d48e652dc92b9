"""`penstock bench issue`: how fast one CA process issues leaves, and where the time goes.

A node makes the key and the request; the CA checks the request, signs, and notes what it signed. Each part is
timed by itself over the same leaves, in turns of a hundred; by the clock, and in processor time, which says
what the rate is where nothing else runs.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from penstock.bench.record import Bar, Result
from penstock.mtls import certificates, schedule, svid
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.verify import verify

_PARTS = ("node", "sign", "read")
LEAVES, QUICK_LEAVES = 10_000, 1_000
TURN = 100
DOMAIN = "bench.test"
LIVES = {"24 h": 86400.0, "6 h": 21600.0, "1 h": 3600.0, "10 min": 600.0}
ROUNDS = 5
SPREAD_BAR = 3.0

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    leaves = QUICK_LEAVES if quick else LEAVES
    raw: dict[str, list[float]] = {part: [] for part in (*_PARTS, *(f"{part} cpu" for part in _PARTS))}
    with tempfile.TemporaryDirectory(prefix="penstock-issue-") as folder:
        ca = CertificateAuthority.open(Path(folder) / "ca", DOMAIN)
        for begin in range(0, leaves, TURN):
            _turn(ca, range(begin, begin + TURN), raw)
        tell(f"{leaves} leaves")
    total = {part: sum(raw[part]) for part in _PARTS}
    cpu = {part: sum(raw[f"{part} cpu"]) for part in _PARTS}
    cpu["all"] = sum(cpu.values())
    rate = leaves / total["sign"]
    renewals = {f"renewals, {name}": _renewals(LEAVES, life) for name, life in LIVES.items()}
    spread = max(each["ratio"] for each in renewals.values() if each["mean"] >= 1)
    return Result(
        bench="issue",
        method="one CA process, its directory on disk: a hundred keys with their requests, then a hundred "
        "signatures (request checked, signed, noted), then a hundred chains read back, and so on; "
        "renewals by the schedule",
        settings={"leaves": leaves},
        arms={
            **renewals,
            **{
                part: {
                    "ms_each": round(1000 * spent / leaves, 4),
                    "a_second": round(leaves / spent, 1),
                    "cpu_ms_each": round(1000 * cpu[part] / leaves, 4),
                }
                for part, spent in {**total, "all": sum(total.values())}.items()
            },
        },
        bars=(
            Bar("leaves that one CA process signs", round(rate, 1), 1000, "/s", above=True),
            Bar("renewals in the busiest second / mean, from a mean of 1 on", spread, SPREAD_BAR),
        ),
        raw=raw,
    )


def _turn(ca: CertificateAuthority, numbers: range, raw: dict[str, list[float]]) -> None:
    lap = _Lap(raw)
    made = [certificates.new_key() for _ in numbers]
    asked = [certificates.signing_request(key) for key in made]
    lap("node")
    chains = [
        ca.sign(csr, _id(number), timedelta(hours=24), owner=f"default/w{number}")
        for number, csr in zip(numbers, asked, strict=True)
    ]
    lap("sign")
    for number, chain, key in zip(numbers, chains, made, strict=True):
        svid.read(("default", f"w{number}"), _id(number), chain, certificates.key_pem(key))
    lap("read")
    verify(chains[0], ca.bundle_pem, now=time.time(), spiffe_id=_id(numbers[0]))


def _renewals(leaves: int, life: float) -> dict[str, float]:
    """How many leaves are renewed in a second: the mean, the most, the one by the other."""
    began, phase, seen = 1e9, 0.0, Counter[int]()
    for _ in range(leaves):
        phase = schedule.next_phase(phase)
        at = began
        while (at := schedule.due(at, life, phase)) < began + ROUNDS * life:
            seen[int(at)] += 1
    mean, most = leaves / (schedule.CYCLE * life), max(seen.values())
    return {"mean": round(mean, 2), "most": most, "ratio": round(most / mean, 2)}


class _Lap:
    """Notes the time since it was called last, by the clock and in processor time."""

    def __init__(self, raw: dict[str, list[float]]) -> None:
        self._raw = raw
        self._began = time.perf_counter(), time.process_time()

    def __call__(self, part: str) -> None:
        now = time.perf_counter(), time.process_time()
        for name, begun, ended in zip((part, f"{part} cpu"), self._began, now, strict=True):
            self._raw[name].append(ended - begun)
        self._began = now


def _id(number: int) -> str:
    return f"spiffe://{DOMAIN}/ns/default/sa/w{number}"


COLUMNS = ("PART", "MS EACH", "A SECOND", "CPU MS EACH")
_WORDS = {
    "node": "key and request, on the node",
    "sign": "signed and noted, by the CA",
    "read": "read back, on the node",
    "all": "all, in one process",
}


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: one line for each part."""
    arms = data["arms"]
    found: list[tuple[Any, ...]] = [
        (words, arms[part]["ms_each"], arms[part]["a_second"], arms[part]["cpu_ms_each"])
        for part, words in _WORDS.items()
    ]
    return found + [
        (name, "", f"{each['mean']:g}, at most {each['most']}", "")
        for name, each in arms.items()
        if name.startswith("renewals")
    ]
