"""Facts → the kernel's tables of this node. Pure."""

from __future__ import annotations

from ipaddress import ip_network

from penstock.differing import Table
from penstock.dns.compile import wanted
from penstock.dns.model import SOCKET_NAME
from penstock.facts import Facts
from penstock.manifests.kinds import Node
from penstock.plan import (
    DNS_LISTENER,
    Direction,
    EndpointEntry,
    KernelTables,
    ListenerKey,
    PortEntry,
    ServiceEntry,
    ServiceKey,
)
from penstock.policy.identities import INGRESS_SUBJECT, Member
from penstock.policy.labels import HOST
from penstock.policy.mesh_tls import port_modes
from penstock.policy.rules import PROTOCOLS
from penstock.policy.server_names import number, unions
from penstock.routing.model import ProxyListener
from penstock.routing.names_listeners import families
from penstock.world import Address, Network, parse_address


def kernel_tables(facts: Facts, listeners: tuple[ProxyListener, ...]) -> KernelTables:
    """Endpoints, identities, policy, Services and listeners of this node."""
    endpoints: dict[Address, EndpointEntry] = {}
    netns: dict[int, int] = {}
    namespaces: dict[int, str] = {}
    # What is attached early need not be waited for when the addresses come; until then it lets nothing pass.
    attach: dict[int, tuple[str, str]] = dict(facts.world.coming)
    for member in facts.members.local():
        at = member.attachment
        assert at is not None
        name = (member.namespace, member.document.key.name)
        elsewhere = {address for link in at.links[1:] for address in link.addresses}
        mode = facts.modes.of(member)
        for address in member.addresses:
            endpoints[address] = EndpointEntry(
                member.identity,
                member.subject,
                at.ifindex,
                mode,
                elsewhere=address in elsewhere,
                audit=frozenset(d for d in Direction if (member.subject, d) in facts.audit_entries),
            )
        netns[at.cookie] = member.identity
        if member.netns:
            namespaces[at.cookie] = member.netns
        attach.update(dict.fromkeys((link.ifindex for link in at.links), name))
    if facts.world.node_cookie:
        netns[facts.world.node_cookie] = HOST
    policy = {key: entry for table in facts.all_entries.values() for key, entry in table.items()}
    return KernelTables(
        endpoints=endpoints,
        ipcache=facts.ipcache,
        datagram_sources=tuple(a for m in facts.members.ingress[:1] for a in m.addresses),
        policy=policy,
        services=_services(facts),
        both_names=unions(families(facts.members, facts.all_entries)),
        port_modes=port_modes(facts.members.all, facts.modes, facts.toward),
        listeners={listener_key(listener): listener.port for listener in listeners} | _dns(facts),
        netns=netns,
        ports=_ports(facts),
        attach=attach,
        routes=_routes(facts),
        underlay=_underlay(facts),
        addresses=facts.edge.addresses,
        namespaces=namespaces,
        served_addresses=facts.frontends.addresses,
        reserved_ports=facts.frontends.reserved_ports,
    )


def listener_key(listener: ProxyListener) -> ListenerKey:
    """What the kernel tells a listener by."""
    return ListenerKey(
        listener.source_class,
        listener.kind,
        listener.destination,
        number(listener.outward),
        number(listener.inward),
    )


def _dns(facts: Facts) -> dict[ListenerKey, int]:
    port = facts.world.allocations.listener_ports.get(SOCKET_NAME)
    return {DNS_LISTENER: port} if port and wanted(facts) else {}


def _ports(facts: Facts) -> dict[int, PortEntry]:
    """Whatever is a port of a bridge, and each link of a workload that has several."""
    found = {
        link.ifindex: PortEntry(0, bridge=link.bridge, bridge_mac=link.bridge_mac)
        for link in facts.world.other_ports
    }
    for member in facts.members.local():
        found.update(_own_ports(member))
    return found


def _own_ports(member: Member) -> dict[int, PortEntry]:
    at = member.attachment
    assert at is not None
    return {
        link.ifindex: PortEntry(
            at.ifindex, member.subject, link.mac, link.bridge, link.bridge_mac, link.direct
        )
        for link in at.links
        if link.bridge or len(at.links) > 1
    }


def _services(facts: Facts) -> Table[ServiceKey, ServiceEntry]:
    entries = facts.frontends.entries
    found: dict[ServiceKey, ServiceEntry] = {}
    audit = (INGRESS_SUBJECT, Direction.INGRESS) in facts.audit_entries
    for listener in facts.edge.listeners:
        number = facts.world.allocations.service_ids.get(listener.name)
        if number is None:
            continue
        protocol = PROTOCOLS[listener.protocol][0]
        for address in listener.addresses:
            entry = ServiceEntry(number, listener.name, (), gateway=True, audit=audit)
            found.setdefault(ServiceKey(address, listener.port, protocol), entry)
    return facts.with_gateways(entries, found)


def _underlay(facts: Facts) -> tuple[Address, ...]:
    for document, node in facts.world.of_kind(Node):
        if document.key.name == facts.world.node:
            own = [parse_address(a.address) for a in node.status.addresses if a.type == "InternalIP"]
            return tuple(next(a for a in own if a.version == v) for v in sorted({a.version for a in own}))
    return ()


def _routes(facts: Facts) -> dict[Network, Address]:
    found: dict[Network, Address] = {}
    for document, node in facts.world.of_kind(Node):
        if document.key.name == facts.world.node:
            continue
        vias = [parse_address(a.address) for a in node.status.addresses if a.type == "InternalIP"]
        for text in node.spec.pod_cidrs or [c for c in (node.spec.pod_cidr,) if c]:
            network = ip_network(text)
            via = next((v for v in vias if v.version == network.version), None)
            if via is not None:
                found[network] = via
    return found
