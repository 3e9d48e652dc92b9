"""Whatever stands in the folder: no crash, no hang, from the text to Envoy's bytes; and following stays true.

Manifests that are good (those of examples/ and the objects below) are damaged in a few places, and edits of
them are taken one after the other. PENSTOCK_FUZZ_EXAMPLES is the number of runs (default: few, for `make
test`); `make fuzz` takes many.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import workload

from penstock.compiler import compile_world
from penstock.envoy.resources import Builder
from penstock.errors import PenstockError
from penstock.manifests.review import review
from penstock.manifests.store import Store
from penstock.planner import Planner
from penstock.redirect.encoder import TableEncoder
from penstock.routing.review import review_routes
from penstock.routing.review_edge import review_edge
from penstock.world import Attachment, Link, Settings, World, parse_address
from penstock.xds.snapshot import resource

EXAMPLES = int(os.environ.get("PENSTOCK_FUZZ_EXAMPLES", "20"))
ROOT = Path(__file__).parents[2]
OWN = (
    workload("api", "10.244.1.11", ports="{name: http, containerPort: 8080}")
    + workload("web", "10.244.1.12", ports="{name: http, containerPort: 8080}")
    + """
{apiVersion: v1, kind: Service, metadata: {name: api},
 spec: {selector: {app: api}, ports: [{name: http, port: 80, targetPort: http}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
 metadata: {name: far, labels: {kubernetes.io/service-name: far}},
 ports: [{name: http, port: 80}], endpoints: [{addresses: [192.0.2.1], conditions: {ready: true}}]}
---
{apiVersion: v1, kind: Service, metadata: {name: far}, spec: {ports: [{name: http, port: 80}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: gw},
 spec: {gatewayClassName: penstock, listeners: [
  {name: http, port: 80, protocol: HTTP, hostname: "*.example.com"}, {name: tcp, port: 90, protocol: TCP}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: edge},
 spec: {parentRefs: [{name: gw}], hostnames: [a.example.com], rules: [
  {matches: [{path: {type: PathPrefix, value: /a}, headers: [{name: x, value: y}]}],
   filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}],
   backendRefs: [{name: api, port: 80, weight: 3}, {name: far, port: 80}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: mesh},
 spec: {parentRefs: [{kind: Service, group: "", name: api}], rules: [{backendRefs: [{name: far, port: 80}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: door},
 spec: {rules: [{host: b.example.com, http: {paths: [
  {path: /, pathType: Prefix, backend: {service: {name: api, port: {number: 80}}}}]}}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: np},
 spec: {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {}},
  {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 8080}]}]}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: cnp},
 spec: {endpointSelector: {matchLabels: {app: api}}, ingress: [{fromEndpoints: [{matchLabels: {app: web}}],
  toPorts: [{ports: [{port: "8080", protocol: TCP}], rules: {http: [{method: GET, path: /x.*}]}}]}]}}
"""
)
TEXTS = [OWN, *(path.read_text() for path in sorted((ROOT / "examples").rglob("*.yaml")))]
OBJECTS: list[dict[str, Any]] = [
    each
    for text in TEXTS
    for each in yaml.safe_load_all(text)
    if isinstance(each, dict) and isinstance(each.get("kind"), str)
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 70000),
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["", "*", "0", "-", "10.0.0.0/33", "::", "fe80::1%eth0", "a" * 300, "ü", "/", "(", "%", "TCP", "api"]
    ),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["name", "port", "x"]), st.integers(), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*path, key))


@st.composite
def objects(draw: st.DrawFn) -> tuple[str, dict[str, Any] | None]:
    """One object in a file of its own, damaged in up to three places; or the file goes."""
    number = draw(st.integers(0, len(OBJECTS) - 1))
    if draw(st.integers(0, 9)) == 0:
        return f"{number}.yaml", None
    made = copy.deepcopy(OBJECTS[number])
    for _ in range(draw(st.integers(0, 3))):
        found = list(places(made))
        *way, last = draw(st.sampled_from(found))
        parent: Any = made
        for step in way:
            parent = parent[step]
        what = draw(st.sampled_from(["odd", "odd", "gone", "twice"]))
        if what == "odd":
            parent[last] = draw(ODD)
        elif what == "twice" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            del parent[last]
        if not made:
            break
    return f"{number}.yaml", made


ATTACHMENTS = {
    ("default", name): Attachment(
        100 + i, (Link(10 + i, f"veth{i}", bytes(6), (parse_address(f"10.244.1.{11 + i}"),)),)
    )
    for i, name in enumerate(("api", "web"))
}


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.lists(objects(), min_size=1, max_size=6), min_size=1, max_size=4))
def test_any_manifests(edits: list[list[tuple[str, dict[str, Any] | None]]]) -> None:
    store, planner, encoder = Store(), Planner(), TableEncoder()
    builder = Builder(Settings(), resource)
    world = World("node-a", {}, ATTACHMENTS)
    for changes in edits:
        texts = {
            name: None if each is None else yaml.safe_dump(each, allow_unicode=True) for name, each in changes
        }
        found = store.apply(texts)
        for problem in found.problems:
            assert str(problem).startswith(problem.file)
        listed = found.documents.values()
        for each in (*review(listed), *review_routes(listed), *review_edge(listed)):
            assert str(each)
        world = World("node-a", found.documents, ATTACHMENTS, allocations=world.allocations)
        try:
            world, plan = planner.plan(world)
        except PenstockError:
            continue  # not enough numbers, said in words
        assert plan == compile_world(world)
        encoder.encode(plan.kernel)
        builder.build(plan.proxy)
