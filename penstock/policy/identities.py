"""Who there is: the workloads of the World with their identities.

An identity is a number for a distinct (namespace, service account, labels). The numbers are given out
by `penstock.allocate` and come in with the World; this module only reads them.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from penstock.dns.patterns import Names
from penstock.manifests.document import Document, ObjectKey, place
from penstock.manifests.kinds import Node, Workload
from penstock.policy.labels import (
    INGRESS,
    LabelIndex,
)
from penstock.policy.policies import Policies
from penstock.policy.rules import Peers
from penstock.world import Address, Attachment, World

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
    shape: object = field(default_factory=object, repr=False, compare=False)
    """The same in Members whose identities, subjects and names of ports are the same."""
    _by_identity: dict[int, tuple[Member, ...]] = field(default_factory=dict, repr=False, compare=False)
    _representatives: dict[int, Member] = field(default_factory=dict, repr=False, compare=False)
    _local: list[tuple[Member, ...]] = field(default_factory=list, repr=False, compare=False)
    _meshed: list[dict[int, Member]] = field(default_factory=list, repr=False, compare=False)
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

    @property
    def by_identity(self) -> Mapping[int, tuple[Member, ...]]:
        if not self._by_identity:
            found: dict[int, list[Member]] = {}
            for member in (*self.all, *self.ingress):
                found.setdefault(member.identity, []).append(member)
            self._by_identity.update({identity: tuple(listed) for identity, listed in found.items()})
        return self._by_identity

    def named(self, keys: Iterable[ObjectKey]) -> list[Member]:
        """Those of these objects that are there."""
        found = []
        for key in keys:
            at = bisect_left(self.all, place(key), key=lambda m: place(m.document.key))
            if at < len(self.all) and self.all[at].document.key == key:
                found.append(self.all[at])
        return found

    def local(self) -> tuple[Member, ...]:
        """Those that this node judges."""
        if not self._local:
            self._local.append(tuple(m for m in self.all if m.local and m.attachment is not None))
        return self._local[0]

    def meshed(self) -> Mapping[int, Member]:
        """Identities that workloads of other mesh nodes have, with one of these."""
        if not self._meshed:
            self._meshed.append({m.identity: m for m in self.all if m.mesh})
        return self._meshed[0]


def meshed_nodes(world: World) -> frozenset[str]:
    """The nodes that run Penstock, as their Node objects say."""
    return frozenset(
        d.key.name for d, _ in world.of_kind(Node) if d.metadata.annotations.get(MESH_ANNOTATION) != "false"
    )


def names_text(names: Names) -> str:
    """What the number of a list of names is allocated for."""
    return f"names {' '.join(names)}"


def node_names(world: World, read: Policies) -> Mapping[str, str]:
    """The other nodes that need an identity of their own, since policies tell nodes apart: name → what its
    number is allocated for."""
    if not read.nodes:
        return {}
    return {d.key.name: f"node {d.key.name}" for d, _ in world.of_kind(Node) if d.key.name != world.node}
