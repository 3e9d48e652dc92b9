"""ARCHITECTURE.md says whose each number and file is: it must say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.control import socket_path
from penstock.envoy import marks
from penstock.envoy.bootstrap import admin_socket, clients_socket, xds_socket
from penstock.envoy.process import UID
from penstock.gateway_status import FEATURES
from penstock.redirect import host
from penstock.redirect.datapath import (
    BRIDGE_PROGRAMS,
    CGROUP_PROGRAMS,
    NAMESPACE_PROGRAMS,
    NETDEV_PROGRAMS,
    PORT_PROGRAMS,
    WORKLOAD_PROGRAMS,
)
from penstock.state import FILE
from penstock.world import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()


def test_ports_marks_and_tables() -> None:
    settings = Settings()
    for low, high in (settings.proxy_listen_ports, settings.proxy_source_ports):
        assert f"{low}–{high}" in PAGE
    for mark in (marks.STEERED, marks.EDGE, marks.DOWNSTREAM, marks.UPSTREAM):
        assert f"| mark {mark:#x}" in PAGE
    for mark in host.MARKS:
        assert f"fwmark {mark:#x}/{host.MARK_MASK:#x}" in PAGE
    assert f"rules {host.PRIORITY}: " in PAGE
    assert f"lookup {host.TABLE}" in PAGE
    assert f"user and group {UID}" in PAGE
    assert ", ".join(map(str, settings.service_ranges)) in PAGE
    assert ", ".join(map(str, settings.gateway_ranges)) in PAGE


def test_every_mark_of_the_programs() -> None:
    header = (ROOT / "bpf" / "penstock.h").read_text()
    values = set(re.findall(r"#define MARK_\w+ (0x\w+)", header))
    assert len(values) == 11
    assert [value for value in sorted(values) if value not in PAGE] == []


def test_every_map_and_program() -> None:
    source = (ROOT / "bpf" / "maps.h").read_text()
    maps = {
        *re.findall(r"^PINNED_MAP\((\w+),", source, re.MULTILINE),
        *re.findall(r"^} (\w+) SEC", source, re.M),
    }
    assert len(maps) > 12
    assert [name for name in sorted(maps) if f"`{name}`" not in PAGE] == []
    programs = {*WORKLOAD_PROGRAMS, *PORT_PROGRAMS, *BRIDGE_PROGRAMS, *NETDEV_PROGRAMS}
    programs |= {*(name.rstrip("46") for name in (*CGROUP_PROGRAMS, *NAMESPACE_PROGRAMS))}
    assert [name for name in sorted(programs) if name not in PAGE] == []


@pytest.mark.parametrize("place", [socket_path, xds_socket, clients_socket, admin_socket])
def test_sockets(place) -> None:
    assert f"| {place(Path('RUN'))} |" in PAGE


def test_files() -> None:
    assert f"| STATE/{FILE} |" in PAGE


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_test_that_a_trap_names_is_there() -> None:
    page = (ROOT / "docs" / "datapath.md").read_text()
    text = "".join(p.read_text() + f" def {p.stem}(" for p in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"\btest_\w+", page.partition("## Traps")[2])
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in text] == []


def test_every_feature_has_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "conformance.md").read_text().partition("## Test by test")[0]
    rows = dict(re.findall(r"^\| (\w+) \| (test_.*) \|$", page, re.MULTILINE))
    assert tuple(sorted(rows)) == FEATURES
    for feature, cell in rows.items():
        for group in cell.split("; "):
            file, _, names = group.partition(": ")
            (path,) = (ROOT / "tests").rglob(f"{file}.py")
            there = set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
            named = set(re.findall(r"`(test_\w+)`", names))
            assert named and named <= there, (feature, named - there)


def test_every_test_of_the_suite_has_one_of_ours() -> None:
    """The page's short words for files are the ends of their names."""
    page = (ROOT / "docs" / "conformance.md").read_text().partition("## Test by test")[2]
    rows = re.findall(r"^\| ([A-Z]\w+(?:, \w+)*) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) > 70
    for theirs, cell in rows:
        for group in cell.split("; "):
            word, _, names = group.partition(": ")
            files = [p for p in (ROOT / "tests").rglob("test_*.py") if p.stem.endswith(word)]
            there = {n for p in files for n in re.findall(r"^def (test_\w+)", p.read_text(), re.MULTILINE)}
            named = set(re.findall(r"`(test_\w+)`", names)) or {f"test_{each}" for each in theirs.split(", ")}
            assert named <= there, (theirs, named - there)
