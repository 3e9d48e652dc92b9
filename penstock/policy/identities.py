"""Who there is: the workloads of the World with their identities.

An identity is a number for a distinct (namespace, service account, labels). The numbers are given out
by `penstock.allocate` and come in with the World; this module only reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import Namespace, Node, Workload
from penstock.policy.ingress import ACCOUNT, has_edge, ingress_document, of_node
from penstock.policy.labels import (
    HOST,
    INGRESS,
    REMOTE_NODE,
    RESERVED,
    WORLD_LABELS,
    LabelIndex,
    reserved_labels,
    workload_labels,
)
from penstock.policy.policies import Policies, policies
from penstock.policy.prefixes import PrefixIndex
from penstock.policy.rules import Peers
from penstock.world import Address, Attachment, World, parse_address

MESH_ANNOTATION = "penstock.dev/mesh"
MOST_RESOLVED = 16384
INGRESS_SUBJECT = INGRESS * 256
"""Names the policy entries of Gateways (bpf/penstock.h)."""

Ports = tuple[tuple[str, int, str], ...]
"""(name, number, protocol) of each, sorted."""


def identity_text(document: Document, workload: Workload) -> str:
    """The canonical text of a workload's identity; equal texts are the same identity."""
    labels = tuple(workload.metadata.labels.items())
    return _identity_text(document.key.namespace, workload.spec.service_account_name, labels)


@lru_cache(maxsize=65536)
def _identity_text(namespace: str, account: str, labels: tuple[tuple[str, str], ...]) -> str:
    return json.dumps([namespace, account, sorted(labels)])


@dataclass(frozen=True, slots=True)
class Member:
    """A workload as policy and routing see it.

    `subject` names its policy entries: identity and named ports together, since a port name is
    resolved on the workload. `attachment` is None for a remote workload and for a local one whose
    network namespace is not there.
    """

    document: Document
    identity: int
    subject: int
    labels: Mapping[str, str]
    service_account: str
    local: bool
    mesh: bool
    addresses: tuple[Address, ...]
    ports: tuple[tuple[str, int, str], ...]
    attachment: Attachment | None
    netns: str | None

    @property
    def namespace(self) -> str:
        return self.document.key.namespace

    @property
    def present(self) -> bool:
        return self.attachment is not None if self.local else bool(self.addresses)

    def port_named(self, name: str, protocol: str) -> int | None:
        for port_name, number, port_protocol in self.ports:
            if port_name == name and port_protocol == protocol:
                return number
        return None


@dataclass(frozen=True, slots=True)
class Members:
    """All workloads, and the labels of every identity (reserved ones and those of networks included)."""

    all: tuple[Member, ...]
    index: LabelIndex
    ingress: tuple[Member, ...] = ()
    """Who speaks for the Gateways of each node; none while there is no Gateway."""
    _representatives: dict[int, Member] = field(default_factory=dict, repr=False, compare=False)
    _resolved: dict[Peers, frozenset[int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def labels(self) -> Mapping[int, Mapping[str, str]]:
        return self.index.labels

    def meant(self, peers: Peers) -> frozenset[int]:
        """The identities that `peers` means; looked up once."""
        found = self._resolved.get(peers)
        if found is None:
            # The workloads may stay for long while policies come and go.
            if len(self._resolved) > MOST_RESOLVED:
                self._resolved.clear()
            found = self._resolved[peers] = peers.resolve(self.index)
        return found

    def representatives(self) -> Mapping[int, Member]:
        """Subject → one of its workloads: what policy says of one it says of all."""
        if not self._representatives:
            self._representatives.update({m.subject: m for m in (*self.all, *self.ingress)})
        return self._representatives

    def local(self) -> tuple[Member, ...]:
        return tuple(m for m in self.all if m.local and m.attachment is not None)


def meshed_nodes(world: World) -> frozenset[str]:
    """The nodes that run Penstock, as their Node objects say."""
    return frozenset(
        d.key.name for d, _ in world.of_kind(Node) if d.metadata.annotations.get(MESH_ANNOTATION) != "false"
    )


def node_names(world: World, read: Policies) -> Mapping[str, str]:
    """The other nodes that need an identity of their own, since policies tell nodes apart: name → what its
    number is allocated for."""
    if not read.nodes:
        return {}
    return {d.key.name: f"node {d.key.name}" for d, _ in world.of_kind(Node) if d.key.name != world.node}


def members(world: World, read: Policies | None = None, before: Members | None = None) -> Members:
    """Resolve every Workload; those whose identity has no number yet are left out.

    `before` are the members of a World on the same node with the same numbers of identities and the same
    Namespaces: a workload that is as it was keeps its very Member, so that others see what has changed.
    """
    read = read or policies(world)
    meshed = meshed_nodes(world)
    known = {m.document.key: m for m in before.all} if before is not None else {}
    labels: dict[int, Mapping[str, str]] = {number: reserved_labels(number) for number in RESERVED}
    port_sets: dict[int, list[Ports]] = {}
    found: list[tuple[Document, Workload, int, Ports, Member | None]] = []
    for document, workload in world.of_kind(Workload):
        old = known.get(document.key)
        if old is not None and old.document is document:
            identity, ports = old.identity, old.ports
        else:
            old = None
            number = world.allocations.identities.get(identity_text(document, workload))
            if number is None:
                continue
            identity = number
            ports = tuple(sorted((p.name, p.container_port, str(p.protocol)) for p in workload.spec.ports))
        sets = port_sets.setdefault(identity, [])
        if ports not in sets:
            sets.append(ports)
            sets.sort()
        found.append((document, workload, identity, ports, old))
    namespaces = {d.key.name: d.metadata.labels for d, _ in world.of_kind(Namespace)}
    networks = {
        network: number
        for network in read.networks
        if (number := world.allocations.prefixes.get(str(network))) is not None
    }
    labels.update(dict.fromkeys(networks.values(), WORLD_LABELS))
    nodes = {
        number: name
        for name, text in node_names(world, read).items()
        if (number := world.allocations.prefixes.get(text)) is not None
    }
    if read.nodes:
        of_nodes = {d.key.name: d.metadata.labels for d, _ in world.of_kind(Node)}
        labels[HOST] = {**of_nodes.get(world.node, {}), **reserved_labels(HOST)}
        for number, name in nodes.items():
            labels[number] = {**of_nodes[name], **reserved_labels(REMOTE_NODE)}

    result = []
    owners: dict[int, ObjectKey] = {}
    for document, workload, identity, ports, old in found:
        own = labels.get(identity)
        if own is None:
            own = labels[identity] = workload_labels(
                document.key.namespace,
                workload.spec.service_account_name,
                workload.metadata.labels,
                namespaces.get(document.key.namespace, {}),
            )
        here = workload.spec.netns is not None or workload.spec.container is not None
        local = here and workload.spec.node in (None, world.node)
        attachment = world.attachments.get((document.key.namespace, document.key.name)) if local else None
        # Packets say which namespace they come from, not which program of it: the first name is its identity.
        if attachment is not None and owners.setdefault(attachment.cookie, document.key) != document.key:
            attachment = None
        subject = identity * 256 + port_sets[identity].index(ports) % 256
        mesh = not local and workload.spec.node in meshed
        if old is not None and (old.subject, old.mesh, old.attachment) == (subject, mesh, attachment):
            result.append(old)
            continue
        addresses = tuple(parse_address(a) for a in workload.spec.addresses)
        result.append(
            Member(
                document=document,
                identity=identity,
                subject=subject,
                labels=own,
                service_account=workload.spec.service_account_name,
                local=local,
                mesh=mesh,
                addresses=addresses or (attachment.addresses if attachment else ()),
                ports=ports,
                attachment=attachment,
                netns=workload.spec.netns,
            )
        )
    return Members(tuple(result), LabelIndex(labels, PrefixIndex(networks), nodes), ingress_members(world))


def ingress_members(world: World) -> tuple[Member, ...]:
    """One for this node and each other node, this node's first."""
    if not has_edge(world):
        return ()
    meshed = meshed_nodes(world)
    others = sorted({d.key.name for d, _ in world.of_kind(Node)} - {world.node})
    return tuple(
        Member(
            document=ingress_document(node),
            identity=INGRESS,
            subject=INGRESS_SUBJECT,
            labels=reserved_labels(INGRESS),
            service_account=ACCOUNT,
            local=node == world.node,
            mesh=node != world.node and node in meshed,
            addresses=of_node(world, node),
            ports=(),
            attachment=None,
            netns=None,
        )
        for node in (world.node, *others)
    )
