"""What is told of Gateways and ListenerSets: their conditions, and those of each of their listeners.

Programmed is true here where nothing in the manifests stands against it; whether it is in force is added by
`gateway_status.programmed`, which asks the proxy.

Source: Gateway API v1.6, GatewayStatus, ListenerStatus, ListenerSetStatus.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import permutations

from penstock.manifests.document import ObjectKey
from penstock.plan import Condition, ObjectStatus
from penstock.routing import hosts
from penstock.routing.attach import Entry, ListenerStatus
from penstock.routing.certificates import Vault
from penstock.routing.edge import OneGateway, listener_name
from penstock.routing.frontend import client_certificate, lenient


def report(each: OneGateway, vault: Vault, made: Collection[str]) -> dict[ObjectKey, ObjectStatus]:
    """The status of a Gateway and of the ListenerSets that name it; `made` are the proxy's listeners."""
    found: dict[ObjectKey, ObjectStatus] = {}
    accepted = each.accepted
    problem = accepted.message if not accepted.status else ""
    programmed = Condition("Programmed", True, "Programmed")
    _, resolved = client_certificate(each.document, each.gateway, vault)
    own = [e for e in each.entries if e.owner is each.document]
    shared = _overlapping(each.entries)
    if not accepted.status:
        programmed = Condition("Programmed", False, "Invalid", problem)
    elif each.placed.unusable:
        programmed = Condition("Programmed", False, "AddressNotUsable", each.placed.unusable)
    elif not each.placed.addresses:
        programmed = Condition("Programmed", False, "AddressNotAssigned", "no address is left for it")
    elif own and not any(e.served for e in own):
        programmed = Condition("Programmed", False, "Invalid", own[0].why)
    pending = problem or programmed.message or next((e.why for e in own if not e.served), "")
    found[each.document.key] = ObjectStatus(
        (
            accepted,
            programmed,
            *(c for c in (resolved, lenient(each.gateway), _default(each)) if c is not None),
        ),
        pending,
        extra={
            "listeners": tuple(_listener_status(e, programmed, shared, made) for e in own),
            "addresses": each.placed.addresses,
            "attached_sets": sum(
                any(e.served for e in each.entries if e.owner is owner) for owner in each.sets
            ),
        },
    )
    for owner in each.sets:
        entries = [e for e in each.entries if e.owner is owner]
        bad = [e for e in entries if not e.served]
        why = f"listener {bad[0].listener.name}: {bad[0].why}" if bad else ""
        standing = len(bad) < len(entries) and programmed.status
        reason = "ListenersNotValid" if bad else "Accepted"
        stands = "Programmed" if standing else "ListenersNotValid" if bad else "ParentNotProgrammed"
        conditions = (
            Condition("Accepted", len(bad) < len(entries), reason, why),
            Condition("Programmed", standing, stands, why or programmed.message),
        )
        extra = {"listeners": tuple(_listener_status(e, programmed, shared, made) for e in entries)}
        found[owner.key] = ObjectStatus(conditions, why or programmed.message, extra=extra)
    for owner in each.refused:
        why = f"{each.document.key} takes no listeners of namespace {owner.key.namespace}"
        found[owner.key] = _refused_set("NotAllowed", why)
    return found


def _default(each: OneGateway) -> Condition | None:
    if each.gateway.spec.default_scope == "None":
        return None
    return Condition("DefaultGateway", True, "DefaultGateway", "routes that want the default come here")


def _refused_set(reason: str, why: str) -> ObjectStatus:
    conditions = (Condition("Accepted", False, reason, why), Condition("Programmed", False, reason, why))
    return ObjectStatus(conditions, why)


def _overlapping(entries: list[Entry]) -> Mapping[Entry, str]:
    """HTTPS listeners whose host names meet those of another on their port, with its name.

    A client may send requests for both over one connection (RFC 9113, 9.1.1): those that belong to the other
    one are answered with 421.
    """
    found: dict[Entry, str] = {}
    https = [e for e in entries if e.protocol == "HTTPS" and not e.conflicted.status]
    for one, other in permutations(https, 2):
        same_port = one.listener.port == other.listener.port
        if same_port and hosts.meet(one.hostname, other.hostname) is not None:
            found.setdefault(one, other.listener.name)
    return found


def _listener_status(
    entry: Entry, gateway: Condition, shared: Mapping[Entry, str], made: Collection[str]
) -> ListenerStatus:
    standing = entry.served and gateway.status
    why = entry.why or gateway.message
    programmed = Condition("Programmed", True, "Programmed")
    if not standing:
        of_set = entry.owner is not entry.gateway and entry.conflicted.status
        reason = entry.conflicted.reason if of_set else "Invalid"
        programmed = Condition("Programmed", False, reason, why)
    conditions = [entry.accepted, programmed, entry.resolved, entry.conflicted]
    if entry in shared:
        message = f"its host names are also those of listener {shared[entry]}"
        conditions.append(Condition("OverlappingTLSConfig", True, "OverlappingHostnames", message))
    serves = listener_name(entry.gateway, entry.listener.port, "UDP" if entry.protocol == "UDP" else "TCP")
    return ListenerStatus(
        entry.listener.name,
        entry.supported,
        len(entry.attached),
        tuple(conditions),
        serves if serves in made else "",
    )
