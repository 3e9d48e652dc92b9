"""What is told of Gateways and ListenerSets: their conditions, and those of each of their listeners.

Programmed is true here where nothing in the manifests stands against it; whether it is in force is added by
`gateway_status.programmed`, which asks the proxy.

Source: Gateway API v1.6, GatewayStatus, ListenerStatus, ListenerSetStatus.
"""

from __future__ import annotations

from penstock.manifests.document import ObjectKey
from penstock.plan import Condition, ObjectStatus
from penstock.routing.attach import Entry, ListenerStatus
from penstock.routing.certificates import Vault
from penstock.routing.edge import OneGateway, listener_name
from penstock.routing.frontend import client_certificate, lenient


def report(each: OneGateway, vault: Vault) -> dict[ObjectKey, ObjectStatus]:
    """The status of a Gateway and of the ListenerSets that name it."""
    found: dict[ObjectKey, ObjectStatus] = {}
    accepted = each.accepted
    problem = accepted.message if not accepted.status else ""
    programmed = Condition("Programmed", True, "Programmed")
    _, resolved = client_certificate(each.document, each.gateway, vault)
    own = [e for e in each.entries if e.owner is each.document]
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
        (accepted, programmed, *(c for c in (resolved, lenient(each.gateway)) if c is not None)),
        pending,
        extra={
            "listeners": tuple(_listener_status(e, programmed) for e in own),
            "addresses": each.placed.addresses,
            "attached_sets": len(each.sets),
        },
    )
    for owner in each.sets:
        entries = [e for e in each.entries if e.owner is owner]
        bad = [e for e in entries if not e.served]
        why = f"listener {bad[0].listener.name}: {bad[0].why}" if bad else ""
        standing = len(bad) < len(entries) and programmed.status
        reason = "ListenersNotValid" if bad else "Accepted"
        conditions = (
            Condition("Accepted", len(bad) < len(entries), reason, why),
            Condition("Programmed", standing, "Programmed" if standing else "Invalid", why),
        )
        extra = {"listeners": tuple(_listener_status(e, programmed) for e in entries)}
        found[owner.key] = ObjectStatus(conditions, why or programmed.message, extra=extra)
    for owner in each.refused:
        why = f"{each.document.key} takes no listeners of namespace {owner.key.namespace}"
        found[owner.key] = _refused_set("NotAllowed", why)
    return found


def _refused_set(reason: str, why: str) -> ObjectStatus:
    conditions = (Condition("Accepted", False, reason, why), Condition("Programmed", False, reason, why))
    return ObjectStatus(conditions, why)


def _listener_status(entry: Entry, gateway: Condition) -> ListenerStatus:
    standing = entry.served and gateway.status
    why = entry.why or gateway.message
    programmed = Condition("Programmed", True, "Programmed")
    if not standing:
        programmed = Condition("Programmed", False, "Invalid", why)
    return ListenerStatus(
        entry.listener.name,
        entry.supported,
        len(entry.attached),
        (entry.accepted, programmed, entry.resolved, entry.conflicted),
        listener_name(entry.gateway, entry.listener.port, "UDP" if entry.protocol == "UDP" else "TCP"),
    )
