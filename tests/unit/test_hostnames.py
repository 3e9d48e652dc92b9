"""What the hosts files of containers hold of ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import make

from penstock.hostnames import BEGIN, END, blocks, edited
from penstock.manifests.loader import load_object
from penstock.world import World

MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.5, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: both, namespace: other}
spec: {clusterIPs: [10.96.0.6, "fd00:10:96::6"], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
"""
ROUTE = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{backendRefs: [{name: api, port: 80}]}]
"""
MADE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
}


def names(text: str, namespace: str) -> dict[str, set[str]]:
    """Address → names, as a container of the namespace has them; with a Service `web` made of containers."""
    world, _ = make(text)
    (web,) = load_object(MADE, "docker:shop_web_1").documents
    documents = {**world.documents, web.key: web}
    allocations = world.allocations
    vips = {**allocations.vips, "shop/web/4": "10.96.0.7"}
    world = World(world.node, documents, allocations=type(allocations)(vips=vips))
    lines = blocks(world, [namespace])[namespace].splitlines()
    return {address: set(rest) for address, *rest in map(str.split, lines)}


def test_full_names_everywhere_and_the_short_one_at_home() -> None:
    at_home, away = names(MANIFESTS, "shop"), names(MANIFESTS, "other")
    full = {"api.shop", "api.shop.svc", "api.shop.svc.cluster.local"}
    assert at_home["10.96.0.5"] == {*full, "api"}
    assert away["10.96.0.5"] == full
    assert "both" in away["10.96.0.6"]
    assert "both" in away["fd00:10:96::6"]
    assert not any("headless" in word for found in at_home.values() for word in found)


def test_the_short_name_of_a_compose_service_is_dockers_unless_a_route_names_it() -> None:
    assert "web" not in names(MANIFESTS, "shop")["10.96.0.7"]
    assert "web" in names(MANIFESTS + ROUTE, "shop")["10.96.0.7"]


HOSTS = "127.0.0.1\tlocalhost\n10.1.0.2\tc0ffee\n"


@pytest.mark.parametrize("before", ["", HOSTS, HOSTS.rstrip("\n")])
def test_only_our_block_is_touched(before: str) -> None:
    once = edited(before, "10.96.0.5\tapi\n")
    assert once.startswith(before)
    assert once.endswith(f"{BEGIN}10.96.0.5\tapi\n{END}")
    assert edited(once, "") in (before, f"{before}\n")
    # The engine adds lines at the end when a network is connected.
    more = edited(f"{once}10.2.0.2\tc0ffee\n", "10.96.0.6\tapi\n")
    assert more.count(BEGIN) == 1
    assert "10.2.0.2\tc0ffee\n" in more


@given(st.text(max_size=200), st.sampled_from(["", "10.96.0.5\tapi\n"]))
def test_writing_twice_is_writing_once(before: str, block: str) -> None:
    once = edited(before, block)
    assert edited(once, block) == once
