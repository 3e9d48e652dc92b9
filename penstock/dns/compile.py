"""Facts → what the DNS proxy is to know. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from penstock.dns.model import SOCKET_NAME, Client, DnsPlan, Grant, ServiceName, ServicePort
from penstock.plan import Direction
from penstock.policy.entries import ANY, DNS_PORT, Stance, peers_of, resolve
from penstock.policy.labels import DNS
from penstock.policy.rules import TCP, UDP, Port
from penstock.routing.endpoints import Served
from penstock.routing.services import ServedPort

if TYPE_CHECKING:
    from penstock.facts import Facts
    from penstock.policy.identities import Members


def wanted(facts: Facts) -> tuple[str, ...]:
    """What the port of the DNS proxy is allocated for, if anything needs it."""
    named = any(key.dns for table in facts.all_entries.values() for key in table.values())
    return (SOCKET_NAME,) if named or facts.world.settings.dns_addresses else ()


def dns_plan(facts: Facts) -> DnsPlan:
    port = facts.world.allocations.listener_ports.get(SOCKET_NAME, 0)
    if not port or not wanted(facts):
        return DnsPlan()
    clients, rules, learns = {}, {}, {}
    for member in facts.members.local():
        at = member.attachment
        assert at is not None
        name = member.document.key.name
        for address in member.addresses:
            clients[str(address)] = Client(at.ifindex, member.subject, member.namespace, name)
        if member.subject in rules or member.subject in learns:
            continue
        what = facts.stances.of(Direction.EGRESS)[member.subject]
        if any(_about_names(rule.peers is not None and rule.peers.names, rule.dns) for rule in what.rules):
            rules[member.subject] = tuple(_grants(what, facts.members))
        lists = {
            facts.members.index.names[rule.peers.names]
            for rule in what.rules
            if rule.peers is not None and rule.peers.names in facts.members.index.names
        }
        if lists:
            learns[member.subject] = tuple(sorted(lists))
    used = {number for listed in learns.values() for number in listed}
    return DnsPlan(
        port,
        tuple(map(str, facts.world.settings.dns_addresses)),
        clients,
        rules,
        {number: names for names, number in sorted(facts.members.index.names.items()) if number in used},
        learns,
        facts.service_names,
    )


def _about_names(names: object, dns: object) -> bool:
    return bool(names) or dns is not None


def _grants(what: Stance, members: Members) -> Iterable[Grant]:
    """Whom a subject may ask for what. What a rule denies the kernel has dropped before."""
    if not what.default_deny:
        yield Grant((), 0, 0, 65535, None)
    for rule in what.rules:
        if rule.deny or rule.http is not None:
            continue
        if rule.peers is not None and rule.peers.names:
            for protocol in (TCP, UDP):
                yield Grant((DNS,), protocol, DNS_PORT, DNS_PORT, rule.peers.names)
            continue
        peers = peers_of(rule, members)
        for port in (Port(0),) if rule.ports is None else rule.ports:
            for peer in peers if port.name else (None,):
                named = members.by_identity.get(peer, ()) if peer is not None else ()
                for protocol, first, last in resolve(port, named):
                    if protocol in (0, TCP, UDP):
                        to = peers if peer is None else [peer]
                        yield Grant(() if ANY in to else tuple(to), protocol, first, last, rule.dns)


def service_names(served: Served) -> Mapping[str, ServiceName]:
    """``namespace/name`` → what the names of a Service stand for."""
    grouped: dict[str, list[ServedPort]] = {}
    for each in served.ports:
        grouped.setdefault(f"{each.document.key.namespace}/{each.document.key.name}", []).append(each)
    return {name: _service(ports, served) for name, ports in grouped.items()}


def _service(listed: list[ServedPort], served: Served) -> ServiceName:
    ports = tuple(dict.fromkeys(ServicePort(s.port.name or "", s.port.protocol, s.port.port) for s in listed))
    vips = tuple(dict.fromkeys(str(s.vip) for s in listed if s.vip is not None))
    if vips:
        return ServiceName(vips, ports)
    hosts: dict[str, dict[str, None]] = {}
    addresses: dict[str, None] = {}
    for each in listed:
        for backend in served.of(each).backends:
            text = str(backend.address)
            addresses[text] = None
            host = (
                backend.member.document.key.name
                if backend.member
                else text.replace(".", "-").replace(":", "-")
            )
            hosts.setdefault(host, {})[text] = None
    return ServiceName(tuple(addresses), ports, {host: tuple(found) for host, found in hosts.items()})
