"""Which object made the proxy answer a request itself: a policy about traffic, or the rule of a route.

The nearest counts, as it does in the proxy: a rule's policy before its route's, and those before that of the
Service port, the Service, the Gateway's listener or the Gateway. What is asked was decided a moment ago: an
object that has gone meanwhile is not named.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import Gateway
from penstock.manifests.kinds import Service
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute
from penstock.manifests.traffic_kinds import BackendPolicy
from penstock.observe.als import RequestRecord
from penstock.observe.causes import Cause
from penstock.routing.edge import sections
from penstock.routing.http_policies import HttpPolicies, Target
from penstock.world import World

_PARTS = {
    Cause.RATE_LIMITED: ("limit", "rateLimit"),
    Cause.NOT_AUTHENTICATED: ("jwt", "jwt"),
    Cause.NOT_AUTHORIZED: ("auth", "extAuth"),
    Cause.FAULT: ("fault", "fault"),
    Cause.DELAYED: ("fault", "fault"),
}
"""Part of a treatment, and the field of HTTPPolicy that says it."""


class Origins:
    """Of one World; what it holds is read when first asked."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._read: HttpPolicies | None = None

    def of(self, why: Cause, record: RequestRecord, destination: str) -> str:
        """``Kind namespace/name (file:line)``, or '' where no object says it. `destination` is its name."""
        if why in _PARTS:
            return self._treatment(why, record, destination)
        if why is Cause.CIRCUIT_OPEN:
            return next(filter(None, map(self._breaker, self._ports(record))), "")
        if why is Cause.TIMEOUT:
            return next((_told(d, "spec", "rules", i, "timeouts") for d, i in self._rules(record)), "")
        return ""

    def _policies(self) -> HttpPolicies:
        if self._read is None:
            self._read = HttpPolicies(self._world)
            self._read.read(lambda document, ref: (None, None))
        return self._read

    def _rules(self, record: RequestRecord) -> Iterator[tuple[Document, int]]:
        """The rule that a request took: names of routes say of what they are."""
        parts = record.route_name.split("/")
        if len(parts) != 4 or ":" in parts[1]:
            return
        for kind in ("HTTPRoute", "GRPCRoute"):
            document = self._world.documents.get(ObjectKey(kind, parts[0], parts[1]))
            if document is None:
                continue
            assert isinstance(document.value, HTTPRoute | GRPCRoute)
            names = [rule.name for rule in document.value.spec.rules]
            yield from ((document, i) for i, name in enumerate(names) if parts[2] == (name or str(i)))

    def _treatment(self, why: Cause, record: RequestRecord, destination: str) -> str:
        part, field = _PARTS[why]
        targets: list[Target] = []
        for document, index in self._rules(record):
            assert isinstance(document.value, HTTPRoute | GRPCRoute)
            filters = document.value.spec.rules[index].filters
            asks = next((i for i, each in enumerate(filters) if each.external_auth is not None), None)
            if why is Cause.NOT_AUTHORIZED and asks is not None:
                return _told(document, "spec", "rules", index, "filters", asks)
            targets += [(document.key, record.route_name.split("/")[2]), (document.key, None)]
        targets += self._destination(record, destination)
        owner = self._policies().owner(part, *targets)
        found = self._world.documents.get(owner) if owner is not None else None
        return _told(found, "spec", field) if found is not None else ""

    def _destination(self, record: RequestRecord, name: str) -> list[Target]:
        parts, port = name.split("/"), record.destination[1]
        if len(parts) == 2:
            key = ObjectKey("Service", *parts)
            return [(key, port), (key, None)]
        if len(parts) != 3 or parts[0] != "gateway":
            return []
        key = ObjectKey("Gateway", *parts[1:])
        document = self._world.documents.get(key)
        if document is None or not isinstance(document.value, Gateway):
            return []
        named = sections(document.value, port, record.authority.partition(":")[0])
        return [*((key, section) for section in named), (key, None)]

    def _ports(self, record: RequestRecord) -> Iterator[tuple[str, str, str]]:
        """(namespace, name, port) of the Service that a request was for; where Envoy does not say, of those
        that its rule names. Clusters are called after the Service port behind them."""
        namespace, _, rest = record.cluster.partition("/")
        name, _, number = rest.partition("/")[0].partition(":")
        if name:
            yield namespace, name, number
            return
        for document, index in self._rules(record):
            assert isinstance(document.value, HTTPRoute | GRPCRoute)
            for ref in document.value.spec.rules[index].backend_refs:
                yield ref.namespace or document.key.namespace, ref.name, str(ref.port)

    def _breaker(self, port: tuple[str, str, str]) -> str:
        namespace, name, number = port
        service = self._world.documents.get(ObjectKey("Service", namespace, name))
        if service is None or not isinstance(service.value, Service):
            return ""
        names = {p.name for p in service.value.spec.ports if p.name and str(p.port) == number}
        found: dict[bool, Document] = {}
        for document, policy in sorted(
            self._world.of_kind(BackendPolicy), key=lambda p: (p[0].since, p[0].key.namespace, p[0].key.name)
        ):
            if document.key.namespace != namespace or policy.spec.circuit_breaker is None:
                continue
            for ref in policy.spec.target_refs:
                own = str(ref.port) == number or ref.section_name in names
                if ref.name == name and (own or (ref.port is None and ref.section_name is None)):
                    found.setdefault(own, document)
        policy_document = found.get(True) or found.get(False)
        return _told(policy_document, "spec", "circuitBreaker") if policy_document is not None else ""


def _told(document: Document, *path: str | int) -> str:
    return f"{document.key} ({document.origin(*path)})"
