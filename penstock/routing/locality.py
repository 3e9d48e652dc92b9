"""How near an endpoint is to this node, for failover: its node, its zone, its region, anywhere.

Zones are those of Node objects, by the labels that Kubernetes gives them; of an endpoint that is no workload
its EndpointSlice's. What is known of neither is far away.

Source: https://kubernetes.io/docs/reference/labels-annotations-taints (topology.kubernetes.io).
"""

from __future__ import annotations

from typing import Literal

from penstock.manifests.kinds import Node, Workload
from penstock.routing.services import Backend
from penstock.world import World

REGION = "topology.kubernetes.io/region"
ZONE = "topology.kubernetes.io/zone"

_Place = tuple[str, str]
"""Region and zone; '' is unknown."""


class Localities:
    def __init__(self, world: World) -> None:
        self._node = world.node
        self._places: dict[str, _Place] = {}
        self._regions: dict[str, str] = {}
        for document, _ in world.of_kind(Node):
            labels = document.metadata.labels
            region, zone = labels.get(REGION, ""), labels.get(ZONE, "")
            self._places[document.key.name] = (region, zone)
            if zone:
                self._regions[zone] = region
        self._own = self._places.get(world.node, ("", ""))

    def distance(self, backend: Backend, mode: Literal["Zone", "Node"]) -> int:
        """0 is nearest. By "Node" this node comes before the rest of its zone."""
        region, zone = self._place(backend)
        if backend.local and mode == "Node":
            return 0
        if backend.local or (zone and (region, zone) == self._own):
            return 1
        return 2 if region and region == self._own[0] else 3

    def _place(self, backend: Backend) -> _Place:
        if backend.member is None:
            return self._regions.get(backend.zone, ""), backend.zone
        workload = backend.member.document.value
        assert isinstance(workload, Workload)
        return self._places.get(workload.spec.node or self._node, ("", ""))


def priorities(distances: tuple[int, ...]) -> tuple[int, ...]:
    """Distances as priorities without gaps, the nearest that there is first."""
    order = {distance: place for place, distance in enumerate(sorted(set(distances)))}
    return tuple(order[distance] for distance in distances)
