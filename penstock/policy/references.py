"""What policies name that other objects hold: groups of networks, and the endpoints of Services. Pure.

A name that nothing stands behind selects nothing. A Service with a selector means the workloads that it
selects; one without means the addresses of its EndpointSlices, as networks (Cilium's own reading).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from penstock.manifests.kinds import (
    CIDRRule,
    CiliumCIDRGroup,
    EndpointSlice,
    LabelSelector,
    Service,
    ServiceRef,
)
from penstock.policy.labels import NAMESPACE, Selector, predicate
from penstock.policy.prefixes import Block, block, parse_prefix
from penstock.world import World

REFERRED = (CiliumCIDRGroup, Service, EndpointSlice)
"""The kinds that a policy's meaning depends on."""

KUBE_APISERVER = ("default", "kubernetes")
"""The Service that stands for the entity kube-apiserver: namespace and name."""

_SLICE_LABEL = "kubernetes.io/service-name"

_Labelled = Mapping[str, str]


class References:
    """The objects of one World that policies may name."""

    def __init__(self, world: World) -> None:
        # Hardly any policy asks, and there may be thousands of Services.
        self._world = world

    @cached_property
    def _groups(self) -> dict[str, tuple[_Labelled, tuple[str, ...]]]:
        return {
            document.key.name: (group.metadata.labels, tuple(group.spec.external_cidrs))
            for document, group in self._world.of_kind(CiliumCIDRGroup)
        }

    @cached_property
    def _services(self) -> dict[tuple[str, str], Service]:
        return {
            (document.key.namespace, document.key.name): service
            for document, service in self._world.of_kind(Service)
        }

    @cached_property
    def _slices(self) -> dict[tuple[str, str], list[EndpointSlice]]:
        found: dict[tuple[str, str], list[EndpointSlice]] = {}
        for document, piece in self._world.of_kind(EndpointSlice):
            owner = piece.metadata.labels.get(_SLICE_LABEL)
            if owner:
                found.setdefault((document.key.namespace, owner), []).append(piece)
        return found

    def has_group(self, name: str) -> bool:
        return name in self._groups

    def blocks(self, wanted: CIDRRule) -> Iterator[Block]:
        """The networks of one entry of fromCIDRSet or toCIDRSet."""
        for cidr in self._cidrs(wanted):
            yield block(cidr, wanted.except_)

    def _cidrs(self, wanted: CIDRRule) -> Iterator[str]:
        if wanted.cidr is not None:
            yield wanted.cidr
        if wanted.cidr_group_ref is not None and wanted.cidr_group_ref in self._groups:
            yield from self._groups[wanted.cidr_group_ref][1]
        if wanted.cidr_group_selector is not None:
            chosen = predicate(wanted.cidr_group_selector)
            for _, (labels, cidrs) in sorted(self._groups.items()):
                if chosen(labels):
                    yield from cidrs

    def services(self, wanted: ServiceRef, own: str) -> Iterator[tuple[str, str]]:
        """Namespace and name of the Services that an entry of toServices means; `own` is the policy's
        namespace ('': a clusterwide one, which must name one)."""
        if wanted.k8s_service is not None:
            key = (wanted.k8s_service.namespace or own, wanted.k8s_service.service_name)
            if key in self._services:
                yield key
        if wanted.k8s_service_selector is not None:
            chosen = predicate(wanted.k8s_service_selector.selector)
            namespace = wanted.k8s_service_selector.namespace or own
            for key, service in sorted(self._services.items()):
                if key[0] == namespace and chosen(service.metadata.labels):
                    yield key

    def endpoints(self, service: tuple[str, str]) -> tuple[tuple[Selector, ...], tuple[Block, ...]]:
        """Who stands behind a Service: workloads, or addresses."""
        found = self._services.get(service)
        if found is not None and found.spec.selector:
            labels = LabelSelector(match_labels={**found.spec.selector, NAMESPACE: service[0]})
            return (predicate(labels),), ()
        endpoints = (each for piece in self._slices.get(service, ()) for each in piece.endpoints)
        return (), tuple(Block(parse_prefix(a)) for each in endpoints for a in each.addresses)
