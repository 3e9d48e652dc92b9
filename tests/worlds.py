"""Worlds out of manifests as a user writes them, with every number given out as the daemon does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address

from penstock.manifests.kinds import Workload
from penstock.manifests.loader import load
from penstock.plan import Plan
from penstock.planner import Planner
from penstock.policy.identities import identity_text
from penstock.world import Allocations, Attachment, Link, Settings, WorkloadName, World

NODE = "node-a"


def read(text: str, *, node: str = NODE, absent: tuple[str, ...] = (), **more: object) -> World:
    """The World of these manifests on `node`, nothing allocated.

    Local workloads are attached (interface 10, 11, …, cookie 100, 101, …) unless named in `absent`.
    """
    result = load(text, "test.yaml")
    errors = [str(p) for p in result.problems if p.severity == "error"]
    assert not errors, errors
    documents = {d.key: d for d in result.documents}
    attachments: dict[WorkloadName, Attachment] = {}
    for number, document in enumerate(documents.values()):
        value = document.value
        if not isinstance(value, Workload) or value.metadata.name in absent:
            continue
        if value.spec.node in (None, node) and (value.spec.netns or value.spec.container):
            addresses = tuple(ip_address(a) for a in value.spec.addresses)
            link = Link(10 + number, f"veth{number}", b"\2\0\0\0\0\2", addresses)
            attachments[(document.key.namespace, document.key.name)] = Attachment(100 + number, (link,))
    return replace(World(node, documents, attachments), **more)  # type: ignore[arg-type]


def settle(world: World) -> tuple[World, Plan]:
    """`world` with everything allocated, and its Plan."""
    return Planner().plan(world)


def make(text: str, **more: object) -> tuple[World, Plan]:
    return settle(read(text, **more))  # type: ignore[arg-type]


def identities(world: World) -> Mapping[str, int]:
    """Workload name → identity."""
    return {d.key.name: world.allocations.identities[identity_text(d, w)] for d, w in world.of_kind(Workload)}


def identity_of(plan: Plan, address: str) -> int:
    """Who the kernel takes `address` for: the entry of the longest network around it."""
    around = [n for n in plan.kernel.ipcache if ip_address(address) in n]
    return plan.kernel.ipcache[max(around, key=lambda n: n.prefixlen)].identity


def workload(
    name: str,
    address: str,
    *,
    labels: str = "",
    node: str = NODE,
    namespace: str = "default",
    account: str = "default",
    ports: str = "",
) -> str:
    """A Workload document; `labels` and `ports` are the insides of a YAML flow mapping and list."""
    netns = f"netns: /run/netns/{name}" if node == NODE else ""
    return f"""
apiVersion: penstock.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels or f"app: {name}"}}}}}
spec:
  node: {node}
  serviceAccountName: {account}
  addresses: [{address}]
  ports: [{ports}]
  {netns}
---"""


def policy(spec: str, *, name: str = "p", namespace: str = "default") -> str:
    """A CiliumNetworkPolicy whose spec is the flow mapping `spec`."""
    return f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
---"""


__all__ = [
    "NODE",
    "Allocations",
    "Settings",
    "identities",
    "identity_of",
    "make",
    "policy",
    "read",
    "settle",
    "workload",
]
