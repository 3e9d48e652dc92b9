"""What a Gateway stands for in a mesh, shown as the API wants it shown: a Service of its own. Pure.

Nobody wrote it and nothing is compiled from it: it tells tools that look for a Gateway's Service where it is
served, and bears the labels and annotations that the Gateway gives to what is made for it.

Source: Gateway API v1.6, GatewayInfrastructure; GEP-1762 (names and labels of what is made for a Gateway).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penstock.manifests.document import ObjectKey
from penstock.manifests.gateway_kinds import GROUP, GatewayInfrastructure
from penstock.plan import Plan
from penstock.policy import ingress
from penstock.world import World

NAME_LABEL = f"{GROUP}/gateway-name"
CLASS_LABEL = f"{GROUP}/gateway-class-name"


def services(world: World, plan: Plan) -> Iterator[tuple[ObjectKey, dict[str, Any]]]:
    """The Service of each Gateway of ours, unless a manifest has one of its name."""
    for document, gateway in ingress.gateways(world):
        owner = document.key
        class_name = gateway.spec.gateway_class_name
        key = ObjectKey("Service", owner.namespace, f"{owner.name}-{class_name}")
        if key in world.documents or owner not in plan.statuses:
            continue
        made_for = gateway.spec.infrastructure or GatewayInfrastructure()
        addresses: Any = plan.statuses[owner].extra.get("addresses", ())
        texts = [str(address) for address in addresses]
        ports = {(x.port, "UDP" if x.protocol.upper() == "UDP" else "TCP"): x for x in gateway.spec.listeners}
        metadata: dict[str, Any] = {
            "name": key.name,
            "namespace": key.namespace,
            "labels": {**made_for.labels, NAME_LABEL: owner.name, CLASS_LABEL: class_name},
            "generation": document.generation,
        }
        if made_for.annotations:
            metadata["annotations"] = dict(made_for.annotations)
        yield (
            key,
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata,
                "spec": {
                    "type": "LoadBalancer",
                    "externalIPs": texts,
                    "ports": [
                        {"name": listener.name, "port": port, "protocol": protocol}
                        for (port, protocol), listener in sorted(ports.items())
                    ],
                },
                "status": {"loadBalancer": {"ingress": [{"ip": text} for text in texts]}},
            },
        )
