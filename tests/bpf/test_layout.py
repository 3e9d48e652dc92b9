"""C and Python mean the same bytes and the same numbers."""

from __future__ import annotations

import os
from dataclasses import fields
from ipaddress import ip_address, ip_network
from pathlib import Path

import btf
import pytest
from bpf_kernel import ROOT, Kernel, built_object

from penstock.dns import kernel
from penstock.envoy import marks
from penstock.envoy.process import UID
from penstock.observe.reasons import Reason
from penstock.plan import (
    Direction,
    EndpointEntry,
    IpcacheEntry,
    KernelTables,
    ListenerKey,
    MeshMode,
    PolicyEntry,
    PolicyKey,
    PortEntry,
    ServiceEntry,
    ServiceKey,
    Verdict,
)
from penstock.policy import labels, prefixes
from penstock.redirect import host, layout, maglev
from penstock.redirect.encoder import encode
from penstock.redirect.layout import KernelEvent
from penstock.redirect.libbpf import open_pin
from penstock.redirect.shapes import FORGETFUL, SHAPES
from penstock.routing.model import ListenerKind

STRUCTS = {
    "config": ("", "config"),
    "endpoints": ("addr", "endpoint"),
    "ipcache": ("ipcache_key", "ipcache_value"),
    "policy": ("policy_key", "policy_value"),
    "both_names": ("both_names", ""),
    "listeners": ("listener_key", "listener_value"),
    "names": ("name_key", "name_value"),
    "port_modes": ("port_mode_key", "port_mode_value"),
    "services": ("service_key", "service_value"),
    "backends": ("backend_key", "backend_value"),
    "ports": ("", "port"),
    "maglev": ("", "maglev_value"),
    "blocklist": ("ipcache_key", "block_value"),
    "standing": ("standing_key", ""),
    "netns": ("", "netns_value"),
    "conntrack": ("ct_key", "ct_value"),
    "looked_at": ("ct_key", "looked_at"),
    "counters": ("", "counter"),
}


@pytest.fixture(scope="module")
def header() -> btf.Btf:
    return btf.read(built_object("layout"))


@pytest.mark.parametrize("name", {**SHAPES, **FORGETFUL})
def test_sizes_of_maps(name: str, header: btf.Btf, loaded: Kernel) -> None:
    shape = {**SHAPES, **FORGETFUL}[name]
    key, value = STRUCTS.get(name, ("", ""))
    if value:
        assert header.structs[value].size == shape.value
    if key:
        assert header.structs[key].size == shape.key
    fd = open_pin(loaded.pins / name)
    told = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    os.close(fd)
    assert int(told["key_size"]) == shape.key
    assert int(told["value_size"]) == shape.value
    assert int(told["max_entries"]) == shape.entries


def test_every_map_of_a_table_has_a_shape() -> None:
    assert set(encode(KernelTables())) <= set(SHAPES)
    assert set(STRUCTS) == set(SHAPES)


def _same(enum: dict[str, int], wanted: dict[str, int], prefix: str = "") -> None:
    assert {name.removeprefix(prefix): value for name, value in enum.items()} == wanted


def test_numbers(header: btf.Btf) -> None:
    _same(header.enums["verdict"], {"NONE": 0, **{v.name: v for v in Verdict}}, "VERDICT_")
    _same(header.enums["listener_kind"], {k.name: k for k in ListenerKind}, "LISTENER_")
    _same(header.enums["mesh_mode"], {m.name: m for m in MeshMode}, "MESH_")
    _same(header.enums["direction"], {d.name: d for d in Direction})
    most = header.enums["reason"].pop("REASON_MAX")
    _same(header.enums["reason"], {r.name: int(r) for r in Reason})
    assert most == SHAPES["counters"].entries > max(Reason)


def test_constants(header: btf.Btf) -> None:
    _same(
        header.enums["numbers"],
        {
            "MARK_MASK": marks.MARK_MASK,
            "MARK_TO_PROXY": marks.STEERED,
            "MARK_PROXY_DOWNSTREAM": marks.DOWNSTREAM,
            "MARK_PROXY_UPSTREAM": marks.UPSTREAM,
            "MARK_PROXY_EDGE": marks.EDGE,
            "IDENTITY_HOST": labels.HOST,
            "IDENTITY_WORLD": labels.WORLD,
            "IDENTITY_DNS": labels.DNS,
            "IDENTITY_PREFIXES": prefixes.FIRST,
            "IPCACHE_NODE": layout.IPCACHE_NODE,
            "POLICY_AUTHENTICATED": layout.POLICY_AUTHENTICATED,
            "POLICY_DNS": layout.POLICY_DNS,
            "MAX_NAME_LISTS": kernel.MOST_LISTS,
            "IPCACHE_MESH": layout.IPCACHE_MESH,
            "IPCACHE_LOCAL": layout.IPCACHE_LOCAL,
            "ENDPOINT_ELSEWHERE": layout.ENDPOINT_ELSEWHERE,
            "PORT_DIRECT4": layout.PORT_DIRECT[4],
            "PORT_DIRECT6": layout.PORT_DIRECT[6],
            "SERVICE_HTTP": layout.SERVICE_HTTP,
            "SERVICE_EXTERNAL": layout.SERVICE_EXTERNAL,
            "SERVICE_MAGLEV": layout.SERVICE_MAGLEV,
            "STANDING_READY": layout.STANDING_READY,
            "STANDING_ENDING": layout.STANDING_ENDING,
            "MAGLEV_SLOTS": maglev.SLOTS,
            "NETNS_HOST": layout.NETNS_HOST,
            "PROXY_UID": UID,
            "CONFIG_HOST_ACCESS": layout.CONFIG_HOST_ACCESS,
            "POLICY_FIXED_BITS": layout.POLICY_FIXED_BITS,
            "POLICY_FULL_BITS": layout.POLICY_FIXED_BITS + 8 + 16,
        },
        "N_",
    )
    assert (host.MARKS, host.MARK_MASK) == ((marks.STEERED, marks.BROUGHT), marks.MARK_MASK)


def test_every_struct_of_the_header_is_looked_at(header: btf.Btf) -> None:
    text = (ROOT / "bpf/penstock.h").read_text()
    declared = {line.split()[1] for line in text.splitlines() if line.startswith(("struct ", "enum "))}
    # Kept by the kernel side alone: no Python reads or writes them.
    own = {"fragment_key", "fragment_value", "event_budget", "affinity_key", "affinity_value"}
    own |= {"nat_key", "nat_value", "nat_back_value"}
    assert declared - own <= set(header.structs) | set(header.enums)


V4, V6 = ip_address("10.1.2.3"), ip_address("fd00::12")


def test_endpoint(header: btf.Btf) -> None:
    s = header.structs["endpoint"]
    raw = layout.endpoint(EndpointEntry(0x101, 0x10203, 7, MeshMode.STRICT, elsewhere=True))
    assert len(raw) == s.size
    assert s.read(raw, "identity", 4) == 0x101
    assert s.read(raw, "source_class", 4) == 0x101
    assert s.read(raw, "subject", 4) == 0x10203
    assert s.read(raw, "ifindex", 4) == 7
    assert s.read(raw, "mode", 1) == MeshMode.STRICT
    assert s.read(raw, "flags", 1) == layout.ENDPOINT_ELSEWHERE


def test_port(header: btf.Btf) -> None:
    s = header.structs["port"]
    raw = layout.port(PortEntry(7, 0x10203, b"abcdef", 9, b"ghijkl", (4, 6)))
    assert len(raw) == s.size
    assert [s.read(raw, name, 4) for name in ("home", "subject", "bridge")] == [7, 0x10203, 9]
    assert raw[s.offsets["mac"] :][:6] == b"abcdef"
    assert raw[s.offsets["bridge_mac"] :][:6] == b"ghijkl"
    assert s.read(raw, "flags", 1) == 3


@pytest.mark.parametrize(
    ("network", "bits", "tail"),
    [("10.1.2.0/24", 120, "10.1.2.0"), ("0.0.0.0/0", 96, "0.0.0.0"), ("fd00::/64", 64, None)],
)
def test_ipcache(header: btf.Btf, network: str, bits: int, tail: str | None) -> None:
    key = layout.ipcache_key(ip_network(network))
    s = header.structs["ipcache_key"]
    assert len(key) == s.size
    assert s.read(key, "prefixlen", 4) == bits
    address = key[s.offsets["addr"] :]
    assert layout.address_of(address) == ip_network(network).network_address
    if tail is not None:
        assert address[:12] == b"\0" * 10 + b"\xff\xff"
        assert address[12:] == ip_address(tail).packed

    value = layout.ipcache_value(IpcacheEntry(300, 301, mesh=True, mode=MeshMode.PERMISSIVE, local=True))
    s = header.structs["ipcache_value"]
    assert (s.read(value, "identity", 4), s.read(value, "source_class", 4)) == (300, 301)
    assert s.read(value, "flags", 1) == layout.IPCACHE_MESH | layout.IPCACHE_LOCAL
    assert s.read(value, "mode", 1) == MeshMode.PERMISSIVE


@pytest.mark.parametrize(
    ("protocol", "port", "port_bits", "bits"),
    [(0, 0, 0, 72), (6, 0, 0, 80), (6, 8080, 16, 96), (17, 0x1F00, 8, 88)],
)
def test_policy(header: btf.Btf, protocol: int, port: int, port_bits: int, bits: int) -> None:
    s = header.structs["policy_key"]
    raw = layout.policy_key(PolicyKey(0xA0B, Direction.EGRESS, 0x123, protocol, port, port_bits))
    assert len(raw) == s.size
    assert s.read(raw, "prefixlen", 4) == bits
    assert s.read(raw, "subject", 4) == 0xA0B
    assert s.read(raw, "identity", 4) == 0x123
    assert s.read(raw, "direction", 1) == Direction.EGRESS
    assert s.read(raw, "protocol", 1) == protocol
    assert s.read(raw, "port", 2, big=True) == port
    # The trie compares what follows the length, and counts bits from its start.
    assert s.offsets["prefixlen"] == 0
    assert s.offsets["protocol"] * 8 == 32 + layout.POLICY_FIXED_BITS
    assert s.offsets["port"] == s.offsets["protocol"] + 1

    value = layout.policy_value(PolicyEntry(Verdict.REDIRECT))
    s = header.structs["policy_value"]
    assert len(value) == s.size
    assert (s.read(value, "verdict", 1), s.read(value, "rule", 4)) == (Verdict.REDIRECT, 0)


def test_listeners_services_backends_netns_config(header: btf.Btf) -> None:
    tables = KernelTables(
        services={
            ServiceKey(V6, 80, 17): ServiceEntry(9, "default/web:80/6", ((V6, 8080), (V6, 8081)), http=True)
        },
        listeners={ListenerKey(300, ListenerKind.TCP_MTLS, 301): 15001},
        netns={0x1122334455: 300, 0x66: labels.HOST},
    )
    maps = encode(tables)
    st = header.structs

    ((key, value),) = maps["listeners"].items()
    assert st["listener_key"].read(key, "source_class", 4) == 300
    assert st["listener_key"].read(key, "kind", 4) == ListenerKind.TCP_MTLS
    assert st["listener_key"].read(key, "destination", 4) == 301
    assert st["listener_value"].read(value, "port", 2, big=True) == 15001

    ((key, value),) = maps["services"].items()
    assert layout.address_of(key[st["service_key"].offsets["addr"] :][:16]) == V6
    assert st["service_key"].read(key, "port", 2, big=True) == 80
    assert st["service_key"].read(key, "protocol", 1) == 17
    assert st["service_value"].read(value, "id", 4) == 9
    assert st["service_value"].read(value, "backends", 4) == 2
    assert st["service_value"].read(value, "flags", 4) == layout.SERVICE_HTTP

    slots = {st["backend_key"].read(k, "slot", 4): v for k, v in maps["backends"].items()}
    assert {st["backend_key"].read(k, "service", 4) for k in maps["backends"]} == {9}
    assert [st["backend_value"].read(slots[i], "port", 2, big=True) for i in (0, 1)] == [8080, 8081]
    assert layout.address_of(slots[0][:16]) == V6

    cookies = {int.from_bytes(k, "little"): v for k, v in maps["netns"].items()}
    assert st["netns_value"].read(cookies[0x1122334455], "identity", 4) == 300
    assert st["netns_value"].read(cookies[0x1122334455], "flags", 4) == 0
    assert st["netns_value"].read(cookies[0x66], "flags", 4) == layout.NETNS_HOST

    raw = layout.config(7, (20000, 31999), host_access=True)
    assert st["config"].read(raw, "epoch", 4) == 7
    assert st["config"].read(raw, "proxy_source_min", 2) == 20000
    assert st["config"].read(raw, "proxy_source_max", 2) == 31999
    assert st["config"].read(raw, "flags", 4) == layout.CONFIG_HOST_ACCESS
    assert st["config"].read(raw, "proxy_gap", 4) == 0
    raw = layout.config(7, (20000, 31999), host_access=True, proxy_rate=4000)
    assert st["config"].read(raw, "proxy_gap", 4) == 250_000


def test_event(header: btf.Btf) -> None:
    s = header.structs["event"]
    assert s.size == layout.EVENT.size
    raw = bytearray(s.size)
    numbers = {
        "time": (8, "time", "little"),
        "sport": (2, "source_port", "big"),
        "dport": (2, "destination_port", "big"),
        "protocol": (1, "protocol", "little"),
        "verdict": (1, "verdict", "little"),
        "reason": (1, "reason", "little"),
        "tcp_flags": (1, "tcp_flags", "little"),
        "src_identity": (4, "source_identity", "little"),
        "dst_identity": (4, "destination_identity", "little"),
        "rule": (4, "rule", "little"),
        "length": (4, "length", "little"),
        "proxy_port": (2, "proxy_port", "big"),
        "hook": (1, "hook", "little"),
    }
    assert {*numbers, "src", "dst", "pad"} == set(s.offsets)
    assert len(fields(KernelEvent)) == len(numbers) + 2
    for n, (field, (size, _, order)) in enumerate(numbers.items(), 17):
        at = s.offsets[field]
        raw[at : at + size] = n.to_bytes(size, order)  # type: ignore[arg-type]
    for field, address in (("src", V4), ("dst", V6)):
        raw[s.offsets[field] : s.offsets[field] + 16] = layout.address_bytes(address)
    event = layout.decode_event(bytes(raw))
    for n, (_, name, _) in enumerate(numbers.values(), 17):
        assert getattr(event, name) == n
    assert (event.source, event.destination) == (V4, V6)
