"""A lab, complete: every address, namespace and device named. Made by `file.load`, made real by `build`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from penstock.manifests.kinds import ContainerPort
from penstock.world import Address, Network


@dataclass(frozen=True, slots=True)
class LabBridge:
    """A bridge as Docker makes them: its own address in each range is the workloads' gateway."""

    name: str
    device: str
    ranges: tuple[Network, ...]

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(network[1] for network in self.ranges)


@dataclass(frozen=True, slots=True)
class LabLink:
    """A workload's veth into a bridge; `interface` is its name in the workload, `device` in the node."""

    bridge: LabBridge
    interface: str
    device: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class LabNode:
    """A node: `addresses` are its own on the underlay (one per family), `pod_cidrs` its workloads' ranges."""

    name: str
    netns: Path
    addresses: tuple[Address, ...]
    pod_cidrs: tuple[Network, ...]
    bridges: tuple[LabBridge, ...] = ()


@dataclass(frozen=True, slots=True)
class LabWorkload:
    """A workload; `device` is the host side of its (first) veth, in the namespace of its node.

    It hangs on the bridges of its `links`; without any its veth is routed.
    """

    name: str
    namespace: str
    node: str
    netns: Path
    device: str
    addresses: tuple[Address, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    service_account_name: str = "default"
    ports: tuple[ContainerPort, ...] = ()
    run: tuple[tuple[str, ...], ...] = ()
    links: tuple[LabLink, ...] = ()

    def address(self, version: int = 4) -> Address:
        """Its first address of the IP version 4 or 6. Raises LookupError if it has none."""
        for address in self.addresses:
            if address.version == version:
                return address
        raise LookupError(f"workload {self.namespace}/{self.name} has no IPv{version} address")


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A lab, complete. `underlay_netns` holds the bridge `br0` that joins the nodes and nothing else.

    With `routes` the nodes have routes to each other's ranges from the start; else the daemon sets them.
    """

    name: str
    underlay: tuple[Network, ...]
    underlay_netns: Path
    nodes: tuple[LabNode, ...]
    workloads: tuple[LabWorkload, ...]
    routes: bool
    source: Mapping[str, Any]
    """The file's content as it was read: what the state directory keeps."""

    def node(self, name: str) -> LabNode:
        for node in self.nodes:
            if node.name == name:
                return node
        raise LookupError(f"lab {self.name} has no node {name}")

    def workload(self, name: str, namespace: str | None = None) -> LabWorkload:
        """By name, or by ``namespace/name``. Raises LookupError if none or several fit."""
        if namespace is None and "/" in name:
            namespace, _, name = name.partition("/")
        fits = [w for w in self.workloads if w.name == name and namespace in (None, w.namespace)]
        if len(fits) == 1:
            return fits[0]
        if fits:
            names = ", ".join(f"{w.namespace}/{w.name}" for w in fits)
            raise LookupError(f"lab {self.name}: {name} may be {names}")
        raise LookupError(f"lab {self.name} has no workload {name}")

    def namespaces(self) -> list[str]:
        """Names under /run/netns of everything that the lab is made of, the underlay first."""
        members = (self.underlay_netns, *(n.netns for n in self.nodes), *(w.netns for w in self.workloads))
        return [path.name for path in members]

    def documents(self) -> list[dict[str, Any]]:
        """The v1 Node and penstock.dev Workload manifests that tell a daemon about this lab."""
        return [*map(_node_document, self.nodes), *map(_workload_document, self.workloads)]


def _node_document(node: LabNode) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name},
        "spec": {"podCIDRs": [str(cidr) for cidr in node.pod_cidrs]},
        "status": {"addresses": [{"type": "InternalIP", "address": str(a)} for a in node.addresses]},
    }


def _workload_document(workload: LabWorkload) -> dict[str, Any]:
    return {
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "Workload",
        "metadata": {
            "name": workload.name,
            "namespace": workload.namespace,
            "labels": dict(workload.labels),
        },
        "spec": {
            "serviceAccountName": workload.service_account_name,
            "node": workload.node,
            "netns": str(workload.netns),
            "interface": "eth0",
            "addresses": [str(address) for address in workload.addresses],
            "ports": [msgspec.to_builtins(port) for port in workload.ports],
        },
    }


def write_manifests(spec: LabSpec, directory: Path) -> Path:
    """Write the lab's documents to `directory`/lab-NAME.yaml, whole at once; returns that path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"lab-{spec.name}.yaml"
    part = path.with_suffix(".part")
    part.write_text(yaml.safe_dump_all(spec.documents(), sort_keys=False))
    return part.rename(path)
