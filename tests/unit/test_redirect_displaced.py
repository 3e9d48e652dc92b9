"""Which of the proxy's connections must end after a change: those that the kernel would not steer to it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from penstock.plan import (
    Direction,
    EndpointEntry,
    IpcacheEntry,
    KernelTables,
    MeshMode,
    PolicyEntry,
    PolicyKey,
    ServiceEntry,
    ServiceKey,
    Verdict,
)
from penstock.redirect.sockets import Proxied
from penstock.redirect.stage import displaced

PORTS = (20000, 31999)
CLIENT, API, FAR, VIP = (ip_address(a) for a in ("10.0.0.1", "10.0.0.2", "10.1.0.1", "10.96.0.1"))
LOCAL = Proxied(CLIENT, 40000, API, 8080)


def endpoint(identity: int, mode: MeshMode = MeshMode.PERMISSIVE) -> EndpointEntry:
    return EndpointEntry(identity, identity * 256, identity, b"", b"", mode)


def tables(
    ingress: Verdict | None, *, mode: MeshMode = MeshMode.PERMISSIVE, far: MeshMode = MeshMode.PERMISSIVE
) -> KernelTables:
    """What API's policy says of everyone at 8080 (None: nothing); CLIENT may send anything."""
    policy = {
        PolicyKey(256 * 256, Direction.EGRESS, 0): PolicyEntry(Verdict.ALLOW),
        PolicyKey(257 * 256, Direction.EGRESS, 0): PolicyEntry(Verdict.ALLOW),
    }
    if ingress is not None:
        policy[PolicyKey(257 * 256, Direction.INGRESS, 0, 6, 8080, 16)] = PolicyEntry(ingress)
    return KernelTables(
        endpoints={CLIENT: endpoint(256), API: endpoint(257, mode)},
        ipcache={
            ip_network(CLIENT): IpcacheEntry(256, 256, local=True),
            ip_network(API): IpcacheEntry(257, 257, local=True),
            ip_network(FAR): IpcacheEntry(258, 258, mesh=True, mode=far),
        },
        policy=policy,
    )


@pytest.mark.parametrize(
    ("verdict", "stays"),
    [(Verdict.REDIRECT, True), (Verdict.ALLOW, False), (Verdict.DENY, False), (None, False)],
)
def test_between_two_local_workloads(verdict: Verdict | None, stays: bool) -> None:
    assert displaced(tables(verdict), PORTS, [LOCAL]) == ([] if stays else [LOCAL])


@pytest.mark.parametrize("http", [True, False])
def test_to_a_services_address(http: bool) -> None:
    dialled = Proxied(CLIENT, 40000, VIP, 80)
    service = {ServiceKey(VIP, 80, 6): ServiceEntry(1, "default/api:80/4", (), http=http)}
    found = displaced(replace(tables(None), services=service), PORTS, [dialled])
    assert found == ([] if http else [dialled])


@pytest.mark.parametrize(
    ("verdict", "port", "mode", "stays"),
    [
        (Verdict.ALLOW, 20000, MeshMode.PERMISSIVE, True),
        (Verdict.ALLOW, 31999, MeshMode.STRICT, True),
        (Verdict.ALLOW, 32000, MeshMode.PERMISSIVE, False),
        (Verdict.ALLOW, 20000, MeshMode.OFF, False),
        (Verdict.REDIRECT, 40000, MeshMode.OFF, True),
        (Verdict.DENY, 20000, MeshMode.STRICT, False),
    ],
)
def test_from_another_node(verdict: Verdict, port: int, mode: MeshMode, stays: bool) -> None:
    arrived = Proxied(FAR, port, API, 8080)
    assert displaced(tables(verdict, mode=mode), PORTS, [arrived]) == ([] if stays else [arrived])


@pytest.mark.parametrize(("mode", "stays"), [(MeshMode.STRICT, True), (MeshMode.PERMISSIVE, False)])
def test_to_another_node_without_an_l7_rule(mode: MeshMode, stays: bool) -> None:
    tunnel = Proxied(CLIENT, 40000, FAR, 9090)
    assert displaced(tables(None, far=mode), PORTS, [tunnel]) == ([] if stays else [tunnel])
