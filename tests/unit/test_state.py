"""The numbers of a node survive restarts and damage."""

from __future__ import annotations

import json
import logging
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import state
from penstock.world import Allocations

GOOD = Allocations(
    identities={"default/web": 256, "default/api": 257},
    vips={"default/api/4": "10.96.3.4"},
    listener_ports={"out:1": 15001},
    service_ids={"default/api:80/TCP/4": 1},
    prefixes={"10.0.0.0/8": 1 << 24, "2001:db8::/32": (1 << 24) + 1},
)


def test_nothing_saved_is_nothing_allocated(tmp_path: Path) -> None:
    assert state.load(tmp_path / "absent") == Allocations()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    state.save(tmp_path / "new", GOOD)
    assert state.load(tmp_path / "new") == GOOD
    assert stat.S_IMODE((tmp_path / "new" / state.FILE).stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "new").iterdir()] == [state.FILE]


def test_a_file_of_before_networks_had_numbers(tmp_path: Path) -> None:
    state.save(tmp_path, GOOD)
    whole = json.loads((tmp_path / state.FILE).read_text())
    del whole["allocations"]["prefixes"]
    (tmp_path / state.FILE).write_text(json.dumps(whole))
    assert state.load(tmp_path) == replace(GOOD, prefixes={})


def damaged() -> dict[str, bytes]:
    def with_(**changes: object) -> bytes:
        whole = {"format": 1, "allocations": {"identities": {}, "vips": {}, "listener_ports": {}}}
        whole["allocations"] |= changes  # type: ignore[operator]
        return json.dumps(whole).encode()

    return {
        "empty": b"",
        "half": b'{"format": 1, "allocations": {"identi',
        "not UTF-8": b'{"format": "\xff\xfe"}',
        "zeros": bytes(4096),
        "a list": b"[]",
        "of the future": b'{"format": 2, "allocations": {}}',
        "one identity twice": with_(identities={"a": 300, "b": 300}),
        "a reserved identity": with_(identities={"a": 8}),
        "a network with a workload's identity": with_(prefixes={"10.0.0.0/8": 256}),
        "a network that is none": with_(prefixes={"10.0.0.0": 1 << 25}),
        "too large a port": with_(listener_ports={"a": 70000}),
        "no address": with_(vips={"default/api/4": "10.96.3.444"}),
        "a bottomless pit": b'{"format": 1, "x": ' + b"[" * 100_000,
        "text for a number": with_(identities={"a": "300"}),
    }


@pytest.mark.parametrize("content", damaged().values(), ids=damaged().keys())
def test_a_damaged_file_is_moved_aside_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / state.FILE).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert state.load(tmp_path) == Allocations()
    assert "is damaged" in caplog.text
    assert (tmp_path / (state.FILE + ".corrupt")).read_bytes() == content
    assert not (tmp_path / state.FILE).exists()
    state.save(tmp_path, GOOD)
    assert state.load(tmp_path) == GOOD


def test_what_cannot_be_read_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / state.FILE).mkdir()
    with pytest.raises(state.StateError, match="cannot read"):
        state.load(tmp_path)
    with pytest.raises(state.StateError, match="cannot write"):
        state.save(tmp_path, GOOD)
    assert [path.name for path in tmp_path.iterdir()] == [state.FILE]


@settings(deadline=None, max_examples=50)  # Each example waits for the disk.
@given(
    st.dictionaries(st.text(), st.integers(256, 65535)).filter(lambda d: len(set(d.values())) == len(d)),
    st.dictionaries(st.text(), st.ip_addresses().map(str)),
)
def test_any_names_come_back(
    tmp_path_factory: pytest.TempPathFactory, identities: dict[str, int], vips: dict[str, str]
) -> None:
    directory = tmp_path_factory.mktemp("state")
    saved = Allocations(identities=identities, vips=vips)
    state.save(directory, saved)
    assert state.load(directory) == saved
