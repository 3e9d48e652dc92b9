"""Networks in policies: who has an identity for them, and who an address is."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import identities, identity_of, make, policy, settle, workload

from penstock.allocate import PREFIXES
from penstock.plan import Direction, Plan, Verdict
from penstock.policy.addresses import Whois
from penstock.policy.labels import HOST, REMOTE_NODE, WORLD
from penstock.policy.lookup import look_up
from penstock.policy.prefixes import FIRST, Block, PrefixIndex, parse_prefix
from penstock.redirect.steering import Steering, steering
from penstock.world import Network, Proxied

IN, OUT = Direction.INGRESS, Direction.EGRESS
ALLOW, STEER, DENY = Verdict.ALLOW, Verdict.REDIRECT, Verdict.DENY
NODE_B = """
apiVersion: v1
kind: Node
metadata: {name: node-b}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---"""
WEB = "endpointSelector: {matchLabels: {app: web}}"


def _plan(*specs: str) -> Plan:
    text = NODE_B + workload("web", "10.1.0.1") + workload("db", "10.1.0.2")
    text += "".join(policy(spec, name=f"p{n}") for n, spec in enumerate(specs))
    return make(text, node_addresses=(ip_address("10.1.0.254"),))[1]


def _says(plan: Plan, direction: Direction, address: str, port: int = 80) -> Verdict:
    web = plan.kernel.endpoints[ip_address("10.1.0.1")]
    return look_up(plan.kernel.policy, web.subject, direction, identity_of(plan, address), 6, port)


def test_numbers_of_networks_are_out_of_the_way() -> None:
    assert PREFIXES[0] == FIRST


def test_identity_wins_over_address() -> None:
    plan = _plan(f"{{{WEB}, ingress: [{{fromCIDR: [0.0.0.0/0, 10.1.0.2/32, 10.1.0.254, 192.0.2.2]}}]}}")
    assert identity_of(plan, "10.1.0.254") == HOST
    assert identity_of(plan, "192.0.2.2") == REMOTE_NODE
    for address in ("10.1.0.2", "10.1.0.254", "192.0.2.2"):
        assert _says(plan, IN, address) is DENY
    assert _says(plan, IN, "10.1.0.3") is ALLOW
    assert _says(plan, IN, "203.0.113.9") is ALLOW
    assert _says(plan, IN, "2001:db8::1") is DENY


def test_without_a_policy_that_names_it_an_address_is_the_world() -> None:
    plan = _plan(f"{{{WEB}, egress: [{{toCIDR: [10.0.0.0/8]}}]}}")
    assert identity_of(plan, "203.0.113.9") == WORLD
    assert _says(plan, OUT, "203.0.113.9") is DENY


def test_a_network_means_all_networks_inside_it() -> None:
    plan = _plan(
        f"{{{WEB}, egress: [{{toCIDR: [198.51.0.0/16]}}]}}",
        "{endpointSelector: {}, ingress: [{fromCIDR: [198.51.100.0/24, 198.51.100.7]}]}",
    )
    numbers = {identity_of(plan, a) for a in ("198.51.1.1", "198.51.100.1", "198.51.100.7")}
    assert len(numbers) == 3
    for address in ("198.51.1.1", "198.51.100.1", "198.51.100.7"):
        assert _says(plan, OUT, address) is ALLOW


def test_what_is_excepted_is_not_meant() -> None:
    inner = "{cidr: 198.51.0.0/16, except: [198.51.100.0/24]}"
    plan = _plan(f"{{{WEB}, egress: [{{toCIDRSet: [{inner}]}}]}}")
    assert _says(plan, OUT, "198.51.99.1") is ALLOW
    assert _says(plan, OUT, "198.51.100.1") is DENY
    # Another policy's network inside the exception, and one around it.
    plan = _plan(
        f"{{{WEB}, egressDeny: [{{toCIDRSet: [{inner}]}}], egress: [{{toEntities: [all]}}]}}",
        "{endpointSelector: {}, ingress: [{fromCIDR: [198.51.100.0/25, 198.51.96.0/19]}]}",
    )
    assert _says(plan, OUT, "198.51.100.1") is ALLOW
    assert _says(plan, OUT, "198.51.100.200") is ALLOW
    assert _says(plan, OUT, "198.51.97.1") is DENY
    assert _says(plan, OUT, "198.51.1.1") is DENY


@pytest.mark.parametrize(
    "peers", ["fromEntities: [world]", "fromEndpoints: [{matchLabels: {'reserved:world': ''}}]"]
)
def test_the_world_is_all_networks_too(peers: str) -> None:
    plan = _plan(
        f"{{{WEB}, ingress: [{{{peers}}}]}}",
        "{endpointSelector: {matchLabels: {app: db}}, ingress: [{fromCIDR: [203.0.113.0/24]}]}",
    )
    assert identity_of(plan, "203.0.113.9") >= FIRST
    assert _says(plan, IN, "203.0.113.9") is ALLOW
    assert _says(plan, IN, "198.51.100.1") is ALLOW
    assert _says(plan, IN, "10.1.0.2") is DENY


def test_a_network_is_no_part_of_the_cluster() -> None:
    plan = _plan(
        f"{{{WEB}, ingress: [{{fromEntities: [cluster]}}]}}",
        "{endpointSelector: {matchLabels: {app: db}}, ingress: [{fromCIDR: [203.0.113.0/24]}]}",
    )
    assert _says(plan, IN, "203.0.113.9") is DENY
    assert _says(plan, IN, "10.1.0.2") is ALLOW


def test_an_l7_rule_for_a_network_has_a_listener_and_rights_of_its_own() -> None:
    l7 = "toPorts: [{ports: [{port: 80}], rules: {http: [{method: GET}]}}]"
    plan = _plan(f"{{{WEB}, ingress: [{{fromCIDR: [203.0.113.0/24], {l7}}}]}}")
    number = identity_of(plan, "203.0.113.9")
    assert _says(plan, IN, "203.0.113.9") is STEER
    assert [listener.source_class for listener in plan.proxy.listeners] == [number]
    assert [r.sources for r in plan.proxy.workload_rights if number in (r.sources or ())]
    taken = [
        Proxied(ip_address(a), 40000, ip_address("10.1.0.1"), 80) for a in ("203.0.113.9", "198.51.100.1")
    ]
    assert [r.how for r in steering(plan.kernel, (20000, 31999), taken).values()] == [
        Steering.TO_PROXY,
        Steering.FORBIDDEN,
    ]


def test_a_backend_that_is_nobodys_is_judged_by_its_network() -> None:
    service = """
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: out, labels: {kubernetes.io/service-name: out}}
addressType: IPv4
endpoints: [{addresses: [203.0.113.9]}, {addresses: [198.51.100.1]}]
ports: [{port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: out}
spec:
  parentRefs: [{group: "", kind: Service, name: out}]
  rules: [{backendRefs: [{name: out, port: 80}]}]
---"""
    closed = policy(f"{{{WEB}, egress: [{{toCIDR: [203.0.113.0/24]}}]}}")
    world, plan = make(service + workload("web", "10.1.0.1") + closed)
    web = identities(world)["web"]
    (table,) = plan.proxy.services
    classes = {str(e.address): e.policy_class for c in plan.proxy.clusters for e in c.endpoints}
    assert classes["198.51.100.1"] == "world:80" != classes["203.0.113.9"]
    allowed = {name for r in table.rights for name in r.destinations if r.sources is None or web in r.sources}
    assert allowed == {classes["203.0.113.9"]}


def test_a_network_keeps_its_number_while_others_come_and_go() -> None:
    def text(*networks: str) -> str:
        return workload("web", "10.1.0.1") + policy(
            f"{{{WEB}, ingress: [{{fromCIDR: [{', '.join(networks)}]}}]}}"
        )

    world, plan = make(text("10.0.0.0/8", "192.0.2.0/24"))
    kept = identity_of(plan, "192.0.2.1")
    after, _ = make(text("172.16.0.0/12", "192.0.2.0/24"))
    _, plan = settle(replace(after, allocations=world.allocations))
    assert identity_of(plan, "192.0.2.1") == kept
    assert identity_of(plan, "10.9.9.9") == WORLD
    assert identity_of(plan, "172.16.0.1") not in (WORLD, kept)


NETWORKS = st.builds(
    lambda bits, length: parse_prefix(f"{ip_address(bits)}/{length}"),
    st.sampled_from([0x0A000000, 0x0A010000, 0x0A010100, 0x0A010180, 0xC0000200, 0xFFFFFFFF]),
    st.sampled_from([0, 8, 16, 24, 25, 32]),
)


@given(st.sets(NETWORKS, min_size=1), NETWORKS, st.lists(NETWORKS, max_size=2), st.integers(0, 2**32 - 1))
def test_a_block_means_just_its_own_addresses(
    known: set[Network], wanted: Network, excepted: list[Network], bits: int
) -> None:
    everything = sorted({*known, wanted, *excepted}, key=str)
    index = PrefixIndex({network: FIRST + n for n, network in enumerate(everything)})
    meant = index.meant(Block(wanted, tuple(excepted)))
    for address in (ip_address(bits), *(n.network_address for n in everything), *(n[-1] for n in everything)):
        around = [n for n in everything if address in n]
        if around:
            owner = index.identities[max(around, key=lambda n: n.prefixlen)]
            assert (owner in meant) == (address in wanted and not any(address in e for e in excepted))


def test_whois_takes_the_longest_network() -> None:
    plan = _plan(f"{{{WEB}, ingress: [{{fromCIDR: [198.51.0.0/16, 198.51.100.0/24, '2001:db8::/32']}}]}}")
    whois = Whois(plan.kernel.ipcache)
    for address in ("198.51.1.1", "198.51.100.1", "2001:db8::1", "fd00::1", "10.1.0.1", "10.1.0.254"):
        found = whois(ip_address(address))
        assert found is not None and found.identity == identity_of(plan, address)
    assert Whois({})(ip_address("10.0.0.1")) is None
    assert ip_network("0.0.0.0/0") in plan.kernel.ipcache
