"""Envoy stopped, killed, back again: L4 goes on in the kernel, what is named is closed, all mends itself."""

from __future__ import annotations

import http.client
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from clients import REFUSED, Http, Load, ask, echoes, status_or_reset, udp_echoes, until
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import Mesh, workload

HTTP = [{"method": "GET", "path": "/public/.*"}]
WEB = service("web", {"port": 80, "targetPort": 8081}, selector={"app": "api"})


def guard(*rules: dict[str, Any]) -> dict[str, Any]:
    return policy("api", select(app="api"), ingress=list(rules))


def of(who: str, *to_ports: dict[str, Any]) -> dict[str, Any]:
    return {"fromEndpoints": [select(app=who)], "toPorts": list(to_ports)}


NAMED = of("client", ports(8080, http=HTTP))
PLAIN = of("client", ports(8081, 9090), ports(9091, protocol="UDP"))
ALL = (guard(NAMED, PLAIN), WEB, route("web", "web", {"backendRefs": [to("web")]}))


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"), workload("intruder", "node-a"), workload("api", "node-a", serves=True)
    )


@contextmanager
def stopped(mesh: Mesh) -> Iterator[None]:
    pid = mesh.on("api").envoy_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def l4_holds(mesh: Mesh, version: int = 4) -> None:
    address = mesh["api"].address(version)
    assert ask(mesh["client"], address, 8081).status == 200
    assert echoes(mesh["client"], address, 9090, timeout=3)
    assert udp_echoes(mesh["client"], address, 9091, timeout=3)
    assert not echoes(mesh["intruder"], address, 9090)
    assert not udp_echoes(mesh["intruder"], address, 9091)


def answer(mesh: Mesh, port: int = 8080, path: str = "/public/x") -> int | None:
    """The status; None if nothing was answered."""
    try:
        return ask(mesh["client"], mesh["api"].address(), port, path, timeout=REFUSED).status
    except (TimeoutError, ConnectionError, http.client.HTTPException):
        return None


@pytest.mark.parametrize("version", [4, 6])
def test_while_envoy_is_stopped_l4_holds_and_l7_is_closed(mesh: Mesh, version: int) -> None:
    mesh.apply(*ALL)
    address = mesh["api"].address(version)
    with Http(mesh["client"], address, 8080, timeout=5) as open_:
        assert open_.ask("/public/x").status == 200
        with stopped(mesh):
            l4_holds(mesh, version)
            for port, path in ((8080, "/public/x"), (8080, "/private")):
                with pytest.raises(TimeoutError):
                    ask(mesh["client"], address, port, path, timeout=REFUSED)
            with pytest.raises(TimeoutError):
                ask(mesh["client"], mesh.vip("web"), 80, timeout=REFUSED)
        assert open_.ask("/public/x").status == 200
        assert open_.ask("/private").status == 403


def test_a_denial_is_in_force_at_once_while_envoy_is_stopped(mesh: Mesh) -> None:
    mesh.apply(*ALL)
    with stopped(mesh):
        mesh.write("scenario.yaml", mesh.text(guard(NAMED), WEB))
        until("the kernel denies", lambda: not echoes(mesh["client"], mesh["api"].address(), 9090))
    mesh.wait()


def test_what_is_newly_named_while_envoy_is_stopped_is_closed_after_five_seconds(mesh: Mesh) -> None:
    """8081 was allowed: it stays so for at most 5 s. 9090 was not: it is closed from the start."""
    mesh.apply(guard(NAMED, of("client", ports(8081))))
    daemon = mesh.on("api")
    with stopped(mesh):
        mesh.write("scenario.yaml", mesh.text(guard(NAMED, of("client", ports(8081, 9090, http=HTTP)))))
        until("8081 is closed", lambda: answer(mesh, 8081, "/private") is None, 15)
        assert answer(mesh, 8081, "/public/x") is None
        assert not echoes(mesh["client"], mesh["api"].address(), 9090)
        status = daemon.status()
        assert not status["settled"]
        assert "Envoy" in status["waiting_for"]
    mesh.wait()
    assert (answer(mesh, 8081, "/public/x"), answer(mesh, 8081, "/private")) == (200, 403)


def test_while_envoy_is_killed_again_and_again_l4_does_not_notice(mesh: Mesh) -> None:
    mesh.apply(*ALL)
    daemon, address = mesh.on("api"), mesh["api"].address()
    with (
        Load(mesh["client"], address, 8081, keep=False) as plain,
        Load(mesh["client"], address, 8080, "/private", keep=False) as forbidden,
        Load(mesh["client"], address, 8080, "/public/x") as named,
    ):
        for _ in range(3):
            daemon.kill_envoy()
            mesh.wait()
            l4_holds(mesh)
            # TCP tries again after 1 s, 2 s, … what was dropped meanwhile.
            until("L7 is back", lambda: answer(mesh) == 200)
        named.more()
    assert set(plain.seen) == {200}
    assert 200 not in forbidden.seen
    assert 200 in named.seen
    assert answer(mesh, path="/private") == 403
    assert ask(mesh["client"], mesh.vip("web"), 80).status == 200


def test_an_open_connection_through_an_envoy_that_dies_is_reset(mesh: Mesh) -> None:
    mesh.apply(*ALL)
    daemon = mesh.on("api")
    with Http(mesh["client"], mesh["api"].address(), 8080) as open_:
        assert open_.ask("/public/x").status == 200
        daemon.kill_envoy()
        mesh.wait()
        assert status_or_reset(open_, "/private") in (0, 403)


def test_a_rule_that_envoy_cannot_take_closes_what_it_names(mesh: Mesh) -> None:
    """An expression that is fine for the schema and larger than Envoy takes is an error of ours or refused,
    never a way in."""
    mesh.apply(*ALL)
    large = [{"path": "(" + "|".join(f"/{n}[0-9]{{1,900}}x" for n in range(400)) + ")"}]
    mesh.write("scenario.yaml", mesh.text(guard(NAMED, of("client", ports(8081, http=large)))))
    status = mesh.on("api").call("wait", seconds=7)
    refused = [o for o in status["objects"] if o["state"] == "refused"]
    assert refused or not status["settled"]
    if not refused:
        assert answer(mesh, 8081, "/private") is None
    mesh.apply(*ALL)
    assert answer(mesh, 8081, "/private") == 200
