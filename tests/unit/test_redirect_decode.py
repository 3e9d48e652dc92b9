"""What goes into the maps comes out of them again."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from penstock.plan import (
    BackendSet,
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
from penstock.redirect import decode, layout
from penstock.redirect.encoder import encode
from penstock.redirect.shapes import SHAPES
from penstock.routing.model import ListenerKind

A, B = ip_address("10.1.0.1"), ip_address("fd00::1")
TABLES = KernelTables(
    endpoints={
        A: EndpointEntry(300, 76800, 7, MeshMode.STRICT, elsewhere=True),
        B: EndpointEntry(301, 77056, 8, MeshMode.OFF),
    },
    ipcache={
        ip_network("0.0.0.0/0"): IpcacheEntry(2, 2),
        ip_network("::/0"): IpcacheEntry(2, 2),
        ip_network("10.1.0.0/24"): IpcacheEntry(9, 9),
        ip_network("10.1.0.1/32"): IpcacheEntry(300, 300, local=True),
        ip_network("fd00::1/128"): IpcacheEntry(301, 301, mesh=True, mode=MeshMode.STRICT),
    },
    policy={
        PolicyKey(76800, Direction.INGRESS, 0): PolicyEntry(Verdict.ALLOW),
        PolicyKey(76800, Direction.EGRESS, 301, 6): PolicyEntry(Verdict.DENY),
        PolicyKey(76800, Direction.EGRESS, 301, 6, 8080, 16): PolicyEntry(Verdict.REDIRECT),
        PolicyKey(76800, Direction.EGRESS, 301, 17, 64, 10): PolicyEntry(Verdict.ALLOW),
    },
    services={
        ServiceKey(A, 80, 6): ServiceEntry(5, "s", ((A, 8080), (B, 81)), http=True),
        ServiceKey(B, 53, 17): ServiceEntry(6, "t", ()),
        ServiceKey(B, 30080, 6): ServiceEntry(
            7,
            "u",
            ((A, 1), (B, 2)),
            ending=((B, 3),),
            external=True,
            outside=BackendSet(8, ((A, 1),)),
            beyond=BackendSet(13, ((ip_address("10.2.0.1"), 8080),)),
            alias=BackendSet(9, ((B, 53),)),
            affinity=60,
            maglev=251,
        ),
    },
    listeners={ListenerKey(300, ListenerKind.TCP_MTLS, 301): 15001},
    ports={7: PortEntry(7, 76800, b"abcdef", 3, b"ghijkl", (6,)), 9: PortEntry(0, bridge=3)},
)
RAW = encode(TABLES)


def test_every_table_comes_back() -> None:
    assert {layout.address_of(k): decode.endpoint(v) for k, v in RAW["endpoints"].items()} == TABLES.endpoints
    assert {
        int.from_bytes(k, "little"): decode.bridge_port(v) for k, v in RAW["ports"].items()
    } == TABLES.ports
    assert {
        decode.ipcache_key(k): decode.ipcache_value(v) for k, v in RAW["ipcache"].items()
    } == TABLES.ipcache
    assert {decode.policy_key(k): decode.policy_value(v)[0] for k, v in RAW["policy"].items()} == {
        key: entry.verdict for key, entry in TABLES.policy.items()
    }
    assert {decode.service_key(k): decode.service_value(v) for k, v in RAW["services"].items()} == {
        key: decode.ServiceValue(
            (s.service_id, len(s.backends)),
            (s.http and layout.SERVICE_HTTP)
            | (s.external and layout.SERVICE_EXTERNAL)
            | (s.maglev and layout.SERVICE_MAGLEV),
            s.affinity,
            (s.outside.number, len(s.outside.backends)) if s.outside else (0, 0),
            s.alias.number if s.alias else 0,
            (s.beyond.number, len(s.beyond.backends)) if s.beyond else (0, 0),
        )
        for key, s in TABLES.services.items()
    }
    standing = {decode.standing_key(k): v[0] for k, v in RAW["standing"].items()}
    assert standing[7, A, 1] == standing[8, A, 1] == layout.STANDING_READY
    assert standing[7, B, 3] == layout.STANDING_ENDING
    assert {struct.unpack("=I", k)[0] for k in RAW["maglev"]} == {7, 8, 13}
    assert {decode.listener_key(k): decode.port(v) for k, v in RAW["listeners"].items()} == TABLES.listeners
    backends = {struct.unpack("=II", k): decode.backend(v) for k, v in RAW["backends"].items()}
    assert backends == {
        (5, 0): (A, 8080),
        (5, 1): (B, 81),
        (7, 0): (A, 1),
        (7, 1): (B, 2),
        (8, 0): (A, 1),
        (9, 0): (B, 53),
        (13, 0): (ip_address("10.2.0.1"), 8080),
    }


@given(st.booleans(), st.integers(0, 0xFFFFFFFF), st.integers(1, 3))
def test_a_connection_is_told_from_the_side_that_began(second: bool, epoch: int, verdict: int) -> None:
    key = layout.address_bytes(A) + layout.address_bytes(B) + b"\x1f\x90\x00\x50" + bytes([6, 0, 0, 0])
    value = struct.pack("=QQIIIBB2s", 99, 5, epoch, 7, 0, int(second), verdict, (15001).to_bytes(2, "big"))
    assert (len(key), len(value)) == (SHAPES["conntrack"].key, SHAPES["conntrack"].value)
    found = decode.connection(key, value)
    ends = ((found.source, found.source_port), (found.destination, found.destination_port))
    assert ends == (((B, 80), (A, 8080)) if second else ((A, 8080), (B, 80)))
    assert (found.verdict, found.epoch, found.proxy_port) == (verdict, epoch, 15001)
    assert (found.seen, found.born) == (99, 5)
