"""Gateways, their listeners and the routes attached to them → what the proxy listens for at the edge, and
status. Ingresses are compiled beside them.

This is the order of the stages: listeners and what is wrong with them (attach), routes onto listeners
(edge_routes), what is served (edge_tables), what is told (edge_status). The values are in edge.

Source: Gateway API v1.6, Gateway, GatewayClass, ListenerSet.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import GROUP, Gateway, GatewayClass, ListenerSet
from penstock.manifests.kinds import Namespace
from penstock.plan import Condition, ObjectStatus
from penstock.policy import ingress
from penstock.routing import ingresses
from penstock.routing.attach import Namespaces, entries_of
from penstock.routing.backend_tls import BackendTls
from penstock.routing.certificates import Vault
from penstock.routing.edge import Edge, EdgeTable, Memo, OneGateway, listener_name
from penstock.routing.edge_routes import Attachments
from penstock.routing.edge_status import report
from penstock.routing.edge_tables import Tables
from penstock.routing.model import EdgeListener
from penstock.routing.rules import Services
from penstock.world import Address, World


def gateway_names(world: World) -> tuple[str, ...]:
    """What each listener's number in the kernel's service table is allocated for."""
    found = []
    sets = _sets(world)
    for document, gateway in ingress.gateways(world):
        listed = [gateway.spec.listeners, *(s.spec.listeners for _, s in sets.get(document.key, ()))]
        ports = {(x.port, "UDP" if x.protocol.upper() == "UDP" else "TCP") for each in listed for x in each}
        found += [listener_name(document, port, protocol) for port, protocol in sorted(ports)]
    return (*found, *ingresses.listener_names(world))


def _sets(world: World) -> dict[ObjectKey, list[tuple[Document, ListenerSet]]]:
    """ListenerSets by the Gateway that they name."""
    found: dict[ObjectKey, list[tuple[Document, ListenerSet]]] = {}
    for document, each in world.of_kind(ListenerSet):
        ref = each.spec.parent_ref
        if (ref.group, ref.kind) == (GROUP, "Gateway"):
            key = ObjectKey("Gateway", ref.namespace or document.key.namespace, ref.name)
            found.setdefault(key, []).append((document, each))
    return found


class Edges:
    """Compiles the edge of one World."""

    def __init__(self, world: World, services: Services, before: Memo) -> None:
        self._world = world
        self._services = services
        self._sets = _sets(world)
        self._taken = ingress.taken(world)
        frame = tuple(world.of_kinds(GatewayClass, Gateway, ListenerSet, Namespace))
        self._memo = Memo(services, frame)
        self._before = before if before.services is services else Memo()
        self._memo.rules = self._before.rules
        self._namespaces = Namespaces(world)
        self._vault = Vault(world, self._services)
        self._backend_tls = BackendTls(world, self._vault)
        self._attachments = Attachments(world, services, self._namespaces, self._memo, self._before)
        self._tables = Tables(
            services, self._vault, self._backend_tls, self._attachments, self._memo, self._before
        )
        self._statuses: dict[ObjectKey, ObjectStatus] = {}

    def compile(self) -> Edge:
        self._classes()
        found = {d.key: self._gateway(d, g) for d, g in ingress.gateways(self._world)}
        for document, _ in self._world.of_kind(Gateway):
            if document.key not in found:
                why = "its GatewayClass is not Penstock's"
                self._statuses[document.key] = ObjectStatus(pending=why)
        self._statuses.update(self._attachments.attach_all(found))
        listeners: list[EdgeListener] = []
        tables: list[EdgeTable] = []
        addresses: list[Address] = []
        for each in found.values():
            addresses += each.placed.addresses
            made, more = self._tables.listeners(each)
            listeners += made
            tables += more
            self._statuses.update(report(each, self._vault, {listener.name for listener in made}))
        self._lonely_sets()
        door = ingresses.compile_ingresses(self._world, self._services, self._vault)
        for table, clusters in door.tables:
            tables.append(EdgeTable(table, clusters))
            self._tables.add_clusters(clusters, None)
        listeners += door.listeners
        addresses += door.addresses
        self._statuses.update(door.statuses)
        self._statuses.update(self._backend_tls.statuses())
        if found or door.addresses:
            addresses += ingress.of_node(self._world, self._world.node)
        return Edge(
            tuple(listeners),
            tuple(tables),
            tuple(each for _, each in sorted(self._tables.clusters.items())),
            tuple(self._vault.certificates[name] for name in sorted(self._vault.certificates)),
            tuple(self._vault.authorities[name] for name in sorted(self._vault.authorities)),
            self._statuses,
            tuple(dict.fromkeys(addresses)),
            tuple(self._tables.mixes),
            self._backend_tls,
            self._remembered(),
        )

    def _remembered(self) -> Memo:
        if len(self._memo.rules) > 4 * len(self._memo.attached) + 64:
            present = self._memo.attached
            kept = {k: v for k, v in self._memo.rules.items() if k[0] in present}
            self._memo.rules = kept
        return self._memo

    def _classes(self) -> None:
        for document, each in self._world.of_kind(GatewayClass):
            if each.spec.controller_name != ingress.CONTROLLER:
                why = f"its controller is {each.spec.controller_name}"
                self._statuses[document.key] = ObjectStatus(pending=why)
            elif each.spec.parameters_ref is not None:
                why = "spec.parametersRef names nothing that Penstock knows"
                conditions = (Condition("Accepted", False, "InvalidParameters", why),)
                self._statuses[document.key] = ObjectStatus(conditions, why)
            else:
                self._statuses[document.key] = ObjectStatus((Condition("Accepted", True, "Accepted"),))

    def _gateway(self, document: Document, gateway: Gateway) -> OneGateway:
        taken: list[tuple[Document, ListenerSet]] = []
        refused: list[tuple[Document, ListenerSet]] = []
        for owner, each in self._sets.get(document.key, ()):
            fits = self._namespaces.allowed(
                gateway.spec.allowed_listeners, document.key.namespace, owner.key.namespace
            )
            (taken if fits else refused).append((owner, each))
        entries = entries_of(document, gateway, taken)
        made = OneGateway(
            document,
            gateway,
            ingress.placed(self._world, document, gateway, self._taken),
            entries,
            [d for d, _ in taken],
            [d for d, _ in refused],
        )
        return made

    def _lonely_sets(self) -> None:
        for document, _ in self._world.of_kind(ListenerSet):
            if document.key not in self._statuses:
                why = "there is no such Gateway of a class of Penstock's"
                self._statuses[document.key] = ObjectStatus(pending=why)


def compile_edge(world: World, services: Services, before: Edge | None = None) -> Edge:
    """What stands at the edge of `world`. `before` never changes a result."""
    return Edges(world, services, before.memo if before else Memo()).compile()


def joined(mine: ObjectStatus | None, other: ObjectStatus) -> ObjectStatus:
    """The status of a route that has parents in the mesh and at the edge."""
    if mine is None:
        return other
    parents = (*mine.extra.get("parents", ()), *other.extra.get("parents", ()))  # type: ignore[misc]
    return replace(mine, pending=mine.pending or other.pending, extra={"parents": parents})
