"""The rules of one CiliumNetworkPolicy (or its clusterwide twin) that its types cannot say.

Source: Cilium 1.20's own sanitising of rules. Stricter on purpose: every regular expression is compiled
(Cilium lets a bad host through, and the proxy would refuse it later).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_interface, ip_network

from penstock.manifests import icmp, syntax
from penstock.manifests import name_checks as names
from penstock.manifests.header import header_parts
from penstock.manifests.kinds import (
    CIDRRule,
    CiliumCIDRGroup,
    CiliumClusterwideNetworkPolicy,
    EgressDenyRule,
    IngressDenyRule,
    LabelSelector,
    NetworkPolicy,
    PolicyRule,
    PortDenyRule,
    PortHTTP,
    PortProtocol,
    PortRule,
    ServiceRef,
)
from penstock.manifests.peers import CiliumPolicy, DirectionRule, peers_of, rules_of, sections_of
from penstock.manifests.problem import Finding, Path, did_you_mean

AUDIT_ANNOTATION = "penstock.dev/audit"
"""On a policy that is only to be told what it would deny: "true"."""
MAX_PORTS = 40
"""Entries of one toPorts[].ports, and of one icmps[].fields (Cilium)."""


def check(policy: CiliumPolicy) -> Iterator[Finding]:
    clusterwide = isinstance(policy, CiliumClusterwideNetworkPolicy)
    if policy.spec is None and not policy.specs:
        yield Finding((), "needs spec or specs")
    yield from audit_annotation(policy)
    for path, rule in rules_of(policy):
        yield from _rule(rule, path, clusterwide=clusterwide)


def audit_annotation(policy: CiliumPolicy | NetworkPolicy) -> Iterator[Finding]:
    audit = policy.metadata.annotations.get(AUDIT_ANNOTATION)
    if audit not in (None, "true", "false"):
        yield Finding(("metadata", "annotations", AUDIT_ANNOTATION), f'"{audit}" is not "true" or "false"')


def _rule(rule: PolicyRule, path: Path, *, clusterwide: bool) -> Iterator[Finding]:
    if rule.endpoint_selector is None:
        extent = "mesh" if clusterwide else "namespace"
        yield Finding(
            (*path, "endpointSelector"), "is missing", f"{{}} selects every workload of the {extent}"
        )
    else:
        yield from selector(rule.endpoint_selector, (*path, "endpointSelector"))
    sections = tuple(sections_of(rule))
    if all(entries is None for _, entries in sections):
        yield Finding(path, "needs at least one of ingress, ingressDeny, egress and egressDeny")
    for name, entries in sections:
        for i, entry in enumerate(entries or ()):
            yield from _direction_rule(entry, (*path, name, i), clusterwide=clusterwide)


def _direction_rule(rule: DirectionRule, path: Path, *, clusterwide: bool) -> Iterator[Finding]:
    peers = peers_of(rule)
    for name in peers.written[1:]:
        yield Finding(
            (*path, name), f"cannot stand beside {peers.written[0]} in one rule", "make two rules of it"
        )
    for i, peer in enumerate(peers.endpoints or ()):
        yield from selector(peer, (*path, f"{peers.way}Endpoints", i))
    for i, word in enumerate(peers.cidrs or ()):
        yield from cidr(word, (*path, f"{peers.way}CIDR", i), length=False)
    for i, each in enumerate(peers.cidr_sets or ()):
        yield from _cidr_rule(each, (*path, f"{peers.way}CIDRSet", i))
    for i, peer in enumerate(peers.nodes or ()):
        yield from selector(peer, (*path, f"{peers.way}Nodes", i))
    for i, service in enumerate(peers.services or ()):
        yield from _service(service, (*path, "toServices", i), clusterwide=clusterwide)
    yield from names.selectors(peers.fqdns or (), (*path, "toFQDNs"))
    deny = isinstance(rule, IngressDenyRule | EgressDenyRule)
    if deny and peers.absent and rule.to_ports is None and rule.icmps is None:
        message = "names nobody and no port: it closes the direction and denies nothing that a rule allows"
        yield Finding(path, message, f"{peers.way}Entities: [all] is everybody", severity="warning")
    if deny and rule.to_ports == []:
        yield Finding((*path, "toPorts"), "is empty: nothing is denied", "leave it out to deny every port")
    yield from _icmps(rule, path)
    to_ports: Sequence[PortRule | PortDenyRule] = rule.to_ports or ()
    for i, ports in enumerate(to_ports):
        here = (*path, "toPorts", i)
        if len(ports.ports) > MAX_PORTS:
            yield Finding(
                (*here, "ports"), f"holds {len(ports.ports)} ports, at most {MAX_PORTS} are allowed"
            )
        for j, port in enumerate(ports.ports):
            yield from _port(port, (*here, "ports", j))
        if isinstance(ports, PortRule) and ports.server_names == []:
            message = "is empty: every server name is allowed, and what is no TLS"
            yield Finding((*here, "serverNames"), message, severity="warning")
        if isinstance(ports, PortRule) and ports.server_names:
            yield from names.server_names(ports, here)
        if not isinstance(ports, PortRule) or ports.rules is None:
            continue
        if ports.rules.http and ports.rules.dns:
            yield Finding((*here, "rules", "dns"), "cannot stand beside rules.http", "make two entries of it")
        if ports.rules.http:
            yield from _http(ports, here)
            if peers.fqdns is not None:
                yield Finding(
                    (*here, "rules", "http"),
                    "cannot stand in a rule with toFQDNs: the proxy serves workloads only",
                    "leave rules out to open the port",
                )
        elif ports.rules.dns:
            yield from names.dns(ports, here, peers)
        else:
            yield Finding((*here, "rules"), "holds no rule: every request is allowed", severity="warning")


def _cidr_rule(rule: CIDRRule, path: Path) -> Iterator[Finding]:
    fields = {
        "cidr": rule.cidr,
        "cidrGroupRef": rule.cidr_group_ref,
        "cidrGroupSelector": rule.cidr_group_selector,
    }
    written = [name for name, value in fields.items() if value is not None]
    if not written:
        yield Finding(path, "needs cidr, cidrGroupRef or cidrGroupSelector")
    for name in written[1:]:
        yield Finding((*path, name), f"cannot stand beside {written[0]}", "make two entries of it")
    if rule.cidr is not None:
        yield from cidr_set(rule.cidr, rule.except_, path)
        return
    if rule.cidr_group_ref is not None and (wrong := syntax.dns_subdomain(rule.cidr_group_ref)):
        yield Finding((*path, "cidrGroupRef"), f'"{rule.cidr_group_ref}" {wrong}')
    if rule.cidr_group_selector is not None:
        yield from selector(rule.cidr_group_selector, (*path, "cidrGroupSelector"))
    for i, word in enumerate(rule.except_):
        yield from cidr(word, (*path, "except", i))


def _service(service: ServiceRef, path: Path, *, clusterwide: bool) -> Iterator[Finding]:
    refs = {"k8sService": service.k8s_service, "k8sServiceSelector": service.k8s_service_selector}
    written = [(name, value) for name, value in refs.items() if value is not None]
    if len(written) != 1:
        yield Finding(path, "needs either k8sService or k8sServiceSelector")
    for name, value in written:
        if clusterwide and not value.namespace:
            yield Finding((*path, name, "namespace"), "is missing: a clusterwide policy has none of its own")
    if service.k8s_service is not None and (wrong := syntax.dns_label(service.k8s_service.service_name)):
        yield Finding((*path, "k8sService", "serviceName"), f'"{service.k8s_service.service_name}" {wrong}')
    if service.k8s_service_selector is not None:
        chosen = service.k8s_service_selector.selector
        yield from selector(chosen, (*path, "k8sServiceSelector", "selector"))


def check_group(group: CiliumCIDRGroup) -> Iterator[Finding]:
    for i, word in enumerate(group.spec.external_cidrs):
        yield from cidr(word, ("spec", "externalCIDRs", i))


def _icmps(rule: DirectionRule, path: Path) -> Iterator[Finding]:
    if rule.icmps is None:
        return
    here = (*path, "icmps")
    if rule.to_ports is not None:
        yield Finding(here, "cannot stand beside toPorts in one rule", "make two rules of it")
    if not any(each.fields for each in rule.icmps) and isinstance(rule, IngressDenyRule | EgressDenyRule):
        yield Finding(here, "is empty: nothing is denied", "leave it out to deny every message")
    for i, each in enumerate(rule.icmps):
        if len(each.fields) > MAX_PORTS:
            yield Finding(
                (*here, i, "fields"), f"holds {len(each.fields)} types, at most {MAX_PORTS} are allowed"
            )
        for j, field in enumerate(each.fields):
            if icmp.type_number(field) is None:
                message = f'"{field.type}" is not a type of ICMP message of {field.family}'
                hint = did_you_mean(str(field.type), icmp.TYPES[field.family], 0.6)
                yield Finding((*here, i, "fields", j, "type"), message, hint or "0 to 255, or its name")


def _port(port: PortProtocol, path: Path) -> Iterator[Finding]:
    number = _number(port)
    if number is None:
        if wrong := syntax.port_name(str(port.port)):
            yield Finding((*path, "port"), f'"{port.port}" is neither a port nor the name of one: it {wrong}')
        if port.end_port:
            yield Finding((*path, "endPort"), "needs a port number to begin with, not a name")
        return
    if not 0 <= number <= 65535:
        yield Finding((*path, "port"), f"{number} is not a port (1 to 65535, 0 for all)")
    if port.end_port:
        if not 1 <= port.end_port <= 65535:
            yield Finding((*path, "endPort"), f"{port.end_port} is not a port (1 to 65535)")
        elif number == 0:
            yield Finding((*path, "endPort"), "cannot stand beside port 0, which means all ports")
        elif port.end_port < number:
            yield Finding((*path, "endPort"), f"{port.end_port} is below port {number}")
    elif port.end_port is not None:
        yield Finding((*path, "endPort"), "0 is not a port (1 to 65535)")


def _number(port: PortProtocol) -> int | None:
    """The port's number; None if it is a name."""
    if isinstance(port.port, int):
        return port.port
    word = port.port
    return int(word) if word.isascii() and word.removeprefix("-").isdecimal() and len(word) < 20 else None


def _http(ports: PortRule, path: Path) -> Iterator[Finding]:
    assert ports.rules is not None
    if not ports.ports:
        yield Finding((*path, "rules", "http"), "needs ports: an L7 rule stands on numbered or named ports")
    for i, port in enumerate(ports.ports):
        if port.protocol in ("UDP", "SCTP"):
            yield Finding((*path, "ports", i, "protocol"), f"rules.http needs TCP, not {port.protocol}")
        if _number(port) == 0:
            yield Finding((*path, "ports", i, "port"), "rules.http needs a port other than 0")
    for i, rule in enumerate(ports.rules.http):
        yield from _http_rule(rule, (*path, "rules", "http", i))


def _http_rule(rule: PortHTTP, path: Path) -> Iterator[Finding]:
    for name, pattern in (("method", rule.method), ("path", rule.path), ("host", rule.host)):
        if wrong := syntax.regex(pattern):
            yield Finding((*path, name), wrong)
    for i, header in enumerate(rule.headers):
        header_name, value = header_parts(header)
        if wrong := syntax.field_name(header_name) or syntax.field_value(value or ""):
            yield Finding((*path, "headers", i), wrong, 'write "Name" or "Name: value"')
    for i, match in enumerate(rule.header_matches):
        if wrong := syntax.field_name(match.name):
            yield Finding((*path, "headerMatches", i, "name"), wrong)
        if wrong := syntax.field_value(match.value):
            yield Finding((*path, "headerMatches", i, "value"), wrong)
        elif not match.value:
            message = "is missing: there is nothing to compare with"
            yield Finding((*path, "headerMatches", i, "value"), message)


def cidr(word: str, path: Path, *, length: bool = True) -> Iterator[Finding]:
    """One network. Bits behind its length are no error, but seldom meant."""
    if wrong := syntax.prefix(word, length=length):
        yield Finding(path, wrong, f"write {word}/{_bits(word)}" if wrong.endswith("has no length") else "")
    elif "/" in word and str(read := ip_network(word, strict=False)) != str(ip_interface(word)):
        yield Finding(path, f"{word} has bits behind its length: it is read as {read}", severity="warning")


def _bits(word: str) -> int:
    return 128 if ":" in word else 32


def cidr_set(network: str, excepted: Sequence[str], path: Path) -> Iterator[Finding]:
    """A network and what is taken out of it, which must be in it."""
    found = [*cidr(network, (*path, "cidr"))]
    for i, word in enumerate(excepted):
        wrong = [*cidr(word, (*path, "except", i))]
        if not any(f.severity == "error" for f in (*found, *wrong)):
            outer, inner = ip_network(network, strict=False), ip_network(word, strict=False)
            if outer.version != inner.version or not inner.subnet_of(outer):  # type: ignore[arg-type]
                wrong.append(Finding((*path, "except", i), f"{inner} is not inside {outer}"))
        found += wrong
    yield from found


def selector(
    labels: LabelSelector, path: Path, key_syntax: Callable[[str], str] = syntax.selector_key
) -> Iterator[Finding]:
    for key, value in labels.match_labels.items():
        if wrong := key_syntax(key) or syntax.label_value(value):
            yield Finding((*path, "matchLabels", key), wrong)
    for i, requirement in enumerate(labels.match_expressions):
        here = (*path, "matchExpressions", i)
        if wrong := key_syntax(requirement.key):
            yield Finding((*here, "key"), f'"{requirement.key}": {wrong}')
        if requirement.operator in ("In", "NotIn"):
            if not requirement.values:
                yield Finding((*here, "values"), f"{requirement.operator} needs values")
        elif requirement.values:
            yield Finding((*here, "values"), f"{requirement.operator} takes no values")
        for j, value in enumerate(requirement.values):
            if wrong := syntax.label_value(value):
                yield Finding((*here, "values", j), wrong)
