"""The DNS proxy comes when it is needed and goes when it is not; one that hangs is replaced. And nobody but
the server that was asked can tell it anything."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dns.message
import dns.rrset
import pytest
from clients import echoes, make_socket, until
from conftest import MeshFactory
from dns_rig import WEB, World, addresses, query, rcode, world
from objects import policy, ports, select, service
from rig import PENSTOCK, Daemon, Mesh, workload

from penstock import lab

DNS = {4: "10.96.0.10", 6: "fd00:10:96::a"}
UPSTREAM, OTHER, API, EVIL = 1, 2, 3, 4
IDLE = 1.0
NAME = "api.example.com"
RULE = policy(
    "out", select(app="client"), egress=[{"toFQDNs": [{"matchName": NAME}], "toPorts": [ports(WEB)]}]
)
SERVICE = service("api", {"name": "http", "port": 80, "targetPort": 8080}, selector={"app": "api"})


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("api", "node-a", serves=True),
        options=("--dns-upstream", f"192.168.77.{200 + UPSTREAM}", "--dns-idle", str(IDLE)),
    )


@pytest.fixture(scope="module")
def outside(mesh: Mesh) -> Iterator[World]:
    with world(mesh, 8) as made:
        yield made


@pytest.fixture
def daemon(mesh: Mesh) -> Daemon:
    """Where no rule needs a DNS proxy, and nobody has asked for a while."""
    mesh.apply(SERVICE)
    found = mesh.on("client")
    until("the proxy rests", lambda: found.status()["dns"]["at_rest"], 30)
    return found


def _processes(daemon: Daemon) -> list[int]:
    """Of DNS proxies of this run directory."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = each.read_bytes().split(b"\0")
            if b"penstock.dns" in words and str(daemon.run_dir).encode() in words:
                found.append(int(each.parent.name))
    return found


# --- when it runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tcp", [False, True])
def test_the_first_question_brings_it(mesh: Mesh, daemon: Daemon, version: int, tcp: bool) -> None:
    assert _processes(daemon) == []
    shown = daemon.status()["dns"]
    assert (shown["pid"], shown["ready"], daemon.call("fqdn")) == (None, True, [])
    answer = query(mesh["client"], DNS[version], "api.default.svc.cluster.local", tcp=tcp, timeout=20)
    assert addresses(answer) == [mesh.vip("api")]
    assert _processes(daemon) == [daemon.status()["dns"]["pid"]]
    until("it ends by itself", lambda: _processes(daemon) == [], 30)
    until("the daemon knows", lambda: daemon.status()["dns"]["at_rest"])


def test_it_runs_while_a_rule_needs_it(mesh: Mesh, daemon: Daemon, outside: World) -> None:
    with _server(outside, _right(outside.host(API))):
        mesh.apply(SERVICE, RULE)
        # In force means that somebody answers.
        pid = daemon.status()["dns"]["pid"]
        assert _processes(daemon) == [pid]
        assert addresses(query(mesh["client"], DNS[4], NAME)) == [outside.host(API)]
        assert echoes(mesh["client"], outside.host(API), WEB)
        daemon.kill()
        daemon.start()
        mesh.wait_for_daemons()
        assert daemon.wait()["dns"]["pid"] == pid
    mesh.apply(SERVICE)
    until("it ends by itself", lambda: _processes(daemon) == [], 30)
    until("the daemon knows", lambda: daemon.status()["dns"]["at_rest"])


def test_a_daemon_that_restarts_has_no_proxy_where_none_is_needed(mesh: Mesh, daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()
    mesh.wait_for_daemons()
    assert daemon.wait()["dns"]["at_rest"]
    assert _processes(daemon) == []
    assert addresses(query(mesh["client"], DNS[4], "api", timeout=20)) == [mesh.vip("api")]


def test_programs_in_a_labs_workload_know_names(mesh: Mesh, daemon: Daemon) -> None:
    """`ip netns exec` finds the resolv.conf that the lab has put there; short names are the namespace's."""
    for name in ("api", "api.default", "api.default.svc.cluster.local"):
        found = subprocess.run(
            ["ip", "netns", "exec", mesh["client"].netns.name, "getent", "ahostsv4", name],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout  # fmt: skip
        assert found.split()[0] == mesh.vip("api")


def test_one_that_hangs_is_replaced_and_named(mesh: Mesh, daemon: Daemon, outside: World) -> None:
    with _server(outside, _right(outside.host(API))):
        mesh.apply(SERVICE, RULE)
        before = daemon.status()["dns"]
        assert addresses(query(mesh["client"], DNS[4], NAME)) == [outside.host(API)]
        os.kill(before["pid"], signal.SIGSTOP)
        until("another one", lambda: daemon.status()["dns"]["pid"] not in (None, before["pid"]), 60)
        daemon.wait()
        assert _processes(daemon) == [daemon.status()["dns"]["pid"]]
        assert daemon.status()["dns"]["hung"] == before["hung"] + 1
        # What was learned is known to it, and what is asked is answered.
        assert echoes(mesh["client"], outside.host(API), WEB)
        assert {e["name"] for e in daemon.call("fqdn")} == {NAME}
        assert addresses(query(mesh["client"], DNS[4], NAME)) == [outside.host(API)]
    process = lab.run_in(
        daemon.node.netns, [*PENSTOCK, "status", "--run-dir", str(daemon.run_dir)], stdout=-1, text=True
    )
    assert "the DNS proxy hung and was replaced" in process.communicate(timeout=30)[0]
    assert "penstock_dns_hung_total 1" in daemon.call("metrics")["text"]


# --- answers of others ------------------------------------------------------------------------------------


class Reply:
    """What a server does with one question: the wire of answers, each from an address of its own."""

    def __init__(self, question: bytes) -> None:
        self.question = dns.message.from_wire(question)

    def __call__(self, address: str, *, number: int = 0, name: str = "") -> bytes:
        """An answer with `address`; with another `number` than the question's, or for another `name`."""
        made = dns.message.make_response(self.question, recursion_available=True)
        asked = self.question.question[0].name.to_text()
        made.answer.append(dns.rrset.from_text(asked, 300, "IN", "A", address))
        made.id ^= number
        if name:
            made.question = [dns.rrset.from_text(f"{name}.", 0, "IN", "A")]
        return made.to_wire()


def _right(address: str):  # type: ignore[no-untyped-def]
    return lambda reply: [("right", reply(address))]


@contextmanager
def _server(outside: World, answers) -> Iterator[None]:  # type: ignore[no-untyped-def]
    """At UPSTREAM; its answers come from there ("right"), from another port, or from another host."""
    right, port, host = (make_socket(outside.netns, socket.SOCK_DGRAM) for _ in range(3))
    right.bind((outside.host(UPSTREAM), 53))
    port.bind((outside.host(UPSTREAM), 0))
    host.bind((outside.host(OTHER), 53))
    by = {"right": right, "port": port, "host": host}

    def serve() -> None:
        with suppress(OSError):
            while True:
                question, client = right.recvfrom(65535)
                if not question:
                    return
                for whence, wire in answers(Reply(question)):
                    by[whence].sendto(wire, client)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            right.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for each in by.values():
            each.close()


FORGED = {
    "another host": lambda reply, evil: ("host", reply(evil)),
    "another port": lambda reply, evil: ("port", reply(evil)),
    "another number": lambda reply, evil: ("right", reply(evil, number=1)),
    "another question": lambda reply, evil: ("right", reply(evil, name="www.example.com")),
}


def _learned(daemon: Daemon) -> set[str]:
    return {e["address"] for e in daemon.call("fqdn")}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_a_forged_answer_opens_nothing(
    mesh: Mesh,
    daemon: Daemon,
    outside: World,
    forged,  # type: ignore[no-untyped-def]
) -> None:
    """It comes first; what the server really says comes after it, and counts."""
    evil, true = outside.host(EVIL), outside.host(API)
    mesh.apply(SERVICE, RULE)
    with _server(outside, lambda reply: [forged(reply, evil), ("right", reply(true))]):
        assert addresses(query(mesh["client"], DNS[4], NAME)) == [true]
    assert _learned(daemon) == {true}
    assert echoes(mesh["client"], true, WEB)
    assert not echoes(mesh["client"], evil, WEB)


def test_forged_answers_alone_are_none(mesh: Mesh, daemon: Daemon, outside: World) -> None:
    evil = outside.host(EVIL)
    mesh.apply(SERVICE, policy(
        "out", select(app="client"),
        egress=[{"toFQDNs": [{"matchName": "never.example.com"}], "toPorts": [ports(WEB)]}],
    ))  # fmt: skip
    with _server(outside, lambda reply: [each(reply, evil) for each in FORGED.values()]):
        assert rcode(query(mesh["client"], DNS[4], "never.example.com", timeout=10)) == "SERVFAIL"
    assert evil not in _learned(daemon)
    assert not echoes(mesh["client"], evil, WEB)
