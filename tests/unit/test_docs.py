"""ARCHITECTURE.md says whose each number and file is: it must say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.control import socket_path
from penstock.envoy import marks
from penstock.envoy.bootstrap import admin_socket, clients_socket, xds_socket
from penstock.envoy.process import UID
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
    for mark in (marks.STEERED, marks.DOWNSTREAM, marks.UPSTREAM):
        assert f"| mark {mark:#x}" in PAGE
    assert f"rule {host.PRIORITY}: fwmark {host.MARK:#x}/{host.MARK_MASK:#x} lookup {host.TABLE}" in PAGE
    assert f"user and group {UID}" in PAGE
    assert ", ".join(map(str, settings.service_ranges)) in PAGE


def test_every_mark_of_the_programs() -> None:
    header = (ROOT / "bpf" / "penstock.h").read_text()
    values = set(re.findall(r"#define MARK_\w+ (0x\w+)", header))
    assert len(values) == 8
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
