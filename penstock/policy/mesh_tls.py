"""How each workload wants TCP from other nodes: PeerAuthentication, the narrowest that speaks wins.

Source: Istio security.istio.io/v1 PeerAuthentication: workload selector, then namespace, then the root
namespace; UNSET inherits. Without any, mesh TLS is accepted and plain text too (permissive).
"""

from __future__ import annotations

from collections.abc import Mapping

from penstock.manifests.kinds import PeerAuthentication
from penstock.plan import MeshMode
from penstock.policy.identities import Member
from penstock.world import World

ROOT_NAMESPACES = ("penstock", "istio-system")
_MODES = {"DISABLE": MeshMode.OFF, "PERMISSIVE": MeshMode.PERMISSIVE, "STRICT": MeshMode.STRICT}


class MeshModes:
    """The modes that the World's PeerAuthentications set."""

    def __init__(self, world: World) -> None:
        self._mesh = MeshMode.PERMISSIVE
        self._namespaces: dict[str, MeshMode] = {}
        self._workloads: list[tuple[str, Mapping[str, str], MeshMode]] = []
        for document, authentication in world.of_kind(PeerAuthentication):
            mtls = authentication.spec.mtls
            mode = _MODES.get(mtls.mode) if mtls else None
            if mode is None:
                continue
            selector = authentication.spec.selector
            if selector is not None and selector.match_labels:
                self._workloads.append((document.key.namespace, selector.match_labels, mode))
            elif document.key.namespace in ROOT_NAMESPACES:
                self._mesh = mode
            else:
                self._namespaces[document.key.namespace] = mode

    def of(self, member: Member) -> MeshMode:
        labels = member.document.metadata.labels
        for namespace, wanted, mode in self._workloads:
            if namespace == member.namespace and all(labels.get(k) == v for k, v in wanted.items()):
                return mode
        return self._namespaces.get(member.namespace, self._mesh)


class TowardModes:
    """The same for senders of other nodes: who lets only proven senders in wants mesh TLS of them.

    `proving` are the identities of which some rule demands authentication.
    """

    def __init__(self, modes: MeshModes, proving: frozenset[int]) -> None:
        self._modes, self.proving = modes, proving

    def of(self, member: Member) -> MeshMode:
        mode = self._modes.of(member)
        if mode is MeshMode.PERMISSIVE and member.identity in self.proving:
            return MeshMode.STRICT
        return mode
