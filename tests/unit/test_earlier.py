"""What a node's first daemon says of workloads that ran before it had put policies in force."""

from __future__ import annotations

from penstock.earlier import ran_earlier

NOW = 1_800_000_000.0


def test_each_that_ran_before_is_named_the_first_one_first() -> None:
    said = ran_earlier({"demo/late": NOW - 2.0, "demo/first": NOW - 3.5, "demo/not": 0.0}, NOW)
    assert said.startswith("2 workloads ran for up to 3.5 s before policies were in force")
    assert "demo/first, demo/late;" in said


def test_who_starts_beside_the_daemon_or_after_it_is_not() -> None:
    assert ran_earlier({"demo/beside": NOW - 0.9, "demo/after": NOW + 1, "demo/not": 0.0}, NOW) == ""
    assert ran_earlier({}, NOW) == ""


def test_of_many_the_first_few_are_named() -> None:
    said = ran_earlier({f"demo/w{n:03}": NOW - 100 + n for n in range(90)}, NOW)
    assert "90 workloads" in said
    assert "demo/w004, \u2026;" in said
    assert "demo/w005" not in said
