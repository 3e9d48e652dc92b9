"""Thieves at the right address: a server with somebody else's certificate, a neighbour in a shared pool, and
whoever gets an address that was another's.
"""

from __future__ import annotations

import http.client
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import Http, Load, ask, connect, make_socket, until
from conftest import MeshFactory
from objects import peer_authentication, policy, ports, route, select, service, to
from rig import START, Mesh, workload
from test_spine_workloads import create, destroy, relabel, workload_state
from thief import Stolen

from penstock import lab
from penstock.lab import LabError, LabWorkload

STRICT = peer_authentication("far", "STRICT", app="far")
WEB = service("far", {"port": 80, "targetPort": 8080}, selector={"app": "far"})
ROUTE = route("far", "far", {"backendRefs": [to("far")]})
ANYBODY = policy(
    "far",
    select(app="far"),
    ingress=[
        {"fromEndpoints": [select()], "toPorts": [ports(8080, http=[{"path": "/.*"}]), ports(7000)]},
    ],
)
SECRET = b"a-token-that-only-far-may-read"


def spiffe(name: str) -> str:
    return f"spiffe://penstock.local/ns/default/sa/{name}"


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    found = make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a"),
        workload("far", "node-b", serves=True),
        workload("near", "node-b"),
    )
    found.apply(STRICT, WEB, ROUTE, ANYBODY)
    until("far serves", lambda: ask(found["client"], found.vip("far"), 80).status == 200)
    return found


def requests(mesh: Mesh, prefix: str) -> list[dict[str, Any]]:
    """What the receiving Envoy told of requests to paths that begin so."""
    return [r for r in mesh.on("far").observed(4096) if str(r.get("path", "")).startswith(prefix)]


# --- one pool, several clients -----------------------------------------------------------------------------


def test_clients_of_one_node_share_no_connection_of_a_pool(mesh: Mesh) -> None:
    """One cluster, one endpoint, requests of both in turn: each leaves under its own client's certificate."""
    vip = mesh.vip("far")
    with Http(mesh["client"], vip, 80) as one, Http(mesh["other"], vip, 80) as two:
        for number in range(30):
            assert one.ask(f"/pool/client/{number}").status == 200
            assert two.ask(f"/pool/other/{number}").status == 200
    until("all are told of", lambda: len(requests(mesh, "/pool/")) == 60)
    for name in ("client", "other"):
        told = requests(mesh, f"/pool/{name}/")
        assert {tuple(r["peer_ids"]) for r in told} == {(spiffe(name),)}
        assert {r["source"]["name"] for r in told} == {f"default/{name}"}


# --- the wrong server --------------------------------------------------------------------------------------


@contextmanager
def impostor(mesh: Mesh, shown: Stolen) -> Iterator[subprocess.Popen[bytes]]:
    """Whoever holds node-b answers at far's address with that certificate, and demands one."""
    node = mesh.on("far")
    node.end()
    node.take_down()
    back = [str(mesh.spec.node("node-a").pod_cidrs[0]), "via", str(mesh.spec.node("node-a").addresses[0])]
    _ip_route(mesh, "replace", *back)
    root = str(mesh.base / "ca/root.crt")
    command = ["openssl", "s_server", "-accept", "7000", "-quiet", "-tls1_3", "-Verify", "3"]
    command += ["-cert", str(shown.chain), "-cert_chain", str(shown.chain), "-key", str(shown.key)]
    process = lab.run_in(
        mesh["far"].netns,
        [*command, "-CAfile", root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        until("it listens", lambda: _listens(mesh["far"]))
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=10)
        _ip_route(mesh, "del", *back)
        node.start()
        until("the daemon answers", node.answers, START)
        mesh.wait()


def _ip_route(mesh: Mesh, *what: str) -> None:
    """The daemon's routes went with it; the thief sees to his own."""
    where = mesh.spec.node("node-b").netns
    for command in (["ip", "route", *what], ["sysctl", "-qw", "net.ipv4.ip_forward=1"]):
        assert lab.run_in(where, command).wait() == 0


def _listens(where: LabWorkload) -> bool:
    with lab.entered(where.netns):
        tables = [Path("/proc/thread-self/net/tcp"), Path("/proc/thread-self/net/tcp6")]
        return any(f":{7000:04X} " in table.read_text() for table in tables)


def send_secret(mesh: Mesh) -> None:
    """Over TCP; what becomes of the connection is the proxy's matter."""
    with connect(mesh["client"], mesh["far"].address(), 7000, timeout=5) as sock:
        sock.settimeout(1.5)
        try:
            sock.sendall(SECRET)
            sock.recv(1)
        except OSError:
            pass


def test_a_server_with_a_good_certificate_of_another_account(mesh: Mesh, tmp_path: Path) -> None:
    mine = mesh.daemons["node-a"]
    before = mine.counter("IDENTITY_MISMATCH")
    with impostor(mesh, Stolen.of(mesh, tmp_path, "near")) as thief:
        send_secret(mesh)
        until("it is counted", lambda: mine.counter("IDENTITY_MISMATCH") > before)
        thief.terminate()
        out, _ = thief.communicate(timeout=10)
    assert SECRET not in out
    record = [r for r in mine.observed() if r.get("reason") == "IDENTITY_MISMATCH"][-1]
    assert (record["source"]["name"], record["verdict"]) == ("default/client", "DENIED")


def test_far_itself_would_have_been_told(mesh: Mesh, tmp_path: Path) -> None:
    """So that the one above is refused for what it is."""
    with impostor(mesh, Stolen.of(mesh, tmp_path, "far")) as server:
        send_secret(mesh)
        server.terminate()
        out, _ = server.communicate(timeout=10)
    assert SECRET in out


# --- the right address, the wrong workload ----------------------------------------------------------------


def test_nobody_of_the_receivers_node_comes_from_another(mesh: Mesh) -> None:
    daemon = mesh.on("far")
    before = daemon.counter("SPOOFED_SOURCE")
    with make_socket(mesh.spec.node("node-a").netns) as sock:
        sock.settimeout(0.6)
        sock.setsockopt(0, 19, 1)  # SOL_IP, IP_TRANSPARENT
        sock.bind((str(mesh["near"].address()), 26999))
        with pytest.raises(OSError, match=r"timed out|No route"):
            sock.connect((str(mesh["far"].address()), 8080))
    assert daemon.counter("SPOOFED_SOURCE") > before


def test_an_address_of_a_new_workload_under_load(mesh: Mesh) -> None:
    """Not one request of it leaves under the old certificate, or by a connection that was opened under it."""
    vip = mesh.vip("far")
    stop, sent = threading.Event(), {"old": 0, "new": 0}

    def ask_on(where: LabWorkload, who: str) -> None:
        while not stop.is_set():
            try:
                with Http(where, vip, 80, timeout=2) as connection:
                    while not stop.wait(0.002):
                        if connection.ask(f"/hands/{who}/{sent[who]}").status == 200:
                            sent[who] += 1
            except (OSError, LabError, http.client.HTTPException):
                # Its namespace goes, and comes again before it may speak: what counts is what arrives.
                stop.wait(0.002)

    def run(where: LabWorkload, who: str) -> threading.Thread:
        thread = threading.Thread(target=ask_on, args=(where, who))
        thread.start()
        return thread

    with Load(mesh["other"], vip, 80, "/hands/other", pause=0.005):
        old = run(mesh["client"], "old")
        until("the old one speaks", lambda: sent["old"] > 50)
        destroy(mesh, "client")
        stop.set()
        old.join()
        stop.clear()
        relabel(mesh, "client", app="stranger")
        new = run(create(mesh, "client"), "new")
        until("the new one speaks", lambda: sent["new"] > 100, 20)
        stop.set()
        new.join()
    assert workload_state(mesh, "client")[0] == "in force"

    def told(who: str) -> list[dict[str, Any]]:
        found = requests(mesh, f"/hands/{who}/")
        return found if len(found) >= sent[who] else []

    last, first = until("all are told of", lambda: told("old")), until("all are told of", lambda: told("new"))
    assert {tuple(r["peer_ids"]) for r in last} == {(spiffe("client"),)}
    assert {tuple(r["peer_ids"]) for r in first} == {(spiffe("stranger"),)}
    assert not {r["source"]["port"] for r in last} & {r["source"]["port"] for r in first}
    relabel(mesh, "client", app="client")
    mesh.wait()
