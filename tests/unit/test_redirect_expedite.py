"""A setting of the whole machine is put back, whatever happens, and never taken from somebody else."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from penstock.redirect.expedite import expedited


@pytest.fixture
def setting(tmp_path: Path) -> Path:
    path = tmp_path / "rcu_expedited"
    path.write_text("0")
    return path


def test_it_holds_inside_and_is_put_back(setting: Path) -> None:
    with expedited(setting):
        assert setting.read_text() == "1"
    assert setting.read_text() == "0"
    with pytest.raises(ZeroDivisionError), expedited(setting):
        raise ZeroDivisionError
    assert setting.read_text() == "0"


def test_an_operators_own_choice_is_left_alone(setting: Path) -> None:
    setting.write_text("1")
    with expedited(setting):
        assert setting.read_text() == "1"
    assert setting.read_text() == "1"


def test_what_another_daemon_has_set_is_that_ones_to_put_back(setting: Path) -> None:
    with setting.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with expedited(setting):
            assert setting.read_text() == "0"
        assert setting.read_text() == "0"


def test_without_it_all_goes_on(tmp_path: Path) -> None:
    with expedited(tmp_path / "absent"):
        pass
