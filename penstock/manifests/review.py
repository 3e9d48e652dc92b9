"""What only the whole set of objects shows: names and selectors that find nothing, addresses
given twice, L7 rules that another rule makes void.

Warnings all: the object is in force as it is written, and what it names may still come.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.manifests.base import Labels
from penstock.manifests.document import Document
from penstock.manifests.kinds import (
    CiliumCIDRGroup,
    CiliumClusterwideNetworkPolicy,
    CiliumNetworkPolicy,
    EndpointSlice,
    LabelSelector,
    NetworkPolicy,
    PeerAuthentication,
    Service,
    Workload,
)
from penstock.manifests.peers import RulePeers, peers_of, rules_of, sections_of
from penstock.manifests.problem import Finding, Path, Problem, did_you_mean, show_path
from penstock.manifests.route_kinds import GRPCRoute, GRPCRouteRule, HTTPRoute, HTTPRouteRule
from penstock.manifests.voided import voided

NAMESPACE_LABEL = "io.kubernetes.pod.namespace"
SERVICE_ACCOUNT_LABEL = "io.cilium.k8s.policy.serviceaccount"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"


def review(documents: Iterable[Document]) -> list[Problem]:
    """Every warning about how `documents` fit together, in the order of files and lines."""
    everything = sorted(documents, key=lambda document: (document.file, document.line))
    inventory = _Inventory.of(everything)
    problems = []
    for document in everything:
        if (reviewer := _REVIEWERS.get(type(document.value))) is not None:
            for finding in reviewer(document, inventory):
                problems.append(problem(document, finding))
    problems += [problem(document, finding) for document, finding in voided(everything)]
    return sorted(problems, key=lambda p: (p.file, p.line))


def problem(document: Document, finding: Finding) -> Problem:
    """A warning with its place; one that says no other code is about a reference."""
    key = document.key
    return Problem(
        document.file,
        document.origin(*finding.path).line,
        finding.message,
        key.kind,
        key.namespace,
        key.name,
        show_path(finding.path),
        finding.hint,
        "warning",
        "reference" if finding.code == "value" else finding.code,
    )


@dataclass(frozen=True, slots=True)
class _Inventory:
    """What others may refer to. Workloads with the same labels are one entry of `labels`."""

    labels: tuple[Labels, ...]
    port_names: frozenset[str]
    services: Mapping[tuple[str, str], Service]
    sliced: frozenset[tuple[str, str]]
    addresses: Mapping[str, tuple[Document, ...]]
    groups: frozenset[str] = frozenset()

    @classmethod
    def of(cls, documents: Iterable[Document]) -> _Inventory:
        labels: dict[tuple[tuple[str, str], ...], Labels] = {}
        port_names: set[str] = set()
        services: dict[tuple[str, str], Service] = {}
        sliced: set[tuple[str, str]] = set()
        addresses: dict[str, list[Document]] = defaultdict(list)
        groups: set[str] = set()
        for document in documents:
            value, key = document.value, document.key
            if isinstance(value, Workload):
                own = dict(value.metadata.labels)
                own[NAMESPACE_LABEL] = key.namespace
                own[SERVICE_ACCOUNT_LABEL] = value.spec.service_account_name
                labels[tuple(sorted(own.items()))] = own
                port_names.update(port.name for port in value.spec.ports)
                for address in value.spec.addresses:
                    addresses[address].append(document)
            elif isinstance(value, Service):
                services[key.namespace, key.name] = value
                if value.spec.cluster_ip not in (None, "", "None"):
                    addresses[str(value.spec.cluster_ip)].append(document)
            elif isinstance(value, CiliumCIDRGroup):
                groups.add(key.name)
            elif isinstance(value, EndpointSlice):
                sliced.add((key.namespace, value.metadata.labels.get(SERVICE_NAME_LABEL, "")))
        shared = {a: tuple(found) for a, found in addresses.items() if len(found) > 1}
        return cls(
            tuple(labels.values()),
            frozenset(port_names),
            services,
            frozenset(sliced),
            shared,
            frozenset(groups),
        )


# --- selectors ------------------------------------------------------------------------------------------


def _plain_key(key: str) -> str:
    source, colon, rest = key.partition(":")
    return rest if colon and source in ("k8s", "any") else key


def _unknowable(selector: LabelSelector) -> bool:
    """Whether it asks for labels that no manifest carries (reserved ones, those of namespaces)."""
    keys = [*selector.match_labels, *(r.key for r in selector.match_expressions)]
    return any(
        key.startswith("reserved:")
        or _plain_key(key).startswith(("io.cilium.k8s.namespace.", "io.cilium.k8s.policy.cluster"))
        for key in keys
    )


def _matches(selector: LabelSelector, labels: Labels) -> bool:
    for key, value in selector.match_labels.items():
        if labels.get(_plain_key(key)) != value:
            return False
    for requirement in selector.match_expressions:
        value_there = labels.get(_plain_key(requirement.key))
        match requirement.operator:
            case "In":
                good = value_there in requirement.values
            case "NotIn":
                good = value_there not in requirement.values
            case "Exists":
                good = value_there is not None
            case _:
                good = value_there is None
        if not good:
            return False
    return True


def _selects(
    selector: LabelSelector, path: Path, inventory: _Inventory, namespace: str | None
) -> Iterator[Finding]:
    """A warning if the selector finds no workload of the namespace (None: of any)."""
    if _unknowable(selector):
        return
    there = [la for la in inventory.labels if namespace is None or la[NAMESPACE_LABEL] == namespace]
    if any(_matches(selector, labels) for labels in there):
        return
    where = "" if namespace is None else f" in namespace {namespace}"
    if not there:
        yield Finding(path, f"selects no workload: there is none{where}")
        return
    elsewhere = sorted({la[NAMESPACE_LABEL] for la in inventory.labels if _matches(selector, la)})
    if elsewhere:
        yield Finding(path, f"selects no workload{where}", f"it would in {', '.join(elsewhere[:3])}")
        return
    for key, value in selector.match_labels.items():
        plain = _plain_key(key)
        values = {labels[plain] for labels in there if plain in labels}
        if value in values:
            continue
        here = (*path, "matchLabels", key)
        if values:
            shown = f'selects no workload{where}: none has {plain} "{value}"'
            yield Finding(here, shown, did_you_mean(value, values, 0.6))
        else:
            keys = {k for labels in there for k in labels}
            yield Finding(
                here, f'selects no workload{where}: none has the label "{plain}"', did_you_mean(plain, keys)
            )
        return
    yield Finding(path, f"selects no workload{where}")


def _peer(
    selector: LabelSelector, path: Path, inventory: _Inventory, namespace: str | None
) -> Iterator[Finding]:
    """A peer without a namespace label is of the policy's own namespace."""
    keys = {_plain_key(k) for k in (*selector.match_labels, *(r.key for r in selector.match_expressions))}
    yield from _selects(selector, path, inventory, None if NAMESPACE_LABEL in keys else namespace)


def _policy(document: Document, inventory: _Inventory) -> Iterator[Finding]:
    policy = document.value
    assert isinstance(policy, CiliumNetworkPolicy | CiliumClusterwideNetworkPolicy)
    namespace = document.key.namespace or None
    for path, rule in rules_of(policy):
        if rule.endpoint_selector is not None:
            yield from _selects(rule.endpoint_selector, (*path, "endpointSelector"), inventory, namespace)
        for section, entries in sections_of(rule):
            for i, entry in enumerate(entries or ()):
                peers = peers_of(entry)
                for j, selector in enumerate(peers.endpoints or ()):
                    where = (*path, section, i, f"{peers.way}Endpoints", j)
                    yield from _peer(selector, where, inventory, namespace)
                yield from _named(peers, (*path, section, i), inventory, document.key.namespace)


def _named(peers: RulePeers, path: Path, inventory: _Inventory, own: str) -> Iterator[Finding]:
    """What a rule names that other objects hold."""
    for i, each in enumerate(peers.cidr_sets or ()):
        if each.cidr_group_ref is not None and each.cidr_group_ref not in inventory.groups:
            hint = did_you_mean(each.cidr_group_ref, inventory.groups, 0.6)
            message = f"there is no CiliumCIDRGroup {each.cidr_group_ref}: no address is meant"
            yield Finding((*path, f"{peers.way}CIDRSet", i, "cidrGroupRef"), message, hint)
    for i, service in enumerate(peers.services or ()):
        if service.k8s_service is not None:
            name = (service.k8s_service.namespace or own, service.k8s_service.service_name)
            here = (*path, "toServices", i, "k8sService")
            yield from _service_port(inventory, name, None, here, "serviceName")


def _network_policy(document: Document, inventory: _Inventory) -> Iterator[Finding]:
    policy = document.value
    assert isinstance(policy, NetworkPolicy)
    spec, own = policy.spec, document.key.namespace
    yield from _selects(spec.pod_selector, ("spec", "podSelector"), inventory, own)
    listed = [(("spec", "ingress", i, "from"), rule.from_) for i, rule in enumerate(spec.ingress)]
    listed += [(("spec", "egress", i, "to"), rule.to) for i, rule in enumerate(spec.egress)]
    for path, peers in listed:
        for i, peer in enumerate(peers):
            if peer.pod_selector is not None:
                where = None if peer.namespace_selector is not None else own
                yield from _selects(peer.pod_selector, (*path, i, "podSelector"), inventory, where)


def _peer_authentication(document: Document, inventory: _Inventory) -> Iterator[Finding]:
    value = document.value
    assert isinstance(value, PeerAuthentication)
    if value.spec.selector is not None and value.spec.selector.match_labels:
        selector = LabelSelector(match_labels=value.spec.selector.match_labels)
        yield from _selects(selector, ("spec", "selector"), inventory, document.key.namespace)


# --- Services and routes --------------------------------------------------------------------------------


def _service(document: Document, inventory: _Inventory) -> Iterator[Finding]:
    service, key = document.value, document.key
    assert isinstance(service, Service)
    yield from _shared(document, inventory, ("spec", "clusterIP"), service.spec.cluster_ip or "")
    if not service.spec.selector:
        if (key.namespace, key.name) not in inventory.sliced:
            hint = f"give it a selector, or an EndpointSlice with the label {SERVICE_NAME_LABEL}: {key.name}"
            yield Finding(("spec",), "has no selector and no EndpointSlice", hint)
        return
    found = False
    for finding in _selects(
        LabelSelector(match_labels=service.spec.selector), ("spec", "selector"), inventory, key.namespace
    ):
        found = True
        path = tuple(part for part in finding.path if part != "matchLabels")
        yield Finding(path, finding.message, finding.hint)
    for i, port in enumerate(service.spec.ports):
        target = port.target_port
        if not found and isinstance(target, str) and target not in inventory.port_names:
            hint = did_you_mean(target, inventory.port_names - {""})
            yield Finding(
                ("spec", "ports", i, "targetPort"), f'no workload has a port named "{target}"', hint
            )


def _endpoint_slice(document: Document, inventory: _Inventory) -> Iterator[Finding]:
    name = document.metadata.labels.get(SERVICE_NAME_LABEL)
    if name is None:
        yield Finding(("metadata",), f"belongs to no Service: it has no label {SERVICE_NAME_LABEL}")
    else:
        service = (document.key.namespace, name)
        yield from _service_port(inventory, service, None, ("metadata", "labels"), SERVICE_NAME_LABEL)


def _route(document: Document, inventory: _Inventory) -> Iterator[Finding]:
    route = document.value
    assert isinstance(route, HTTPRoute | GRPCRoute)
    own = document.key.namespace
    for i, parent in enumerate(route.spec.parent_refs):
        if parent.kind != "Service":
            continue
        service = (parent.namespace or own, parent.name)
        yield from _service_port(inventory, service, parent.port, ("spec", "parentRefs", i))
    rules: Sequence[HTTPRouteRule | GRPCRouteRule] = route.spec.rules
    for i, rule in enumerate(rules):
        for j, backend in enumerate(rule.backend_refs):
            if (backend.group, backend.kind) == ("", "Service"):
                service = (backend.namespace or own, backend.name)
                here = ("spec", "rules", i, "backendRefs", j)
                yield from _service_port(inventory, service, backend.port, here)


def _service_port(
    inventory: _Inventory, service_name: tuple[str, str], port: int | None, path: Path, name: str = "name"
) -> Iterator[Finding]:
    namespace, wanted = service_name
    service = inventory.services.get(service_name)
    if service is None:
        names = [n for ns, n in inventory.services if ns == namespace]
        message = f"there is no Service {namespace}/{wanted}"
        yield Finding((*path, name), message, did_you_mean(wanted, names, 0.6))
    elif port is not None and port not in (ports := [p.port for p in service.spec.ports]):
        known = ", ".join(map(str, ports)) or "none"
        message = f"Service {namespace}/{wanted} has no port {port}"
        yield Finding((*path, "port"), message, f"it has {known}")


# --- addresses ------------------------------------------------------------------------------------------


def _workload(document: Document, inventory: _Inventory) -> Iterator[Finding]:
    workload = document.value
    assert isinstance(workload, Workload)
    for i, address in enumerate(workload.spec.addresses):
        yield from _shared(document, inventory, ("spec", "addresses", i), address)


def _shared(document: Document, inventory: _Inventory, path: Path, address: str) -> Iterator[Finding]:
    for other in inventory.addresses.get(address, ()):
        if other.key != document.key:
            where = f"{other.file}:{other.line}"
            yield Finding(path, f"{address} is also the address of {other.key} ({where})")
            return


_REVIEWERS: Mapping[type, Callable[[Document, _Inventory], Iterator[Finding]]] = {
    Workload: _workload,
    Service: _service,
    EndpointSlice: _endpoint_slice,
    CiliumNetworkPolicy: _policy,
    CiliumClusterwideNetworkPolicy: _policy,
    NetworkPolicy: _network_policy,
    HTTPRoute: _route,
    GRPCRoute: _route,
    PeerAuthentication: _peer_authentication,
}
