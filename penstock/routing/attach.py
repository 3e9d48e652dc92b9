"""Listeners of Gateways and ListenerSets, and which routes are attached to which.

All listeners of one Gateway are one list: its own first, then those of its ListenerSets, the oldest first.
Of two that cannot stand beside each other the earlier one counts; within one object both are out. What is
wrong with a listener is told in its status, and takes nothing from the others.

Source: Gateway API v1.6, Gateway, ListenerSet, Listener (compatibility, conflicts), AllowedRoutes, GEP-1713.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from penstock.manifests.base import Labels
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import (
    GROUP,
    AllowedListeners,
    Gateway,
    GatewayLabelSelector,
    Listener,
    ListenerSet,
    RouteGroupKind,
    RouteNamespaces,
)
from penstock.manifests.kinds import Namespace
from penstock.manifests.route_kinds import ParentReference
from penstock.plan import Condition
from penstock.routing import hosts
from penstock.world import World

NAMESPACE_NAME = "kubernetes.io/metadata.name"

KINDS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("HTTP", ""): ("HTTPRoute", "GRPCRoute"),
    ("HTTPS", "Terminate"): ("HTTPRoute", "GRPCRoute"),
    ("TLS", "Passthrough"): ("TLSRoute",),
    ("TLS", "Terminate"): ("TLSRoute", "TCPRoute"),
    ("TCP", ""): ("TCPRoute",),
    ("UDP", ""): ("UDPRoute",),
}
"""(protocol, TLS mode) of a listener → kinds of routes that it can serve."""

_FAMILIES = {"HTTP": "HTTP", "HTTPS": "TLS", "TLS": "TLS", "TCP": "TCP", "UDP": "UDP"}
"""Protocols with the same word may share a port if their host names differ."""


_ACCEPTED = Condition("Accepted", True, "Accepted")
_RESOLVED = Condition("ResolvedRefs", True, "ResolvedRefs")
_ALONE = Condition("Conflicted", False, "NoConflicts")


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """What the status of a Gateway or ListenerSet tells of one listener.

    `serves` is the proxy's listener; '' where there is none, since no stream has any route there yet.
    """

    name: str
    supported: tuple[RouteGroupKind, ...]
    attached: int
    conditions: tuple[Condition, ...]
    serves: str


@dataclass(slots=True, eq=False)
class Entry:
    """One listener: what it says, what was found wrong with it, and what it is for."""

    gateway: Document
    owner: Document
    index: int
    listener: Listener
    supported: tuple[RouteGroupKind, ...] = ()
    accepted: Condition = _ACCEPTED
    resolved: Condition = _RESOLVED
    conflicted: Condition = _ALONE
    served: bool = True
    """Whether anything of it can be served; `why` tells the reason if not."""
    why: str = ""
    attached: Collection[ObjectKey] = ()

    @property
    def protocol(self) -> str:
        return self.listener.protocol.upper()

    @property
    def hostname(self) -> str:
        return (self.listener.hostname or "").lower()

    @property
    def passes_tls(self) -> bool:
        """Whether TLS goes on to the backends as it is."""
        return (
            self.protocol == "TLS" and self.listener.tls is not None and self.listener.tls.mode != "Terminate"
        )

    @property
    def ends_tls(self) -> bool:
        return self.protocol in ("HTTPS", "TLS") and not self.passes_tls

    @property
    def kinds(self) -> tuple[str, ...]:
        mode = self.listener.tls.mode if self.listener.tls else ""
        if self.protocol in ("HTTPS", "TLS") and not mode:
            mode = "Terminate"
        return KINDS.get((self.protocol, mode), ())

    def fail(self, condition: Condition) -> None:
        """Takes it out of service; the first reason of each kind stays."""
        current = self.accepted if condition.type == "Accepted" else self.resolved
        if current.status:
            if condition.type == "Accepted":
                self.accepted = condition
            else:
                self.resolved = condition
        if self.served:
            self.served, self.why = False, condition.message


def selects(selector: GatewayLabelSelector | None, labels: Labels) -> bool:
    """Whether a selector means a namespace with these labels; the empty one means all, none means none."""
    if selector is None:
        return False
    if any(labels.get(k) != v for k, v in selector.match_labels.items()):
        return False
    for each in selector.match_expressions:
        value = labels.get(each.key)
        good = {
            "In": value in each.values,
            "NotIn": value not in each.values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[each.operator]
        if not good:
            return False
    return True


class Namespaces:
    """The labels of namespaces; each has its name as a label, whether it has a manifest or not."""

    def __init__(self, world: World) -> None:
        self._labels = {d.key.name: d.metadata.labels for d, _ in world.of_kind(Namespace)}

    def allowed(self, allowed: RouteNamespaces | AllowedListeners, own: str, namespace: str) -> bool:
        """Whether an object of `namespace` may attach to what is in namespace `own`."""
        which = allowed.namespaces if isinstance(allowed, AllowedListeners) else allowed
        if which.from_ == "Selector":
            labels = {**self._labels.get(namespace, {}), NAMESPACE_NAME: namespace}
            return selects(which.selector, labels)
        return which.from_ == "All" or (which.from_ == "Same" and own == namespace)


def entries_of(
    document: Document, gateway: Gateway, sets: Iterable[tuple[Document, ListenerSet]]
) -> list[Entry]:
    """Every listener of a Gateway and the `sets` that it takes, in their order, with what is wrong of
    itself."""
    listed: list[tuple[Document, list[Listener]]] = [(document, gateway.spec.listeners)]
    for owner, each in sorted(sets, key=lambda s: (s[0].since, s[0].key.namespace, s[0].key.name)):
        listed.append((owner, each.spec.listeners))
    found = [
        Entry(document, owner, index, listener)
        for owner, listeners in listed
        for index, listener in enumerate(listeners)
    ]
    for entry in found:
        _kinds(entry)
    _conflicts(found)
    return found


def _kinds(entry: Entry) -> None:
    if not entry.kinds:
        message = f"the protocol {entry.listener.protocol} is not served"
        entry.fail(Condition("Accepted", False, "UnsupportedProtocol", message))
        return
    wanted = entry.listener.allowed_routes.kinds
    if not wanted:
        entry.supported = tuple(RouteGroupKind(kind=kind) for kind in entry.kinds)
        return
    good = [w for w in wanted if w.group == GROUP and w.kind in entry.kinds]
    entry.supported = tuple(good)
    if len(good) < len(wanted):
        bad = next(w for w in wanted if w not in good)
        message = f"routes of kind {bad.kind} cannot be attached to {entry.protocol}"
        entry.resolved = Condition("ResolvedRefs", False, "InvalidRouteKinds", message)
        if not good:
            entry.served, entry.why = False, message


def _conflicts(entries: list[Entry]) -> None:
    """Each against those before it that stand. What another object's listener shuts out takes none of its own
    object's with it."""
    standing: list[Entry] = []
    for entry in entries:
        against_it = [(other, reason) for other in standing if (reason := _conflict(entry, other))]
        foreign = [(other, reason) for other, reason in against_it if other.owner.key != entry.owner.key]
        for other, reason in foreign[:1] or against_it:
            both = (entry,) if foreign else (entry, other)
            for each in both:
                against = other if each is entry else entry
                message = f"port {each.listener.port} is taken by listener {against.listener.name}"
                each.conflicted = Condition("Conflicted", True, reason, message)
                each.accepted = Condition("Accepted", False, "Invalid", message)
                if each.owner.key != each.gateway.key:
                    each.accepted = Condition("Accepted", False, reason, message)
                each.served, each.why = False, message
        if not entry.conflicted.status:
            standing.append(entry)


def _conflict(one: Entry, other: Entry) -> str:
    if one.listener.port != other.listener.port:
        return ""
    first, second = (_FAMILIES.get(e.protocol) for e in (one, other))
    if first is None or second is None or ("UDP" in (first, second) and first != second):
        return ""
    if first != second:
        return "ProtocolConflict"
    mixed = one.protocol != other.protocol
    # One that is for every name has those of the other, too, and would speak another protocol there.
    overlapping = mixed and not (one.hostname and other.hostname)
    if one.hostname != other.hostname and first in ("HTTP", "TLS") and not overlapping:
        return ""
    return "ProtocolConflict" if mixed else "HostnameConflict"


# --- routes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attached:
    """A route on one listener, with the (host, route's own host name) pairs for which it is there."""

    entry: Entry
    hosts: tuple[tuple[str, str], ...]


def attach(
    document: Document,
    parent: ParentReference,
    hostnames: list[str],
    entries: Iterable[Entry],
    namespaces: Namespaces,
    *,
    by_host: Callable[[Entry], bool] = lambda _: True,
) -> tuple[list[Attached], Condition]:
    """The listeners of `entries` (all of one parent) that take a route, and its Accepted condition.

    `by_host` says of which listeners the host names count.
    """
    what = f"{parent.kind} {parent.namespace or document.key.namespace}/{parent.name}"
    named = [
        e
        for e in entries
        if parent.section_name in (None, e.listener.name) and parent.port in (None, e.listener.port)
    ]
    if not named:
        return [], Condition("Accepted", False, "NoMatchingParent", f"no such listener of {what}")
    allowed = [
        e
        for e in named
        if any(k.kind == document.key.kind for k in e.supported)
        and namespaces.allowed(
            e.listener.allowed_routes.namespaces, e.owner.key.namespace, document.key.namespace
        )
    ]
    if not allowed:
        why = f"no listener of {what} takes a {document.key.kind} of namespace {document.key.namespace}"
        return [], Condition("Accepted", False, "NotAllowedByListeners", why)
    found = []
    for entry in allowed:
        pairs = (
            hosts.intersections(entry.hostname, hostnames) if by_host(entry) else ((hosts.ANY, hosts.ANY),)
        )
        if pairs:
            found.append(Attached(entry, pairs))
    if not found:
        why = f"no host name of the route meets one of {what}"
        return [], Condition("Accepted", False, "NoMatchingListenerHostname", why)
    return found, Condition("Accepted", True, "Accepted")


def by_port(entries: Iterable[Entry]) -> Iterator[tuple[int, str, list[Entry]]]:
    """(port, TCP or UDP, listeners that are served there)."""
    found: dict[tuple[int, str], list[Entry]] = {}
    for entry in entries:
        if entry.served:
            protocol = "UDP" if entry.protocol == "UDP" else "TCP"
            found.setdefault((entry.listener.port, protocol), []).append(entry)
    for (port, protocol), listed in sorted(found.items(), key=lambda item: item[0]):
        yield port, protocol, listed
