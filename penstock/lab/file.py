"""Reads a lab's file and fills in what it leaves open: addresses, namespace names, device names.

    name: demo
    underlay: [192.168.77.0/24, fd00:192:168:77::/64]
    nodes:
      node-a: {podCIDRs: [10.244.1.0/24, fd00:10:244:1::/64]}
    workloads:
      - {name: frontend, node: node-a, labels: {app: frontend}, ports: [{containerPort: 8080}]}

A node may have bridges, as Docker makes them, and a workload then hangs on one or several of them instead
of on a routed veth. The ranges of bridges are parts of the node's podCIDRs:

    nodes:
      node-a: {podCIDRs: [10.244.1.0/24], bridges: {front: [10.244.1.0/25], back: [10.244.1.128/25]}}
    workloads:
      - {name: api, node: node-a, bridges: [front, back]}

Filling in is deterministic: the same file gives the same addresses each time, in the order of the
file. A node's first ten addresses of each range are left to the node itself (its ingress address).
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec

from penstock.lab import netns
from penstock.lab.errors import LabSpecError
from penstock.lab.spec import LabBridge, LabLink, LabNode, LabSpec, LabWorkload
from penstock.lab.yamlfile import Lines, parse
from penstock.manifests.base import Labels
from penstock.manifests.kinds import ContainerPort
from penstock.world import Address, Network

DEFAULT_UNDERLAY = ["192.168.77.0/24", "fd00:192:168:77::/64"]
FIRST_WORKLOAD_HOST = 10
MAX_BRIDGE_NAME = 12
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """Base of the file's parts: closed, so that a misspelt field is an error."""


class _NodeEntry(_Entry, frozen=True):
    pod_cidrs: list[str] = msgspec.field(default_factory=list, name="podCIDRs")
    address: str | list[str] = []
    bridges: dict[str, list[str]] = {}


class _WorkloadEntry(_Entry, frozen=True):
    name: str
    node: str
    namespace: str = "default"
    addresses: list[str] = []
    labels: Labels = {}
    service_account_name: str = "default"
    ports: list[ContainerPort] = []
    bridges: list[str] = []
    run: list[str | list[str]] = []


class _LabFile(_Entry, frozen=True):
    name: str
    nodes: dict[str, _NodeEntry]
    underlay: str | list[str] = msgspec.field(default_factory=lambda: list(DEFAULT_UNDERLAY))
    workloads: list[_WorkloadEntry] = []
    routes: bool = False


def load(source: str | Path | Mapping[str, Any]) -> LabSpec:
    """Read a lab's file, or take its content as a mapping. Raises LabSpecError."""
    if isinstance(source, Mapping):
        return _Resolver(source, "lab", {}).lab()
    try:
        text = Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LabSpecError(f"{source}: {error}") from None
    content, lines = parse(text, str(source))
    return _Resolver(content, str(source), lines).lab()


class _Resolver:
    """From the file's content to a LabSpec; knows where each part stands, to say it in errors."""

    def __init__(self, content: Any, file: str, lines: Lines) -> None:
        self.content, self.file, self.lines = content, file, lines
        try:
            self.entry = msgspec.convert(content, _LabFile)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$")
            path = tuple(int(n) if n else name for name, n in re.findall(r"\.(\w+)|\[(\d+)\]", where))
            raise self.error(message, *path) from None

    def error(self, message: str, *path: str | int) -> LabSpecError:
        shown = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
        line = next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 0)
        place = f"{self.file}:{line}" if line else self.file
        return LabSpecError(f"{place}: {shown}: {message}" if shown else f"{place}: {message}")

    def lab(self) -> LabSpec:
        entry = self.entry
        name = self.label(entry.name, "name")
        underlay = tuple(self.networks(_listed(entry.underlay), "underlay"))
        if len({network.version for network in underlay}) != len(underlay) or not underlay:
            raise self.error("takes one range, or one of each family", "underlay")
        nodes = tuple(self.nodes(name, underlay))
        workloads = tuple(self.workloads(name, nodes))
        return LabSpec(
            name, underlay, netns.path_of(f"{name}.underlay"), nodes, workloads, entry.routes, self.content
        )

    def nodes(self, lab: str, underlay: tuple[Network, ...]) -> Iterator[LabNode]:
        if not self.entry.nodes:
            raise self.error("a lab has at least one node", "nodes")
        if "underlay" in self.entry.nodes:
            raise self.error("the name is taken by the lab itself", "nodes", "underlay")
        given = {
            name: tuple(self.addresses(_listed(entry.address), "nodes", name, "address"))
            for name, entry in self.entry.nodes.items()
        }
        taken = {address for addresses in given.values() for address in addresses}
        ranges: list[Network] = []
        for name, entry in self.entry.nodes.items():
            self.label(name, "nodes", name)
            own = given[name]
            for address in own:
                if not any(address in network for network in underlay):
                    raise self.error(f"{address} is not in the underlay", "nodes", name, "address")
            for network in underlay:
                if not any(address.version == network.version for address in own):
                    own = (*own, self.free(network, taken, 1, "nodes", name))
            cidrs = tuple(self.networks(entry.pod_cidrs, "nodes", name, "podCIDRs"))
            for cidr in cidrs:
                for other in (*ranges, *underlay):
                    if cidr.version == other.version and cidr.overlaps(other):
                        raise self.error(f"{cidr} overlaps {other}", "nodes", name, "podCIDRs")
                ranges.append(cidr)
            bridges = tuple(self.bridges(name, cidrs))
            yield LabNode(name, netns.path_of(f"{lab}-{name}"), own, cidrs, bridges)

    def bridges(self, node: str, cidrs: tuple[Network, ...]) -> Iterator[LabBridge]:
        taken: list[Network] = []
        for name, texts in self.entry.nodes[node].bridges.items():
            path = ("nodes", node, "bridges", name)
            if len(self.label(name, *path)) > MAX_BRIDGE_NAME:
                raise self.error(f"{name!r} has more than {MAX_BRIDGE_NAME} characters", *path)
            ranges = tuple(self.networks(texts, *path))
            for own in ranges:
                if not any(own.version == c.version and own.subnet_of(c) for c in cidrs):  # type: ignore[arg-type]
                    raise self.error(f"{own} is not in the node's podCIDRs", *path)
                for other in taken:
                    if own.version == other.version and own.overlaps(other):
                        raise self.error(f"{own} overlaps {other}", *path)
                taken.append(own)
            yield LabBridge(name, f"br-{name}", ranges)

    def workloads(self, lab: str, nodes: tuple[LabNode, ...]) -> Iterator[LabWorkload]:
        by_name = {node.name: node for node in nodes}
        names: set[tuple[str, str]] = set()
        taken: set[Address] = set()
        given = []
        for i, entry in enumerate(self.entry.workloads):
            own = tuple(self.addresses(entry.addresses, "workloads", i, "addresses"))
            for address in own:
                if address in taken:
                    raise self.error(f"{address} is given twice", "workloads", i, "addresses")
                taken.add(address)
            given.append(own)
        for i, entry in enumerate(self.entry.workloads):
            self.label(entry.name, "workloads", i, "name")
            self.label(entry.namespace, "workloads", i, "namespace")
            node = by_name.get(entry.node)
            if node is None:
                known = ", ".join(by_name)
                raise self.error(f"no node {entry.node}; there is {known}", "workloads", i, "node")
            full = (entry.namespace, entry.name)
            if full in names:
                raise self.error(f"{'/'.join(full)} is there twice", "workloads", i, "name")
            names.add(full)
            device = "veth-" + hashlib.sha256("/".join(full).encode()).hexdigest()[:8]
            links = tuple(self.links(i, entry, node, device, taken))
            own = tuple(a for link in links for a in link.addresses)
            own = (
                own
                or given[i]
                or tuple(
                    self.free(cidr, taken, FIRST_WORKLOAD_HOST, "workloads", i) for cidr in node.pod_cidrs
                )
            )
            if not own:
                raise self.error(f"no addresses, and {node.name} has no podCIDRs", "workloads", i)
            yield LabWorkload(
                name=entry.name,
                namespace=entry.namespace,
                node=entry.node,
                netns=netns.path_of(f"{lab}-{entry.namespace}.{entry.name}"),
                device=device,
                links=links,
                addresses=own,
                labels=entry.labels,
                service_account_name=entry.service_account_name,
                ports=tuple(entry.ports),
                run=tuple(self.command(line, "workloads", i, "run", n) for n, line in enumerate(entry.run)),
            )

    def links(
        self, i: int, entry: _WorkloadEntry, node: LabNode, device: str, taken: set[Address]
    ) -> Iterator[LabLink]:
        if entry.bridges and entry.addresses:
            raise self.error("a bridge gives the addresses", "workloads", i, "addresses")
        for number, name in enumerate(entry.bridges):
            bridge = next((b for b in node.bridges if b.name == name), None)
            if bridge is None:
                known = ", ".join(b.name for b in node.bridges) or "none"
                raise self.error(
                    f"{node.name} has no bridge {name}; there is {known}", "workloads", i, "bridges"
                )
            own = tuple(
                self.free(r, taken, FIRST_WORKLOAD_HOST, "workloads", i, "bridges") for r in bridge.ranges
            )
            yield LabLink(bridge, f"eth{number}", device if not number else f"{device}-{number}", own)

    def label(self, text: str, *path: str | int) -> str:
        if not _LABEL.fullmatch(text):
            raise self.error(f"{text!r} is not a DNS label (a-z, 0-9 and -, at most 63)", *path)
        return text

    def command(self, line: str | list[str], *path: str | int) -> tuple[str, ...]:
        try:
            argv = tuple(shlex.split(line) if isinstance(line, str) else line)
        except ValueError as error:
            raise self.error(str(error), *path) from None
        if not argv:
            raise self.error("an empty command", *path)
        return argv

    def networks(self, texts: list[str], *path: str | int) -> Iterator[Network]:
        for i, text in enumerate(texts):
            try:
                yield ip_network(text)
            except ValueError as error:
                raise self.error(str(error), *path, i) from None

    def addresses(self, texts: list[str], *path: str | int) -> Iterator[Address]:
        for i, text in enumerate(texts):
            try:
                yield ip_address(text)
            except ValueError as error:
                raise self.error(str(error), *path, i) from None

    def free(self, network: Network, taken: set[Address], first: int, *path: str | int) -> Address:
        for host in range(first, network.num_addresses - (network.version == 4)):
            address = network[host]
            if address not in taken:
                taken.add(address)
                return address
        raise self.error(f"{network} has no free address left", *path)


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
