"""Which routes stand on which listeners of Gateways, and what they say there.

Thousands of routes stay as they are when one changes: what each was attached to is taken over while nothing
that decides about it (classes, Gateways, ListenerSets, Namespaces) has changed, and its rules while it and
the Services are the very same.

Source: Gateway API v1.6, RouteParentStatus, ParentReference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import GROUP
from penstock.manifests.l4_kinds import TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ParentReference
from penstock.plan import Condition, ObjectStatus
from penstock.routing.attach import Attached, Entry, Namespaces, attach
from penstock.routing.edge import Memo, OneGateway, Places
from penstock.routing.l4routes import L4Route, hostnames, shares
from penstock.routing.rules import Compiled, Services, compile_rules
from penstock.routing.services import EDGE
from penstock.world import World

_RESOLVED = Condition("ResolvedRefs", True, "ResolvedRefs")


class Attachments:
    """The routes of one World. `memo` is written for the next World, `before` is what the last one left."""

    def __init__(
        self, world: World, services: Services, namespaces: Namespaces, memo: Memo, before: Memo
    ) -> None:
        self._world = world
        self._services = services
        self._namespaces = namespaces
        self._memo = memo
        self._before = before
        self._same_frame = before.frame == memo.frame

    def attach_all(self, found: Mapping[ObjectKey, OneGateway]) -> dict[ObjectKey, ObjectStatus]:
        """Puts each route on the listeners that take it; the status of those with a parent here."""
        statuses: dict[ObjectKey, ObjectStatus] = {}
        of_parent: dict[ObjectKey, tuple[OneGateway, list[Entry]]] = {}
        for key, each in found.items():
            of_parent[key] = (each, [e for e in each.entries if e.owner is each.document])
            for owner in each.sets:
                of_parent[owner.key] = (each, [e for e in each.entries if e.owner is owner])
        routes: list[tuple[Document, HTTPRoute | GRPCRoute | L4Route]] = [
            *self._world.of_kind(HTTPRoute),
            *self._world.of_kind(GRPCRoute),
            *self._world.of_kind(TLSRoute),
            *self._world.of_kind(TCPRoute),
            *self._world.of_kind(UDPRoute),
        ]
        for document, route in routes:
            known = self._before.attached.get(document.key) if self._same_frame else None
            if known is None or known[0] is not document:
                known = (document, *self._attach(document, route, of_parent))
            self._memo.attached[document.key] = known
            for key, position, pairs in known[1]:
                gateway = found[key]
                entry = gateway.entries[position]
                entry.attached.add(document.key)
                if isinstance(route, HTTPRoute | GRPCRoute):
                    listed = gateway.routes.setdefault(position, [])
                    listed.append((Attached(entry, pairs), (document, route)))
                else:
                    gateway.streams.append((Attached(entry, pairs), document, route))
            if known[2] is not None:
                statuses[document.key] = known[2]
        return statuses

    def _attach(
        self,
        document: Document,
        route: HTTPRoute | GRPCRoute | L4Route,
        of_parent: Mapping[ObjectKey, tuple[OneGateway, list[Entry]]],
    ) -> tuple[Places, ObjectStatus | None]:
        """Where a route is attached, and its status; None if it has no parent here."""
        # Two parentRefs may name one listener.
        places: dict[tuple[ObjectKey, int], tuple[tuple[str, str], ...]] = {}
        parents: list[tuple[ParentReference, tuple[Condition, Condition]]] = []
        resolved = _RESOLVED
        http = isinstance(route, HTTPRoute | GRPCRoute)
        names = route.spec.hostnames if isinstance(route, HTTPRoute | GRPCRoute) else hostnames(route)
        for parent in route.spec.parent_refs:
            if parent.group != GROUP:
                continue
            if not parents:
                resolved = self._resolved(document, route)
            key = ObjectKey(parent.kind, parent.namespace or document.key.namespace, parent.name)
            if key not in of_parent:
                why = f"there is no {key} of a class of Penstock's"
                parents.append((parent, (Condition("Accepted", False, "NoMatchingParent", why), resolved)))
                continue
            gateway, entries = of_parent[key]
            attached, accepted = attach(
                document,
                parent,
                names,
                entries,
                self._namespaces,
                by_host=lambda e: http or e.protocol == "TLS",
            )
            parents.append((parent, (accepted, resolved)))
            for each in attached:
                position = next(i for i, e in enumerate(gateway.entries) if e is each.entry)
                places.setdefault((gateway.document.key, position), each.hosts)
        if not parents:
            return (), None
        pending = next((c.message for _, cs in parents for c in cs if not c.status), "")
        status = ObjectStatus(pending=pending, extra={"parents": tuple(parents)})
        return tuple((*place, pairs) for place, pairs in places.items()), status

    def _resolved(self, document: Document, route: HTTPRoute | GRPCRoute | L4Route) -> Condition:
        problems: Sequence[Condition]
        if isinstance(route, HTTPRoute | GRPCRoute):
            problems = self.rules(document, route, 0, EDGE).problems
        else:
            problems = shares(document, route, self._services).problems
        return problems[0] if problems else _RESOLVED

    def rules(self, document: Document, route: HTTPRoute | GRPCRoute, port: int, edge: str) -> Compiled:
        """The rules of a route as dialled at `port`."""
        known = self._before.rules.get((document.key, port, edge))
        if known is None or known[0] is not document:
            made = compile_rules(document, route, self._services, port=port or 80, edge=edge)
            known = (document, made)
        self._memo.rules[(document.key, port, edge)] = known
        return known[1]
