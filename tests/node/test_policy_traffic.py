"""Policies of every kind on real traffic: networks, deny rules, entities, nodes, authentication, audit."""

from __future__ import annotations

from typing import Any

import pytest
from clients import REFUSED, Http, Sniffer, ask, connect, echoes, pings, status_or_reset, udp_echoes, until
from conftest import MeshFactory
from objects import peer_authentication, policy, ports, select, service
from rig import Mesh, workload

GET = [{"method": "GET"}]


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a"),
        workload("api", "node-a", serves=True),
        workload("far", "node-b", serves=True),
        workload("near", "node-b"),
    )


def audit(document: dict[str, Any]) -> dict[str, Any]:
    document["metadata"]["annotations"] = {"penstock.dev/audit": "true"}
    return document


def into(name: str, *rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return policy(f"into-{name}", select(app=name), ingress=list(rules), **more)


def out(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return policy("out", select(app="client"), egress=list(rules), **more)


def reaches(mesh: Mesh, source: str, target: str, port: int = 9090, version: int = 4) -> bool:
    return echoes(mesh[source], mesh[target].address(version), port, timeout=REFUSED)


def told(mesh: Mesh, node: str, verdict: str, **fields: Any) -> dict[str, Any]:
    """The first record of this verdict with these fields."""

    def find() -> dict[str, Any] | None:
        return next(
            (
                r
                for r in mesh.daemons[node].observed(400)
                if r["verdict"] == verdict and all(r.get(k) == v for k, v in fields.items())
            ),
            None,
        )

    found = until(f"{verdict} {fields}", find)
    assert found is not None
    return found


# --- authentication -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_between_nodes_an_authenticated_rule_is_mesh_tls_and_nothing_else_is(mesh: Mesh, side: str) -> None:
    proof = {"authentication": {"mode": "required"}}
    if side == "sender":
        rules = [
            out({"toEntities": ["cluster"], "toPorts": [ports(9090)], **proof}, {"toPorts": [ports(8081)]})
        ]
    else:
        rules = [
            into(
                "far",
                {"fromEndpoints": [select()], "toPorts": [ports(9090)], **proof},
                {"toPorts": [ports(8081)]},
            )
        ]
    mesh.apply(*rules)
    with (
        Sniffer(mesh.spec.underlay_netns, "port0") as seen,
        connect(mesh["client"], mesh["far"].address(), 9090) as sock,
    ):
        sock.sendall(b"told in confidence\n")
        assert sock.recv(100) == b"told in confidence\n"
    assert seen.tls() and not seen.carried(b"told in confidence")
    assert reaches(mesh, "client", "api")
    if side == "sender":
        with Sniffer(mesh.spec.underlay_netns, "port0") as seen:
            assert ask(mesh["client"], mesh["far"].address(), 8081).status == 200
        assert not seen.tls()


def test_who_cannot_prove_itself_is_kept_out(mesh: Mesh) -> None:
    """A node's own processes have no certificate, and mesh TLS that is off proves nothing."""
    proof = {"authentication": {"mode": "required"}}
    mesh.apply(
        into("far", {"fromEntities": ["all"], "toPorts": [ports(9090), ports(9091, protocol="UDP")], **proof})
    )
    assert reaches(mesh, "client", "far")
    assert reaches(mesh, "near", "far")
    node = mesh.daemons["node-a"].node
    assert not echoes(node, mesh["far"].address(), 9090, timeout=REFUSED)
    assert not udp_echoes(mesh["client"], mesh["far"].address(), 9091, timeout=REFUSED)
    assert udp_echoes(mesh["near"], mesh["far"].address(), 9091, timeout=REFUSED)
    told(mesh, "node-b", "DROPPED", reason="UNAUTHENTICATED")
    mesh.apply(
        into("far", {"fromEntities": ["all"], "toPorts": [ports(9090)], **proof}),
        peer_authentication("far", "DISABLE", app="far"),
    )
    assert not reaches(mesh, "client", "far")
    assert reaches(mesh, "near", "far")


def test_a_live_connection_that_must_be_proven_now_ends(mesh: Mesh) -> None:
    mesh.apply(out({"toEntities": ["cluster"]}))
    with connect(mesh["client"], mesh["far"].address(), 9090) as sock:
        sock.sendall(b"one\n")
        assert sock.recv(10) == b"one\n"
        mesh.apply(out({"toEntities": ["cluster"], "authentication": {"mode": "required"}}))
        sock.settimeout(REFUSED)
        with pytest.raises(OSError):
            sock.sendall(b"two\n")
            if sock.recv(10) != b"two\n":
                raise ConnectionError("closed")
    assert reaches(mesh, "client", "far")


# --- audit --------------------------------------------------------------------------------------------------


def test_audit_tells_and_denies_nothing(mesh: Mesh) -> None:
    mesh.apply(audit(into("api", {"fromEndpoints": [select(app="client")], "toPorts": [ports(9090)]})))
    assert (
        reaches(mesh, "client", "api")
        and reaches(mesh, "other", "api")
        and pings(mesh["client"], mesh["api"].address())
    )
    record = told(mesh, "node-a", "AUDIT", reason="AUDIT_DENIED_INGRESS", protocol="TCP")
    assert (record["source"]["name"], record["destination"]["name"]) == ("default/other", "default/api")
    told(mesh, "node-a", "AUDIT", protocol="ICMP")
    assert mesh.on("api").counter("AUDIT_DENIED_INGRESS") > 0


def test_a_deny_rule_in_audit_names_itself(mesh: Mesh) -> None:
    mesh.apply(audit(policy("no", select(app="client"), egressDeny=[{"toEndpoints": [select(app="far")]}])))
    assert reaches(mesh, "client", "far")
    record = told(mesh, "node-a", "AUDIT", reason="AUDIT_DENIED_EGRESS")
    assert "CiliumNetworkPolicy default/no" in record["rule"]


@pytest.mark.parametrize("target", ["api", "far"])
def test_audit_of_requests_answers_none_itself(mesh: Mesh, target: str) -> None:
    mesh.apply(audit(into(target, {"fromEndpoints": [select()], "toPorts": [ports(8080, http=GET)]})))
    address = mesh[target].address()
    assert ask(mesh["client"], address, 8080, "/audited/get").pod == target
    assert ask(mesh["client"], address, 8080, f"/audited/{target}", method="POST").pod == target
    node = mesh[target].node
    record = told(mesh, node, "AUDIT", type="request", path=f"/audited/{target}")
    assert (record["method"], record["source"]["name"]) == ("POST", "default/client")
    assert not any(
        r["verdict"] == "AUDIT" and r.get("path") == "/audited/get" for r in mesh.daemons[node].observed(400)
    )


@pytest.mark.parametrize("target", ["api", "far"])
def test_a_header_whose_mismatch_is_only_logged(mesh: Mesh, target: str) -> None:
    asked = [{"name": "X-Team", "value": "blue", "mismatch": "LOG"}, {"name": "X-Day", "value": "1"}]
    rule = {"fromEndpoints": [select()], "toPorts": [ports(8080, http=[{"headerMatches": asked}])]}
    mesh.apply(into(target, rule))
    address = mesh[target].address()

    def status(path: str, **headers: str) -> int:
        return ask(mesh["client"], address, 8080, path, headers=headers).status

    assert status(f"/blue/{target}", **{"X-Team": "blue", "X-Day": "1"}) == 200
    assert status(f"/red/{target}", **{"X-Team": "red", "X-Day": "1"}) == 200
    assert status(f"/late/{target}", **{"X-Team": "blue", "X-Day": "2"}) == 403
    node = mesh[target].node
    told(mesh, node, "AUDIT", type="request", path=f"/red/{target}")
    assert not any(
        r["verdict"] == "AUDIT" and r.get("path") == f"/blue/{target}"
        for r in mesh.daemons[node].observed(400)
    )


@pytest.mark.parametrize("target", ["api", "far"])
def test_audit_of_requests_ends_no_open_connection(mesh: Mesh, target: str) -> None:
    """Also not in a tunnel between nodes; what begins later is looked at."""
    address = mesh[target].address()
    strict = peer_authentication(target, "STRICT", app=target)
    watch = audit(into(target, {"fromEndpoints": [select()], "toPorts": [ports(8080, http=GET)]}))
    mesh.apply(strict)
    with Http(mesh["client"], address, 8080) as open_:
        assert open_.ask("/").status == 200
        mesh.apply(strict, watch)
        assert open_.ask("/", method="POST").status == 200
        assert ask(mesh["client"], address, 8080, f"/late/{target}", method="POST").status == 200
        told(mesh, mesh[target].node, "AUDIT", type="request", path=f"/late/{target}")
        assert open_.ask("/", method="POST").status == 200


def test_audit_beside_an_enforced_policy_opens_nothing(mesh: Mesh) -> None:
    mesh.apply(
        into("api", {"fromEndpoints": [select(app="other")]}),
        audit(policy("more", select(app="api"), ingress=[{"fromEndpoints": [select(app="client")]}])),
    )
    assert not reaches(mesh, "client", "api")
    assert reaches(mesh, "other", "api")


def test_a_policy_that_leaves_audit_holds_for_the_next_request(mesh: Mesh) -> None:
    rule = {"fromEndpoints": [select()], "toPorts": [ports(8080, http=GET)]}
    mesh.apply(audit(into("api", rule)))
    with Http(mesh["client"], mesh["api"].address(), 8080) as open_:
        assert open_.ask("/", method="POST").status == 200
        mesh.apply(into("api", rule))
        assert status_or_reset(open_) == 200
        assert open_.ask("/", method="POST").status == 403
        mesh.apply(audit(into("api", rule)))
        assert open_.ask("/", method="POST").status == 200


# --- who is meant -------------------------------------------------------------------------------------------


def test_networks_are_for_addresses_that_are_nobodys(mesh: Mesh) -> None:
    group = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": "all"},
        "spec": {"externalCIDRs": ["0.0.0.0/0", "::/0"]},
    }
    mesh.apply(group, out({"toCIDRSet": [{"cidrGroupRef": "all"}]}))
    assert not reaches(mesh, "client", "api") and not reaches(mesh, "client", "far")


@pytest.mark.parametrize("version", [4, 6])
def test_entities_and_nodes(mesh: Mesh, version: int) -> None:
    mesh.apply(into("api", {"fromEntities": ["remote-node"]}))
    node = mesh.daemons["node-b"].node
    address = mesh["api"].address(version)
    assert echoes(node, address, 9090, timeout=REFUSED)
    assert not reaches(mesh, "client", "api", version=version) and not reaches(
        mesh, "near", "api", version=version
    )
    named = [{"matchLabels": {"name": "nobody"}}]
    mesh.apply(into("api", {"fromNodes": named}))
    assert not echoes(node, address, 9090, timeout=REFUSED)
    mesh.apply(into("api", {"fromNodes": [{}]}))
    assert echoes(node, address, 9090, timeout=REFUSED)
    assert not reaches(mesh, "near", "api", version=version)


def test_to_services_and_deny(mesh: Mesh) -> None:
    api = service("api", {"port": 80, "targetPort": 9090}, selector={"app": "api"})
    mesh.apply(api, out({"toServices": [{"k8sService": {"serviceName": "api"}}]}))
    assert echoes(mesh["client"], mesh.vip("api"), 80, timeout=REFUSED)
    assert reaches(mesh, "client", "api") and not reaches(mesh, "client", "far")
    deny = policy(
        "no", select(app="client"), egressDeny=[{"toServices": [{"k8sService": {"serviceName": "api"}}]}]
    )
    mesh.apply(api, out({"toEndpoints": [{}]}), deny)
    assert not echoes(mesh["client"], mesh.vip("api"), 80, timeout=REFUSED)
    assert not reaches(mesh, "client", "api") and reaches(mesh, "client", "far")


def test_icmp_types_and_a_plain_network_policy(mesh: Mesh) -> None:
    address = mesh["api"].address()
    mesh.apply(into("api", {"fromEndpoints": [select()], "icmps": [{"fields": [{"type": "Timestamp"}]}]}))
    assert not pings(mesh["client"], address) and not reaches(mesh, "client", "api")
    mesh.apply(into("api", {"fromEndpoints": [select()], "icmps": [{"fields": [{"type": 8}]}]}))
    assert pings(mesh["client"], address) and not reaches(mesh, "client", "api")
    plain = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "plain"},
        "spec": {
            "podSelector": select(app="api"),
            "ingress": [
                {
                    "from": [{"podSelector": select(app="other")}],
                    "ports": [{"port": "echo"}, {"port": 8080, "endPort": 8090}],
                }
            ],
        },
    }
    mesh.apply(plain)
    assert reaches(mesh, "other", "api") and not reaches(mesh, "client", "api")
    assert ask(mesh["other"], address, 8081).status == 200
    assert not udp_echoes(mesh["other"], address, 9091, timeout=REFUSED)


def test_a_clusterwide_policy_holds_in_every_namespace(mesh: Mesh) -> None:
    everywhere = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "everywhere"},
        "spec": {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "near"}}]}]},
    }
    mesh.apply(everywhere)
    assert reaches(mesh, "near", "api") and reaches(mesh, "near", "far")
    assert not reaches(mesh, "client", "api") and not reaches(mesh, "client", "far")
