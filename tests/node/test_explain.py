"""What `explain` says of the live kernel is what a real connection, or a real request, gets."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from typing import Any

import msgspec
import pytest
from clients import REFUSED, ask, connect, udp_echoes
from conftest import MeshFactory
from objects import (
    gateway,
    http_policy,
    http_route,
    peer_authentication,
    policy,
    ports,
    route,
    select,
    service,
    to,
)
from rig import PENSTOCK, Mesh, workload

from penstock import lab
from penstock.explain import Question, split

FROM_CLIENT = {
    "fromEndpoints": [select(app="client")],
    "toPorts": [
        ports(8080, http=[{"method": "GET", "path": "/a.*", "headers": ["X-Key: 1"]}, {"path": "/free"}])
    ],
}
OBJECTS = (
    policy("api", select(app="api"), ingress=[FROM_CLIENT]),
    policy(
        "jail",
        select(app="jailed"),
        egress=[{"toEndpoints": [select(app="free")], "toPorts": [ports(8080, 9091, protocol="ANY")]}],
    ),
    peer_authentication("far", "STRICT", app="far"),
    service("api", {"port": 80, "targetPort": 8080}, selector={"app": "api"}),
    service("web", {"port": 80, "targetPort": 8080}, selector={"app": "free"}),
    service("nobody", {"port": 80}, selector={"app": "nobody"}),
    service("split", {"port": 80, "targetPort": 8080}, selector={"app": "free"}),
    route(
        "split",
        "split",
        {"matches": [{"path": {"type": "PathPrefix", "value": "/free"}}], "backendRefs": [to("api")]},
        {"matches": [{"method": "POST"}], "backendRefs": [to("web")]},
        {"matches": [{"path": {"type": "Exact", "value": "/gone"}}], "backendRefs": [to("nobody")]},
    ),
    gateway("gw", addresses=[{"value": "10.98.0.9"}]),
    http_route(
        "edge",
        "gw",
        *(
            {
                "name": name,
                "matches": [{"path": {"type": "PathPrefix", "value": f"/{name}"}}],
                "backendRefs": [to(where)],
            }
            for name, where in (("web", "web"), ("closed", "api"), ("gone", "nobody"), ("broken", "web"))
        ),
        hostnames=["shop.example"],
    ),
    http_policy(
        "broken",
        {"kind": "HTTPRoute", "name": "edge", "sectionName": "broken"},
        fault={"abort": {"httpStatus": 418}},
    ),
)


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    found = make_mesh(
        workload("client", "node-a"),
        workload("jailed", "node-a"),
        workload("api", "node-a", serves=True),
        workload("free", "node-a", serves=True),
        workload("far", "node-b", serves=True),
    )
    found.apply(*OBJECTS)
    return found


def told(mesh: Mesh, node: str, *argv: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, answer and complaint of `penstock explain -o json`."""
    daemon = mesh.daemons[node]
    process = lab.run_in(
        daemon.node.netns,
        [*PENSTOCK, "explain", *argv, "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PENSTOCK_RUN_DIR": str(daemon.run_dir)},
    )
    out, err = process.communicate(timeout=60)
    return process.returncode, json.loads(out) if out else {}, err


def asked(
    mesh: Mesh, node: str, source: str, destination: str, *request: str, **headers: str
) -> dict[str, Any]:
    """What the daemon answers, without a command line."""
    who, port, protocol = split(destination)
    question = Question(source, who, port, protocol, *request, headers=tuple(headers.items()))
    return dict(mesh.daemons[node].call("explain", question=msgspec.to_builtins(question)))


def got(
    mesh: Mesh, source: str, address: str, port: int, method: str, path: str, headers: dict[str, str]
) -> int | str:
    """The code of a request on a connection of its own; "dropped" or "refused" if there was none."""
    try:
        return ask(mesh[source], address, port, path, method=method, headers=headers, timeout=REFUSED).status
    except TimeoutError:
        return "dropped"
    except ConnectionRefusedError:
        return "refused"
    except (ConnectionError, http.client.HTTPException):
        return "cut"


CASES = [
    # from, to, request, what a real request gets, what explain says
    ("client", "api:8080", "GET /a1", {"X-Key": "1"}, 200, "REDIRECTED"),
    ("client", "api:8080", "GET /a1", {"X-Key": "2"}, 403, "REQUEST_DENIED"),
    ("client", "api:8080", "GET /free/../a", {}, 403, "REQUEST_DENIED"),
    ("client", "api:8080", "POST /free", {}, 200, "REDIRECTED"),
    ("client", "api:8081", "GET /free", {}, "dropped", "POLICY_DENIED_INGRESS"),
    ("jailed", "api:8080", "GET /free", {}, "dropped", "POLICY_DENIED_EGRESS"),
    ("jailed", "free:8080", "GET /", {}, 200, "FORWARDED_LOCAL"),
    ("jailed", "free:8081", "GET /", {}, "dropped", "POLICY_DENIED_EGRESS"),
    ("free", "api:8080", "GET /free", {}, "dropped", "POLICY_DENIED_INGRESS"),
    ("client", "default/api:80", "GET /free", {}, 200, "REDIRECTED"),
    ("client", "api:80", "GET /other", {}, 403, "REQUEST_DENIED"),
    ("client", "web:80", "GET /other", {}, 200, "FORWARDED_LOCAL"),
    ("client", "nobody:80", "GET /", {}, "refused", "NO_BACKEND"),
    ("client", "split:80", "GET /free", {}, 200, "REDIRECTED"),
    ("client", "split:80", "GET /free/x", {}, 403, "REQUEST_DENIED"),
    ("client", "split:80", "POST /any", {}, 200, "REDIRECTED"),
    ("jailed", "split:80", "POST /any", {}, 200, "REDIRECTED"),
    ("jailed", "split:80", "GET /free", {}, 403, "REQUEST_DENIED"),
    ("client", "split:80", "GET /nowhere", {}, 404, "NO_ROUTE"),
    ("client", "split:80", "GET /gone", {}, 503, "NO_USABLE_BACKEND"),
    ("client", "far:8080", "GET /", {}, 200, "REDIRECTED"),
    ("jailed", "far:8080", "GET /", {}, "dropped", "POLICY_DENIED_EGRESS"),
]


def _address(mesh: Mesh, destination: str) -> tuple[str, int]:
    who, _, port = destination.rpartition(":")
    name = who.rpartition("/")[2]
    return (mesh.vip(name) if port == "80" else str(mesh[name].address())), int(port)


@pytest.mark.parametrize(("source", "destination", "request_", "headers", "real", "reason"), CASES)
def test_the_live_verdict_is_what_happens(
    mesh: Mesh, source: str, destination: str, request_: str, headers: dict[str, str], real: Any, reason: str
) -> None:
    method, path = request_.split()
    assert got(mesh, source, *_address(mesh, destination), method, path, headers) == real
    found = asked(mesh, "node-a", source, destination, method, path, **headers)
    assert found["live"] is True
    assert found["reason"] == reason
    assert found["verdict"] == ("ALLOWED" if real == 200 else "DENIED")
    assert found["code"] == (real if isinstance(real, int) and real != 200 else None)


@pytest.mark.parametrize(
    ("source", "host", "path", "real", "reason"),
    [
        ("client", "shop.example", "/web/x", 200, "REDIRECTED"),
        ("far", "shop.example", "/web/x", 200, "REDIRECTED"),
        ("client", "shop.example", "/closed", 403, "REQUEST_DENIED"),
        ("client", "shop.example", "/gone", 503, "NO_USABLE_BACKEND"),
        ("client", "shop.example", "/broken", 418, "FAULT"),
        ("client", "shop.example", "/nowhere", 404, "NO_ROUTE"),
        ("client", "other.example", "/web/x", 404, "NO_ROUTE"),
        ("jailed", "shop.example", "/web/x", "dropped", "POLICY_DENIED_EGRESS"),
    ],
)
def test_both_hops_through_a_gateway(
    mesh: Mesh, source: str, host: str, path: str, real: Any, reason: str
) -> None:
    assert (
        mesh[source].node == "node-b"
        or got(mesh, source, "10.98.0.9", 80, "GET", path, {"Host": host}) == real
    )
    found = asked(mesh, "node-a", source, "10.98.0.9:80", "GET", path, Host=host)
    assert (found["live"], found["reason"]) == (True, reason)
    assert found["verdict"] == ("ALLOWED" if real == 200 else "DENIED")
    assert found["code"] == (real if isinstance(real, int) and real != 200 else None)


def test_the_command_tells_by_its_exit_code_and_takes_headers(mesh: Mesh) -> None:
    for key, wanted in (("1", 0), ("2", 1)):
        code, found, _ = told(mesh, "node-a", "client", "api:8080", "GET", "/a", "-H", f"x-key: {key}")
        assert (code, found["verdict"]) == (wanted, "DENIED" if wanted else "ALLOWED")


def test_the_policy_is_named_with_its_line(mesh: Mesh) -> None:
    _, found, _ = told(mesh, "node-a", "client", "api:8080", "GET", "/free")
    named = {(r["name"], r["file"].rpartition("/")[2]) for step in found["steps"] for r in step["rules"]}
    assert named == {("api", "scenario.yaml")}
    text = (mesh.config / "scenario.yaml").read_text().splitlines()
    lines = {r["line"] for step in found["steps"] for r in step["rules"]}
    assert all("ports" in text[line - 1] for line in lines)


def test_the_advice_opens_what_was_closed(mesh: Mesh) -> None:
    _, found, _ = told(mesh, "node-a", "free", "api:8080", "GET", "/new")
    mesh.write("advice.yaml", found["advice"])
    mesh.wait()
    try:
        assert got(mesh, "free", str(mesh["api"].address()), 8080, "GET", "/new", {}) == 200
        assert got(mesh, "free", str(mesh["api"].address()), 8080, "GET", "/other", {}) == 403
        assert asked(mesh, "node-a", "free", "api:8080", "GET", "/new")["verdict"] == "ALLOWED"
    finally:
        (mesh.config / "advice.yaml").unlink()
        mesh.wait()


def test_plain_text_to_a_strict_workload(mesh: Mesh) -> None:
    node, far = mesh.daemons["node-a"].node, mesh["far"]
    with pytest.raises(TimeoutError):
        connect(node, far.address(), 8080, timeout=REFUSED)
    for who in ("world", str(node.addresses[0])):
        code, found, _ = told(mesh, "node-b", who, "far:8080")
        assert (code, found["reason"]) == (1, "PLAINTEXT_TO_STRICT")


def test_each_node_tells_its_own_side_of_what_passes_between_them(mesh: Mesh) -> None:
    for node in mesh.daemons:
        found = asked(mesh, node, "client", "far:8080")
        assert (found["verdict"], found["reason"]) == ("ALLOWED", "REDIRECTED")
        ports_ = [
            s["text"].rpartition("port ")[2]
            for s in found["steps"]
            if s["node"] == node and "port" in s["text"]
        ]
        assert len(ports_) == 1


@pytest.mark.parametrize(("protocol", "number"), [("UDP", 9091), ("UDP", 9092)])
def test_udp(mesh: Mesh, protocol: str, number: int) -> None:
    real = udp_echoes(mesh["jailed"], mesh["free"].address(), 9091) if number == 9091 else False
    code, found, _ = told(mesh, "node-a", "jailed", f"free:{number}/{protocol}")
    assert (code == 0) == real == (number == 9091)
    assert found["reason"] == ("FORWARDED_LOCAL" if real else "POLICY_DENIED_EGRESS")


def test_the_node_itself_reaches_its_workloads(mesh: Mesh) -> None:
    """Also where it has a Gateway's addresses: it speaks from none of them unasked."""
    node = mesh.daemons["node-a"].node
    for version in (4, 6):
        with connect(node, mesh["api"].address(version), 8081) as sock:
            assert sock.getsockname()[0] in {str(a) for a in node.addresses}
    assert told(mesh, "node-a", "host", "api:8081")[0] == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["client", "nobody-at-all:80"],
        ["nobody-at-all", "api:80"],
        ["client", "api:no-such-port"],
        ["client", "api:80/nonsense"],
        ["client", "api:80", "GET", "/", "-H", "no colon"],
        ["client", "api:80", "--node", "node-b"],
    ],
)
def test_who_is_unknown_is_bad_usage(mesh: Mesh, argv: list[str]) -> None:
    code, found, err = told(mesh, "node-a", *argv)
    assert (code, found) == (2, {})
    assert err.startswith("penstock: ")


def look(mesh: Mesh, *argv: str) -> Any:
    daemon = mesh.daemons["node-a"]
    environment = {**os.environ, "PENSTOCK_RUN_DIR": str(daemon.run_dir)}
    process = lab.run_in(
        daemon.node.netns,
        [*PENSTOCK, *argv, "-o", "json"],
        stdout=subprocess.PIPE,
        env=environment,
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(out)


def test_what_is_in_the_kernel_is_shown_in_words(mesh: Mesh) -> None:
    endpoints = {e["name"]: e for e in look(mesh, "endpoint", "list")}
    assert set(endpoints) == {f"default/{n}" for n in ("client", "jailed", "api", "free")}
    assert endpoints["default/api"]["ingress"]["defaultDeny"] is True
    assert endpoints["default/api"]["egress"] == {"defaultDeny": False, "entries": 1}
    assert look(mesh, "endpoint", "get", "api")["policies"][0]["policy"].endswith("default/api")

    identities = {i["identity"]: i for i in look(mesh, "identity", "list")}
    number = endpoints["default/client"]["identity"]
    assert identities[number]["workloads"] == ["default/client"]
    assert str(mesh["client"].address()) in identities[number]["addresses"]
    assert identities[1]["name"] == "reserved:host"

    services = {s["name"]: s for s in look(mesh, "service", "list")}
    assert services["default/split"]["routed"] is True
    assert [b["name"] for b in services["default/api"]["backends"]] == ["default/api"]
    assert services["default/nobody"]["backends"] == []

    entries = [e for e in look(mesh, "bpf", "policy", "api") if e["direction"] == "ingress"]
    assert [(e["identity"], e["protocol"], e["ports"], e["verdict"]) for e in entries] == [
        (number, "TCP", "8080", "REDIRECT")
    ]
    assert entries[0]["rules"][0]["policy"] == "CiliumNetworkPolicy default/api"
    policies = {p["name"]: p for p in look(mesh, "policy", "list")}
    assert (policies["api"]["entries"], policies["api"]["selects"]) == (1, ["default/api"])
    rules = look(mesh, "policy", "get", "api")["ingress"]
    assert (rules["defaultDeny"], rules["rules"][0]["ports"]) == (True, ["TCP 8080"])

    assert got(mesh, "client", str(mesh["api"].address()), 8080, "GET", "/free", {}) == 200
    flows = look(mesh, "bpf", "ct", "--limit", "1000")
    assert [
        f["verdict"]
        for f in flows
        if (f["source"]["name"], f["destination"]["name"], f["destination"]["port"], f["current"])
        == ("default/client", "default/api", 8080, True)
    ][:1] == ["REDIRECT"]
    assert len(look(mesh, "bpf", "ct", "--limit", "1")) == 1
    maps = {m["map"]: m for m in look(mesh, "bpf", "maps")}
    assert maps["endpoints"]["entries"] == sum(
        len(e["addresses"]) for e in [look(mesh, "endpoint", "get", n.partition("/")[2]) for n in endpoints]
    )
