"""One small node as kernel tables: two local workloads, two of another mesh node, the host, the world."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from bpf_kernel import Kernel

from penstock.plan import (
    Direction,
    EndpointEntry,
    IpcacheEntry,
    KernelTables,
    MeshMode,
    PolicyEntry,
    PolicyKey,
    Verdict,
)
from penstock.policy.labels import HOST, REMOTE_NODE, WORLD

IN, OUT = Direction.INGRESS, Direction.EGRESS
ALLOW, STEER, DENY = Verdict.ALLOW, Verdict.REDIRECT, Verdict.DENY
A, B, R, S = 300, 301, 302, 303
"""Identities: A and B are local, R and S are meshed workloads of another node, S demands mesh TLS."""

V4 = {
    A: "10.1.0.1",
    B: "10.1.0.2",
    R: "10.2.0.1",
    S: "10.2.0.2",
    HOST: "10.1.0.254",
    REMOTE_NODE: "192.0.2.2",
    WORLD: "203.0.113.9",
}
V6 = {
    A: "fd01::1",
    B: "fd01::2",
    R: "fd02::1",
    S: "fd02::2",
    HOST: "fd01::fe",
    REMOTE_NODE: "fd99::2",
    WORLD: "2001:db8::9",
}
DEVICE = {A: "wa", B: "wb"}
FAMILIES = (V4, V6)

OPEN = {PolicyKey(subject, direction, 0): PolicyEntry(ALLOW) for subject in (A, B) for direction in (IN, OUT)}


def rule(
    subject: int,
    direction: Direction,
    verdict: Verdict,
    *,
    peer: int = 0,
    protocol: int = 0,
    port: int = 0,
    bits: int | None = None,
) -> dict[PolicyKey, PolicyEntry]:
    """One entry; a port without `bits` means just that port."""
    if bits is None:
        bits = 16 if port else 0
    return {PolicyKey(subject, direction, peer, protocol, port, bits): PolicyEntry(verdict)}


def closed(subject: int, direction: Direction) -> dict[PolicyKey, PolicyEntry]:
    """Everything is open, but not `subject` in this direction (default deny)."""
    return {k: v for k, v in OPEN.items() if (k.subject, k.direction) != (subject, direction)}


def tables(
    kernel: Kernel,
    policy: dict[PolicyKey, PolicyEntry] | None = None,
    *,
    modes: dict[int, MeshMode] | None = None,
) -> KernelTables:
    """The node's tables. A subject has the number of its identity here."""
    modes = {S: MeshMode.STRICT, R: MeshMode.PERMISSIVE, **(modes or {})}
    ipcache = {
        ip_network("0.0.0.0/0"): IpcacheEntry(WORLD, WORLD),
        ip_network("::/0"): IpcacheEntry(WORLD, WORLD),
    }
    for family in FAMILIES:
        for identity, address in family.items():
            if identity != WORLD:
                ipcache[ip_network(address)] = IpcacheEntry(
                    identity,
                    identity,
                    mesh=identity in (R, S),
                    mode=modes.get(identity, MeshMode.OFF) if identity in (R, S) else MeshMode.OFF,
                    local=identity in (A, B, HOST),
                )
    endpoints = {
        ip_address(family[identity]): EndpointEntry(
            identity,
            identity,
            kernel.device[DEVICE[identity]],
            modes.get(identity, MeshMode.PERMISSIVE),
        )
        for identity in (A, B)
        for family in FAMILIES
    }
    return KernelTables(endpoints=endpoints, ipcache=ipcache, policy=OPEN if policy is None else policy)


def up(
    kernel: Kernel,
    policy: dict[PolicyKey, PolicyEntry] | None = None,
    *,
    modes: dict[int, MeshMode] | None = None,
    **more: object,
) -> KernelTables:
    """Write the node's tables, with other tables as keywords."""
    wanted = replace(tables(kernel, policy, modes=modes), **more)  # type: ignore[arg-type]
    kernel.tables.apply(wanted)
    return wanted
