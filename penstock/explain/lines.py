"""The lines behind what the edge and the routes do: which listener, rule and reference a step is about.

Names of routes say what they are of (`penstock.routing.rules`, `ingresses`), names of listeners too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.explain.sides import Origins
from penstock.facts import Facts
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import Gateway, Listener, ListenerSet
from penstock.manifests.ingress_kinds import Ingress
from penstock.manifests.l4_kinds import TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.route_kinds import GRPCRoute, GRPCRouteRule, HTTPRoute, HTTPRouteRule
from penstock.routing import hosts
from penstock.routing.model import Route, RouteBackend

_L4 = (TLSRoute, TCPRoute, UDPRoute)


def gateway_of(listener: str) -> ObjectKey | None:
    """The Gateway of a listener of the proxy; None for that of Ingresses."""
    kind, _, rest = listener.partition("/")
    owner = rest.rpartition("/")[0].rpartition(":")[0]
    return ObjectKey("Gateway", *owner.split("/", 1)) if kind == "gateway" else None


def listeners(facts: Facts, key: ObjectKey) -> list[tuple[Document, int, Listener]]:
    """Those of a Gateway, its ListenerSets' among them: where each stands, and what it says."""
    found = []
    document = facts.world.documents.get(key)
    if document is not None and isinstance(document.value, Gateway):
        found += [(document, i, each) for i, each in enumerate(document.value.spec.listeners)]
    for owner, beside in facts.world.of_kind(ListenerSet):
        ref = beside.spec.parent_ref
        if (ref.namespace or owner.key.namespace, ref.name) == key[1:]:
            found += [(owner, i, each) for i, each in enumerate(beside.spec.listeners)]
    return found


def of_listener(facts: Facts, name: str, port: int, host: str, protocol: str) -> tuple[str, Origins]:
    """The listener that connections for `host` at `port` belong to, in words and with its line."""
    key = gateway_of(name)
    if key is None:
        return f"Ingresses, port {port}", ()
    here = [
        (document, i, each)
        for document, i, each in listeners(facts, key)
        if each.port == port and (each.protocol.upper() == "UDP") == (protocol == "UDP")
    ]
    owner = hosts.owner(host.lower(), [(each.hostname or "").lower() for *_, each in here])
    for document, i, each in here:
        if (each.hostname or "").lower() == owner:
            return f"listener {each.name}", ((document.key, document.origin("spec", "listeners", i)),)
    return f"port {port}", ()


def of_route(facts: Facts, route: Route, *, ingress: bool) -> Origins:
    """The rule that a route of the model was made of."""
    parts = route.name.split("/")
    if len(parts) != 4 and not (ingress and len(parts) == 3):
        return ()
    kind = "Ingress" if ingress else "GRPCRoute" if route.grpc else "HTTPRoute"
    document = facts.world.documents.get(ObjectKey(kind, parts[0], parts[1]))
    if document is None:
        return ()
    if isinstance(document.value, Ingress):
        if len(parts) == 3:
            return ((document.key, document.origin("spec", "defaultBackend")),)
        path = ("spec", "rules", int(parts[2]), "http", "paths", int(parts[3]))
        return ((document.key, document.origin(*path)),)
    index = _rule(document, parts[2])
    return ((document.key, document.origin("spec", "rules", index)),) if index is not None else ()


def _rule(document: Document, name: str) -> int | None:
    value = document.value
    if not isinstance(value, HTTPRoute | GRPCRoute):
        return None
    rules: Sequence[HTTPRouteRule | GRPCRouteRule] = value.spec.rules
    named = next((i for i, rule in enumerate(rules) if rule.name == name), None)
    return named if named is not None else int(name) if name.isdigit() else None


def of_backend(facts: Facts, rule: Origins, backend: RouteBackend) -> Origins:
    """The reference that a share was made of; its rule where the reference cannot be told apart."""
    if not rule or backend.cluster is None:
        return rule
    key, origin = rule[0]
    document = facts.world.documents[key]
    value, path = document.value, origin.rule
    if not isinstance(value, (HTTPRoute, GRPCRoute, *_L4)) or not path.startswith("spec.rules["):
        return rule
    index = int(path.removeprefix("spec.rules[").partition("]")[0])
    refs: Sequence[Any] = value.spec.rules[index].backend_refs
    for i, ref in enumerate(refs):
        name = f"{ref.namespace or key.namespace}/{ref.name}:{ref.port}/"
        if backend.cluster.startswith(name):
            return ((key, document.origin("spec", "rules", index, "backendRefs", i)),)
    return rule
