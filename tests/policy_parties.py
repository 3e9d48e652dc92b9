"""Who there is in the random cases of policy: workloads here and elsewhere, nodes, the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]
NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
NAMESPACES: dict[str, dict[str, str]] = {
    "default": {"kubernetes.io/metadata.name": "default", "team": "x"},
    "other": {"kubernetes.io/metadata.name": "other"},
}
ACCOUNT = "io.cilium.k8s.policy.serviceaccount"

PROTOCOL_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}
ICMP_TYPES = (0, 8, 13, 17)
ICMP_NAMES = {"EchoReply": 0, "EchoRequest": 8, "Echo": 8, "Timestamp": 13}
RESERVED = {"host": 1, "world": 2, "remote-node": 6}
ADDRESSES = {"host": "10.1.0.254", "remote-node": "192.0.2.2", "world": "203.0.113.9"}
ZONES = {"host": {"zone": "a"}, "remote-node": {"zone": "b"}}
"""Labels of this node and of the other one."""


@dataclass(frozen=True)
class Party:
    """A workload, or one of the reserved (then `labels` is its one label).

    `known_ports` are the named ports of all workloads of its identity: a sender knows peers by identity.
    """

    name: str
    address: str
    labels: Mapping[str, str]
    namespace: str = ""
    ports: tuple[tuple[str, int, str], ...] = ()
    local: bool = False
    known_ports: tuple[tuple[str, int, str], ...] = ()

    @property
    def workload(self) -> bool:
        return bool(self.namespace)

    @property
    def stranger(self) -> bool:
        """Of the world: neither a workload's address nor a node's."""
        return "reserved:world" in self.labels


HOST, WORLD, REMOTE_NODE = (
    Party(name, ADDRESSES[name], {f"reserved:{name}": ""}) for name in ("host", "world", "remote-node")
)
STRANGERS = [
    WORLD,
    *(Party(f"world-{n}", f"198.51.100.{n}", WORLD.labels) for n in (7, 130)),
]
OTHERS = [HOST, REMOTE_NODE, *STRANGERS]
LABELS = st.fixed_dictionaries(
    {}, optional={"app": st.sampled_from(["a", "b", "c"]), "tier": st.sampled_from(["x", "y"])}
)
PORT_NUMBERS = st.sampled_from([79, 80, 81, 88, 95, 96, 443, 8080])
NAMED = st.sampled_from(["http", "dns"])


@st.composite
def parties(draw: st.DrawFn) -> list[Party]:
    found = []
    for number, local in enumerate((True, True, True, False)):
        ports = draw(
            st.lists(
                st.tuples(NAMED, PORT_NUMBERS, st.sampled_from(["TCP", "UDP"])),
                max_size=2,
                unique_by=lambda p: p[0],
            )
        )
        found.append(
            Party(
                f"w{number}",
                f"10.{1 if local else 2}.0.{number + 1}",
                draw(LABELS),
                draw(st.sampled_from(["default", "default", "other"])),
                tuple(ports),
                local,
            )
        )
    return [
        replace(
            p,
            known_ports=tuple(
                port
                for twin in found
                if (twin.namespace, twin.labels) == (p.namespace, p.labels)
                for port in twin.ports
            ),
        )
        for p in found
    ]
