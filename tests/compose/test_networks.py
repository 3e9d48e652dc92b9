"""Networks as Docker makes them, with the real engine: published ports, IPv6, shared namespaces."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from boxes import PORT, Box, Node, node
from clients import Http, ask, connect, status_or_reset, until
from test_workloads import ROUTE, SERVICE, VIP, passes, policy

from penstock.lab import netns
from penstock.lab.engine import Engine

OPEN, SIX = "open", "six"
PUBLISHED = 18080
HOST, OUTSIDE = "10.187.0.1", "10.187.0.2"
WORLD = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNetworkPolicy",
    "metadata": {"name": "published"},
    "spec": {
        "endpointSelector": {"matchLabels": {"app": "published"}},
        "ingress": [
            {
                "fromEntities": ["world"],
                "toPorts": [
                    {
                        "ports": [{"port": str(PORT), "protocol": "TCP"}],
                        "rules": {"http": [{"method": "GET", "path": "/open.*"}]},
                    }
                ],
            }
        ],
    },
}
INSIDE = policy("published", "published", "client")


@pytest.fixture(scope="module")
def outside(docker: Engine) -> Iterator[Any]:
    """Another machine, on a cable to the engine's."""
    name = f"docker-out-{os.getpid()}"
    netns.create([name])
    try:
        with netns.entered(docker.netns):
            _ip(f"link add cable type veth peer name cable netns {name}")
            _ip(f"addr add {HOST}/24 dev cable")
            _ip("link set cable up")
        with netns.entered(netns.path_of(name)):
            _ip(f"addr add {OUTSIDE}/24 dev cable")
            _ip("link set cable up")
        yield SimpleNamespace(name=name, netns=netns.path_of(name))
    finally:
        netns.remove(name)
        with netns.entered(docker.netns):
            subprocess.run(["ip", "link", "del", "cable"], check=False, stderr=subprocess.DEVNULL)


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


@pytest.fixture(scope="module")
def mesh(
    docker: Engine, outside: Any, base_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with node(docker, base_image, tmp_path_factory.mktemp("nets"), "nets") as made:
        labels = {"penstock.dev/mesh": "true"}
        config = {"Name": OPEN, "Labels": labels, "IPAM": {"Config": [{"Subnet": "10.188.4.0/24"}]}}
        docker.request("POST", "/networks/create", config)
        both = [{"Subnet": "10.188.5.0/24"}, {"Subnet": "fd00:188:5::/64"}]
        config = {
            "Name": SIX,
            "Labels": labels,
            "Internal": True,
            "EnableIPv6": True,
            "IPAM": {"Config": both},
        }
        docker.request("POST", "/networks/create", config)
        made.networks += [OPEN, SIX]
        made.run("client", SIX)
        made.run("stranger", SIX)
        made.run(
            "published", OPEN,
            host={"PortBindings": {f"{PORT}/tcp": [{"HostPort": str(PUBLISHED)}]}},
            ExposedPorts={f"{PORT}/tcp": {}},
        )  # fmt: skip
        made.run("web-1", SIX)
        made.apply(WORLD, policy("web", "web", "client"))
        made.known("client", "stranger", "published", "web-1")
        yield made


def test_a_published_port_is_served_and_judged_as_the_world(mesh: Node, outside: Any) -> None:
    """By Docker's DNAT from outside, and by docker-proxy on the host: request by request."""
    mesh.apply(WORLD, policy("web", "web", "client"))
    here: Any = SimpleNamespace(name="host", netns=mesh.engine.netns)
    for client, address in ((outside, HOST), (here, "127.0.0.1")):
        until("it serves", lambda: _status(client, address, "/open") == 200)  # noqa: B023
        with Http(client, address, PUBLISHED) as kept:
            for _ in range(5):
                assert kept.ask("/open/1").status == 200
                assert kept.ask("/closed").status == 403
        # Envoy tells of requests a moment later.
        until("it is told", lambda: any(r["verdict"] == "DENIED" for r in mesh.daemon.observed(50)))


def test_a_published_port_gives_nobody_rights(mesh: Node, outside: Any) -> None:
    """The next request of an open connection is judged by the rules of now; a new one finds nobody."""
    mesh.apply(WORLD, policy("web", "web", "client"))
    until("it serves", lambda: _status(outside, HOST, "/open") == 200)
    with Http(outside, HOST, PUBLISHED, timeout=2.0) as kept:
        assert kept.ask("/open").status == 200
        mesh.apply(INSIDE, policy("web", "web", "client"))
        assert _or_silence(kept) in (0, 403)
    assert _status(outside, HOST, "/open") == 0
    here: Any = SimpleNamespace(name="host", netns=mesh.engine.netns)
    assert _status(here, "127.0.0.1", "/open") == 0


def _status(client: Any, address: str, path: str) -> int:
    try:
        return int(ask(client, address, PUBLISHED, path, timeout=1.0).status)
    except OSError:
        return 0


def _or_silence(connection: Http) -> int:
    try:
        return int(status_or_reset(connection, "/open"))
    except TimeoutError:
        return 0


def test_ipv6_of_a_network_is_guarded_as_ipv4_is(mesh: Node) -> None:
    web = mesh.boxes["web-1"].inspected["NetworkSettings"]["Networks"][SIX]["GlobalIPv6Address"]
    until("it serves", lambda: passes(mesh.boxes["client"], web))
    assert not passes(mesh.boxes["stranger"], web)


def test_a_container_without_a_default_route_reaches_a_route(mesh: Node) -> None:
    """As engines since 25 make them on internal networks: only the service ranges have a way."""
    mesh.apply(WORLD, policy("web", "web", "client"), SERVICE, ROUTE)
    before = mesh.boxes["client"]
    until("it is served", lambda: passes(before, VIP))
    mesh.daemon.stop()
    for family in ("-4", "-6"):
        done = subprocess.run(
            ["nsenter", f"--net={before.netns}", "ip", family, "route", "del", "default"],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert not done.returncode or "No such" in done.stderr, done.stderr
    with pytest.raises(OSError, match="unreachable"):
        connect(before, VIP, PORT)
    mesh.daemon.start()
    until("the daemon answers", mesh.daemon.answers, 30.0)
    until("it is served again", lambda: passes(before, VIP))
    with pytest.raises(OSError, match="unreachable"):
        connect(before, "192.0.2.1", PORT)


def test_a_killed_container_is_no_backend(mesh: Node) -> None:
    victim = mesh.run("web-2", SIX)
    mesh.known("web-2")
    mesh.engine.request("POST", f"/containers/{victim.number}/kill")

    def known() -> bool:
        objects = mesh.daemon.status()["objects"]
        return any(o["kind"] == "Workload" and o["name"] == "web-2" for o in objects)

    until("it is gone", lambda: not known(), 5.0)
    mesh.remove("web-2")


def test_network_mode_service_shares_one_identity(mesh: Node) -> None:
    """A container in the namespace of another is reached by the other's address and rules."""
    owner = mesh.boxes["client"]
    number = mesh.create("client-side", f"container:{owner.number}", labels={"app": "stranger"})
    mesh.engine.request("POST", f"/containers/{number}/start")
    side = mesh.boxes["client-side"] = Box(mesh.engine, "client-side", number)
    web = mesh.boxes["web-1"].address(SIX)
    assert Path(f"/proc/{side.pid}/ns/net").samefile(owner.netns)
    assert passes(side, web)
    mesh.remove("client-side")
