"""Containers to manifests: what an engine (20.10) said of a Compose project, and what is made of it.

`docker/shop.json` was recorded from: `web` (published 8080:80, two networks), `exporter` in web's network
namespace, `api` (ports by label, a health check that fails), a one-off of it and a container of it that was
never started, `db` that stays out, `probe` in the host's namespace; and one container that is not Compose's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worlds import settle

from penstock.manifests.document import Document
from penstock.manifests.loader import load, load_object
from penstock.sources.combine import combined
from penstock.sources.containers import Container, Made, Network, objects, read_container, read_network
from penstock.sources.containers import refused as refused_containers
from penstock.world import Attachment, Link, World, parse_address

RECORDED = json.loads((Path(__file__).parent / "docker" / "shop.json").read_text())
CONTAINERS = {c.name: c for c in map(read_container, RECORDED["containers"])}
NETWORKS = {n.id: n for n in map(read_network, RECORDED["networks"])}


def made(*containers: Container, leaving: tuple[str, ...] = ()) -> dict[tuple[str, str], Any]:
    """(kind, namespace/name) → what was made; checked as a manifest is."""
    found = {}
    for each in objects(containers or CONTAINERS.values(), NETWORKS, frozenset(leaving)):
        assert not load_object(each.value, each.source).problems
        metadata = each.value["metadata"]
        found[each.value["kind"], f"{metadata['namespace']}/{metadata['name']}"] = each.value
    return found


def refused(**labels: str) -> list[str]:
    web = CONTAINERS["shop_web_1"]
    changed = replace(web, labels={**web.labels, **{f"penstock.dev/{k}": v for k, v in labels.items()}})
    return [str(p) for m in objects([changed], NETWORKS) for p in load_object(m.value, m.source).problems]


def web(**changes: Any) -> Container:
    return replace(CONTAINERS["shop_web_1"], **changes)


def test_who_is_a_workload() -> None:
    names = {name.partition("-run-")[0] for kind, name in made() if kind == "Workload"}
    assert names == {"shop/web-1", "shop/api-1", "shop/api", "default/plain-one"}


def test_a_workload_is_what_its_labels_and_its_project_say() -> None:
    found = made()["Workload", "shop/web-1"]
    assert found["metadata"]["labels"] == {
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": "web",
        "app": "web",
        "tier": "front",
    }, "a label that no selector can say (a proxy's rule) is left out"
    assert found["spec"]["serviceAccountName"] == "shopper"
    assert found["spec"]["container"] == "shop_web_1"
    assert made()["Workload", "shop/api-1"]["spec"]["serviceAccountName"] == "api", "the Compose service"
    assert made()["Workload", "default/plain-one"]["spec"]["serviceAccountName"] == "default"
    assert made()["Workload", "shop/api-1"]["metadata"]["labels"]["app"] == "orders", "its own app wins"


def test_a_container_in_anothers_namespace_is_one_workload_with_it() -> None:
    ports = [p["name"] for p in made()["Workload", "shop/web-1"]["spec"]["ports"]]
    assert ports == ["tcp-80", "metrics"]


def test_a_compose_service_is_a_service() -> None:
    found = made()
    assert {name for kind, name in found if kind == "Service"} == {"shop/web", "shop/api"}
    published = found["Service", "shop/web"]["spec"]["ports"]
    assert [(p["port"], p["targetPort"]) for p in published] == [(80, 80)], "not the host's port"
    labelled = found["Service", "shop/api"]["spec"]["ports"]
    assert [(p["name"], p["port"], p["targetPort"]) for p in labelled] == [
        ("http", 80, 8080),
        ("grpc", 9000, 9000),
    ]


def test_a_service_stays_while_a_container_of_it_exists() -> None:
    stopped = web(pid=0)
    assert ("Service", "shop/web") in made(stopped)
    assert ("Workload", "shop/web-1") not in made(stopped)


@pytest.mark.parametrize(
    ("change", "leaving", "ready"),
    [
        ({}, (), True),
        ({"health": "healthy"}, (), True),
        ({"health": "starting"}, (), False),
        ({"health": "unhealthy"}, (), False),
        ({"paused": True}, (), False),
        ({}, (CONTAINERS["shop_web_1"].id,), False),
    ],
)
def test_who_is_ready(change: dict[str, Any], leaving: tuple[str, ...], ready: bool) -> None:
    spec = made(web(**change), leaving=leaving)["Workload", "shop/web-1"]["spec"]
    assert spec.get("ready", True) is ready


def test_a_one_off_has_the_rights_of_its_service_and_serves_nothing() -> None:
    one_off = next(c for c in CONTAINERS.values() if c.one_off)
    found = made(replace(one_off, health=""))
    (workload,) = found.values()
    assert workload["kind"] == "Workload"
    assert workload["spec"]["ready"] is False
    assert workload["metadata"]["labels"] == made()["Workload", "shop/api-1"]["metadata"]["labels"]


def test_the_recorded_health_check_fails() -> None:
    assert made()["Workload", "shop/api-1"]["spec"]["ready"] is False


def test_the_containers_own_word_is_stronger_than_its_networks() -> None:
    labels = {k: v for k, v in web().labels.items() if k != "penstock.dev/mesh"}
    nowhere = {n: replace(network, mesh=None) for n, network in NETWORKS.items()}
    chosen = web(labels={**labels, "penstock.dev/mesh": "true"})
    assert objects([chosen], nowhere)
    assert not objects([web(labels=labels)], nowhere)
    assert not objects([web(labels={**labels, "penstock.dev/mesh": "false"})], NETWORKS)


def test_a_namespace_is_said_by_a_container_then_its_network_then_its_project() -> None:
    mesh = next(n for n in NETWORKS.values() if n.mesh)
    networks = {**NETWORKS, mesh.id: replace(mesh, namespace="store")}
    (workload, _) = objects([web()], networks)
    assert workload.value["metadata"]["namespace"] == "store"
    own = web(labels={**web().labels, "penstock.dev/namespace": "mine"})
    assert objects([own], networks)[0].value["metadata"]["namespace"] == "mine"


def test_names_that_are_none_for_the_api_are_made_such() -> None:
    alone = Container(
        "f" * 64, "My_Box.1", labels={"penstock.dev/mesh": "true"}, pid=1, networks=frozenset({"n"})
    )
    again = replace(alone, id="e" * 64, name="my-box-1", created="2026")
    names = [m.value["metadata"]["name"] for m in objects([alone, again], {"n": Network("n", "n")})]
    assert names == ["my-box-1", "my-box-1-eeeeeeeeeeee"]


@pytest.mark.parametrize("ports", ["eighty", "80:", "0", "http=70000", "80,80"])
def test_ports_that_cannot_be_are_refused_by_name(ports: str) -> None:
    problems = refused(ports=ports)
    if ports == "80,80":
        assert not problems, "the same port twice is the port"
        return
    assert problems
    assert all(p.startswith("docker:shop_web_1:1: ") for p in problems)


def test_a_network_that_is_not_served_is_refused_by_name() -> None:
    outside = Network("m" * 64, "lan", driver="macvlan")
    box = web(networks=web().networks | {outside.id})
    networks = {**NETWORKS, outside.id: outside}
    assert [m.value["kind"] for m in objects([box], networks)] == ["Service"]
    (problem,) = refused_containers([box], networks)
    assert str(problem) == (
        'docker:shop_web_1:1: Workload shop/web-1: network "lan" (driver macvlan) is not supported; '
        "connect it to networks of the driver bridge only"
    )
    assert not refused_containers(CONTAINERS.values(), NETWORKS)


def documents(*found: Made) -> dict[Any, Document]:
    loaded = [load_object(m.value, m.source) for m in found]
    return {d.key: d for each in loaded for d in each.documents}


def manifests(text: str) -> dict[Any, Document]:
    return {d.key: d for d in load(text, "mine.yaml").documents}


def test_a_manifest_wins_over_what_was_made() -> None:
    mine = manifests("""
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 8000, targetPort: 80}]}
---
apiVersion: penstock.dev/v1alpha1
kind: Workload
metadata: {name: the-web, namespace: other}
spec: {container: shop_web_1}
""")
    found = combined(mine, documents(*objects(CONTAINERS.values(), NETWORKS)))
    assert {(k.kind, k.namespace, k.name) for k in found if "web" in k.name} == {
        ("Service", "shop", "web"),
        ("Workload", "other", "the-web"),
    }
    assert next(d for k, d in found.items() if k.name == "web").file == "mine.yaml"


def test_what_is_not_ready_is_no_backend() -> None:
    attachment = Attachment(100, (Link(10, "v", addresses=(parse_address("10.1.0.2"),)),))
    for paused, backends in ((False, 1), (True, 0)):
        known = documents(*objects([web(paused=paused)], NETWORKS))
        world = World("node-a", known, {("shop", "web-1"): attachment})
        _, plan = settle(world)
        (service,) = plan.kernel.services.values()
        assert len(service.backends) == backends
        assert plan.kernel.endpoints, "its policy holds all the same"


def test_a_container_that_does_not_run_is_named() -> None:
    mine = manifests("""
apiVersion: penstock.dev/v1alpha1
kind: Workload
metadata: {name: gone}
spec: {container: gone_1}
""")
    _, plan = settle(World("node-a", mine))
    (status,) = plan.statuses.values()
    assert status.pending.startswith("container gone_1 does not run here")
