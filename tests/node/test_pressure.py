"""Under pressure: floods, tables that are full, and manifests that ask for more than a table holds. Policy
holds, what is open lives, and `status` and the metrics name the cause."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import Any

import pytest
from clients import Http, connect, echoes, until
from conftest import MeshFactory
from objects import policy, ports, select, service
from prometheus_client.parser import text_string_to_metric_families
from rig import PENSTOCK, Daemon, Mesh, workload

from penstock import lab
from penstock.redirect.libbpf import BpfMap
from penstock.redirect.shapes import FORGETFUL, SHAPES

SYNS = 30_000


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    found = make_mesh(
        workload("client", "node-a"), workload("flood", "node-a"), workload("api", "node-a", serves=True)
    )
    found.apply(_guard())
    return found


def _guard() -> dict[str, Any]:
    return policy(
        "api",
        select(app="api"),
        ingress=[
            {
                "fromEndpoints": [select(app="client")],
                "toPorts": [ports(8080, http=[{"path": "/public/.*"}]), ports(9090)],
            },
            {"fromEndpoints": [select(app="flood")], "toPorts": [ports(4444)]},
        ],
    )


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


def _flood(mesh: Mesh, port: int) -> None:
    """SYNs from every port of one workload, each the first packet of a flow of its own."""
    source, target = mesh["flood"].address(4), str(mesh["api"].address(4))
    ends = ip_address(str(source)).packed + ip_address(target).packed
    with lab.entered(mesh["flood"].netns):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw:
        for number in range(SYNS):
            fields = (1024 + number, port, number, 0, 0x50, 2, 1024)
            sum_ = _checksum(ends + struct.pack("!HH", 6, 20) + struct.pack("!HHIIBBHHH", *fields, 0, 0))
            syn = struct.pack("!HHIIBBHHH", *fields, sum_, 0)
            raw.sendto(struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + ends + syn, (target, 0))


def _metrics(daemon: Daemon) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(daemon.call("metrics")["text"])
        for sample in family.samples
    }


def _connections(daemon: Daemon) -> int:
    table = BpfMap(daemon.run_dir / "bpf/conntrack", SHAPES["conntrack"].key, SHAPES["conntrack"].value)
    try:
        return table.count()
    finally:
        table.close()


def test_a_flood_opens_nothing_and_ends_nothing(mesh: Mesh) -> None:
    """Towards a port where nobody listens, and towards one that is closed to the flood by policy."""
    daemon = mesh.on("api")
    address = mesh["api"].address(4)
    denied, reset = (daemon.counter(r) for r in ("POLICY_DENIED_INGRESS", "ANSWERED_RESET"))
    before = _connections(daemon)
    with Http(mesh["client"], address, 8080) as request, connect(mesh["client"], address, 9090) as stream:
        assert request.ask("/public/1").status == 200
        _flood(mesh, 4444)
        _flood(mesh, 9090)
        stream.sendall(b"still here")
        assert stream.recv(99) == b"still here"
        assert request.ask("/public/2").status == 200
        assert request.ask("/private").status == 403
    assert not echoes(mesh["flood"], address, 9090)
    assert echoes(mesh["client"], address, 9090, timeout=3)
    # Neither flood has taken a place in the connection table for longer than its answer took.
    assert _connections(daemon) - before < 100
    # Each packet is in a counter and so in a metric; of events only samples are told, the others counted.
    found = _metrics(daemon)
    assert found["penstock_packets_total", "POLICY_DENIED_INGRESS"] - denied >= SYNS
    assert found["penstock_packets_total", "ANSWERED_RESET"] - reset >= SYNS
    assert daemon.counter("EVENT_LOST") > 0
    assert daemon.status()["settled"]
    # The cause in words, in `status` and counted in a metric; what is in force stays so.
    for reason in ("POLICY_DENIED_INGRESS", "ANSWERED_RESET"):
        until(reason, lambda reason=reason: any(reason in each for each in daemon.status()["floods"]), 15)
    process = lab.run_in(
        daemon.node.netns, [*PENSTOCK, "status", "--run-dir", str(daemon.run_dir)], stdout=-1, text=True
    )
    assert "warning: a flood within the last minute" in process.communicate(timeout=30)[0]
    assert _metrics(daemon)["penstock_floods",] >= 2


def _fill(daemon: Daemon) -> None:
    for name, shape in FORGETFUL.items():
        table = BpfMap(daemon.run_dir / "bpf" / name, shape.key, shape.value)
        for number in range(shape.entries):
            table.put(struct.pack(f"=I{shape.key - 4}x", number), bytes(shape.value))
        table.close()


def _forget(daemon: Daemon) -> None:
    """The kernel spares what was used again and again; what happens when it does not."""
    table = BpfMap(daemon.run_dir / "bpf/conntrack", SHAPES["conntrack"].key, SHAPES["conntrack"].value)
    for key in [key for key in table.keys() if key[4:16] != bytes(12)]:  # noqa: SIM118 (a map is no dict)
        table.delete(key)
    table.close()


def test_a_full_connection_table_is_named(mesh: Mesh) -> None:
    daemon = mesh.on("api")
    address = mesh["api"].address(4)
    with Http(mesh["client"], address, 8080) as request, connect(mesh["client"], address, 9090) as stream:
        assert request.ask("/public/1").status == 200
        resumed = daemon.counter("CONNECTION_RESUMED")
        _fill(daemon)
        stream.sendall(b"still here")
        assert stream.recv(99) == b"still here"
        _forget(daemon)
        stream.sendall(b"still here")
        assert stream.recv(99) == b"still here"
        assert request.ask("/public/2").status == 200
        assert request.ask("/private").status == 403
    assert not echoes(mesh["flood"], address, 9090)
    assert daemon.counter("CONNECTION_RESUMED") > resumed
    # They are counted anew every five seconds at most.
    until("it is told", lambda: len(daemon.status()["pressure"]) == len(FORGETFUL))
    said = daemon.status()["pressure"]
    assert any("the table conntrack is full" in each for each in said)
    found = _metrics(daemon)
    assert found["penstock_tables_full",] == len(FORGETFUL)
    assert found["penstock_table_entries", "map conntrack"] > 0.95 * FORGETFUL["conntrack"].entries


def test_what_does_not_fit_is_refused_whole(mesh: Mesh) -> None:
    """More addresses × ports of Services than the kernel's table holds: what was in force stays so."""
    daemon = mesh.on("api")
    address = mesh["api"].address(4)
    served = [{"name": f"p{n}", "port": 1000 + n, "targetPort": 9090} for n in range(260)]
    many = [str(ip_address("203.0.0.0") + n) for n in range(256)]
    with connect(mesh["client"], address, 9090) as stream:
        mesh.write(
            "many.yaml", mesh.text(service("many", *served, selector={"app": "api"}, externalIPs=many))
        )
        try:
            until("it is refused", lambda: daemon.call("wait", seconds=1)["overflow"], 60.0)
            found = daemon.status()
            assert not found["settled"]
            assert any("do not fit the map services" in each for each in found["errors"])
            assert found["overflow"]["services"] > SHAPES["services"].entries
            assert _metrics(daemon)["penstock_table_refused", "services"] == found["overflow"]["services"]
            stream.sendall(b"still here")
            assert stream.recv(99) == b"still here"
            assert not echoes(mesh["flood"], address, 9090)
            assert echoes(mesh["client"], address, 9090, timeout=3)
        finally:
            (mesh.config / "many.yaml").unlink()
    assert not daemon.wait(60.0)["overflow"]
