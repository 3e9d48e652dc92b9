"""SIGKILL at any moment, and start again: the same state, L4 policy in force throughout, no request lost."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from clients import Load, ask, connect, make_socket, until
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import Daemon, Mesh, workload

from penstock.redirect.libbpf import BpfMap
from penstock.redirect.shapes import SHAPES

TABLES = ("endpoints", "ipcache", "policy", "services", "backends", "listeners", "netns")


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("intruder", "node-a"),
        workload("api", "node-a", serves=True),
        workload("far", "node-b", serves=True),
    )


def documents(number: int) -> tuple[dict[str, Any], ...]:
    """What changes with `number`: the paths, an L4 port, a Service and a route's weights. Nobody ever names
    the intruder."""
    rules = [
        {
            "fromEndpoints": [select(app="client")],
            "toPorts": [ports(8080, http=[{"path": "/ok"}, {"path": f"/{number}"}])],
        },
        {"fromEndpoints": [select(app="client")], "toPorts": [ports(9090 + number % 3)]},
    ]
    return (
        *(policy(name, select(app=name), ingress=rules) for name in ("api", "far")),
        service("web", {"port": 80, "targetPort": 8080}, selector={"app": "api"}),
        service("far", {"port": 80, "targetPort": 8080}, selector={"app": "far"}),
        service(f"extra-{number % 2}", {"port": 80, "targetPort": 8080}, selector={"app": "api"}),
        route("web", "web", {"backendRefs": [to("web", 1), to("far", number % 2)]}),
    )


def pinned(daemon: Daemon) -> dict[str, dict[bytes, bytes]]:
    """What stands in the kernel, table by table."""
    found = {}
    for name in TABLES:
        table = BpfMap(daemon.run_dir / "bpf" / name, SHAPES[name].key, SHAPES[name].value)
        found[name] = dict(table.items())
        table.close()
    return found


def state(mesh: Mesh) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for daemon in mesh.daemons.values():
        objects = [(o["kind"], o["namespace"], o["name"], o["state"]) for o in daemon.status()["objects"]]
        found[daemon.name] = (pinned(daemon), objects)
    return found


@contextmanager
def nobody_gets_through(mesh: Mesh) -> Iterator[None]:
    """The intruder tries without a pause, UDP and TCP, both families; not one of its packets may arrive."""
    stop, got = threading.Event(), []
    tried = 0

    def probe() -> None:
        nonlocal tried
        intruder = mesh["intruder"]
        udp = {v: make_socket(intruder.netns, socket.SOCK_DGRAM, v) for v in (4, 6)}
        while not stop.is_set():
            for target in ("api", "far"):
                for version in (4, 6):
                    address = str(mesh[target].address(version))
                    udp[version].setblocking(False)
                    with suppress(OSError):
                        udp[version].sendto(b"x", (address, 9091))
                    with suppress(OSError):
                        got.append(udp[version].recv(9))
                    for port in (8080, 8081, 9090):
                        tcp = make_socket(intruder.netns, version=version)
                        tcp.settimeout(0.01)
                        with tcp, suppress(TimeoutError):
                            tcp.connect((address, port))
                            got.append((address, port))
                        tried += 1
        for sock in udp.values():
            sock.close()

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert tried > 20
    assert got == []


@pytest.mark.parametrize("victims", ["daemon", "Envoy", "both"])
def test_killed_at_any_moment_of_a_change_and_started_again(mesh: Mesh, victims: str) -> None:
    moments = random.Random(victims)
    mesh.apply(*documents(0))
    wanted = state(mesh)
    daemon = mesh.on("api")
    with nobody_gets_through(mesh):
        for number in range(1, 4):
            mesh.write("scenario.yaml", mesh.text(*documents(number)))
            threading.Event().wait(moments.uniform(0, 0.15))
            if victims != "Envoy":
                daemon.kill()
            if victims != "daemon":
                daemon.kill_envoy_only()
            mesh.write("scenario.yaml", mesh.text(*documents(0)))
            if victims != "Envoy":
                daemon.start()
                until("the daemon answers", daemon.answers, 15)
            mesh.wait()
            assert state(mesh) == wanted
    assert ask(mesh["client"], mesh["api"].address(), 8080, "/ok").status == 200
    assert ask(mesh["client"], mesh["api"].address(), 8080, "/1").status == 403


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_no_request_is_lost_while_the_daemon_is_away_and_back(mesh: Mesh, how: str) -> None:
    """On open and on new connections, at an address and by a route."""
    mesh.apply(*documents(0))
    daemon, address = mesh.on("api"), mesh["api"].address()
    pid = daemon.envoy_pid
    with (
        Load(mesh["client"], address, 8080, "/ok") as kept,
        Load(mesh["client"], address, 8080, "/ok", keep=False) as fresh,
        Load(mesh["client"], mesh.vip("web"), 80, "/ok", keep=False) as routed,
        connect(mesh["client"], address, 9090) as direct,
    ):
        daemon.stop() if how == "SIGTERM" else daemon.kill()
        for load in (kept, fresh, routed):
            load.more()
        daemon.start()
        until("the daemon answers", daemon.answers, 15)
        mesh.wait()
        for load in (kept, fresh, routed):
            load.more()
        direct.sendall(b"still")
        assert direct.recv(9) == b"still"
    assert (set(kept.seen), set(fresh.seen), set(routed.seen)) == ({200}, {200}, {200})
    assert daemon.envoy_pid == pid


def test_what_was_edited_while_the_daemon_was_away_holds_when_it_is_back(mesh: Mesh) -> None:
    mesh.apply(*documents(0))
    daemon = mesh.on("api")
    daemon.stop()
    mesh.write("scenario.yaml", mesh.text(*documents(1)))
    assert ask(mesh["client"], mesh["api"].address(), 8080, "/1").status == 403
    daemon.start()
    until("the daemon answers", daemon.answers, 15)
    mesh.wait()
    assert ask(mesh["client"], mesh["api"].address(), 8080, "/1").status == 200
