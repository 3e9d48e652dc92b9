"""examples/compose/two-hosts as its README says: two engines, one CA, mutual TLS between them."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from clients import Sniffer, until
from project import Project, project
from scripts import ASK, DIAL

from penstock.lab import netns
from penstock.lab.engine import CLIENT, Engine, engine

EXAMPLE = Path(__file__).parents[2] / "examples" / "compose" / "two-hosts"
UNDERLAY = "eth0"
NEEDLE = "/nobody-is-to-read-this"


class Hosts(NamedTuple):
    a: Project
    b: Project


@pytest.fixture(scope="module")
def other_engine(docker: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A second host, joined with the first by a cable; it has the image from there."""
    with engine(f"docker-b-{os.getpid()}", tmp_path_factory.mktemp("docker-b")) as made:
        with netns.entered(docker.netns):
            subprocess.run(
                ["ip", "link", "add", UNDERLAY, "type", "veth", "peer", "name", UNDERLAY, "netns", made.name],
                check=True,
            )
        for host, address in ((docker, "10.77.0.1/24"), (made, "10.77.0.2/24")):
            with netns.entered(host.netns):
                subprocess.run(["ip", "addr", "add", address, "dev", UNDERLAY], check=True)
                subprocess.run(["ip", "link", "set", UNDERLAY, "up"], check=True)
        try:
            with subprocess.Popen(
                [CLIENT, "save", "penstock", "penstock-demo"], env=docker.environment, stdout=subprocess.PIPE
            ) as saved:
                subprocess.run([CLIENT, "load"], env=made.environment, stdin=saved.stdout, check=True)
            assert saved.returncode == 0
            yield made
        finally:
            with netns.entered(docker.netns):
                subprocess.run(["ip", "link", "del", UNDERLAY], check=True)


@pytest.fixture(scope="module")
def hosts(
    docker: Engine, other_engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosts]:
    token = tmp_path_factory.mktemp("token") / "token"
    with ExitStack() as stack:
        a = stack.enter_context(project(docker, EXAMPLE / "host-a", "twoa", PENSTOCK_BASE=image))
        a.compose("up", "-d")
        a.settled()
        made = a.compose("exec", "-T", "ca", "penstock", "ca", "token", "--ca-dir", "/ca", "--node", "host-b")
        token.write_text(made)
        b = stack.enter_context(
            project(other_engine, EXAMPLE / "host-b", "twob", PENSTOCK_BASE=image, JOIN_TOKEN=str(token))
        )
        b.compose("up", "-d")
        b.settled()
        yield Hosts(a, b)


def ask(
    host: Project, service: str, name: str = "api", path: str = "/", times: int = 1
) -> list[list[object]]:
    return list(host.python(service, ASK.format(host=name, path=path, times=times)))


def dial(host: Project, service: str, name: str = "db") -> str:
    return str(host.python(service, DIAL.format(host=name)))


def test_a_route_leads_to_the_other_host_under_mutual_tls(hosts: Hosts) -> None:
    until("api answers", lambda: ask(hosts.a, "frontend")[0][0] == 200, 30.0)
    with Sniffer(hosts.a.engine.netns, UNDERLAY) as seen:
        found = Counter((status, body) for status, body in ask(hosts.a, "frontend", path=NEEDLE, times=200))
    assert found.keys() == {(200, "api-v1"), (200, "api-v2")}
    assert 0.78 < found[200, "api-v1"] / 200 < 0.99
    assert seen.segments
    assert not seen.carried(NEEDLE.encode())


def test_the_intruder_is_judged_by_who_it_is_on_its_own_host(hosts: Hosts) -> None:
    for name in ("api", "api-v1", "api.demo.svc.cluster.local"):
        assert ask(hosts.a, "intruder", name)[0] == [403, "Access denied"], name
        assert ask(hosts.a, "intruder", name, "/public")[0][0] == 200, name


def test_plain_tcp_keeps_its_sender_from_host_to_host(hosts: Hosts) -> None:
    """Docker masquerades and isolates; api's database is on the other host, in an internal network."""
    for service in ("api-v1", "api-v2"):
        assert dial(hosts.b, service) == "select 1\n"
    for service in ("frontend", "intruder"):
        assert dial(hosts.a, service).startswith("no: ")


def test_both_hosts_have_certificates_of_one_ca(hosts: Hosts) -> None:
    roots = set()
    for host, names in ((hosts.a, {"frontend", "intruder", "db"}), (hosts.b, {"api-v1", "api-v2"})):
        listed = json.loads(host.penstock("cert", "list", "-o", "json"))["certificates"]
        assert {entry["workload"].partition("/")[2] for entry in listed} >= names
        roots |= {entry["issuer"] for entry in listed}
    assert len(roots) == 1
