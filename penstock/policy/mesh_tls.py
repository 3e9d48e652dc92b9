"""How each workload wants TCP from other nodes: PeerAuthentication, the narrowest that speaks wins.

Source: Istio security.istio.io/v1 PeerAuthentication: port, then workload selector, then namespace, then the
root namespace; UNSET inherits. Of several that select a workload the first by name speaks. Without any, mesh
TLS is accepted and plain text too (permissive). What a workload's modes are follows from its identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.manifests.kinds import MutualTLS, PeerAuthentication
from penstock.plan import MeshMode, PortMode, PortOf
from penstock.policy.identities import Member
from penstock.world import World

ROOT_NAMESPACES = ("penstock", "istio-system")
_MODES = {"DISABLE": MeshMode.OFF, "PERMISSIVE": MeshMode.PERMISSIVE, "STRICT": MeshMode.STRICT}


@dataclass(frozen=True, slots=True)
class _Selected:
    """What one object says of the workloads that it selects."""

    namespace: str
    labels: Mapping[str, str]
    mode: MeshMode | None
    ports: Mapping[int, MeshMode]


def _said(mtls: MutualTLS | None) -> MeshMode | None:
    return _MODES.get(mtls.mode) if mtls else None


class MeshModes:
    """The modes that the World's PeerAuthentications set."""

    def __init__(self, world: World) -> None:
        whole: list[MeshMode] = []
        self._namespaces: dict[str, MeshMode] = {}
        self._workloads: list[_Selected] = []
        for document, authentication in world.of_kind(PeerAuthentication):
            spec, namespace = authentication.spec, document.key.namespace
            mode = _said(spec.mtls)
            if spec.selector is not None and spec.selector.match_labels:
                each = {int(port): _said(mtls) for port, mtls in spec.port_level_mtls.items()}
                ports = {port: own for port, own in each.items() if own is not None}
                self._workloads.append(_Selected(namespace, spec.selector.match_labels, mode, ports))
            elif mode is not None and namespace in ROOT_NAMESPACES:
                whole.append(mode)
            elif mode is not None:
                self._namespaces.setdefault(namespace, mode)
        self._mesh = whole[0] if whole else MeshMode.PERMISSIVE
        self.by_port = any(each.ports for each in self._workloads)
        """Whether anything is said of single ports."""

    def of(self, member: Member, port: int | None = None) -> MeshMode:
        """At a port; without one, at those of which nothing is said."""
        if port is not None and self.by_port and (own := self.ports(member).get(port)) is not None:
            return own
        for each in self._selecting(member):
            if each.mode is not None:
                return each.mode
        return self._namespaces.get(member.namespace, self._mesh)

    def ports(self, member: Member) -> Mapping[int, MeshMode]:
        """The ports of which something is said."""
        found: dict[int, MeshMode] = {}
        if self.by_port:
            for each in self._selecting(member):
                found = {**each.ports, **found}
        return found

    def somewhere(self, member: Member) -> frozenset[MeshMode]:
        """Every mode that some port has."""
        return frozenset((self.of(member), *self.ports(member).values()))

    def _selecting(self, member: Member) -> Iterable[_Selected]:
        labels = member.document.metadata.labels
        for each in self._workloads:
            if each.namespace == member.namespace and all(labels.get(k) == v for k, v in each.labels.items()):
                yield each


class TowardModes:
    """The same for senders of other nodes: who lets only proven senders in wants mesh TLS of them.

    `proving` are the identities of which some rule demands authentication.
    """

    def __init__(self, modes: MeshModes, proving: frozenset[int]) -> None:
        self._modes, self.proving = modes, proving

    def of(self, member: Member, port: int | None = None) -> MeshMode:
        return self._for(member, self._modes.of(member, port))

    def somewhere(self, member: Member) -> frozenset[MeshMode]:
        return frozenset(self._for(member, mode) for mode in self._modes.somewhere(member))

    def _for(self, member: Member, mode: MeshMode) -> MeshMode:
        if mode is MeshMode.PERMISSIVE and member.identity in self.proving:
            return MeshMode.STRICT
        return mode


def port_modes(members: Iterable[Member], modes: MeshModes, toward: TowardModes) -> dict[PortOf, PortMode]:
    """(identity, port) → its modes, where they are not those of the workload's other ports."""
    found: dict[PortOf, PortMode] = {}
    for member in members if modes.by_port else ():
        for port, mode in modes.ports(member).items():
            found[member.identity, port] = PortMode(mode, toward.of(member, port))
    return found
