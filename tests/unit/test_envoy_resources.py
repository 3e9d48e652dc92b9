"""Properties of the translation that hold for every model."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
import traffic_models
from envoy.config.cluster.v3 import cluster_pb2
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from test_envoy_golden import MODELS

from penstock.envoy import bootstrap, names, rbac, routes
from penstock.envoy.assignments import assignment
from penstock.envoy.protos import Made
from penstock.envoy.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, SCOPED_ROUTE, Builder, build
from penstock.routing.model import ProxyEndpoint, ProxyModel, RequestMatch, Rights
from penstock.world import Settings

ALL = ProxyModel(
    listeners=tuple(item for model in MODELS.values() for item in model.listeners),
    services=MODELS["service"].services,
    clusters=tuple({item.name: item for model in MODELS.values() for item in model.clusters}.values()),
    workloads=MODELS["workloads"].workloads,
    workload_rights=MODELS["workloads"].workload_rights,
)


class Sealed:
    """Counts what is built."""

    def __init__(self) -> None:
        self.built: set[tuple[str, str]] = set()

    def __call__(self, name: str, message: Message) -> bytes:
        self.built.add((message.DESCRIPTOR.name, name))
        return message.SerializeToString(deterministic=True)


def test_the_same_model_gives_the_same_bytes() -> None:
    one, two = Builder(Settings(), Sealed()), Builder(Settings(), Sealed())
    first = one.build(ALL)
    assert two.build(MODELS["empty"]) != first
    assert two.build(ALL) == first == one.build(ALL)


class Canonical:
    """What was written as bytes is what protobuf writes of the message that it stands for."""

    def __call__(self, name: str, made: Made) -> Message:
        whole = made if isinstance(made, Message) else made.whole()
        assert made.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
        return whole


def test_what_is_written_by_hand_is_what_protobuf_writes() -> None:
    for model in (*MODELS.values(), *traffic_models.MODELS.values()):
        Builder(Settings(), Canonical()).build(model)


ADDRESSES = st.one_of(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address))
ENDPOINTS = st.builds(
    ProxyEndpoint,
    ADDRESSES,
    st.integers(0, 65535),
    st.text(max_size=300),
    st.one_of(st.none(), st.text(min_size=1, max_size=200)),
    st.sampled_from([0, 1, 128, 1 << 20]),
    st.integers(0, 3),
)


@settings(deadline=None)
@given(st.text(min_size=1), st.lists(ENDPOINTS, max_size=4), st.booleans())
def test_any_endpoints_are_written_as_protobuf_writes_them(
    name: str, endpoints: list[ProxyEndpoint], probed: bool
) -> None:
    made = assignment(name, endpoints, probed=probed)
    whole = Canonical()(name, made)
    assert whole.cluster_name == name
    found = [(g.priority, host) for g in whole.endpoints for host in g.lb_endpoints]
    wanted = sorted((e for e in endpoints if e.weight), key=lambda e: e.priority)
    assert len(found) == len(wanted)
    for (priority, host), each in zip(found, wanted, strict=True):
        where, told = host.endpoint, host.metadata.filter_metadata
        assert (priority, host.load_balancing_weight.value) == (each.priority, each.weight)
        assert where.address.socket_address.address == where.hostname == str(each.address)
        assert where.address.socket_address.port_value == each.port
        assert told[names.METADATA]["class"] == each.policy_class
        assert told[names.METADATA_LB]["address"] == names.host_port(each.address, each.port)
        assert (each.server_id is None) == (names.METADATA_TLS not in told)
        unasked = probed and each.server_id is not None
        assert where.health_check_config.disable_active_health_check is unasked


def test_only_what_changed_is_built_again() -> None:
    sealed = Sealed()
    builder = Builder(Settings(), sealed)
    builder.build(ALL)
    sealed.built.clear()
    builder.build(ALL)
    assert sealed.built == set()
    cluster = ALL.clusters[0]
    more = replace(cluster, endpoints=(*cluster.endpoints, replace(cluster.endpoints[0], port=9090)))
    builder.build(replace(ALL, clusters=(more, *ALL.clusters[1:])))
    assert sealed.built == {("ClusterLoadAssignment", cluster.name)}


def test_a_change_of_rights_touches_only_route_tables() -> None:
    sealed = Sealed()
    builder = Builder(Settings(), sealed)
    builder.build(ALL)
    sealed.built.clear()
    table = replace(ALL.services[0], rights=())
    builder.build(replace(ALL, services=(table,), workload_rights=()))
    assert sealed.built == {
        ("RouteConfiguration", table.name),
        ("RouteConfiguration", names.workloads_table(3)),
    }


def test_what_is_gone_from_the_model_is_gone_from_the_resources() -> None:
    builder = Builder(Settings(), Sealed())
    builder.build(ALL)
    left = {kind: set(items) for kind, items in builder.build(ProxyModel()).items()}
    assert left == {
        CLUSTER: {names.WORKLOADS, names.ORIGINAL_DST},
        ENDPOINT: {names.WORKLOADS},
        LISTENER: set(),
        SCOPED_ROUTE: set(),
        ROUTE: set(),
    }


def test_a_class_gets_only_its_own_rights_to_workloads() -> None:
    rights = (Rights((3,), ("a",)), Rights((9,), ("b",)), Rights(None, ("c",)))
    tables = build(replace(ALL, workload_rights=rights), Settings())[ROUTE]
    mine = routes.workloads(3, (rights[0], rights[2]))
    assert tables[names.workloads_table(3)] == mine
    # Class 4 comes from another node, over TLS.
    assert tables[names.workloads_table(4)] == routes.workloads(4, (rights[2],))
    assert names.workloads_table(9) not in tables


def test_every_route_leads_to_a_cluster_or_to_the_one_that_never_exists() -> None:
    resources = build(ALL, Settings())
    assert names.NO_BACKEND not in resources[CLUSTER]
    table = resources[ROUTE][ALL.services[0].name]
    weighted, single = (route.route for route in table.virtual_hosts[0].routes)
    shares = {item.name: item.weight.value for item in weighted.weighted_clusters.clusters}
    assert shares == {"default/web-v2:80/4": 9, names.NO_BACKEND: 1}
    assert single.cluster == "default/web-v1:80/4"


@pytest.mark.parametrize(
    "rights",
    [
        Rights((), ("a",)),
        Rights(None, ()),
        Rights(None, ("a",), ((),)),
        Rights((1,), ("a",), ((RequestMatch(),), ())),
    ],
)
def test_an_empty_list_allows_nothing(rights: Rights) -> None:
    assert not rbac.rules([rights]).rules.policies


def test_rules_only_ever_allow() -> None:
    made = rbac.rules(ALL.services[0].rights).rules
    assert made.action == made.ALLOW
    assert len(made.policies) == 2


def test_addresses_read_as_envoy_prints_them() -> None:
    assert names.host_port(IPv4Address("10.0.0.1"), 80) == "10.0.0.1:80"
    assert names.host_port(IPv6Address("fd00:0:0::1"), 80) == "[fd00::1]:80"


def test_upstream_ports_come_from_the_setting() -> None:
    settings = Settings(proxy_source_ports=(40000, 40999))
    clusters = build(ALL, settings)[CLUSTER]
    for cluster in clusters.values():
        assert isinstance(cluster, cluster_pb2.Cluster)
        if cluster.transport_socket.name == "envoy.transport_sockets.internal_upstream":
            continue
        bound = cluster.upstream_bind_config
        option = bound.socket_options[0]
        # What a Gateway sends to a backend with a TLS of its own is not to look like mesh TLS.
        own = bound.HasField("source_address") and bool(cluster.transport_socket_matches)
        ports = (32768, 60999) if own else (40000, 40999)
        assert (option.int_value & 0xFFFF, option.int_value >> 16) == ports


def test_the_bootstrap_tells_nobody_but_the_run_directory() -> None:

    text = bootstrap.bootstrap(Path("/run/penstock"), node="n1", open_files=1000)
    assert "socket_address" not in text
    assert text.count('"path": "/run/penstock/xds.sock"') == 2
    assert '"max_active_downstream_connections": 400' in text
