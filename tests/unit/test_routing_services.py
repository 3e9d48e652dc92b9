"""Who stands behind a Service: by selector, by EndpointSlice, in which family, at which address."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from worlds import make, policy, read, settle, workload

from penstock.plan import ServiceEntry, ServiceKey
from penstock.policy.membership import members
from penstock.routing.endpoints import Ends, served_ports
from penstock.routing.services import ServedPort
from penstock.world import World

TCP, UDP = 6, 17


def service(name: str, spec: str, namespace: str = "default") -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
---"""


def endpoint_slice(name: str, owner: str, body: str) -> str:
    return f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {owner}}}}}
{body}
---"""


WEB = workload("web-1", "10.1.0.1, 'fd01::1'", labels="app: web", ports="{name: http, containerPort: 8080}")
WEB2 = workload(
    "web-2", "10.2.0.1", labels="app: web", node="node-b", ports="{name: http, containerPort: 9090}"
)


def _served(world: World) -> dict[str, tuple[ServedPort, Ends]]:
    found = served_ports(world, members(world))
    return {s.name: (s, found.of(s)) for s in found.ports}


def _backends(served: tuple[ServedPort, Ends]) -> list[str]:
    return [f"{b.address}:{b.port}" for b in served[1].backends]


def test_a_selector_takes_the_workloads_of_its_namespace() -> None:
    text = WEB + WEB2 + workload("web", "10.1.0.9", namespace="other", labels="app: web")
    world, _ = make(text + service("web", "{selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}"))
    assert _backends(_served(world)["default/web:80/4"]) == ["10.1.0.1:8080", "10.2.0.1:8080"]


def test_a_named_target_is_each_workloads_own() -> None:
    world, _ = make(
        WEB + WEB2 + service("web", "{selector: {app: web}, ports: [{port: 80, targetPort: http}]}")
    )
    assert _backends(_served(world)["default/web:80/4"]) == ["10.1.0.1:8080", "10.2.0.1:9090"]


def test_without_target_the_port_is_the_same() -> None:
    world, _ = make(WEB + service("web", "{selector: {app: web}, ports: [{port: 80}]}"))
    assert _backends(_served(world)["default/web:80/4"]) == ["10.1.0.1:80"]


def test_who_is_absent_is_no_backend() -> None:
    text = WEB + WEB2 + service("web", "{selector: {app: web}, ports: [{port: 80}]}")
    world, _ = settle(read(text, absent=("web-1",)))
    assert _backends(_served(world)["default/web:80/4"]) == ["10.2.0.1:80"]


def test_families() -> None:
    spec = "{selector: {app: web}, ports: [{port: 80}], ipFamilyPolicy: PreferDualStack}"
    world, plan = make(WEB + service("web", spec))
    served = _served(world)
    assert _backends(served["default/web:80/4"]) == ["10.1.0.1:80"]
    assert _backends(served["default/web:80/6"]) == ["fd01::1:80"]
    vips = {k.address.version for k in plan.kernel.services}
    assert vips == {4, 6}


@pytest.mark.parametrize(
    ("spec", "families"),
    [
        ("{ports: [{port: 80}]}", {4}),
        ("{ports: [{port: 80}], ipFamilies: [IPv6]}", {6}),
        ("{ports: [{port: 80}], clusterIP: 'fd00:10:96::9'}", {6}),
        ("{ports: [{port: 80}], clusterIPs: ['fd00:10:96::9', '10.96.0.9']}", {4, 6}),
        ("{ports: [{port: 80}], ipFamilies: [IPv6], ipFamilyPolicy: RequireDualStack}", {4, 6}),
    ],
)
def test_which_families_a_service_has(spec: str, families: set[int]) -> None:
    world, _ = make(service("web", spec))
    assert {s.family for s, _ in _served(world).values()} == families


def test_a_headless_service_has_no_virtual_address() -> None:
    world, plan = make(WEB + service("web", "{selector: {app: web}, ports: [{port: 80}], clusterIP: None}"))
    assert _served(world)["default/web:80/4"][0].vip is None
    assert not plan.kernel.services


def test_a_given_address_is_taken() -> None:
    world, plan = make(
        WEB + service("web", "{selector: {app: web}, ports: [{port: 80}], clusterIP: 10.96.7.7}")
    )
    ((key, entry),) = plan.kernel.services.items()
    assert key == ServiceKey(ip_address("10.96.7.7"), 80, TCP)
    assert entry == ServiceEntry(
        world.allocations.service_ids["default/web:80/4/TCP"],
        "default/web:80/4",
        ((ip_address("10.1.0.1"), 80),),
        http=False,
    )


def test_slices_serve_a_service_without_selector() -> None:
    text = (
        WEB
        + service("web", "{ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}")
        + endpoint_slice(
            "web-a",
            "web",
            "addressType: IPv4\nports: [{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}]\n"
            "endpoints: [{addresses: [192.0.2.7]}, {addresses: [10.1.0.1]},"
            " {addresses: [192.0.2.8], conditions: {ready: false}}]",
        )
        + endpoint_slice(
            "web-b",
            "web",
            "addressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.1.0.1]}]",
        )
        + endpoint_slice(
            "other",
            "nobody",
            "addressType: IPv4\nports: [{name: http, port: 1}]\nendpoints: [{addresses: [10.1.0.5]}]",
        )
    )
    world, plan = make(text)
    http = _served(world)["default/web:80/4"]
    assert _backends(http) == ["10.1.0.1:8080", "192.0.2.7:8080"]
    # An address of ours is known again, so that its policy holds on this way too.
    assert [b.member and b.member.document.key.name for b in http[1].backends] == ["web-1", None]
    assert _backends(_served(world)["default/web:53/4"]) == ["10.1.0.1:5353", "192.0.2.7:5353"]
    assert {(k.port, k.protocol) for k in plan.kernel.services} == {(80, TCP), (53, UDP)}


def test_one_port_number_in_two_protocols() -> None:
    text = workload("dns", "10.1.0.1") + service(
        "dns",
        "{selector: {app: dns}, ports: [{name: t, port: 53, targetPort: 1053},"
        " {name: u, port: 53, protocol: UDP, targetPort: 2053}]}",
    )
    _, plan = make(text)
    found = {key.protocol: entry for key, entry in plan.kernel.services.items()}
    assert {p: e.backends[0][1] for p, e in found.items()} == {TCP: 1053, UDP: 2053}
    assert len({e.service_id for e in found.values()}) == 2


def test_a_service_without_endpoints_is_known_to_the_kernel() -> None:
    _, plan = make(
        service("web", "{selector: {app: web}, ports: [{port: 80}]}")
        + policy("{endpointSelector: {}, ingress: []}")
    )
    assert [s.backends for s in plan.kernel.services.values()] == [()]
