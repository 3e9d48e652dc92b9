"""Between two nodes: what is TLS on the wire and who it says to be, and what a strict workload lets in."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import yaml
from clients import (
    REFUSED,
    Http,
    Sniffer,
    ask,
    connect,
    echoes,
    extra_address,
    pings,
    served,
    status_or_reset,
    udp_echoes,
    until,
)
from conftest import MeshFactory
from objects import peer_authentication, policy, ports, route, select, service, to
from rig import Mesh, workload

SECRET = "a-token-that-must-not-be-read"
CLIENT_ID = "spiffe://penstock.local/ns/default/sa/client"
FAR_ID = "spiffe://penstock.local/ns/default/sa/far"
STRICT = peer_authentication("far", "STRICT", app="far")
OFF = peer_authentication("far", "DISABLE", app="far")
OUT = policy(
    "out",
    select(app="client"),
    egress=[{"toEndpoints": [select()], "toPorts": [ports(8080, http=[{"path": "/.*"}])]}],
)
WEB = service(
    "far", {"port": 80, "targetPort": 8080}, selector={"app": "far"}, ipFamilyPolicy="RequireDualStack"
)
ROUTE = route("far", "far", {"backendRefs": [to("far")]})


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a"),
        workload("far", "node-b", serves=True),
        workload("near", "node-b"),
    )


def wire(mesh: Mesh) -> Sniffer:
    return Sniffer(mesh.spec.underlay_netns, "port0")


def guard(*paths: str, who: str = "client") -> dict[str, Any]:
    named = [{"method": "GET", "path": path} for path in paths]
    return policy(
        "far",
        select(app="far"),
        ingress=[{"fromEndpoints": [select(app=who)], "toPorts": [ports(8080, http=named)]}],
    )


def token() -> dict[str, str]:
    return {"authorization": SECRET}


# --- what goes through Envoy anyway -------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("way", ["egress rule", "route"])
def test_what_goes_through_envoy_is_mutual_tls_on_the_wire(mesh: Mesh, way: str, version: int) -> None:
    mesh.apply(WEB, guard("/.*"), *([OUT] if way == "egress rule" else [ROUTE]))
    address, port = (
        (mesh["far"].address(version), 8080) if way == "egress rule" else (mesh.vip("far", version), 80)
    )
    path = f"/{way.replace(' ', '-')}/{version}"
    with wire(mesh) as seen:
        answer = ask(mesh["client"], address, port, path, headers=token())
    assert answer.json["headers"]["Authorization"] == [SECRET]
    assert not seen.carried(SECRET.encode())
    assert seen.tls()
    assert all(20000 <= source <= 31999 or source == 8080 for source, _ in seen.segments)

    def recorded() -> list[dict[str, Any]]:
        return [r for r in mesh.on("far").observed() if r.get("path") == path]

    record = until("the receiving Envoy told of the request", recorded)[-1]
    assert (record["peer_ids"], record["local_ids"]) == ([CLIENT_ID], [FAR_ID])
    assert (record["source"]["name"], record["destination"]["name"]) == ("default/client", "default/far")


@pytest.mark.parametrize("version", [4, 6])
def test_the_receivers_rules_hold_for_the_client_that_the_certificate_names(mesh: Mesh, version: int) -> None:
    mesh.apply(WEB, ROUTE, guard("/a"))
    vip = mesh.vip("far", version)
    assert ask(mesh["client"], vip, 80, "/a").pod == "far"
    assert ask(mesh["client"], vip, 80, "/b").status == 403
    assert ask(mesh["other"], vip, 80, "/a").status == 403


def test_a_tightened_rule_holds_on_the_connection_between_the_nodes(mesh: Mesh) -> None:
    mesh.apply(WEB, OUT, guard("/a", "/b"))
    with Http(mesh["client"], mesh["far"].address(), 8080) as open_:
        assert open_.ask("/b").status == 200
        mesh.apply(WEB, OUT, guard("/a"))
        assert status_or_reset(open_, "/b") in (0, 403)
    with Http(mesh["client"], mesh["far"].address(), 8080) as open_:
        assert open_.ask("/a").status == 200
        mesh.apply(WEB, OUT, guard("/a", who="other"))
        assert status_or_reset(open_, "/a") in (0, 403, 503)


def test_an_ingress_rule_alone_is_judged_by_the_receiver_in_plain_text(mesh: Mesh) -> None:
    """Nothing names it on the client's node, so the kernel carries it; permissive takes it."""
    mesh.apply(guard("/a"))
    with wire(mesh) as seen:
        assert ask(mesh["client"], mesh["far"].address(), 8080, "/a", headers=token()).status == 200
    assert seen.carried(SECRET.encode())
    assert ask(mesh["client"], mesh["far"].address(), 8080, "/b").status == 403


def test_off_is_never_tls(mesh: Mesh) -> None:
    mesh.apply(OFF, WEB, ROUTE, OUT)
    for address, port in ((mesh["far"].address(), 8080), (mesh.vip("far"), 80)):
        with wire(mesh) as seen:
            assert ask(mesh["client"], address, port, headers=token()).status == 200
        assert seen.carried(SECRET.encode())
        assert not seen.tls()


# --- strict ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_without_any_rule_reaches_a_strict_workload_by_mutual_tls(mesh: Mesh, version: int) -> None:
    mesh.apply(STRICT)
    address = mesh["far"].address(version)
    with wire(mesh) as seen:
        with connect(mesh["client"], address, 9090) as sock:
            for _ in range(3):
                sock.sendall(SECRET.encode())
                assert sock.recv(99) == SECRET.encode()
        assert ask(mesh["client"], address, 8080, headers=token()).pod == "far"
    assert not seen.carried(SECRET.encode())
    assert seen.tls()

    def recorded() -> list[dict[str, Any]]:
        return [r for r in mesh.on("far").observed() if r["type"] == "request" and r["protocol"] == "TCP"]

    record = until("the receiving Envoy told of the connection", recorded)[-1]
    assert (record["peer_ids"], record["local_ids"]) == ([CLIENT_ID], [FAR_ID])


def test_all_that_goes_through_envoy_reaches_a_strict_workload(mesh: Mesh) -> None:
    mesh.apply(STRICT, WEB, ROUTE, guard("/a"))
    for address, port in ((mesh["far"].address(), 8080), (mesh.vip("far"), 80)):
        assert ask(mesh["client"], address, port, "/a").pod == "far"
        assert ask(mesh["client"], address, port, "/b").status == 403


@pytest.mark.parametrize("version", [4, 6])
def test_strict_keeps_same_node_workloads_udp_and_icmp_as_they_are(mesh: Mesh, version: int) -> None:
    mesh.apply(STRICT)
    address = mesh["far"].address(version)
    assert ask(mesh["near"], address, 8080).status == 200
    assert ask(mesh.spec.node("node-b"), address, 8080).status == 200  # type: ignore[arg-type]
    assert udp_echoes(mesh["client"], address, 9091, timeout=3)
    assert pings(mesh["client"], address)


@pytest.mark.parametrize("version", [4, 6])
def test_plain_tcp_of_another_node_is_refused_and_counted(mesh: Mesh, version: int) -> None:
    mesh.apply(STRICT)
    daemon, address = mesh.on("far"), mesh["far"].address(version)
    before = daemon.counter("PLAINTEXT_TO_STRICT")
    with pytest.raises(TimeoutError):
        connect(mesh.spec.node("node-a"), address, 8080, timeout=REFUSED)
    assert daemon.counter("PLAINTEXT_TO_STRICT") > before


@pytest.mark.parametrize("source_port", [0, 25000])
def test_plain_tcp_of_an_address_outside_the_mesh_is_refused_and_counted(
    mesh: Mesh, source_port: int
) -> None:
    """Also from a port of the range that tells mesh TLS: that holds for mesh addresses only."""
    mesh.apply(STRICT)
    daemon, stranger = mesh.on("far"), "192.168.77.200"
    with extra_address(mesh.spec.node("node-a"), stranger):
        before = daemon.counter("PLAINTEXT_TO_STRICT")
        with pytest.raises(TimeoutError):
            connect(
                mesh.spec.node("node-a"),
                mesh["far"].address(),
                8080,
                timeout=REFUSED,
                source=stranger,
                source_port=source_port,
            )
        assert daemon.counter("PLAINTEXT_TO_STRICT") > before
        mesh.apply()
        with connect(mesh.spec.node("node-a"), mesh["far"].address(), 8080, source=stranger) as sock:
            assert served(sock).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("documents", [(), (guard("/.*"),)])
def test_a_workload_that_takes_a_port_of_the_proxys_range_only_meets_tls(
    mesh: Mesh, documents: tuple[dict[str, Any], ...], version: int
) -> None:
    """Its own node carries it there as it is; at the far end it has no certificate to show."""
    mesh.apply(*documents)
    daemon, address = mesh.on("far"), mesh["far"].address(version)
    before = daemon.downstream()
    for number, request in enumerate((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x01\x00")):
        with connect(mesh["client"], address, 8080, source_port=25001 + number) as sock:
            assert served(sock, request) == b""
    assert daemon.downstream() == before + 2
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            connect(mesh["client"], address, 8080, source_port=25003, timeout=2) as sock,
            context.wrap_socket(sock, server_hostname=str(address)) as tls,
        ):
            assert served(tls) == b""
    except (ssl.SSLError, TimeoutError, ConnectionError):
        pass  # refused in the handshake: no certificate was shown


@pytest.mark.parametrize("source_port", [0, 25004])
def test_no_client_port_gets_plain_text_past_a_strict_workload(mesh: Mesh, source_port: int) -> None:
    """The client's own node makes mesh TLS of it, whatever port it took."""
    mesh.apply(STRICT)
    request = f"GET / HTTP/1.0\r\nauthorization: {SECRET}\r\n\r\n".encode()
    with (
        wire(mesh) as seen,
        connect(mesh["client"], mesh["far"].address(), 8080, source_port=source_port) as sock,
    ):
        assert served(sock, request).startswith(b"HTTP/1.0 200")
    assert not seen.carried(SECRET.encode())
    assert seen.tls()


def test_when_a_workload_becomes_strict_open_plain_connections_end(mesh: Mesh) -> None:
    mesh.apply()
    with Http(mesh["client"], mesh["far"].address(), 8080, timeout=2) as open_:
        assert open_.ask("/").status == 200
        mesh.apply(STRICT)
        with wire(mesh) as seen:
            assert status_or_reset(open_) == 0
        assert not any(b"HTTP/1.1 200" in payload for _, payload in seen.segments)
    assert echoes(mesh["client"], mesh["far"].address(), 9090, timeout=3)


@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnel_to_a_strict_workload_that_an_l7_rule_now_names_ends(mesh: Mesh, version: int) -> None:
    """The client's Envoy tunnels the bytes; the receiver's must read them from now on."""
    mesh.apply(STRICT)
    with Http(mesh["client"], mesh["far"].address(version), 8080) as open_:
        assert open_.ask("/b").status == 200
        mesh.apply(STRICT, guard("/a"))
        assert status_or_reset(open_, "/b") in (0, 403)
    assert ask(mesh["client"], mesh["far"].address(version), 8080, "/b").status == 403
    assert ask(mesh["client"], mesh["far"].address(version), 8080, "/a").status == 200


@pytest.mark.parametrize("version", [4, 6])
def test_connections_that_wait_between_the_nodes_lose_no_request(mesh: Mesh, version: int) -> None:
    """The client's Envoy keeps them; the receiver's has them in a tunnel, then reads them, then would not."""
    mesh.apply(OUT)
    far = mesh.on("far")
    with Http(mesh["client"], mesh["far"].address(version), 8080) as open_:
        for path in ("/a", "/b"):
            assert open_.ask(path).status == 200
        mesh.apply(OUT, guard("/a"))
        # Ended when its listener was there, and not by the next request.
        assert open_.ask("/a").status == 200
        assert open_.ask("/b").status == 403
        before = far.downstream()
        mesh.apply(OUT)
        assert open_.ask("/b").status == 200
        assert far.downstream() == before, "what reads requests goes on where a tunnel would do"
        mesh.apply(OUT, guard("/a"))
        assert [open_.ask(path).status for path in ("/a", "/b")] == [200, 403]
        assert far.downstream() == before


def test_the_policy_of_a_strict_workload_is_judged_too(mesh: Mesh) -> None:
    """A certificate says who; the rules say what: TCP of a workload that no rule allows is dropped."""
    only = policy(
        "far",
        select(app="far"),
        ingress=[{"fromEndpoints": [select(app="client")], "toPorts": [ports(9090)]}],
    )
    mesh.apply(STRICT, only)
    assert echoes(mesh["client"], mesh["far"].address(), 9090, timeout=3)
    assert not echoes(mesh["other"], mesh["far"].address(), 9090)
    assert not echoes(mesh["client"], mesh["far"].address(), 8081)


def outside(mesh: Mesh, *nodes: str) -> None:
    """The lab's manifests with these nodes out of the mesh."""
    documents: list[dict[str, Any]] = mesh.spec.documents()
    for document in documents:
        if document["metadata"]["name"] in nodes:
            document["metadata"]["annotations"] = {"penstock.dev/mesh": "false"}
    mesh.write(f"lab-{mesh.spec.name}.yaml", yaml.safe_dump_all(documents))


def test_workloads_of_a_node_outside_the_mesh_get_and_send_plain_text(mesh: Mesh) -> None:
    """They are addresses with an identity: policy knows them, a strict workload does not let them in."""
    address = mesh["far"].address()
    near = service("client", {"port": 80, "targetPort": 8080}, selector={"app": "client"})
    try:
        outside(mesh, "node-a")
        mesh.apply(STRICT, near)
        daemon = mesh.on("far")
        before = daemon.counter("PLAINTEXT_TO_STRICT")
        for source_port in (0, 25005):
            try:
                with connect(mesh["client"], address, 8080, timeout=REFUSED, source_port=source_port) as sock:
                    assert served(sock) == b""
            except (TimeoutError, ConnectionError):
                pass  # closed already when it connects
        assert daemon.counter("PLAINTEXT_TO_STRICT") > before
        mesh.apply(guard("/a"), WEB, ROUTE)
        with wire(mesh) as seen:
            assert ask(mesh["client"], address, 8080, "/a", headers=token()).status == 200
            assert ask(mesh["client"], address, 8080, "/b").status == 403
            assert ask(mesh["other"], mesh.vip("far"), 80, "/a").status == 403
        assert seen.carried(SECRET.encode())
    finally:
        outside(mesh)
        mesh.wait()
