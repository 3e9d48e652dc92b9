"""What `penstock status` and `penstock get` tell, as plain data. Pure.

An object is settled when it is in force in the kernel and in Envoy, refused, or valid but waiting for
something outside Penstock that is named. An error of ours is never settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from penstock import gateway_status
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import GROUP, Gateway, GatewayClass, ListenerSet, Secret
from penstock.manifests.http_policy_kinds import HTTPPolicy
from penstock.manifests.ingress_kinds import Ingress
from penstock.manifests.kinds import Namespace, Service, Workload
from penstock.manifests.l4_kinds import BackendTLSPolicy, TCPRoute, TLSRoute, UDPRoute
from penstock.manifests.problem import Problem
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute, ParentReference
from penstock.manifests.traffic_kinds import BackendPolicy, XBackendTrafficPolicy
from penstock.plan import Condition, ObjectStatus, Plan
from penstock.policy.identities import identity_text
from penstock.policy.ingress import CONTROLLER
from penstock.routing.services import families, has_node_ports, node_port_name
from penstock.world import World


class Transitions:
    """When each condition last changed, for lastTransitionTime (RFC 3339, UTC)."""

    def __init__(self) -> None:
        self._since: dict[tuple[ObjectKey, str], tuple[bool, str, str]] = {}

    def of(self, key: ObjectKey, where: str, condition: Condition, now: float) -> str:
        slot = (key, f"{where}/{condition.type}")
        known = self._since.get(slot)
        if known is None or known[:2] != (condition.status, condition.reason):
            moment = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            known = (condition.status, condition.reason, moment)
            self._since[slot] = known
        return known[2]


def objects(
    documents: Mapping[ObjectKey, Document],
    problems: Iterable[Problem],
    plan: Plan,
    *,
    in_force: bool,
) -> list[dict[str, Any]]:
    """One entry for every object: where it stands and how it is: in force, pending, refused or applying."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for key, document in documents.items():
        status = plan.statuses.get(key, ObjectStatus())
        state = "applying" if not in_force else "pending" if status.pending else "in force"
        found[(key.kind, key.namespace, key.name)] = {
            "kind": key.kind,
            "namespace": key.namespace,
            "name": key.name,
            "file": document.file,
            "line": document.line,
            "generation": document.generation,
            "state": state,
            "message": status.pending,
        }
    for problem in problems:
        if problem.severity != "error":
            continue
        entry = found.setdefault(
            (problem.kind, problem.namespace, problem.name or f"{problem.file}:{problem.line}"),
            {
                "kind": problem.kind,
                "namespace": problem.namespace,
                "name": problem.name,
                "file": problem.file,
                "line": problem.line,
                "generation": 0,
            },
        )
        entry["last_good"] = "in force" if entry.get("state") in ("in force", "pending") else "none"
        entry.update(state="refused", message=str(problem))
    return [found[key] for key in sorted(found)]


def _condition(
    document: Document, where: str, condition: Condition, transitions: Transitions, now: float
) -> dict[str, Any]:
    return {
        "type": condition.type,
        "status": "True" if condition.status else "False",
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": document.generation,
        "lastTransitionTime": transitions.of(document.key, where, condition, now),
    }


def _route_status(
    document: Document, status: ObjectStatus, transitions: Transitions, now: float, *, in_force: bool
) -> dict[str, Any]:
    parents = []
    listed: Any = status.extra.get("parents", ())
    for index, (parent, conditions) in enumerate(listed):
        assert isinstance(parent, ParentReference)
        reference: dict[str, Any] = {"group": parent.group, "kind": parent.kind, "name": parent.name}
        reference["namespace"] = parent.namespace or document.key.namespace
        if parent.port is not None:
            reference["port"] = parent.port
        if parent.section_name is not None:
            reference["sectionName"] = parent.section_name
        accepted = all(c.status for c in conditions if c.type == "Accepted")
        programmed = Condition(
            "Programmed", accepted and in_force, "Programmed" if accepted and in_force else "Pending"
        )
        parents.append(
            {
                "parentRef": reference,
                "controllerName": CONTROLLER,
                "conditions": [
                    _condition(document, str(index), c, transitions, now) for c in (*conditions, programmed)
                ],
            }
        )
    return {"parents": parents}


def _front_door(status: ObjectStatus, edge: Mapping[str, str]) -> dict[str, Any]:
    """The address is told only when all of the front door serves."""
    addresses: Any = status.extra.get("addresses", ())
    serves: Any = status.extra.get("serves", ())
    ready = bool(serves) and not any(edge.get(name, "not applied yet") for name in serves)
    return {"loadBalancer": {"ingress": [{"ip": str(a)} for a in addresses]} if ready else {}}


def _ancestors(
    document: Document, status: ObjectStatus, transitions: Transitions, now: float
) -> dict[str, Any]:
    """What became of a policy at each Gateway (or Service of the mesh) that it has a say in."""
    listed: Any = status.extra.get("ancestors", ())
    return {
        "ancestors": [
            {
                "ancestorRef": {
                    "group": "" if key.kind == "Service" else GROUP,
                    "kind": key.kind,
                    "namespace": key.namespace,
                    "name": key.name,
                },
                "controllerName": CONTROLLER,
                "conditions": [_condition(document, str(key), c, transitions, now) for c in conditions],
            }
            for key, conditions in listed
        ]
    }


def _without_nulls(value: Any) -> Any:
    """Absent fields are left out, as the API's own server does."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


def view(
    world: World,
    plan: Plan,
    document: Document,
    transitions: Transitions,
    now: float,
    *,
    in_force: bool,
    edge: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The object as `get` shows it: what the manifest says with its defaults, and the status we found.

    `edge` tells of the proxy's listeners for Gateways what each waits for.
    """
    shown: dict[str, Any] = _without_nulls(msgspec.to_builtins(document.value))
    shown["metadata"] = {
        k: v
        for k, v in shown["metadata"].items()
        if v not in ([], {}) and not (k == "namespace" and not document.key.namespace)
    }
    shown["metadata"]["generation"] = document.generation
    status = plan.statuses.get(document.key, ObjectStatus())
    value = document.value
    if isinstance(value, Ingress):
        shown["status"] = _front_door(status, edge or {})
        return shown
    if isinstance(value, BackendTLSPolicy | BackendPolicy | XBackendTrafficPolicy | HTTPPolicy):
        shown["status"] = _ancestors(document, status, transitions, now)
        return shown
    if isinstance(value, HTTPRoute | GRPCRoute | TLSRoute | TCPRoute | UDPRoute):
        shown["status"] = _route_status(document, status, transitions, now, in_force=in_force)
        return shown
    if isinstance(value, Gateway | ListenerSet | GatewayClass):
        status = gateway_status.programmed(status, lambda name: (edge or {}).get(name, "not applied yet"))
        gateway_status.fill(shown, document, status, partial(_condition, transitions=transitions, now=now))
        return shown
    if isinstance(value, Secret):
        for field in ("data", "stringData"):
            shown[field] = dict.fromkeys(shown.get(field, {}), "(not shown)")
    listed = [_condition(document, "", c, transitions, now) for c in status.conditions]
    if isinstance(value, Service):
        vips = [
            world.allocations.vips.get(f"{document.key.namespace}/{document.key.name}/{family}")
            for family in families(value)
        ]
        given = [v for v in vips if v]
        if given:
            shown["spec"].update(clusterIP=given[0], clusterIPs=given)
        for port, entry in zip(value.spec.ports, shown["spec"]["ports"], strict=True):
            number = world.allocations.node_ports.get(node_port_name(document, port))
            if number is not None and has_node_ports(value):
                entry["nodePort"] = number
        balancers = [
            world.allocations.balancers.get(f"{document.key.namespace}/{document.key.name}/{family}")
            for family in families(value)
        ]
        ingress = [{"ip": a} for a in balancers if a and value.spec.type == "LoadBalancer"]
        shown["status"] = {"loadBalancer": {"ingress": ingress} if ingress else {}}
    elif isinstance(value, Workload):
        identity = world.allocations.identities.get(identity_text(document, value))
        attached = world.attachments.get((document.key.namespace, document.key.name))
        addresses = value.spec.addresses or [str(a) for a in (attached.addresses if attached else ())]
        shown["status"] = {"identity": identity, "addresses": addresses, "conditions": listed}
    elif isinstance(value, Namespace):
        shown["status"] = {"phase": "Active"}
    elif listed:
        shown["status"] = {"conditions": listed}
    else:
        shown.pop("status", None)
    return shown
