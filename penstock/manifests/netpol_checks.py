"""The rules of one NetworkPolicy that its types cannot say.

Source: Kubernetes API v1.31, networking.k8s.io/v1 and its validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_network

from penstock.manifests import syntax
from penstock.manifests.kinds import NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort
from penstock.manifests.policy_checks import audit_annotation, cidr_set, selector
from penstock.manifests.problem import Finding, Path


def check(policy: NetworkPolicy) -> Iterator[Finding]:
    yield from audit_annotation(policy)
    spec = policy.spec
    yield from selector(spec.pod_selector, ("spec", "podSelector"), syntax.label_key)
    for i, ingress in enumerate(spec.ingress):
        yield from _rule(ingress.from_, ingress.ports, ("spec", "ingress", i), "from")
    for i, egress in enumerate(spec.egress):
        yield from _rule(egress.to, egress.ports, ("spec", "egress", i), "to")
    for kind, field, rules in (("Ingress", "ingress", spec.ingress), ("Egress", "egress", spec.egress)):
        if rules and spec.policy_types and kind not in spec.policy_types:
            message = f"has no effect: policyTypes does not hold {kind}"
            yield Finding(("spec", field), message, severity="warning")


def _rule(
    peers: Sequence[NetworkPolicyPeer], ports: Sequence[NetworkPolicyPort], path: Path, way: str
) -> Iterator[Finding]:
    for i, peer in enumerate(peers):
        yield from _peer(peer, (*path, way, i))
    for i, port in enumerate(ports):
        yield from _port(port, (*path, "ports", i))


def _peer(peer: NetworkPolicyPeer, path: Path) -> Iterator[Finding]:
    selectors = {"podSelector": peer.pod_selector, "namespaceSelector": peer.namespace_selector}
    written = [name for name, value in selectors.items() if value is not None]
    if peer.ip_block is None and not written:
        yield Finding(path, "needs podSelector, namespaceSelector or ipBlock")
    for name, value in selectors.items():
        if value is not None:
            yield from selector(value, (*path, name), syntax.label_key)
    if peer.ip_block is None:
        return
    for name in written:
        yield Finding((*path, name), "cannot stand beside ipBlock in one peer", "make two peers of it")
    here = (*path, "ipBlock")
    wrong = [*cidr_set(peer.ip_block.cidr, peer.ip_block.except_, here)]
    yield from wrong
    if not any(finding.severity == "error" for finding in wrong):
        whole = ip_network(peer.ip_block.cidr, strict=False)
        for i, word in enumerate(peer.ip_block.except_):
            if ip_network(word, strict=False) == whole:
                yield Finding((*here, "except", i), f"{word} leaves nothing of {whole}")


def _port(port: NetworkPolicyPort, path: Path) -> Iterator[Finding]:
    if isinstance(port.port, int):
        if wrong := syntax.port_number(port.port):
            yield Finding((*path, "port"), wrong)
        elif port.end_port is not None and not port.port <= port.end_port <= 65535:
            yield Finding((*path, "endPort"), f"{port.end_port} is not a port from {port.port} to 65535")
        return
    if port.end_port is not None:
        yield Finding((*path, "endPort"), "needs a port number to begin with")
    if isinstance(port.port, str) and (wrong := syntax.port_name(port.port)):
        hint = f"write {port.port} without quotes" if port.port.isdecimal() else ""
        yield Finding((*path, "port"), f'"{port.port}" is not the name of a port: it {wrong}', hint)
