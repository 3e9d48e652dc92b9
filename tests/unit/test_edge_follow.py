"""Following edits at the edge gives what compiling anew gives, down to Envoy's bytes; it costs the change."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import workload

from penstock.compiler import compile_world
from penstock.envoy.resources import ROUTE, Builder, build
from penstock.manifests.store import Store
from penstock.planner import Planner
from penstock.world import Attachment, Link, Settings, World
from penstock.xds.snapshot import resource

BACKENDS = workload("web", "10.244.1.11", ports="{name: http, containerPort: 8080}")
ATTACHMENTS = {
    ("default", "web"): Attachment(100, (Link(10, "veth", bytes(6), (ip_address("10.244.1.11"),)),))
}
HOSTS = ("", "a.x.org", "b.x.org", "*.x.org", "*.org", "c.com")


def service(number: int, port: int = 80) -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\n"
        f"spec: {{clusterIP: 10.96.0.{number + 1}, selector: {{app: web}}, "
        f"ports: [{{port: {port}, targetPort: 8080}}]}}\n"
    )


def gateway(number: int, *hosts: str) -> str:
    listeners = ", ".join(
        f"{{name: l{i}, port: 80, protocol: HTTP" + (f', hostname: "{h}"' if h else "") + "}"
        for i, h in enumerate(hosts or ("",))
    )
    return (
        f"apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g{number}}}\n"
        f"spec: {{gatewayClassName: penstock, addresses: [{{value: 10.97.0.{number + 9}}}], "
        f"listeners: [{listeners}, {{name: tcp, port: 90, protocol: TCP}}]}}\n"
    )


def route(name: int, parents: list[str], hosts: list[str], path: str, backend: int, kind: str) -> str:
    rule = f"{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: s{backend}, port: 80}}]}}"
    names = ", ".join(f'"{h}"' for h in hosts if h)
    where = f"hostnames: [{names}], rules: [{rule}]"
    version = "v1"
    if kind == "GRPCRoute":
        where = f"hostnames: [{names}], rules: [{{backendRefs: [{{name: s{backend}, port: 80}}]}}]"
    elif kind == "TCPRoute":
        where, version = f"rules: [{{backendRefs: [{{name: s{backend}, port: 80}}]}}]", "v1alpha2"
        # One of a Service is refused, and the last good one would stay: compiling anew knows nothing of that.
        parents = [parent for parent in parents if "Service" not in parent] or ["{name: g0}"]
    return (
        f"apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: r{name}}}\n"
        f"spec: {{parentRefs: [{', '.join(parents)}], {where}}}\n"
    )


PARENTS = st.lists(
    st.sampled_from(
        ["{name: g0}", "{name: g1}", "{name: g1, sectionName: l0}", "{name: s0, kind: Service, group: ''}"]
    ),
    min_size=1,
    max_size=2,
    unique=True,
)
ROUTES = st.builds(
    lambda name, parents, hosts, path, backend, kind, there: (
        f"r{name}.yaml",
        route(name, parents, hosts, path, backend, kind) if there else None,
    ),
    st.integers(0, 5),
    PARENTS,
    st.lists(st.sampled_from(HOSTS), max_size=2, unique=True),
    st.sampled_from(["/", "/a", "/a/b"]),
    st.integers(0, 2),
    st.sampled_from(["HTTPRoute", "HTTPRoute", "HTTPRoute", "GRPCRoute", "TCPRoute"]),
    st.sampled_from([True, True, True, False]),
)
OTHERS = st.one_of(
    st.builds(
        lambda number, hosts: (f"g{number}.yaml", gateway(number, *hosts)),
        st.integers(0, 1),
        st.lists(st.sampled_from(HOSTS[:4]), min_size=1, max_size=3, unique=True),
    ),
    st.builds(
        lambda number, port: (f"s{number}.yaml", service(number, port)),
        st.integers(0, 2),
        st.sampled_from([80, 81]),
    ),
    st.sampled_from([("g1.yaml", None), ("s1.yaml", None), ("bad.yaml", "kind: Gatewy"), ("bad.yaml", None)]),
)
EDITS = st.lists(
    st.lists(st.one_of(ROUTES, ROUTES, ROUTES, OTHERS), min_size=1, max_size=2), min_size=1, max_size=10
)


@settings(max_examples=150, deadline=None)
@given(EDITS)
def test_edits_give_what_compiling_anew_gives(edits: list[list[tuple[str, str | None]]]) -> None:
    store, planner, builder = Store(), Planner(), Builder(Settings(), resource)
    files: dict[str, str | None] = {"web.yaml": BACKENDS, "s0.yaml": service(0), "g0.yaml": gateway(0)}
    files |= {"g1.yaml": gateway(1, "*.x.org", "a.x.org")}
    world = World("node-a", {}, ATTACHMENTS)
    for changes in [list(files.items()), *edits]:
        files |= dict(changes)
        found = store.apply(dict(changes))
        whole = Store().apply({name: text for name, text in files.items() if text is not None})
        assert list(found.documents) == list(whole.documents)
        assert found.problems == whole.problems
        world = World("node-a", found.documents, ATTACHMENTS, allocations=world.allocations)
        world, plan = planner.plan(world)
        anew = compile_world(replace(world))
        assert plan == anew
        made = builder.build(plan.proxy)
        for kind, messages in build(anew.proxy, Settings()).items():
            assert {name: resource(name, m).version for name, m in messages.items()} == {
                name: each.version for name, each in made[kind].items()
            }


def test_a_route_costs_its_host_and_nothing_of_the_others() -> None:
    store, planner = Store(), Planner()
    files = {"web.yaml": BACKENDS, "s0.yaml": service(0), "g0.yaml": gateway(0), "g1.yaml": gateway(1)}
    for number in range(20):
        parents, hosts = [f"{{name: g{number % 2}}}"], [f"h{number}.org"]
        files[f"r{number}.yaml"] = route(number, parents, hosts, "/", 0, "HTTPRoute")
    world = World("node-a", store.apply(files).documents, ATTACHMENTS)
    world, before = planner.plan(world)
    text = route(99, ["{name: g0}"], ["h99.org"], "/", 0, "HTTPRoute")
    documents = store.apply({"r99.yaml": text}).documents
    _, after = planner.plan(replace(world, documents=documents))
    then, now = ({t.name: t for t in plan.proxy.tables} for plan in (before, after))
    assert [name for name in now if now[name] is not then[name]] == ["gateway/default/g0:80/TCP"]
    for name, table in now.items():
        known = {id(host) for host in then[name].hosts}
        assert [h.host for h in table.hosts if id(h) not in known] == (["h99.org"] if "g0" in name else [])
    settings = Settings()
    assert set(build(after.proxy, settings)[ROUTE]) == set(build(before.proxy, settings)[ROUTE])
