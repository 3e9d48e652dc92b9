"""The edge as policy sees it: which Gateways are ours, at which addresses, and who speaks for them.

Towards workloads every Gateway is one party: identity 8 (ingress), at the node's own ingress addresses, one
per family. They come from the node's range, so that every node knows them from the same Node objects; a
node without a range has one that is allocated, which no other node needs to know.

Source: design §2 (two hops); Gateway API v1.6 (GatewayClass, GatewaySpec.addresses).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from penstock.manifests.base import ObjectMeta
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import Gateway, GatewayClass
from penstock.manifests.kinds import Node, Workload
from penstock.policy import ingress_classes
from penstock.world import Address, World, parse_address

CONTROLLER = "penstock.dev/gateway-controller"
CLASS = "penstock"
"""The GatewayClass that exists by itself."""
NAMESPACE, ACCOUNT = "penstock", "ingress"
"""Of the SPIFFE id with which a node's Gateways speak to other nodes."""
INGRESS_KEY = "ingress"


def classes(world: World) -> frozenset[str]:
    """The names of the GatewayClasses that are ours."""
    found = {d.key.name: c.spec.controller_name == CONTROLLER for d, c in world.of_kind(GatewayClass)}
    return frozenset(name for name, ours in {CLASS: True, **found}.items() if ours)


def gateways(world: World) -> Iterator[tuple[Document, Gateway]]:
    """The Gateways that are ours."""
    ours = classes(world)
    for document, gateway in world.of_kind(Gateway):
        if gateway.spec.gateway_class_name in ours:
            yield document, gateway


def has_edge(world: World) -> bool:
    """Whether anything stands at the edge at all: without it no ingress address is taken."""
    return any(True for _ in gateways(world)) or any(True for _ in ingress_classes.ingresses(world))


@dataclass(frozen=True, slots=True)
class Placed:
    """The addresses of one Gateway on this node, and what is wrong with others that it names."""

    addresses: tuple[Address, ...]
    unsupported: str = ""
    unusable: str = ""


def _key(document: Document, index: int) -> str:
    return f"{document.key.namespace}/{document.key.name}/{index}/4"


def wanted_addresses(world: World) -> tuple[str, ...]:
    """What an address must be allocated for (the keys of `Allocations.gateways`)."""
    found = []
    for document, gateway in gateways(world):
        given = gateway.spec.addresses
        if not given:
            found.append(_key(document, 0))
        found += [_key(document, i) for i, a in enumerate(given) if a.type == "IPAddress" and not a.value]
    if any(True for _ in ingress_classes.ingresses(world)):
        found.append(ingress_classes.ADDRESS_KEY)
    if has_edge(world):
        found += [f"{INGRESS_KEY}/{version}" for version in _families(world) - _ranged(world)]
    return tuple(found)


def placed(world: World, document: Document, gateway: Gateway, taken: Mapping[Address, str]) -> Placed:
    """Where a Gateway is served; the reasons are for its status. `taken` is that of `world`."""
    texts: list[str | None] = []
    for i, each in enumerate(gateway.spec.addresses):
        if each.type != "IPAddress":
            return Placed((), unsupported=f"addresses of type {each.type} are not served")
        texts.append(each.value or world.allocations.gateways.get(_key(document, i)))
    if not gateway.spec.addresses:
        texts.append(world.allocations.gateways.get(_key(document, 0)))
    found, unusable = [], ""
    for text in texts:
        if text is None:
            continue
        address = parse_address(text)
        if why := _unusable(address) or taken.get(address, ""):
            unusable = unusable or f"{address} cannot be used: {why}"
        else:
            found.append(address)
    return Placed(tuple(dict.fromkeys(found)), unusable=unusable)


def _unusable(address: Address) -> str:
    for kind in ("loopback", "link_local", "multicast", "unspecified", "reserved"):
        if getattr(address, f"is_{kind}"):
            return f"it is a {kind.replace('_', '-')} address"
    return ""


def taken(world: World) -> Mapping[Address, str]:
    """Addresses that are others', and whose."""
    found: dict[Address, str] = {}
    for document, node in world.of_kind(Node):
        if document.key.name != world.node:
            for item in node.status.addresses:
                if item.type == "InternalIP":
                    found[parse_address(item.address)] = f"it is an address of Node {document.key.name}"
        for address in of_node(world, document.key.name):
            found[address] = f"it is the ingress address of Node {document.key.name}"
    for document, workload in world.of_kind(Workload):
        attached = world.attachments.get((document.key.namespace, document.key.name))
        for address in (
            *(parse_address(a) for a in workload.spec.addresses),
            *(attached.addresses if attached else ()),
        ):
            found[address] = f"it belongs to {document.key}"
    for name, text in world.allocations.vips.items():
        found[parse_address(text)] = f"it belongs to Service {name.rpartition('/')[0]}"
    return found


# --- the ingress addresses ------------------------------------------------------------------------------


def _families(world: World) -> frozenset[int]:
    """The families that backends have."""
    found = {4}
    for document, workload in world.of_kind(Workload):
        attached = world.attachments.get((document.key.namespace, document.key.name))
        found |= {6 for a in workload.spec.addresses if ":" in a}
        found |= {a.version for a in (attached.addresses if attached else ())}
    return frozenset(found)


def _ranges(world: World, node: str) -> Iterator[str]:
    for document, value in world.of_kind(Node):
        if document.key.name == node:
            yield from value.spec.pod_cidrs or [c for c in (value.spec.pod_cidr,) if c]


def _ranged(world: World) -> frozenset[int]:
    return frozenset(ip_network(text).version for text in _ranges(world, world.node))


def of_node(world: World, node: str) -> tuple[Address, ...]:
    """The ingress addresses of a node, the first of its range of each family: IPv4 before IPv6.

    The last usable address of the range that no Workload's manifest has, the same on every node.
    """
    used = {a for _, w in world.of_kind(Workload) for a in w.spec.addresses}
    found: dict[int, Address] = {}
    for text in _ranges(world, node):
        network = ip_network(text)
        if network.version in found or network.num_addresses < 4:
            continue
        last = int(network.broadcast_address) - (network.version == 4)
        candidates = (network.network_address + i for i in range(last - int(network.network_address), 1, -1))
        address = next((a for a in candidates if str(a) not in used), None)
        if address is not None:
            found[network.version] = address
    if node == world.node:
        for version in (4, 6):
            allocated = world.allocations.gateways.get(f"{INGRESS_KEY}/{version}")
            if allocated and version not in found:
                found[version] = parse_address(allocated)
    return tuple(found[version] for version in sorted(found))


def ingress_document(node: str) -> Document:
    """What stands for a node's Gateways where a workload would have its manifest."""
    name = f"{ACCOUNT}-{node}"
    workload = Workload(
        api_version="penstock.dev/v1alpha1",
        kind="Workload",
        metadata=ObjectMeta(name=name, namespace=NAMESPACE),
    )
    return Document(ObjectKey("Workload", NAMESPACE, name), workload, "(built in)", 1)
