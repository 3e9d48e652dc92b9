"""The docker-compose.yml of the repository, as a user runs it, looked at from inside its containers."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clients import until
from project import Project, project
from scripts import ASK, DIAL, LOAD

from penstock.lab.engine import Engine

ROOT = Path(__file__).parents[2]
FIRST_REQUEST = 25.0
"""Seconds from `docker-compose up`, with the images there, to the first request that a policy let pass.

`penstock bench docker` measures it where nothing else is done: here other things may be.
"""


CAPABILITIES = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8,
    "NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_PTRACE": 19, "SYS_ADMIN": 21,
}  # fmt: skip
"""capabilities(7), include/uapi/linux/capability.h."""


@pytest.fixture(scope="module")
def demo(docker: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """With the manifests in a folder of the test's, so that it can edit them."""
    base = tmp_path_factory.mktemp("demo")
    shutil.copytree(ROOT / "examples" / "compose" / "manifests", base / "manifests")
    override = {"services": {"penstock": {"volumes": [f"{base / 'manifests'}:/etc/penstock:ro"]}}}
    (base / "override.yml").write_text(json.dumps(override))
    files = f"{ROOT / 'docker-compose.yml'}:{base / 'override.yml'}"
    with project(docker, ROOT, "demo", PENSTOCK_BASE=image, COMPOSE_FILE=files) as made:
        started = time.monotonic()
        made.compose("up", "-d")
        until("a protected request passes", lambda: ask(made, "frontend")[0][0] == 200, 60.0)
        made.took = time.monotonic() - started
        made.settled()
        yield made


def manifests(demo: Project) -> Path:
    return Path(demo.environment["COMPOSE_FILE"].rpartition(":")[2]).parent / "manifests"


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


def test_a_route_is_changed_live_and_no_request_fails(demo: Project) -> None:
    route = manifests(demo) / "route.yaml"
    before = route.read_text()

    def put(text: str) -> None:
        part = route.with_suffix(".part")
        part.write_text(text)
        part.rename(route)

    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(demo.python, "frontend", LOAD.format(host="api", seconds=6))
        try:
            turned = before.replace("weight: 90", "weight: 0").replace("weight: 10}", "weight: 100}")
            assert turned != before
            put(turned)
            until(
                "all go to version 2", lambda: {b for _, b in ask(demo, "frontend", times=20)} == {"api-v2"}
            )
        finally:
            put(before)
        seen = load.result()
    assert seen.keys() == {"200 api-v1", "200 api-v2"}, seen
    until("version 1 is back", lambda: ask(demo, "frontend")[0][1] == "api-v1")


def test_the_intruder_is_answered_403_by_each_name(demo: Project) -> None:
    for host in ("api", "api-v1", "api-v2", "api.demo.svc.cluster.local"):
        assert ask(demo, "intruder", host)[0] == [403, "Access denied"], host
        assert ask(demo, "intruder", host, "/public")[0][0] == 200, host


def test_nobody_was_open_before_the_policies_were_in_force(demo: Project) -> None:
    """From the first packet on: whom the intruder must not reach, it never has."""
    said = demo.compose("logs", "--no-color", "intruder")
    assert "db: " in said
    assert "db: answered" not in said
    assert "api: 200" not in said
    assert demo.status()["ran_earlier"] == ""


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
    # Exactly what the file lists, with a reason for each.
    service = (
        (ROOT / "docker-compose.yml").read_text().partition("cap_add:\n")[2].partition("security_opt")[0]
    )
    listed = [line.split()[1:] for line in service.splitlines() if line.strip().startswith("- ")]
    assert all(words[1] == "#" and words[2:] for words in listed)
    daemon = Path(f"/proc/{inspected['State']['Pid']}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in daemon.splitlines() if ":\t" in line)
    mask = sum(1 << CAPABILITIES[words[0]] for words in listed)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == mask


def test_the_health_check_turns_healthy(demo: Project) -> None:
    def health() -> str:
        return str(demo.engine.inspect(demo.container("penstock"))["State"]["Health"]["Status"])

    until("it is healthy", lambda: health() == "healthy", 30.0)
