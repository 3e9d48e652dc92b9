"""Nothing that changes costs a request: the short form of `penstock bench disruption`."""

from __future__ import annotations

import pytest

from penstock.bench import disruption

pytestmark = pytest.mark.alone


def test_no_request_fails_while_things_change() -> None:
    """A weight, a route edited, added and removed; backends; a certificate; another's policy; the daemon."""
    result = disruption.run(lambda _: None, quick=True)
    assert list(result.arms) == list(disruption.EVENTS)
    found = {name: (f["codes"], f["failed"]) for name, f in result.arms.items()}
    good = ({"3xx": 0, "4xx": 0, "5xx": 0}, 0)
    assert found == dict.fromkeys(disruption.EVENTS, good)
    assert all(f["answers"] >= 1000 for f in result.arms.values())
