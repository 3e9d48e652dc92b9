"""Which ports of Services have endpoints, and why the others have none: for warnings, by manifests alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from penstock.manifests.document import Document
from penstock.manifests.kinds import EndpointSlice, Service, ServicePort, Workload
from penstock.routing.endpoints import SLICE_LABEL


@dataclass(frozen=True, slots=True)
class Behind:
    """Every Service by (namespace, name), with what keeps each of its ports from having endpoints."""

    lacks: Mapping[tuple[str, str], Mapping[tuple[int, str], str]]
    """By number and name of the port; '' is nothing."""

    def nobody(self, namespace: str, name: str, port: int | str | None = None) -> str:
        """Why no endpoint stands behind a port (None: behind any); '' if one does, or it is not known."""
        known = self.lacks.get((namespace, name), {})
        asked = [why for (number, called), why in known.items() if port in (None, number, called)]
        return asked[0] if asked and all(asked) else ""


def behind(documents: Iterable[Document]) -> Behind:
    workloads: dict[str, list[Workload]] = defaultdict(list)
    slices: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    services: list[tuple[Document, Service]] = []
    for document in documents:
        value, namespace = document.value, document.key.namespace
        if isinstance(value, Workload):
            workloads[namespace].append(value)
        elif isinstance(value, EndpointSlice):
            slices[namespace, value.metadata.labels.get(SLICE_LABEL, "")].append(value)
        elif isinstance(value, Service):
            services.append((document, value))
    found = {}
    for document, service in services:
        key = (document.key.namespace, document.key.name)
        chosen = _chosen(service, workloads[key[0]])
        found[key] = {
            (p.port, p.name): _selected(service, p, chosen)
            if service.spec.selector
            else _sliced(service, p, slices[key])
            for p in service.spec.ports
        }
    return Behind(found)


def _chosen(service: Service, workloads: Sequence[Workload]) -> list[Workload]:
    wanted = (service.spec.selector or {}).items()
    return [w for w in workloads if wanted <= w.metadata.labels.items()]


def _selected(service: Service, port: ServicePort, chosen: Sequence[Workload]) -> str:
    if not chosen:
        return "no workload has the labels of its selector"
    ready = [w for w in chosen if w.spec.ready or service.spec.publish_not_ready_addresses]
    if not ready:
        return "what it selects is not ready"
    name = str(port.target_port or "")
    if name and not name.isdigit():
        ports = [p for w in ready for p in w.spec.ports if p.name == name and p.protocol == port.protocol]
        if not ports:
            return f"none of what it selects has a {port.protocol} port named {name}"
    return ""


def _sliced(service: Service, port: ServicePort, slices: Sequence[EndpointSlice]) -> str:
    if not any(each.endpoints for each in slices):
        return "it has no selector, and no EndpointSlice of it has endpoints"
    named = [s for s in slices if any((p.name, p.protocol) == (port.name, port.protocol) for p in s.ports)]
    if not named:
        return f'no EndpointSlice of it has a {port.protocol} port named "{port.name}"'
    everybody = service.spec.publish_not_ready_addresses
    conditions = [e.conditions for each in named for e in each.endpoints]
    if not any(everybody or c.ready is not False or c.serving for c in conditions):
        return "none of its endpoints is ready"
    return ""
