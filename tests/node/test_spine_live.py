"""Connections that are open when a rule changes: the next thing on them is judged by the rules of now."""

from __future__ import annotations

from typing import Any

import pytest
from clients import REFUSED, Http, Load, ask, connect, status_or_reset
from conftest import MeshFactory
from objects import policy, ports, select, service
from rig import Mesh, workload


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"), workload("neighbour", "node-a"), workload("api", "node-a", serves=True)
    )


def guard(*rules: dict[str, Any]) -> dict[str, Any]:
    return policy("api", select(app="api"), ingress=list(rules))


def http(who: str, *paths: str) -> dict[str, Any]:
    named = [{"method": "GET", "path": path} for path in paths]
    return {"fromEndpoints": [select(app=who)], "toPorts": [ports(8080, http=named)]}


def l4(who: str, *numbers: int) -> dict[str, Any]:
    return {"fromEndpoints": [select(app=who)], "toPorts": [ports(*numbers)]}


@pytest.mark.parametrize("version", [4, 6])
def test_a_tightened_rule_holds_on_the_open_connection_and_the_neighbour_notices_nothing(
    mesh: Mesh, version: int
) -> None:
    address = mesh["api"].address(version)
    mesh.apply(guard(http("client", "/a", "/b"), http("neighbour", "/a", "/b")))
    with Http(mesh["client"], address, 8080) as open_, Load(mesh["neighbour"], address, 8080, "/b") as other:
        assert [open_.ask(path).status for path in ("/a", "/b")] == [200, 200]
        mesh.apply(guard(http("client", "/a"), http("neighbour", "/a", "/b")))
        assert status_or_reset(open_, "/b") in (0, 403)
        assert ask(mesh["client"], address, 8080, "/a").status == 200
        assert ask(mesh["client"], address, 8080, "/b").status == 403
        other.more()
    assert set(other.seen) == {200}


def test_a_loosened_rule_holds_on_the_open_connection(mesh: Mesh) -> None:
    address = mesh["api"].address()
    mesh.apply(guard(http("client", "/a")))
    with Http(mesh["client"], address, 8080) as open_:
        assert open_.ask("/b").status == 403
        mesh.apply(guard(http("client", "/a", "/b")))
        assert open_.ask("/b").status == 200


@pytest.mark.parametrize("version", [4, 6])
def test_when_the_whole_rule_goes_the_open_connection_is_reset(mesh: Mesh, version: int) -> None:
    address = mesh["api"].address(version)
    mesh.apply(guard(http("client", "/a"), http("neighbour", "/a")))
    with Http(mesh["client"], address, 8080) as open_, Load(mesh["neighbour"], address, 8080, "/a") as other:
        assert open_.ask("/a").status == 200
        mesh.apply(guard(http("neighbour", "/a")))
        assert status_or_reset(open_, "/a") in (0, 403)
        with pytest.raises(TimeoutError):
            ask(mesh["client"], address, 8080, "/a", timeout=REFUSED)
        other.more()
    assert set(other.seen) == {200}


@pytest.mark.parametrize("version", [4, 6])
def test_a_direct_connection_that_a_rule_now_names_is_reset(mesh: Mesh, version: int) -> None:
    address = mesh["api"].address(version)
    mesh.apply(guard(l4("client", 8080), l4("neighbour", 8080)))
    with Http(mesh["client"], address, 8080) as open_, Load(mesh["neighbour"], address, 8080) as other:
        assert open_.ask("/secret").status == 200
        mesh.apply(guard(http("client", "/a"), l4("neighbour", 8080)))
        assert status_or_reset(open_, "/secret") == 0
        assert ask(mesh["client"], address, 8080, "/a").status == 200
        assert ask(mesh["client"], address, 8080, "/secret").status == 403
        other.more()
    assert set(other.seen) == {200}


def test_a_connection_through_a_plain_service_is_reset_too(mesh: Mesh) -> None:
    """It was translated to the backend when it was made; its packets carry the backend's address."""
    plain = service("api", {"port": 80, "targetPort": 8080}, selector={"app": "api"})
    mesh.apply(plain, guard(l4("client", 8080)))
    with Http(mesh["client"], mesh.vip("api"), 80) as open_:
        assert open_.ask("/secret").status == 200
        mesh.apply(plain, guard(http("client", "/a")))
        assert status_or_reset(open_, "/secret") == 0
        assert ask(mesh["client"], mesh.vip("api"), 80, "/secret").status == 403
        assert ask(mesh["client"], mesh.vip("api"), 80, "/a").status == 200


@pytest.mark.parametrize("version", [4, 6])
def test_a_proxied_connection_whose_rule_goes_goes_on_and_is_judged_again_when_it_is_back(
    mesh: Mesh, version: int
) -> None:
    address = mesh["api"].address(version)
    mesh.apply(guard(http("client", "/a")))
    with Http(mesh["client"], address, 8080) as open_:
        assert open_.ask("/b").status == 403
        for documents in ((guard(l4("client", 8080)),), ()):
            mesh.apply(*documents)
            assert open_.ask("/a").status == 200
            assert open_.ask("/b").status == 200
        mesh.apply(guard(http("client", "/a")))
        assert status_or_reset(open_, "/b") in (0, 403)


@pytest.mark.parametrize("version", [4, 6])
def test_a_proxied_connection_whose_rule_becomes_plain_goes_on(mesh: Mesh, version: int) -> None:
    """Nothing steers it to the proxy any more, and it must not notice: it goes on through it to its end."""
    address = mesh["api"].address(version)
    mesh.apply(guard(http("client", "/a")))
    with Http(mesh["client"], address, 8080) as open_:
        assert [open_.ask(path).status for path in ("/a", "/b")] == [200, 403]
        mesh.apply(guard(l4("client", 8080)))
        assert [open_.ask(path).status for path in ("/a", "/b")] == [200, 200]
        before = mesh.on("client").downstream()
        assert ask(mesh["client"], address, 8080, "/b").status == 200
        assert mesh.on("client").downstream() == before
        mesh.apply()
        assert open_.ask("/b").status == 200


def test_a_proxied_connection_does_not_outlive_the_right_to_connect(mesh: Mesh) -> None:
    """Also when the rule that steered it went before: what is closed at last is closed for it too."""
    address = mesh["api"].address()
    mesh.apply(guard(http("client", "/a")))
    with Http(mesh["client"], address, 8080) as open_:
        assert open_.ask("/a").status == 200
        mesh.apply(guard(l4("client", 8080)))
        mesh.apply(guard(l4("neighbour", 8080)))
        assert status_or_reset(open_, "/a") in (0, 403)


def test_a_direct_connection_that_loses_its_right_is_dropped_and_goes_on_when_it_gets_it_back(
    mesh: Mesh,
) -> None:
    daemon, address = mesh.on("api"), mesh["api"].address()
    mesh.apply(guard(l4("client", 9090)))
    with connect(mesh["client"], address, 9090, timeout=REFUSED) as sock:
        sock.sendall(b"one")
        assert sock.recv(9) == b"one"
        mesh.apply(guard(l4("neighbour", 9090)))
        before = daemon.counter("POLICY_DENIED_INGRESS") + daemon.counter("POLICY_CHANGED")
        sock.sendall(b"two")
        with pytest.raises(TimeoutError):
            sock.recv(9)
        assert daemon.counter("POLICY_DENIED_INGRESS") + daemon.counter("POLICY_CHANGED") > before
        mesh.apply(guard(l4("client", 9090)))
        sock.settimeout(10)
        assert sock.recv(9) == b"two"


def test_the_answering_side_is_silenced_too(mesh: Mesh) -> None:
    """A server that goes on to send when the client lost its right."""
    address = mesh["api"].address()
    mesh.apply(guard(l4("client", 8080)))
    with connect(mesh["client"], address, 8080, timeout=2) as sock:
        sock.sendall(b"GET /?delay=1000 HTTP/1.1\r\nHost: x\r\n\r\n")
        mesh.apply(guard(l4("neighbour", 8080)))
        with pytest.raises(TimeoutError):
            sock.recv(99)


def test_no_open_connection_notices_an_edit_that_leaves_its_right(mesh: Mesh) -> None:
    address = mesh["api"].address()
    rules = (http("client", "/a"), l4("client", 9090), l4("neighbour", 8081))
    mesh.apply(guard(*rules))
    with (
        Load(mesh["client"], address, 8080, "/a") as proxied,
        Load(mesh["neighbour"], address, 8081) as direct,
        connect(mesh["client"], address, 9090) as sock,
    ):
        for number in range(5):
            mesh.apply(guard(*rules, l4("client", 7000 + number), http("neighbour", f"/{number}")))
            proxied.more(3)
            direct.more(3)
            sock.sendall(b"still")
            assert sock.recv(9) == b"still"
    assert set(proxied.seen) == {200}
    assert set(direct.seen) == {200}
