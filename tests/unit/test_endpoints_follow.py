"""Following endpoints gives what compiling anew gives, and costs their Service and nothing of the others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from test_edge_follow import ATTACHMENTS, BACKENDS, gateway, route, service
from worlds import workload

from penstock.compiler import compile_world
from penstock.envoy.resources import CLUSTER, ENDPOINT, Builder, build
from penstock.manifests.store import Store
from penstock.planner import Planner
from penstock.redirect.encoder import TableEncoder, encode
from penstock.world import Settings, World
from penstock.xds.snapshot import resource

PLACES = ("10.244.1.11", "10.244.1.12", "192.0.2.1", "192.0.2.2", "192.0.2.3")
SPECS = (
    "ports: [{port: 80, targetPort: 8080}]",
    "ipFamilyPolicy: PreferDualStack, ports: [{port: 80, name: http}, {port: 53, protocol: UDP, name: dns}]",
    "clusterIP: None, ports: [{port: 80}]",
    "type: NodePort, ports: [{port: 80, nodePort: 30080}]",
    "type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]",
)
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{toServices: [{k8sService: {serviceName: far0, namespace: default}}]}]
"""
NODES = "\n---\n".join(
    f"{{apiVersion: v1, kind: Node, metadata: {{name: {n}}}, status: {{addresses: "
    f"[{{type: InternalIP, address: 192.0.2.{i}}}]}}}}"
    for i, n in enumerate(("node-a", "far"), 8)
)


def far(number: int, spec: str) -> str:
    return f"apiVersion: v1\nkind: Service\nmetadata: {{name: far{number}}}\nspec: {{{spec}}}\n"


def slice_(name: int, owner: int, ends: list[tuple[str, str]], kind: str = "IPv4") -> str:
    listed = ", ".join(f"{{addresses: ['{address}'], conditions: {{{said}}}}}" for address, said in ends)
    return (
        f"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {kind}\n"
        f"metadata: {{name: e{name}, labels: {{kubernetes.io/service-name: far{owner}}}}}\n"
        "ports: [{port: 8080}, {name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]\n"
        f"endpoints: [{listed}]\n"
    )


SAID = st.sampled_from(["ready: true", "ready: false", "ready: false, serving: true, terminating: true"])
SLICES = st.builds(
    lambda name, owner, ends, there: (f"e{name}.yaml", slice_(name, owner, ends) if there else None),
    st.integers(0, 2),
    st.integers(0, 1),
    st.lists(st.tuples(st.sampled_from(PLACES), SAID), max_size=3),
    st.sampled_from([True, True, True, False]),
)
OTHERS = st.one_of(
    st.builds(
        lambda number, spec: (f"far{number}.yaml", far(number, spec)),
        st.integers(0, 1),
        st.sampled_from(SPECS),
    ),
    st.sampled_from(
        [
            ("far1.yaml", None),
            ("policy.yaml", POLICY),
            ("policy.yaml", None),
            ("two.yaml", workload("two", "10.244.1.12", node="far")),
            ("two.yaml", None),
            ("nodes.yaml", NODES),
            ("six.yaml", slice_(6, 0, [("fd00::7", "ready: true")], "IPv6")),
            (
                "r1.yaml",
                route(5, ["{name: g0}", "{name: far1, kind: Service, group: ''}"], [], "/", 0, "HTTPRoute"),
            ),
            ("r5.yaml", None),
        ]
    ),
)
EDITS = st.lists(
    st.lists(st.one_of(SLICES, SLICES, SLICES, OTHERS), min_size=1, max_size=2), min_size=1, max_size=8
)


def routes() -> dict[str, str | None]:
    found: dict[str, str | None] = {"web.yaml": BACKENDS, "s0.yaml": service(0), "g0.yaml": gateway(0)}
    for number in range(2):
        text = route(number, ["{name: g0}"], [f"h{number}.org"], "/", number, "HTTPRoute", asks=0)
        found[f"edge{number}.yaml"] = text.replace(
            f"name: s{number}, port: 80", f"name: far{number}, port: 80"
        )
        found[f"far{number}.yaml"] = far(number, SPECS[number])
    return found


@settings(max_examples=100, deadline=None)
@given(EDITS)
def test_edits_of_endpoints_give_what_compiling_anew_gives(edits: list[list[tuple[str, str | None]]]) -> None:
    store, planner, builder, encoder = Store(), Planner(), Builder(Settings(), resource), TableEncoder()
    world = World("node-a", {}, ATTACHMENTS, node_addresses=(ip_address("192.0.2.8"),))
    for changes in [list(routes().items()), *edits]:
        found = store.apply(dict(changes))
        assert not [each for each in found.problems if each.severity == "error"]
        world = replace(world, documents=dict(found.documents))
        world, plan = planner.plan(world)
        anew = compile_world(replace(world))
        assert plan == anew
        made = builder.build(plan.proxy)
        for kind, messages in build(anew.proxy, Settings()).items():
            assert {name: resource(name, m).version for name, m in messages.items()} == {
                name: each.version for name, each in made[kind].items()
            }
        assert encoder.encode(plan.kernel) == encode(anew.kernel)


def test_an_endpoint_costs_its_service_and_nothing_of_the_others() -> None:
    store, planner, builder = Store(), Planner(), Builder(Settings(), resource)
    files = routes()
    files |= {f"e{n}.yaml": slice_(n, n, [("192.0.2.1", "ready: true")]) for n in range(2)}
    world = World("node-a", store.apply(files).documents, ATTACHMENTS)
    world, before = planner.plan(world)
    facts = planner.facts
    built = builder.build(before.proxy)
    more = {"e1.yaml": slice_(1, 1, [("192.0.2.1", "ready: true"), ("192.0.2.2", "ready: true")])}
    _, after = planner.plan(replace(world, documents=store.apply(more).documents))
    now = planner.facts
    assert facts is not None and now is not None
    assert (now.served.ports, now.services, now.edge, now.mesh) == (
        facts.served.ports,
        facts.services,
        facts.edge,
        facts.mesh,
    )
    assert now.edge is facts.edge and now.mesh is facts.mesh and now.services is facts.services
    then = {id(cluster) for cluster in before.proxy.clusters}
    assert {c.name for c in after.proxy.clusters if id(c) not in then} == {"default/far1:80/4/edge"}
    again = builder.build(after.proxy)
    assert again[CLUSTER] is built[CLUSTER]
    changed = [n for n, each in again[ENDPOINT].items() if each is not built[ENDPOINT][n]]
    assert changed == ["default/far1:80/4/edge"]


def test_of_two_families_the_one_with_endpoints_is_taken_as_they_come_and_go() -> None:
    store, planner = Store(), Planner()
    files = routes() | {"far0.yaml": far(0, SPECS[1])}
    world = World("node-a", store.apply(files).documents, ATTACHMENTS)
    world, _ = planner.plan(world)
    six = slice_(6, 0, [("fd00::7", "ready: true")], "IPv6")
    four = slice_(4, 0, [("192.0.2.1", "ready: true")])
    for changes, family in (({"six.yaml": six}, 6), ({"four.yaml": four}, 4), ({"four.yaml": None}, 6)):
        world = replace(world, documents=store.apply({**changes}).documents)
        world, plan = planner.plan(world)
        assert plan == compile_world(replace(world))
        found = {c.name: c.family for c in plan.proxy.clusters if "far0" in c.name and not c.helper}
        assert found == {f"default/far0:80/{family}/edge": family}
