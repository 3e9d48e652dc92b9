"""The docker-compose.yml of the repository, as a user runs it, looked at from inside its containers."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import until
from project import Project, project

from penstock.lab.engine import Engine

ROOT = Path(__file__).parents[2]
FIRST_REQUEST = 25.0
"""Seconds from `docker-compose up`, with the images there, to the first request that a policy let pass.

Five on a machine of two cores that has nothing else to do, most of them Docker's: here it may have.
"""

ASK = """
import http.client, json, sys, time
found = []
for _ in range({times}):
    connection = http.client.HTTPConnection("{host}", 8080, timeout=2)
    try:
        connection.request("GET", "{path}")
        answer = connection.getresponse()
        found.append([answer.status, answer.read().decode().strip()])
    except OSError as e:
        found.append([0, str(e)])
    connection.close()
print(json.dumps(found))
"""
DIAL = """
import json, socket
try:
    with socket.create_connection(("{host}", 5432), 0.7) as s:
        s.sendall(b"select 1\\n")
        print(json.dumps(s.recv(64).decode()))
except OSError as e:
    print(json.dumps(f"no: {{e}}"))
"""


@pytest.fixture(scope="module")
def demo(docker: Engine, image: str) -> Iterator[Project]:
    with project(docker, ROOT, "demo", PENSTOCK_BASE=image) as made:
        started = time.monotonic()
        made.compose("up", "-d")
        until("a protected request passes", lambda: ask(made, "frontend")[0][0] == 200, 60.0)
        made.took = time.monotonic() - started
        made.settled()
        yield made


def ask(demo: Project, service: str, host: str = "api", path: str = "/", times: int = 1) -> Any:
    return demo.python(service, ASK.format(host=host, path=path, times=times))


def dial(demo: Project, service: str, host: str = "db") -> str:
    return str(demo.python(service, DIAL.format(host=host)))


def test_the_first_protected_request_comes_soon(demo: Project) -> None:
    assert demo.took < FIRST_REQUEST, f"{demo.took:.1f} s"


def test_nine_of_ten_requests_go_to_version_1(demo: Project) -> None:
    found = Counter(map(tuple, ask(demo, "frontend", times=400)))
    assert found.keys() == {(200, "api-v1"), (200, "api-v2")}
    assert 0.82 < found[200, "api-v1"] / 400 < 0.97


def test_the_intruder_is_answered_403_by_each_name(demo: Project) -> None:
    for host in ("api", "api-v1", "api-v2", "api.demo.svc.cluster.local"):
        assert ask(demo, "intruder", host)[0] == [403, "Access denied"], host
        assert ask(demo, "intruder", host, "/public")[0][0] == 200, host


def test_db_is_reached_only_by_api_and_without_envoy(demo: Project) -> None:
    ticks = lambda: demo.status()["counters"]["POLICY_DENIED_INGRESS"]["packets"]  # noqa: E731
    before = ticks()
    for host in ("db", "db.demo"):
        assert dial(demo, "api-v1", host) == "select 1\n"
        assert dial(demo, "frontend", host).startswith("no: ")
        assert dial(demo, "intruder", host).startswith("no: ")
    assert ticks() > before
    seen = [json.loads(line) for line in demo.penstock("observe", "--last", "500", "-o", "json").splitlines()]
    to_db = [r for r in seen if "5432" in json.dumps(r.get("destination", r))]
    assert to_db
    assert not [r for r in to_db if "REDIRECTED" in json.dumps(r)]


def test_observe_follows(demo: Project) -> None:
    command = ["docker-compose", "exec", "-T", "penstock", "penstock", "observe", "-f"]
    wanted = {"SERVED": False, "DENIED": False, "DROPPED": False}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**demo.engine.environment, **demo.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        end = time.monotonic() + 20
        for line in process.stdout:
            for word in wanted:
                wanted[word] |= word in line
            if all(wanted.values()) or time.monotonic() > end:
                break
        process.terminate()
    assert all(wanted.values()), wanted


def test_the_load_generator_and_the_intruder_print_it(demo: Project) -> None:
    def printed() -> bool:
        logs = demo.compose("logs", "--no-color", "--tail=200", "load", "intruder")
        return "% api-v1" in logs and "api: 403 Access denied; /public: 200; db: no answer" in logs

    until("they print what they see", printed, 30.0)


def test_envoy_has_no_rights_and_the_daemon_few(demo: Project) -> None:
    listed = demo.exec("penstock", "sh", "-c", "cat /run/penstock/envoy/envoy.pid").strip()
    status = Path(f"/proc/{listed}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["64055"] * 4
    # CAP_NET_ADMIN (12) and CAP_NET_BIND_SERVICE (10).
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 1 << 12 | 1 << 10
    inspected = demo.engine.inspect(demo.container("penstock"))
    assert not inspected["HostConfig"]["Privileged"]


def test_the_health_check_turns_healthy(demo: Project) -> None:
    def health() -> str:
        return str(demo.engine.inspect(demo.container("penstock"))["State"]["Health"]["Status"])

    until("it is healthy", lambda: health() == "healthy", 30.0)
