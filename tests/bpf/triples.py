"""A hundred thousand random triples of policies, workloads and packets, read three ways: as root,

    PYTHONPATH=. python tests/bpf/triples.py [HOW MANY]

Ends with how many were compared, or with the first difference as a case to keep. `make test` compares fewer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


class Counted:
    """Runs the comparison until enough was compared."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.compared, self.worlds = wanted, 0, 0

    @pytest.fixture
    def counted(self) -> Counted:
        return self


def main(wanted: int) -> int:
    counted = Counted(wanted)
    code = pytest.main(["-q", "-p", "no:cacheprovider", str(HERE / "triples.py")], plugins=[counted])
    word = "a difference" if code else "no difference"
    print(f"{counted.compared} triples in {counted.worlds} worlds: {word}")
    return int(code)


def test_triples(kernel: object, counted: Counted) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from policy_cases import POLICIES
    from policy_parties import parties
    from test_policy import _PORTS, compare

    @given(parties(), POLICIES, _PORTS)
    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    def some(everyone, policies, ports):  # type: ignore[no-untyped-def]
        counted.compared += compare(kernel, everyone, policies, ports)  # type: ignore[arg-type]
        counted.worlds += 1

    while counted.compared < counted.wanted:
        some()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
