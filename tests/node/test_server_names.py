"""Rules about server names (serverNames) on real TLS: what passes, and every way around it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from clients import REFUSED, Sniffer, ask, connect, echoes, until
from conftest import MeshFactory
from dns_rig import World, Zone, addresses, query, world
from objects import peer_authentication, policy, select
from rig import PENSTOCK, Mesh, workload
from test_policy_traffic import audit, told
from tls_clients import TlsClient, plain, tls

from penstock import lab

TLS, HTTP = 9443, 8080
DNS, UPSTREAM, ONE, BOTH, EVIL = "10.96.0.10", 1, 2, 3, 4
"""The node's own DNS, and hosts of the world."""


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    def serves(name: str) -> dict[str, Any]:
        echo = ["lab", "echo", "--name", name, "--tls", str(TLS), "--tcp", "9090", "--http", str(HTTP)]
        return {"run": [[*PENSTOCK, *echo]], "ports": [{"name": "tls", "containerPort": TLS}]}

    return make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a"),
        workload("api", "node-a", **serves("api")),
        workload("far", "node-b", **serves("far")),
        workload("near", "node-b"),
        options=("--dns-upstream", f"192.168.77.{200 + UPSTREAM}"),
    )


@pytest.fixture(scope="module")
def outside(mesh: Mesh) -> Iterator[World]:
    with world(mesh) as made:
        zone = Zone(ttl=300)
        zone.records["one.example.com", "A"] = [made.host(ONE), made.host(BOTH)]
        zone.records["two.example.com", "A"] = [made.host(BOTH)]
        made.names(made.host(UPSTREAM), zone)
        echo = lab.run_in(
            made.netns,
            [*PENSTOCK, "lab", "echo", "--name", "world", "--tls", str(TLS)],
            stdout=subprocess.PIPE,
        )
        assert echo.stdout is not None and b"ready" in echo.stdout.readline()
        yield made
        echo.terminate()
        echo.communicate()


def at(*names: str, port: Any = TLS) -> dict[str, Any]:
    """One entry of toPorts."""
    return {"ports": [{"port": str(port), "protocol": "TCP"}], "serverNames": list(names)}


def out(*rules: dict[str, Any], name: str = "out", **more: Any) -> dict[str, Any]:
    return policy(name, select(app="client"), egress=list(rules), **more)


def into(target: str, *rules: dict[str, Any], name: str = "into") -> dict[str, Any]:
    return policy(name, select(app=target), ingress=list(rules))


EVERYBODY = {"fromEntities": ["all"]}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("side", "target"), [("out", "api"), ("into", "api"), ("out", "far"), ("into", "far")]
)
def test_only_these_names_pass(mesh: Mesh, side: str, target: str, version: int) -> None:
    names = at("one.example.com", "*.two.example.com", "**.three.example.com")
    rule = out({"toEndpoints": [{}], "toPorts": [names]})
    mesh.apply(rule if side == "out" else into(target, {**EVERYBODY, "toPorts": [names]}))
    client, address = mesh["client"], mesh[target].address(version)

    def tried(name: str | None, **how: Any) -> str:
        return tls(client, address, TLS, name, **how)

    for good in ("one.example.com", "a.two.example.com", "a.b.three.example.com", "ONE.example.COM"):
        assert tried(good) == "echo", good
    for bad in ("two.example.com", "a.b.two.example.com", "three.example.com", "one.example.com.evil.org"):
        assert tried(bad) == "reset", bad
    # Another dot, no name, no TLS.
    assert tried("one.example.com.") == "reset"
    assert tried(None) == "reset"
    assert plain(client, address, TLS, b"GET / HTTP/1.1\r\nHost: one.example.com\r\n\r\n") == "reset"
    assert plain(client, address, TLS, b"\0" * 64) == "reset"
    # A ClientHello in pieces is still one.
    assert tried("one.example.com", pieces=20) == "echo"
    assert tried("one.example.org", pieces=20) == "reset"
    assert tried("one.example.org", records=40) in ("reset", "closed")
    # And no other port.
    assert not echoes(client, address, 9090)


def test_a_denial_is_told_with_the_name(mesh: Mesh) -> None:
    mesh.apply(out({"toEndpoints": [select(app="api")], "toPorts": [at("one.example.com")]}))
    before = mesh.on("client").status()["counters"].get("SERVER_NAME", {}).get("packets", 0)
    assert tls(mesh["client"], mesh["api"].address(), TLS, "told.example.com") == "reset"
    record = told(mesh, "node-a", "DENIED", reason="SERVER_NAME", server_name="told.example.com")
    assert (record["source"]["name"], record["destination"]["name"]) == ("default/client", "default/api")
    assert "told.example.com" in record["details"]
    found = mesh.on("client").status()["counters"].get("SERVER_NAME", {}).get("packets", 0)
    assert found > before
    assert tls(mesh["client"], mesh["api"].address(), TLS, "one.example.com") == "echo"
    record = told(mesh, "node-a", "SERVED", server_name="one.example.com")
    assert record["upstream"]["name"] == "default/api"


def test_both_sides_must_let_it_pass(mesh: Mesh) -> None:
    mesh.apply(
        out({"toEndpoints": [{}], "toPorts": [at("*.example.com")]}),
        into("api", {**EVERYBODY, "toPorts": [at("one.*.com")]}),
    )
    found = {n: tls(mesh["client"], mesh["api"].address(), TLS, n) for n in _NAMES}
    assert found == {"one.example.com": "echo", "two.example.com": "reset", "one.else.com": "reset"}
    assert tls(mesh["other"], mesh["api"].address(), TLS, "one.else.com") == "echo"


_NAMES = ("one.example.com", "two.example.com", "one.else.com")


def test_several_rules_let_pass_what_any_of_them_names(mesh: Mesh) -> None:
    rules = [
        {"toEndpoints": [select(app="api")], "toPorts": [at("one.example.com")]},
        {"toPorts": [at("two.example.com")]},
    ]
    mesh.apply(out(*rules))
    client = mesh["client"]

    def found(target: str) -> dict[str, str]:
        return {n: tls(client, mesh[target].address(), TLS, n) for n in _NAMES}

    everything = {"one.example.com": "echo", "two.example.com": "echo", "one.else.com": "reset"}
    assert found("api") == everything
    assert found("far") == everything | {"one.example.com": "reset"}
    # Whoever allows the port allows all that is spoken there.
    mesh.apply(out(*rules, {"toEndpoints": [select(app="far")]}))
    assert set(found("far").values()) == {"echo"}
    assert found("api") == everything


def test_a_name_is_no_way_past_a_rule_about_requests(mesh: Mesh) -> None:
    """One side asks for server names and the other for requests: nothing can be both."""
    http = {"ports": [{"port": str(HTTP), "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}
    mesh.apply(
        out({"toEndpoints": [{}], "toPorts": [at("one.example.com", port=HTTP)]}),
        into("api", {**EVERYBODY, "toPorts": [http]}),
    )
    address = mesh["api"].address()
    assert tls(mesh["client"], address, HTTP, "one.example.com", timeout=REFUSED) == "silence"
    told(mesh, "node-a", "DROPPED", reason="RULES_CLASH")
    assert "rules-clash" in [p["code"] for p in mesh.on("client").status()["problems"]]
    assert ask(mesh["other"], address, HTTP).status == 200


def goes_on(kept: TlsClient) -> bool:
    """Whether a connection outlives the change that was just applied."""
    try:
        return all(kept.echo() == b"back please\n" for _ in range(3))
    except OSError:
        return False


@pytest.mark.parametrize("strict", [False, True], ids=["plain", "mesh-tls"])
@pytest.mark.parametrize("side", ["out", "into"])
def test_an_edit_resets_only_what_it_forbids(mesh: Mesh, side: str, strict: bool) -> None:
    target = "far" if strict else "api"

    def rule(*names: str) -> None:
        rules = {"toPorts": [at(*names)]}
        made = out({"toEndpoints": [{}], **rules}) if side == "out" else into(target, {**EVERYBODY, **rules})
        mesh.apply(made, *([peer_authentication("far", "STRICT", app="far")] if strict else []))

    for version in (4, 6):
        rule("one.example.com", "*.two.example.com")
        where = (mesh["client"], mesh[target].address(version), TLS)
        with (
            TlsClient(*where, "one.example.com") as one,
            TlsClient(*where, "a.two.example.com") as two,
            TlsClient(*where, "b.two.example.com") as other,
        ):
            assert goes_on(one) and goes_on(two) and goes_on(other)
            rule("one.example.com", "a.two.example.com")
            assert (goes_on(one), goes_on(two), goes_on(other)) == (True, True, False)
            rule("a.*.example.com")
            assert (goes_on(one), goes_on(two)) == (False, True)
            # Back to where it came by, and past what a listener keeps for who left it.
            rule("one.example.com", "*.two.example.com")
            assert goes_on(two)
            rule("one.example.com")
            assert not goes_on(two)
    assert tls(*where, "a.two.example.com") in ("reset", "closed")


def test_who_is_kept_outlives_the_listener_and_the_daemon(mesh: Mesh) -> None:
    """The listener by which a connection came goes when nothing steers to it: not while one is kept there."""

    def rule(*names: str) -> dict[str, Any]:
        return out({"toEndpoints": [{}], "toPorts": [at(*names)]})

    mesh.apply(rule("one.example.com", "two.example.com"))
    where = (mesh["client"], mesh["api"].address(), TLS)
    with TlsClient(*where, "one.example.com") as one, TlsClient(*where, "two.example.com") as two:
        assert goes_on(one) and goes_on(two)
        mesh.apply(rule("one.example.com", "two.example.com", "three.example.com"))
        assert goes_on(one) and goes_on(two)
        daemon = mesh.on("client")
        daemon.kill()
        daemon.start()
        until("the daemon answers", daemon.answers, 15)
        mesh.apply(rule("one.example.com", "three.example.com"))
        assert (goes_on(one), goes_on(two)) == (True, False)
        # And what another kind of rule forbids ends.
        mesh.apply(out({"toEndpoints": [select(app="far")], "toPorts": [at("one.example.com")]}))
        assert not goes_on(one)


def test_what_was_open_before_the_rule_begins_anew(mesh: Mesh) -> None:
    mesh.apply()
    with TlsClient(mesh["client"], mesh["api"].address(), TLS, "evil.example.com") as kept:
        assert kept.echo() == b"back please\n"
        mesh.apply(into("api", {**EVERYBODY, "toPorts": [at("one.example.com")]}))
        with pytest.raises(OSError):
            kept.echo()
            kept.echo()


def test_a_connection_outlives_the_rule_that_let_it_pass(mesh: Mesh) -> None:
    mesh.apply(out({"toEndpoints": [{}], "toPorts": [at("one.example.com")]}))
    with TlsClient(mesh["client"], mesh["api"].address(), TLS, "one.example.com") as kept:
        assert kept.echo() == b"back please\n"
        mesh.apply(out({"toEndpoints": [{}]}))
        assert kept.echo() == b"back please\n"
        mesh.apply(out({"toEndpoints": [{}], "toPorts": [at("one.example.com")]}))
        assert kept.echo() == b"back please\n"


def test_a_listener_that_is_dialled_directly_serves_nothing(mesh: Mesh) -> None:
    mesh.apply(out({"toEndpoints": [{}], "toPorts": [at("one.example.com")]}))
    daemon = mesh.on("client")
    ports = sorted({port for port in range(15001, 15200) if _listens(mesh, port)})
    assert ports
    for port in ports:
        assert tls(daemon.node, "127.0.0.1", port, "one.example.com") in ("reset", "closed"), port


def _listens(mesh: Mesh, port: int) -> bool:
    try:
        connect(mesh.on("client").node, "127.0.0.1", port, timeout=1).close()
    except OSError:
        return False
    return True


# --- between nodes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["out", "into", "both"])
def test_within_mesh_tls_the_clients_own_name_counts(mesh: Mesh, side: str) -> None:
    """Strict: what leaves the node is mesh TLS, and inside is the client's own."""
    rules = [peer_authentication("far", "STRICT", app="far")]
    if side != "into":
        rules.append(out({"toEndpoints": [{}], "toPorts": [at("one.example.com")]}))
    if side != "out":
        rules.append(into("far", {**EVERYBODY, "toPorts": [at("one.example.com")]}))
    mesh.apply(*rules)
    client, address = mesh["client"], mesh["far"].address()
    with Sniffer(mesh.spec.underlay_netns, "port0") as seen:
        assert tls(client, address, TLS, "one.example.com") == "echo"
    assert seen.tls() and not seen.carried(b"one.example.com")
    assert tls(client, address, TLS, "two.example.com") in ("reset", "closed")
    assert tls(client, address, TLS, None) in ("reset", "closed")
    assert plain(client, address, TLS, b"GET / HTTP/1.1\r\n\r\n") in ("reset", "closed")
    if side == "into":
        record = told(mesh, "node-b", "DENIED", reason="SERVER_NAME", server_name="two.example.com")
        assert record["source"]["name"] == "default/client"


# --- to the world -------------------------------------------------------------------------------------------


def test_names_to_networks(mesh: Mesh, outside: World) -> None:
    mesh.apply(out({"toCIDR": [f"{outside.host(ONE)}/32"], "toPorts": [at("one.example.com")]}))
    client = mesh["client"]
    assert tls(client, outside.host(ONE), TLS, "one.example.com") == "echo"
    assert tls(client, outside.host(ONE), TLS, "two.example.com") == "reset"
    assert tls(client, outside.host(EVIL), TLS, "one.example.com", timeout=REFUSED) == "silence"
    mesh.apply(out({"toEntities": ["world"], "toPorts": [at("one.example.com")]}))
    assert tls(client, outside.host(EVIL), TLS, "one.example.com") == "echo"
    assert tls(client, outside.host(EVIL), TLS, "evil.example.com") == "reset"


def test_names_to_names(mesh: Mesh, outside: World) -> None:
    """An address that was learned under two names is under both lists, one that was under one is not."""

    def rule(name: str) -> dict[str, Any]:
        return {"toFQDNs": [{"matchName": name}], "toPorts": [at(name)]}

    mesh.apply(out(rule("one.example.com"), rule("two.example.com")))
    client, one, both = mesh["client"], outside.host(ONE), outside.host(BOTH)
    assert tls(client, one, TLS, "one.example.com", timeout=REFUSED) == "silence"
    assert addresses(query(client, DNS, "one.example.com")) == sorted([one, both])
    assert tls(client, one, TLS, "one.example.com") == "echo"
    assert tls(client, both, TLS, "two.example.com") == "reset"
    assert addresses(query(client, DNS, "two.example.com")) == [both]
    assert {n: tls(client, both, TLS, n) for n in _NAMES} == {
        "one.example.com": "echo",
        "two.example.com": "echo",
        "one.else.com": "reset",
    }
    assert tls(client, one, TLS, "two.example.com") == "reset"
    with TlsClient(client, both, TLS, "two.example.com") as kept:
        # Another list for the same address, and none of its names is this one's.
        mesh.apply(out(rule("one.example.com"), rule("two.example.com"), rule("one.else.com")))
        assert goes_on(kept)
        mesh.apply(out(rule("one.example.com"), rule("one.else.com")))
        assert not goes_on(kept)
    mesh.apply(out(rule("one.example.com"), rule("two.example.com")))
    for name, verdict in (("two.example.com", "ALLOWED"), ("one.else.com", "DENIED")):
        asked = {"source": "client", "destination": "two.example.com", "port": str(TLS), "server_name": name}
        said = mesh.on("client").call("explain", question=asked)
        assert said["verdict"] == verdict, said
        assert any(s["what"] == "name" and f"recorded now: {both}" in s["text"] for s in said["steps"])
    with TlsClient(client, one, TLS, "one.example.com") as kept:
        assert kept.echo() == b"back please\n"
        mesh.apply(out(rule("one.example.com"), rule("two.example.com")), into("api", EVERYBODY))
        assert kept.echo() == b"back please\n"
        # What the name opened closes with it.
        mesh.apply(out(rule("two.example.com")), into("api", EVERYBODY))
        with pytest.raises(OSError):
            kept.sock.settimeout(REFUSED)
            kept.echo()
            kept.echo()


# --- audit --------------------------------------------------------------------------------------------------


def test_in_audit_all_passes_and_is_told(mesh: Mesh) -> None:
    mesh.apply(audit(into("api", {**EVERYBODY, "toPorts": [at("one.example.com")]})))
    client, address = mesh["client"], mesh["api"].address()
    assert tls(client, address, TLS, "one.example.com") == "echo"
    assert tls(client, address, TLS, "audited.example.com") == "echo"
    record = told(mesh, "node-a", "AUDIT", server_name="audited.example.com")
    assert record["source"]["name"] == "default/client"
    assert not any(
        r["verdict"] == "AUDIT" and r.get("server_name") == "one.example.com"
        for r in mesh.on("api").observed(400)
    )


def test_an_audit_ends_no_connection_until_it_is_enforced(mesh: Mesh) -> None:
    def rule(*names: str) -> dict[str, Any]:
        return into("api", {**EVERYBODY, "toPorts": [at(*names)]})

    where = (mesh["client"], mesh["api"].address(), TLS)
    mesh.apply()
    with TlsClient(*where, "before.example.com") as before:
        mesh.apply(audit(rule("one.example.com")))
        with TlsClient(*where, "two.example.com") as two, TlsClient(*where, "three.example.com") as three:
            assert goes_on(before) and goes_on(two) and goes_on(three)
            mesh.apply(audit(rule("one.example.com", "two.example.com")))
            assert goes_on(before) and goes_on(two) and goes_on(three)
            mesh.apply(rule("one.example.com", "two.example.com"))
            assert (goes_on(before), goes_on(two), goes_on(three)) == (False, True, False)
            mesh.apply(audit(rule("one.example.com")))
            assert goes_on(two)
