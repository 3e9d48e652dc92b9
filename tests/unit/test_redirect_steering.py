"""What the kernel would do with the proxy's connections after a change: steer, let past, or forbid."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from penstock.plan import (
    AUDIT_VIEW,
    Direction,
    EndpointEntry,
    IpcacheEntry,
    KernelTables,
    MeshMode,
    PolicyEntry,
    PolicyKey,
    PortMode,
    ServiceEntry,
    ServiceKey,
    Verdict,
)
from penstock.redirect.steering import Ruling, Steering, steering
from penstock.routing.model import ListenerKind
from penstock.world import Proxied

PORTS = (20000, 31999)
TO_PROXY, PAST_PROXY, FORBIDDEN = Steering
CLIENT, API, FAR, VIP = (ip_address(a) for a in ("10.0.0.1", "10.0.0.2", "10.1.0.1", "10.96.0.1"))
LOCAL = Proxied(CLIENT, 40000, API, 8080)


def hows(tables: KernelTables, ports: tuple[int, int], connections: list[Proxied]) -> dict[Proxied, Steering]:
    return {c: ruling.how for c, ruling in steering(tables, ports, connections).items()}


def endpoint(identity: int, mode: MeshMode = MeshMode.PERMISSIVE) -> EndpointEntry:
    return EndpointEntry(identity, identity * 256, identity, mode)


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
    ("verdict", "how"),
    [
        (Verdict.REDIRECT, TO_PROXY),
        (Verdict.ALLOW, PAST_PROXY),
        (Verdict.DENY, FORBIDDEN),
        (None, FORBIDDEN),
    ],
)
def test_between_two_local_workloads(verdict: Verdict | None, how: Steering) -> None:
    assert hows(tables(verdict), PORTS, [LOCAL]) == {LOCAL: how}


@pytest.mark.parametrize("http", [True, False])
def test_to_a_services_address(http: bool) -> None:
    dialled = Proxied(CLIENT, 40000, VIP, 80)
    service = {ServiceKey(VIP, 80, 6): ServiceEntry(1, "default/api:80/4", (), http=http)}
    found = hows(replace(tables(None), services=service), PORTS, [dialled])
    assert found == {dialled: TO_PROXY if http else PAST_PROXY}


@pytest.mark.parametrize(
    ("verdict", "port", "mode", "how"),
    [
        (Verdict.ALLOW, 20000, MeshMode.PERMISSIVE, TO_PROXY),
        (Verdict.ALLOW, 31999, MeshMode.STRICT, TO_PROXY),
        (Verdict.ALLOW, 32000, MeshMode.PERMISSIVE, PAST_PROXY),
        (Verdict.ALLOW, 32000, MeshMode.STRICT, FORBIDDEN),
        (Verdict.ALLOW, 20000, MeshMode.OFF, PAST_PROXY),
        (Verdict.REDIRECT, 40000, MeshMode.OFF, TO_PROXY),
        (Verdict.DENY, 20000, MeshMode.STRICT, FORBIDDEN),
    ],
)
def test_from_another_node(verdict: Verdict, port: int, mode: MeshMode, how: Steering) -> None:
    arrived = Proxied(FAR, port, API, 8080)
    assert hows(tables(verdict, mode=mode), PORTS, [arrived]) == {arrived: how}


@pytest.mark.parametrize(("mode", "how"), [(MeshMode.STRICT, TO_PROXY), (MeshMode.PERMISSIVE, PAST_PROXY)])
def test_to_another_node_without_an_l7_rule(mode: MeshMode, how: Steering) -> None:
    tunnel = Proxied(CLIENT, 40000, FAR, 9090)
    assert hows(tables(None, far=mode), PORTS, [tunnel]) == {tunnel: how}


@pytest.mark.parametrize(
    ("own", "others", "how"),
    [
        (MeshMode.STRICT, MeshMode.PERMISSIVE, FORBIDDEN),
        (MeshMode.OFF, MeshMode.STRICT, PAST_PROXY),
        (MeshMode.PERMISSIVE, MeshMode.STRICT, PAST_PROXY),
    ],
)
def test_a_port_with_a_mode_of_its_own(own: MeshMode, others: MeshMode, how: Steering) -> None:
    arrived, elsewhere = Proxied(FAR, 40000, API, 8080), Proxied(FAR, 40001, API, 8081)
    found = tables(Verdict.ALLOW, mode=others)
    policy = {PolicyKey(257 * 256, Direction.INGRESS, 0): PolicyEntry(Verdict.ALLOW), **found.policy}
    found = replace(found, policy=policy, port_modes={(257, 8080): PortMode(own, own)})
    wanted = {arrived: how, elsewhere: FORBIDDEN if others is MeshMode.STRICT else PAST_PROXY}
    assert hows(found, PORTS, [arrived, elsewhere]) == wanted
    tunnel = Proxied(CLIENT, 40000, FAR, 9090)
    to_far = replace(tables(None, far=others), port_modes={(258, 9090): PortMode(own, own)})
    tls = TO_PROXY if own is MeshMode.STRICT else PAST_PROXY
    assert hows(to_far, PORTS, [tunnel]) == {tunnel: tls}


READS, TUNNEL, SEES = ListenerKind.TLS_HTTP, ListenerKind.TLS_TCP, ListenerKind.TLS_NAMES
ARRIVED = Proxied(FAR, 20000, API, 8080)


@pytest.mark.parametrize(
    ("verdict", "view", "kind", "watched"),
    [
        (Verdict.ALLOW, None, TUNNEL, False),
        (Verdict.REDIRECT, None, READS, False),
        (Verdict.NAMES, None, SEES, False),
        (Verdict.ALLOW, Verdict.REDIRECT, READS, True),
        (Verdict.REDIRECT, Verdict.DENY, READS, False),
        (Verdict.ALLOW, Verdict.DENY, TUNNEL, False),
    ],
)
def test_the_listener_of_mesh_tls(
    verdict: Verdict, view: Verdict | None, kind: ListenerKind, watched: bool
) -> None:
    found = tables(verdict)
    if view is not None:
        key = PolicyKey(257 * 256 | AUDIT_VIEW, Direction.INGRESS, 0, 6, 8080, 16)
        audited = replace(found.endpoints[API], audit=frozenset({Direction.INGRESS}))
        found = replace(
            found,
            policy={**found.policy, key: PolicyEntry(view)},
            endpoints={**found.endpoints, API: audited},
        )
    assert steering(found, PORTS, [ARRIVED])[ARRIVED] == Ruling(TO_PROXY, kind, watched=watched)


@pytest.mark.parametrize(
    ("now", "at", "keeps", "anew"),
    [
        (Ruling(TO_PROXY, READS), TUNNEL, False, True),
        (Ruling(TO_PROXY, SEES), TUNNEL, False, True),
        (Ruling(TO_PROXY, TUNNEL), READS, True, False),
        (Ruling(TO_PROXY, TUNNEL), TUNNEL, False, False),
        (Ruling(TO_PROXY, READS), READS, False, False),
        (Ruling(TO_PROXY, READS, watched=True), TUNNEL, True, False),
        (Ruling(TO_PROXY, READS), SEES, False, False),
        (Ruling(TO_PROXY, READS), None, False, False),
        (Ruling(PAST_PROXY), TUNNEL, True, False),
        (Ruling(FORBIDDEN), TUNNEL, False, False),
    ],
)
def test_who_stays_where_it_is_and_who_begins_anew(
    now: Ruling, at: ListenerKind | None, keeps: bool, anew: bool
) -> None:
    assert (now.keeps(at), now.begins_anew(at)) == (keeps, anew)
