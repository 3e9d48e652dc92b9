"""Which routes stand on which listeners of Gateways, and what they say there.

Thousands of routes stay as they are when one changes: what each was attached to is taken over while nothing
that decides about it (classes, Gateways, ListenerSets, Namespaces) has changed, and its rules while it and
the Services are the very same.

Source: Gateway API v1.6, RouteParentStatus, ParentReference; GEP-3793 (default Gateways).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from penstock.differing import apart, placed
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import GROUP
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ParentReference
from penstock.plan import Condition, ObjectStatus
from penstock.policy import ingress
from penstock.routing.attach import Entry, Namespaces, attach
from penstock.routing.edge import ROUTE_KINDS, Memo, OneGateway, Places, Standing
from penstock.routing.l4routes import L4Route, hostnames, shares
from penstock.routing.rules import Compiled, Services, compile_rules, partly
from penstock.routing.services import EDGE
from penstock.world import World

_RESOLVED = Condition("ResolvedRefs", True, "ResolvedRefs")


def _moved(
    before: tuple[tuple[Document, ...], ...], now: tuple[tuple[Document, ...], ...]
) -> tuple[list[Document], list[Document]]:
    """The documents that went, and those that came; one that has changed did both."""
    gone: list[Document] = []
    came: list[Document] = []
    for old, new in zip_longest(before, now, fillvalue=()):
        if old is not new:
            there, here = ({d.key: d for d in each} for each in apart(old, new))
            gone += [d for key, d in there.items() if here.get(key) is not d]
            came += [d for key, d in here.items() if there.get(key) is not d]
    return gone, came


_PLACE = {kind.__name__: number for number, kind in enumerate(ROUTE_KINDS)}


def _order(key: ObjectKey) -> tuple[int, str, str]:
    return _PLACE[key.kind], key.namespace, key.name


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
        of_parent: dict[ObjectKey, tuple[OneGateway, list[Entry]]] = {}
        for key, each in found.items():
            of_parent[key] = (each, [e for e in each.entries if e.owner is each.document])
            for owner in each.sets:
                of_parent[owner.key] = (each, [e for e in each.entries if e.owner is owner])
        memo, before = self._memo, self._before if self._same_frame else Memo()
        memo.routes = tuple(map(self._world.documents_of, ROUTE_KINDS))
        gone, came = _moved(before.routes, memo.routes)
        memo.attached, memo.statuses = dict(before.attached), dict(before.statuses)
        memo.standing = dict(before.standing)
        touched: dict[tuple[ObjectKey, int], Standing] = {}
        late: Counter[tuple[ObjectKey, int]] = Counter()

        def standing(place: tuple[ObjectKey, int]) -> Standing:
            return touched.setdefault(place, dict(memo.standing.get(place, {})))

        for document in gone:
            memo.statuses.pop(document.key, None)
            for key, position, _ in memo.attached.pop(document.key):
                del standing((key, position))[document.key]
        for document in came:
            places, status = self._attach(document, of_parent)
            memo.attached[document.key] = places
            if status is not None:
                memo.statuses[document.key] = status
            for key, position, pairs in places:
                standing((key, position))[document.key] = (document, pairs)
                late[key, position] += 1
        for place, routes in touched.items():
            memo.standing[place] = placed(routes, late[place], _order)
        for (key, position), routes in memo.standing.items():
            found[key].routes[position] = routes
            found[key].entries[position].attached = routes
        return memo.statuses

    def _attach(
        self, document: Document, of_parent: Mapping[ObjectKey, tuple[OneGateway, list[Entry]]]
    ) -> tuple[Places, ObjectStatus | None]:
        """Where a route is attached, and its status; None if it has no parent here."""
        route = document.value
        assert isinstance(route, ROUTE_KINDS)
        # Two parentRefs may name one listener.
        places: dict[tuple[ObjectKey, int], tuple[tuple[str, str], ...]] = {}
        parents: list[tuple[ParentReference, tuple[Condition, ...]]] = []
        resolved: tuple[Condition, ...] = (_RESOLVED,)
        http = isinstance(route, HTTPRoute | GRPCRoute)
        names = route.spec.hostnames if isinstance(route, HTTPRoute | GRPCRoute) else hostnames(route)
        for parent in (*route.spec.parent_refs, *self._by_default(document, route)):
            if parent.group != GROUP:
                continue
            if not parents:
                resolved = self._resolved(document, route)
            key = ObjectKey(parent.kind, parent.namespace or document.key.namespace, parent.name)
            if key not in of_parent:
                why = f"there is no {key} of a class of Penstock's"
                parents.append((parent, (Condition("Accepted", False, "NoMatchingParent", why), *resolved)))
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
            parents.append((parent, (accepted, *resolved)))
            for each in attached:
                position = next(i for i, e in enumerate(gateway.entries) if e is each.entry)
                places.setdefault((gateway.document.key, position), each.hosts)
        if not parents:
            return (), None
        pending = next((c.message for _, cs in parents for c in cs if not c.status), "")
        status = ObjectStatus(pending=pending, extra={"parents": tuple(parents)})
        return tuple((*place, pairs) for place, pairs in places.items()), status

    def _by_default(
        self, document: Document, route: HTTPRoute | GRPCRoute | L4Route
    ) -> Iterator[ParentReference]:
        """The default Gateways, for a route that wants them and does not name them itself."""
        if route.spec.use_default_gateways == "None":
            return
        named = {
            (p.namespace or document.key.namespace, p.name)
            for p in route.spec.parent_refs
            if (p.group, p.kind) == (GROUP, "Gateway")
        }
        for found, gateway in ingress.gateways(self._world):
            if gateway.spec.default_scope == "All" and (found.key.namespace, found.key.name) not in named:
                yield ParentReference(name=found.key.name, namespace=found.key.namespace)

    def _resolved(self, document: Document, route: HTTPRoute | GRPCRoute | L4Route) -> tuple[Condition, ...]:
        problems: Sequence[Condition]
        closed: tuple[Condition, ...] = ()
        if isinstance(route, HTTPRoute | GRPCRoute):
            compiled = self.rules(document, route, 0, EDGE)
            problems, closed = compiled.problems, partly(route, compiled)
        else:
            problems = shares(document, route, self._services).problems
        return (problems[0] if problems else _RESOLVED, *closed)

    def rules(
        self, document: Document, route: HTTPRoute | GRPCRoute, port: int, edge: str, *, secure: bool = False
    ) -> Compiled:
        """The rules of a route as dialled at `port`, `secure` over TLS; without a port, at that of HTTP."""
        port = port or 80
        place = (document.key, port, secure, edge)
        known = self._before.rules.get(place)
        if known is None or known[0] is not document:
            made = compile_rules(document, route, self._services, port=port, edge=edge, secure=secure)
            known = (document, made)
        self._memo.rules[place] = known
        return known[1]
