"""A World out of manifests alone: every workload is taken as attached, every number is given out.

What only a machine knows is made up where nothing depends on it (interfaces, cookies), and stands for itself
where it does: a workload whose address is read from its interface gets one of 198.18.0.0/15 (RFC 2544).
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address

from penstock.facts import Facts
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import Node, Workload
from penstock.plan import Plan
from penstock.planner import Planner
from penstock.world import Attachment, Link, WorkloadName, World, parse_address

_UNKNOWN = int(IPv4Address("198.18.0.1"))


def node_of(documents: Mapping[ObjectKey, Document], *parties: str) -> str:
    """The node of the first of `parties` that is a workload, by name or address; else the first node."""
    nodes = sorted(key.name for key, document in documents.items() if isinstance(document.value, Node))
    values = (document.value for document in documents.values())
    nodes += sorted({w.spec.node for w in values if isinstance(w, Workload) and w.spec.node})
    for party in parties:
        for key, document in documents.items():
            workload = document.value
            if not isinstance(workload, Workload) or not workload.spec.node:
                continue
            if party in (key.name, f"{key.namespace}/{key.name}", *workload.spec.addresses):
                return workload.spec.node
    return nodes[0] if nodes else "node"


def world(documents: Mapping[ObjectKey, Document], node: str) -> World:
    """What the daemon of `node` would see if all its workloads were there. Nothing is allocated."""
    attachments: dict[WorkloadName, Attachment] = {}
    addresses = []
    for number, (key, document) in enumerate(sorted(documents.items(), key=lambda item: item[0])):
        value = document.value
        if (
            isinstance(value, Workload)
            and value.spec.node in (None, node)
            and (value.spec.netns or value.spec.container)
        ):
            own = tuple(map(parse_address, value.spec.addresses)) or (IPv4Address(_UNKNOWN + number),)
            attachments[(key.namespace, key.name)] = Attachment(
                number + 1, (Link(number + 1, f"veth{number}", addresses=own),)
            )
        elif isinstance(value, Node) and key.name == node:
            addresses += [parse_address(a.address) for a in value.status.addresses if a.type == "InternalIP"]
    return World(node, documents, attachments, node_addresses=tuple(addresses))


def compiled(start: World) -> tuple[Facts, Plan]:
    """Facts and Plan of `start` with everything allocated. Raises AllocationError."""
    planner = Planner()
    _, plan = planner.plan(start)
    assert planner.facts is not None
    return planner.facts, plan
