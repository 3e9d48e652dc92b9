"""Workloads that come and go: steered when they come, and nothing of theirs is left for who comes after."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from clients import REFUSED, Http, ask, echoes, status_or_reset, until
from conftest import MeshFactory
from objects import policy, ports, route, select, service, to
from rig import Mesh, workload

from penstock import lab
from penstock.lab import LabWorkload, netns

RULES = policy(
    "api",
    select(app="api"),
    ingress=[
        {
            "fromEndpoints": [select(app="client")],
            "toPorts": [ports(8080, http=[{"path": "/a"}]), ports(9090)],
        }
    ],
)
WEB = service("web", {"port": 80, "targetPort": 8080}, selector={"app": "api"})
ROUTE = route("web", "web", {"backendRefs": [to("web")]})


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    found = make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a"),
        workload("api", "node-a", serves=True),
        workload("far", "node-b", serves=True),
    )
    found.apply(RULES, WEB, ROUTE)
    return found


def destroy(mesh: Mesh, name: str) -> None:
    """The namespace with all that is in it; the kernel takes the veth away with it."""
    gone = mesh[name]
    netns.end_processes([gone.netns.name])
    netns.remove(gone.netns.name)

    def absent() -> bool:
        with lab.entered(mesh.spec.node(gone.node).netns):
            return gone.device not in Path("/proc/thread-self/net/dev").read_text()

    until("the veth is gone", absent)


def create(mesh: Mesh, name: str) -> LabWorkload:
    """As a CNI plugin does it: namespace, veth, addresses, routes."""
    made = mesh[name]
    node = mesh.spec.node(made.node).netns
    netns.create([made.netns.name])
    host = f"ip link add {made.device} type veth peer name eth0 netns {made.netns.name}\n"
    host += f"sysctl -qw net.ipv4.conf.{made.device}.proxy_arp=1 net.ipv4.neigh.{made.device}.proxy_delay=0\n"
    host += f"ip link set {made.device} up\nip -6 addr add fe80::1/64 dev {made.device} nodad\n"
    inside = "ip link set lo up\nip link set eth0 up\n"
    for address in made.addresses:
        six = address.version == 6
        family, gateway = ("-6", "fe80::1") if six else ("-4", "169.254.1.1")
        inside += f"ip {family} addr add {address}/{address.max_prefixlen} dev eth0 {'nodad' * six}\n"
        inside += f"ip {family} route add default via {gateway} dev eth0 onlink\n"
        host += f"ip {family} route add {address}/{address.max_prefixlen} dev {made.device}\n"
    for where, script in ((node, host), (made.netns, inside)):
        done = lab.run_in(where, ["sh", "-ec", script], stderr=subprocess.PIPE, text=True)
        _, errors = done.communicate(timeout=10)
        assert done.returncode == 0, errors
    return made


def relabel(mesh: Mesh, name: str, **labels: str) -> None:
    """The lab's manifests with other labels for one workload."""
    documents: list[dict[str, Any]] = mesh.spec.documents()
    for document in documents:
        if document["metadata"]["name"] == name:
            document["metadata"]["labels"] = labels
            document["spec"]["serviceAccountName"] = labels["app"]
    mesh.write(f"lab-{mesh.spec.name}.yaml", yaml.safe_dump_all(documents))


def workload_state(mesh: Mesh, name: str) -> tuple[str, str]:
    objects = mesh.on(name).status()["objects"]
    (entry,) = [o for o in objects if (o["kind"], o["name"]) == ("Workload", name)]
    return entry["state"], entry["message"]


@pytest.mark.parametrize("version", [4, 6])
def test_an_address_that_changes_hands_keeps_nothing_of_the_old_rights(mesh: Mesh, version: int) -> None:
    address, vip = mesh["api"].address(version), mesh.vip("web")
    with Http(mesh["client"], address, 8080) as one, Http(mesh["client"], vip, 80) as two:
        assert (one.ask("/a").status, two.ask("/a").status) == (200, 200)
        assert echoes(mesh["client"], address, 9090, timeout=3)
    destroy(mesh, "client")
    relabel(mesh, "client", app="stranger")
    mesh.wait()
    assert workload_state(mesh, "client")[0] == "pending"
    create(mesh, "client")
    until("the new one is attached", lambda: workload_state(mesh, "client")[0] == "in force")
    assert not echoes(mesh["client"], address, 9090)
    with pytest.raises(TimeoutError):
        ask(mesh["client"], address, 8080, "/a", timeout=REFUSED)
    assert ask(mesh["client"], vip, 80, "/a").status == 403
    # And back: the rights come with the identity.
    relabel(mesh, "client", app="client")
    mesh.wait()
    assert ask(mesh["client"], address, 8080, "/a").status == 200
    assert ask(mesh["client"], vip, 80, "/a").status == 200


def test_an_identity_that_changes_in_place_ends_what_was_open(mesh: Mesh) -> None:
    with (
        Http(mesh["client"], mesh["api"].address(), 8080) as one,
        Http(mesh["client"], mesh.vip("web"), 80) as two,
    ):
        assert (one.ask("/a").status, two.ask("/a").status) == (200, 200)
        relabel(mesh, "client", app="stranger")
        mesh.wait()
        assert status_or_reset(one, "/a") in (0, 403)
        assert status_or_reset(two, "/a") in (0, 403)
    relabel(mesh, "client", app="client")
    mesh.wait()


def test_the_certificate_goes_with_the_identity(mesh: Mesh) -> None:
    """To the other node: what a reused address had open there under the old certificate is not used again."""
    strict = policy(
        "far", select(app="far"), ingress=[{"fromEndpoints": [select()], "toPorts": [ports(8080, http=[{}])]}]
    )
    far = service("far", {"port": 80, "targetPort": 8080}, selector={"app": "far"})
    mesh.apply(RULES, WEB, ROUTE, strict, far, route("far", "far", {"backendRefs": [to("far")]}))
    vip = mesh.vip("far")

    def ids(path: str) -> list[str]:
        assert ask(mesh["client"], vip, 80, path).status == 200

        def recorded() -> list[dict[str, Any]]:
            return [r for r in mesh.on("far").observed() if r.get("path") == path]

        return list(until("the request was told of", recorded)[-1]["peer_ids"])

    assert ids("/before") == ["spiffe://penstock.local/ns/default/sa/client"]
    relabel(mesh, "client", app="stranger")
    mesh.wait()
    assert ids("/after") == ["spiffe://penstock.local/ns/default/sa/stranger"]
    relabel(mesh, "client", app="client")
    mesh.apply(RULES, WEB, ROUTE)


def test_a_workload_whose_namespace_is_absent_is_pending_and_settled(mesh: Mesh) -> None:
    document = {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": "ghost"},
        "spec": {"node": "node-a", "netns": "/run/netns/there-is-no-such", "addresses": ["10.244.1.99"]},
    }
    mesh.apply(RULES, WEB, ROUTE, document)
    assert workload_state_of(mesh, "ghost") == (
        "pending",
        "network namespace /run/netns/there-is-no-such is absent",
    )
    # Nobody has the address yet, and it is no way to be anybody.
    assert not echoes(mesh["client"], "10.244.1.99", 9090)
    mesh.apply(RULES, WEB, ROUTE)


def workload_state_of(mesh: Mesh, name: str) -> tuple[str, str]:
    objects = mesh.daemons["node-a"].status()["objects"]
    (entry,) = [o for o in objects if (o["kind"], o["name"]) == ("Workload", name)]
    return entry["state"], entry["message"]


def test_a_new_workload_is_judged_from_its_first_packet(mesh: Mesh) -> None:
    """From the moment that its veth is there until it is in force, nothing of it gets where it must not."""
    destroy(mesh, "other")
    until("it is told absent", lambda: workload_state(mesh, "other")[0] == "pending")
    other = create(mesh, "other")
    got = []

    def in_force() -> bool:
        got.append(echoes(other, mesh["api"].address(), 9090, timeout=0.05))
        return workload_state(mesh, "other")[0] == "in force"

    until("it is in force", in_force)
    got.append(echoes(other, mesh["api"].address(), 9090))
    assert not any(got)
    assert echoes(other, mesh["far"].address(), 9090, timeout=3)


def test_a_backend_that_goes_and_comes_leaves_and_joins_its_service(mesh: Mesh) -> None:
    destroy(mesh, "api")
    until("it is told absent", lambda: workload_state(mesh, "api")[0] == "pending")
    mesh.wait()
    assert ask(mesh["client"], mesh.vip("web"), 80, "/a").status == 503
    api = create(mesh, "api")
    process = lab.run_in(api.netns, api.run[0], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        until("it is in force", lambda: workload_state(mesh, "api")[0] == "in force")
        mesh.wait()
        assert ask(mesh["client"], mesh.vip("web"), 80, "/a").pod == "api"
        assert ask(mesh["client"], api.address(6), 8080, "/b").status == 403
    finally:
        process.terminate()
        process.communicate(timeout=5)
