"""Names in policies: what is asked, what is learned by it, and every way around it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from clients import REFUSED, connect, echoes, until
from conftest import MeshFactory
from dns_rig import WEB, World, Zone, addresses, query, rcode, world
from objects import policy, ports, select, service
from rig import Mesh, workload

from penstock import lab

GRACE = 1.0
DNS = {4: "10.96.0.10", 6: "fd00:10:96::a"}
UPSTREAM, OTHER, API, CDN, EVIL, SHORT = 1, 2, 3, 4, 5, 6
"""Hosts of the world: two servers of names, and others."""


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    upstream = f"192.168.77.{200 + UPSTREAM}"
    return make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a"),
        workload("plain", "node-a"),
        workload("api", "node-a", serves=True),
        workload("api-2", "node-a", serves=True, labels={"app": "api"}),
        options=("--dns-upstream", upstream, "--dns-grace", str(GRACE)),
    )


@pytest.fixture(scope="module")
def zone() -> Zone:
    return Zone(ttl=300)


@pytest.fixture(scope="module")
def outside(mesh: Mesh, zone: Zone) -> Iterator[World]:
    with world(mesh, 30) as made:
        for version in (4, 6):
            made.names(made.host(UPSTREAM, version), zone)
            made.names(made.host(OTHER, version), zone)
        records = zone.records
        for version, kind in ((4, "A"), (6, "AAAA")):
            records["api.example.com", kind] = [made.host(API, version)]
            records["edge.cdn.net", kind] = [made.host(CDN, version)]
            records["evil.example.org", kind] = [made.host(EVIL, version)]
            records["short.example.com", kind] = [made.host(SHORT, version)]
            for number in range(20):
                records[f"h{number}.example.com", kind] = [made.host(10 + number, version)]
        records["www.example.com", "CNAME"] = ["edge.cdn.net."]
        records["inside.example.com", "A"] = [str(mesh["api"].address())]
        records["node.example.com", "A"] = [str(mesh.spec.nodes[0].addresses[0])]
        records["many.example.com", "A"] = [f"203.0.113.{n}" for n in range(1, 100)]
        zone.ttls["short.example.com"] = 1
        zone.errors["broken.example.com"] = "SERVFAIL"
        zone.truncated.add("many.example.com")
        zone.silent.add("silent.example.com")
        yield made


class Fresh:
    """Hosts of the world that nobody has asked for yet."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self) -> tuple[str, int]:
        """A name, and the number of its host."""
        self._next += 1
        return f"h{self._next - 1}.example.com", 9 + self._next


@pytest.fixture(scope="module")
def fresh() -> Fresh:
    return Fresh()


def names(*selectors: dict[str, str], at: tuple[int, ...] = (WEB,)) -> dict[str, Any]:
    return {"toFQDNs": list(selectors), "toPorts": [ports(*at)]}


def asks(peers: dict[str, Any], *selectors: dict[str, str]) -> dict[str, Any]:
    return {**peers, "toPorts": [{**ports(53, protocol="ANY"), "rules": {"dns": list(selectors)}}]}


def out(*rules: dict[str, Any], name: str = "client", **more: Any) -> dict[str, Any]:
    return policy(f"out-{name}", select(app=name), egress=list(rules), **more)


def server(outside: World, host: int = UPSTREAM) -> dict[str, Any]:
    return {"toCIDR": [f"{outside.host(host)}/32", f"{outside.host(host, 6)}/128"]}


NAME = {"matchName": "api.example.com"}
ALL = {"matchPattern": "*"}


# --- names that a rule allows -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tcp", [False, True])
def test_an_address_opens_with_the_answer_and_not_before(
    mesh: Mesh, outside: World, fresh: Fresh, version: int, tcp: bool
) -> None:
    name, host = fresh()
    mesh.apply(out(names({"matchName": name})))
    client, kind = mesh["client"], "A" if version == 4 else "AAAA"
    assert not echoes(client, outside.host(host, version), WEB)
    answer = query(client, DNS[version], name, kind, tcp=tcp)
    assert addresses(answer) == [outside.host(host, version)]
    assert echoes(client, outside.host(host, version), WEB)
    # Neither another host, nor another name, nor the same host for somebody else.
    assert not echoes(client, outside.host(EVIL, version), WEB)
    assert rcode(query(client, DNS[version], "evil.example.org", kind, tcp=tcp)) == "REFUSED"
    mesh.apply(out(names({"matchName": name})), out(names({"matchName": name}), name="other"))
    assert not echoes(mesh["other"], outside.host(host, version), WEB)


def test_dns_that_a_rule_allows_is_watched_whatever_server_it_names(
    mesh: Mesh, outside: World, fresh: Fresh
) -> None:
    name, host = fresh()
    mesh.apply(
        out(
            names({"matchPattern": "*.example.com"}),
            {**server(outside), "toPorts": [ports(53, protocol="ANY")]},
        )
    )
    client = mesh["client"]
    assert addresses(query(client, outside.host(UPSTREAM), name)) == [outside.host(host)]
    assert echoes(client, outside.host(host), WEB)
    # The rule for the server names no names.
    assert rcode(query(client, outside.host(UPSTREAM), "evil.example.org")) == "NOERROR"
    assert not echoes(client, outside.host(EVIL), WEB)
    assert rcode(query(client, outside.host(OTHER), name, timeout=1)) == "silence"


def test_an_alias_opens_the_address_that_it_leads_to(mesh: Mesh, outside: World) -> None:
    mesh.apply(out(names({"matchName": "WWW.example.com"})))
    client = mesh["client"]
    assert addresses(query(client, DNS[4], "www.Example.com")) == [outside.host(CDN)]
    assert echoes(client, outside.host(CDN), WEB)
    assert rcode(query(client, DNS[4], "edge.cdn.net")) == "REFUSED"


def test_no_answer_opens_what_is_of_the_mesh(mesh: Mesh, outside: World) -> None:
    rule = names({"matchPattern": "*.example.com"}, at=(WEB, 8080, 9090))
    mesh.apply(out(rule), service("api", {"port": 80, "targetPort": 8080}, selector={"app": "api"}))
    client, api = mesh["client"], mesh["api"]
    assert addresses(query(client, DNS[4], "inside.example.com")) == [str(api.address())]
    assert addresses(query(client, DNS[4], "node.example.com")) == [str(mesh.spec.nodes[0].addresses[0])]
    assert not echoes(client, api.address(), 9090)
    with pytest.raises(TimeoutError):
        connect(client, mesh.spec.nodes[0].addresses[0], WEB, timeout=REFUSED)


def test_an_address_closes_after_its_time_unless_a_connection_goes_on(mesh: Mesh, outside: World) -> None:
    mesh.apply(out(names({"matchName": "short.example.com"})))
    client, address = mesh["client"], outside.host(SHORT)
    assert addresses(query(client, DNS[4], "short.example.com")) == [address]
    with connect(client, address, WEB) as kept:
        kept.sendall(b"x")
        assert kept.recv(1) == b"x"
        until("it counts for its connection", lambda: _state(mesh, "short.example.com") == "connected", 10)
        kept.sendall(b"y")
        assert kept.recv(1) == b"y"
        # Policy of now holds for it: an edit judges it again.
        mesh.apply(out(names({"matchName": "short.example.com"}, NAME)))
        kept.sendall(b"z")
        assert kept.recv(1) == b"z"
    until("it is over", lambda: _state(mesh, "short.example.com") == "", 30)
    assert not echoes(client, address, WEB)


def _state(mesh: Mesh, name: str) -> str:
    found = mesh.daemons["node-a"].call("fqdn")
    return next((str(e["state"]) for e in found if e["name"] == name), "")


def test_a_name_that_no_rule_allows_any_more_closes_at_once(mesh: Mesh, outside: World, fresh: Fresh) -> None:
    name, host = fresh()
    mesh.apply(out(names({"matchName": name})))
    query(mesh["client"], DNS[4], name)
    with connect(mesh["client"], outside.host(host), WEB) as kept:
        mesh.apply(out(names(NAME)))
        kept.settimeout(REFUSED)
        kept.sendall(b"x")
        with pytest.raises(TimeoutError):
            kept.recv(1)
    assert not echoes(mesh["client"], outside.host(host), WEB)


# --- names that may be asked ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tcp", [False, True])
def test_a_rule_about_dns_names_servers_and_names(
    mesh: Mesh, outside: World, version: int, tcp: bool
) -> None:
    mesh.apply(out(asks(server(outside), {"matchPattern": "*.example.com"})))
    client = mesh["client"]
    kind = "A" if version == 4 else "AAAA"
    at = outside.host(UPSTREAM, version)
    assert addresses(query(client, at, "api.example.com", kind, tcp=tcp)) == [outside.host(API, version)]
    assert rcode(query(client, at, "evil.example.org", kind, tcp=tcp)) == "REFUSED"
    assert (
        rcode(query(client, outside.host(OTHER, version), "api.example.com", tcp=tcp, timeout=1)) == "silence"
    )
    # Without toFQDNs an answer opens nothing.
    assert not echoes(client, outside.host(API, version), WEB)
    # Who is not named is not touched: no proxy sees it.
    assert (
        rcode(query(mesh["plain"], outside.host(OTHER, version), "evil.example.org", kind, tcp=tcp))
        == "NOERROR"
    )
    records = [r for r in mesh.daemons["node-a"].observed(500) if r["type"] == "dns"]
    assert {r["source"]["name"] for r in records} == {"default/client"} | {
        r["source"]["name"] for r in records if r["destination"]["address"] in DNS.values()
    }


def test_the_rule_that_people_have_for_kube_dns_means_the_nodes_own(mesh: Mesh, outside: World) -> None:
    kube_dns = {"k8s:io.kubernetes.pod.namespace": "kube-system", "k8s:k8s-app": "kube-dns"}
    mesh.apply(out(asks({"toEndpoints": [{"matchLabels": kube_dns}]}, {"matchName": "api.example.com"})))
    client = mesh["client"]
    assert rcode(query(client, DNS[4], "api.example.com")) == "NOERROR"
    assert rcode(query(client, DNS[4], "evil.example.org")) == "REFUSED"
    assert not echoes(client, DNS[4], 80)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nothing.example.com", "NXDOMAIN"),
        ("broken.example.com", "SERVFAIL"),
        ("silent.example.com", "SERVFAIL"),
    ],
)
def test_what_the_server_says_is_passed_on(mesh: Mesh, outside: World, name: str, code: str) -> None:
    mesh.apply(out(asks(server(outside), ALL)))
    assert rcode(query(mesh["client"], outside.host(UPSTREAM), name)) == code


def test_an_answer_that_is_too_long_comes_by_tcp(mesh: Mesh, outside: World) -> None:
    mesh.apply(out(asks(server(outside), ALL)))
    client, at = mesh["client"], outside.host(UPSTREAM)
    short = query(client, at, "many.example.com")
    assert short is not None
    assert short.flags & 0x0200
    assert len(addresses(query(client, at, "many.example.com", tcp=True))) == 99


def test_a_server_that_is_a_workload_answers(mesh: Mesh, outside: World, zone: Zone) -> None:
    outside.names(str(mesh["other"].address()), zone, mesh["other"].netns)
    mesh.apply(
        out(asks({"toEndpoints": [select(app="other")]}, {"matchPattern": "*.example.com"})),
        # It may send nothing by itself, and only the client may ask it.
        policy(
            "closed",
            select(app="other"),
            egress=[],
            enableDefaultDeny={"egress": True},
            ingress=[{"fromEndpoints": [select(app="client")], "toPorts": [ports(53, protocol="ANY")]}],
        ),
    )
    for tcp in (False, True):
        answer = query(mesh["client"], mesh["other"].address(), "api.example.com", tcp=tcp)
        assert addresses(answer) == [outside.host(API)]
        assert (
            rcode(query(mesh["plain"], mesh["other"].address(), "api.example.com", tcp=tcp, timeout=1))
            == "silence"
        )


def test_nobody_dials_the_proxy_itself(mesh: Mesh, outside: World) -> None:
    mesh.apply(out(names(NAME)))
    port = mesh.daemons["node-a"].status()["dns"]["port"]
    node = mesh.spec.nodes[0]
    with pytest.raises(OSError):
        connect(mesh["plain"], node.addresses[0], port, timeout=REFUSED)
    with connect(node, "127.0.0.1", port) as sock, suppress(ConnectionResetError):
        sock.sendall(b"\0\x0c" + b"\0" * 12)
        assert sock.recv(1) == b""


# --- Services ---------------------------------------------------------------------------------------------


def test_services_have_names(mesh: Mesh, outside: World) -> None:
    web = {"name": "http", "port": 80, "targetPort": 8080}
    mesh.apply(
        service("api", web, selector={"app": "api"}, ipFamilyPolicy="RequireDualStack"),
        service("pods", web, selector={"app": "api"}, clusterIP="None"),
    )
    client = mesh["plain"]
    for name in ("api", "api.default", "api.default.svc.cluster.local"):
        for version, kind in ((4, "A"), (6, "AAAA")):
            assert addresses(query(client, DNS[4], name, kind)) == [mesh.vip("api", version)]
    both = sorted(str(mesh[each].address()) for each in ("api", "api-2"))
    assert addresses(query(client, DNS[6], "pods")) == both
    one = query(client, DNS[4], "api-2.pods.default.svc.cluster.local")
    assert addresses(one) == [str(mesh["api-2"].address())]
    assert rcode(query(client, DNS[4], "gone.default.svc.cluster.local")) == "NXDOMAIN"
    assert addresses(query(client, DNS[4], "api.example.com")) == [outside.host(API)]


def dig(mesh: Mesh, *arguments: str) -> list[str]:
    process = lab.run_in(
        mesh["plain"].netns,
        ["dig", f"@{DNS[4]}", "+short", "+tries=1", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=15)
    assert process.returncode == 0
    return sorted(output.splitlines())


def test_dig_reads_what_is_answered(mesh: Mesh, outside: World) -> None:
    web = {"name": "http", "port": 80, "targetPort": 8080}
    mesh.apply(service("api", web, selector={"app": "api"}))
    assert dig(mesh, "api.default.svc.cluster.local") == [mesh.vip("api")]
    assert dig(mesh, "-t", "SRV", "_http._tcp.api.default.svc.cluster.local") == [
        "0 100 80 api.default.svc.cluster.local."
    ]
    assert dig(mesh, "-x", mesh.vip("api")) == ["api.default.svc.cluster.local."]
    assert dig(mesh, "+tcp", "www.example.com") == sorted(["edge.cdn.net.", outside.host(CDN)])


# --- the proxy's life -------------------------------------------------------------------------------------


def test_names_survive_the_daemon_and_the_proxy(mesh: Mesh, outside: World, fresh: Fresh) -> None:
    (first, a), (second, b) = fresh(), fresh()
    mesh.apply(out(names({"matchName": first}, {"matchName": second})))
    client, daemon = mesh["client"], mesh.daemons["node-a"]
    query(client, DNS[4], first)
    pid = daemon.status()["dns"]["pid"]
    daemon.kill()
    # Without a daemon names are answered, and learned.
    assert echoes(client, outside.host(a), WEB)
    assert addresses(query(client, DNS[4], second)) == [outside.host(b)]
    assert echoes(client, outside.host(b), WEB)
    assert rcode(query(client, DNS[4], "evil.example.org")) == "REFUSED"
    daemon.start()
    mesh.wait_for_daemons()
    mesh.wait()
    assert daemon.status()["dns"]["pid"] == pid
    # Without the proxy they are closed, until there is another one, which knows them.
    os.kill(pid, signal.SIGSTOP)
    assert rcode(query(client, DNS[4], first, timeout=0.5)) == "silence"
    os.kill(pid, signal.SIGKILL)
    until("another proxy", lambda: daemon.status()["dns"].get("pid", pid) != pid)
    mesh.wait()
    assert echoes(client, outside.host(a), WEB)
    assert {e["name"] for e in daemon.call("fqdn")} >= {first, second}
    assert addresses(query(client, DNS[4], first)) == [outside.host(a)]


def test_what_was_decided_is_seen(mesh: Mesh, outside: World, fresh: Fresh) -> None:
    name, host = fresh()
    mesh.apply(out(names({"matchName": name})))
    client, daemon = mesh["client"], mesh.daemons["node-a"]
    query(client, DNS[4], name)
    query(client, DNS[4], "evil.example.org")

    def told() -> list[tuple[str, str, str]]:
        return [(r["verdict"], r["name"], r["rcode"]) for r in daemon.observed(50) if r["type"] == "dns"][-2:]

    wanted = [("SERVED", name, "NOERROR"), ("DENIED", "evil.example.org", "REFUSED")]
    until("both are told", lambda: told() == wanted)
    listed = next(e for e in daemon.call("fqdn") if e["name"] == name)
    assert listed["address"] == outside.host(host)
    assert listed["workload"] == "default/client"
    assert 290 < listed["ttl_left"] <= 300
    assert [r["policy"] for r in listed["rules"]] == ["CiliumNetworkPolicy default/out-client"]
    shown = daemon.status()["dns"]
    assert shown["ready"]
    assert shown["answers"]["REFUSED"] >= 1
