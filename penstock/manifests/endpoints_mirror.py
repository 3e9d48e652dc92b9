"""EndpointSlices for v1 Endpoints, as a cluster's own controller makes them.

What stands behind this module knows slices alone. Files have no controller, so reading an Endpoints object
mirrors it: one slice for each subset and family. Those of a Service that has a selector are as idle as any
other slice of it.

Source: Kubernetes docs, "EndpointSlices", section "EndpointSlice mirroring".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from penstock.manifests import syntax
from penstock.manifests.base import ObjectMeta
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.endpoints_kinds import Endpoints, EndpointSubset
from penstock.manifests.kinds import EndpointConditions, EndpointSlice, SliceEndpoint, SlicePort
from penstock.manifests.problem import Finding

SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
SKIP = "endpointslice.kubernetes.io/skip-mirror"
LEADER = "control-plane.alpha.kubernetes.io/leader"
"""The annotation of Endpoints that are the lock of an election and no Service's."""
_CONTROLLER = "endpointslicemirroring-controller.k8s.io"


def check(endpoints: Endpoints) -> Iterator[Finding]:
    for i, subset in enumerate(endpoints.subsets):
        for field, listed in (
            ("addresses", subset.addresses),
            ("notReadyAddresses", subset.not_ready_addresses),
        ):
            for j, address in enumerate(listed):
                if wrong := syntax.host_address(address.ip):
                    yield Finding(("subsets", i, field, j, "ip"), wrong)
        for j, port in enumerate(subset.ports):
            if wrong := syntax.port_number(port.port):
                yield Finding(("subsets", i, "ports", j, "port"), wrong)
            if port.name and (wrong := syntax.dns_label(port.name)):
                yield Finding(("subsets", i, "ports", j, "name"), wrong)
            if not port.name and len(subset.ports) > 1:
                yield Finding(("subsets", i, "ports", j, "name"), "is missing: with several each needs one")


def mirrored(document: Document) -> Iterator[Document]:
    """The slices that `document` means; none unless it holds Endpoints."""
    value = document.value
    if not isinstance(value, Endpoints):
        return
    if value.metadata.labels.get(SKIP) == "true" or LEADER in value.metadata.annotations:
        return
    for i, subset in enumerate(value.subsets):
        for family in (4, 6):
            if ends := list(_ends(subset, family)):
                name = f"{value.metadata.name}-mirrored-{i}-ipv{family}"
                made = EndpointSlice(
                    api_version="discovery.k8s.io/v1",
                    kind="EndpointSlice",
                    metadata=ObjectMeta(
                        name=name,
                        namespace=value.metadata.namespace,
                        labels={SERVICE_NAME: value.metadata.name, MANAGED_BY: _CONTROLLER},
                    ),
                    address_type="IPv4" if family == 4 else "IPv6",
                    endpoints=ends,
                    ports=[
                        SlicePort(port=p.port, name=p.name, protocol=p.protocol, app_protocol=p.app_protocol)
                        for p in subset.ports
                    ],
                )
                key = ObjectKey("EndpointSlice", document.key.namespace, name)
                line = document.origin("subsets", i).line
                yield replace(document, key=key, value=made, line=line, lines={})


def _ends(subset: EndpointSubset, family: int) -> Iterator[SliceEndpoint]:
    for ready, listed in ((True, subset.addresses), (False, subset.not_ready_addresses)):
        for address in listed:
            if (":" in address.ip) == (family == 6):
                yield SliceEndpoint(
                    addresses=[address.ip],
                    conditions=EndpointConditions(ready=ready),
                    hostname=address.hostname,
                    node_name=address.node_name,
                    target_ref=address.target_ref,
                )
