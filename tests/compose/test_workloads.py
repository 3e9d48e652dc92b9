"""Containers as workloads, with the real engine: what becomes of traffic while they come, go and change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from boxes import PORT, Box, Node, node
from clients import Http, Load, ask, connect, status_or_reset, until

from penstock.lab.engine import Engine

NETWORK = "work"


def policy(name: str, app: str, *peers: str, paths: str = "/.*") -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": app}},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"app": peer}} for peer in peers],
                    "toPorts": [
                        {
                            "ports": [{"port": str(PORT), "protocol": "TCP"}],
                            "rules": {"http": [{"method": "GET", "path": paths}]},
                        }
                    ],
                }
            ],
        },
    }


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"clusterIP": "10.96.7.7", "selector": {"app": "web"}, "ports": [{"port": PORT}]},
}
VIP = "10.96.7.7"
ROUTE = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "web"},
    "spec": {
        "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "rules": [{"backendRefs": [{"name": "web", "port": PORT}]}],
    },
}


@pytest.fixture(scope="module")
def mesh(docker: Engine, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node(docker, base_image, tmp_path_factory.mktemp("work"), "work") as made:
        made.network(NETWORK, "10.188.1.0/24")
        made.run("client", NETWORK)
        made.run("stranger", NETWORK)
        for name in ("web-1", "web-2"):
            made.run(name, NETWORK)
        made.apply(SERVICE, ROUTE, policy("web", "web", "client"))
        made.known("client", "stranger", "web-1", "web-2")
        yield made


def passes(box: Box, address: str, path: str = "/") -> bool:
    try:
        return ask(box, address, PORT, path, timeout=1.0).status == 200
    except OSError:
        return False


def test_a_policy_holds_for_each_way_to_a_container(mesh: Node) -> None:
    client, stranger, web = mesh.boxes["client"], mesh.boxes["stranger"], mesh.boxes["web-1"]
    until("the server is up", lambda: passes(client, web.address(NETWORK)))
    for address in (VIP, web.address(NETWORK)):
        assert passes(client, address)
        assert not passes(stranger, address)


def test_a_container_that_stays_out_is_the_world(mesh: Node) -> None:
    """Being on the network of the mesh gives nobody rights."""
    mesh.run("client-out", NETWORK, labels={"penstock.dev/mesh": "false"})
    try:
        assert not passes(mesh.boxes["client-out"], mesh.boxes["web-1"].address(NETWORK))
    finally:
        mesh.remove("client-out")


def test_a_stopping_container_loses_no_request(mesh: Node) -> None:
    web = mesh.run("web-3", NETWORK)
    mesh.known("web-3")
    until("it serves", lambda: passes(mesh.boxes["client"], web.address(NETWORK)))
    with (
        Load(mesh.boxes["client"], VIP, PORT) as kept,
        Load(mesh.boxes["client"], VIP, PORT, keep=False) as new,
    ):
        kept.more()
        mesh.engine.request("POST", f"/containers/{web.number}/stop")
        kept.more()
        new.more()
    mesh.remove("web-3")
    assert set(kept.seen) == set(new.seen) == {200}, (kept.seen, new.seen)


def test_a_paused_container_gets_nothing_and_comes_back(mesh: Node) -> None:
    web = mesh.boxes["web-2"]
    asked = f"/containers/{web.number}"
    with Load(mesh.boxes["client"], VIP, PORT, keep=False) as load:
        mesh.engine.request("POST", f"{asked}/pause")
        until("it is no backend", lambda: not _ready(mesh, "web-2"))
        answers = [ask(mesh.boxes["client"], VIP, PORT).body for _ in range(20)]
        assert set(answers) == {b"web-1"}
        mesh.engine.request("POST", f"{asked}/unpause")
        until(
            "it answers again",
            lambda: ask(mesh.boxes["client"], VIP, PORT).body == b"web-2",
        )
    assert set(load.seen) == {200}, "what it had begun to answer it answers later"


def _ready(mesh: Node, name: str) -> bool:
    found = mesh.daemon.call(
        "get", kind="workload", object_name=name, namespace="default", all_namespaces=False
    )
    return bool(found["spec"].get("ready", True))


def test_a_renamed_container_keeps_its_connections(mesh: Node) -> None:
    web = mesh.run("web-4", NETWORK)
    mesh.known("web-4")
    until("the server is up", lambda: passes(mesh.boxes["client"], web.address(NETWORK)))
    with Http(mesh.boxes["client"], web.address(NETWORK), PORT) as connection:
        assert connection.ask().status == 200
        mesh.engine.request("POST", f"/containers/{web.number}/rename?name=web-five")
        mesh.known("web-five")
        assert status_or_reset(connection) == 200
    mesh.remove("web-4")


def test_an_address_that_changes_hands_gives_no_rights(mesh: Node) -> None:
    """The next container at the address of one that had rights is judged as itself, at once."""
    web = mesh.boxes["web-1"].address(NETWORK)
    prefix = web.rpartition(".")[0]
    heir = f"{prefix}.200"
    mesh.run("client-2", NETWORK, address=heir)
    mesh.known("client-2")
    with Http(mesh.boxes["client-2"], web, PORT) as kept:
        assert kept.ask().status == 200
        mesh.remove("client-2")
    stranger = mesh.run("stranger-2", NETWORK, address=heir)
    assert stranger.address(NETWORK) == heir
    assert not any(passes(stranger, to) for to in (web, VIP))
    mesh.known("stranger-2")
    assert not any(passes(stranger, to) for to in (web, VIP))
    mesh.remove("stranger-2")


def test_a_restarted_container_is_itself_again(mesh: Node) -> None:
    client = mesh.run("client-3", NETWORK)
    mesh.known("client-3")
    assert passes(client, VIP)
    mesh.engine.request("POST", f"/containers/{client.number}/restart?t=0")
    again = mesh.boxes["client-3"] = Box(mesh.engine, "client-3", client.number)
    assert again.pid != client.pid
    until("it has its rights again", lambda: passes(again, VIP))
    mesh.remove("client-3")


def test_a_container_in_anothers_namespace_has_its_rights_and_no_more(mesh: Node) -> None:
    owner = mesh.boxes["stranger"]
    mesh.run("client-4", f"container:{owner.number}", labels={"penstock.dev/mesh": "true"})
    assert not passes(mesh.boxes["client-4"], VIP)
    names = {o["name"] for o in mesh.daemon.status()["objects"] if o["kind"] == "Workload"}
    assert "client-4" not in names
    mesh.remove("client-4")


def test_a_second_network_is_no_way_around(mesh: Node) -> None:
    """Connected while it runs: it is guarded on the new address too."""
    mesh.network("side", "10.188.2.0/24")
    web, stranger = mesh.boxes["web-1"], mesh.boxes["stranger"]
    for box in (web, stranger):
        mesh.engine.request("POST", "/networks/side/connect", {"Container": box.number})
    web.inspected, stranger.inspected = mesh.engine.inspect(web.number), mesh.engine.inspect(stranger.number)

    def guarded() -> bool:
        endpoints = mesh.daemon.call("get", kind="workload", object_name="web-1", namespace="default",
                                     all_namespaces=False)["status"]["addresses"]  # fmt: skip
        return web.address("side") in endpoints

    until("the new address is known", guarded)
    assert not passes(stranger, web.address("side"))
    for box in (web, stranger):
        mesh.engine.request("POST", "/networks/side/disconnect", {"Container": box.number})


def test_nobody_reaches_a_container_before_it_is_known(mesh: Node) -> None:
    """From its first moment: whoever dials its address all the time gets no connection past the policy."""
    web = mesh.boxes["web-1"].address(NETWORK)
    address = f"{web.rpartition('.')[0]}.201"
    stop = threading.Event()
    got: list[str] = []

    def dial() -> None:
        while not stop.is_set():
            try:
                with connect(mesh.boxes["stranger"], address, PORT, timeout=0.05) as sock:
                    sock.settimeout(0.2)
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    if sock.recv(100).startswith(b"HTTP/1.1 200"):
                        got.append("answered")
            except OSError:
                pass

    dialling = threading.Thread(target=dial)
    dialling.start()
    try:
        mesh.run("web-9", NETWORK, address=address)
        mesh.known("web-9")
        until("it serves", lambda: passes(mesh.boxes["client"], address))
    finally:
        stop.set()
        dialling.join()
    mesh.remove("web-9")
    assert not got
