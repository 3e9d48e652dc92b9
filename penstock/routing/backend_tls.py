"""BackendTLSPolicy → TLS to the backends of Services, for Gateways and for routes of the mesh.

A policy means a Service of its own namespace, or one port of it by name; the port's own policy comes before
the Service's, and of several the oldest counts. One whose authorities cannot be used leaves its backends
without any connection rather than with one that proves nothing.

Source: Gateway API v1.6, BackendTLSPolicy, PolicyAncestorStatus; GEP-1897 (conflicts).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import CertificateReference
from penstock.manifests.l4_checks import WELL_KNOWN
from penstock.manifests.l4_kinds import BackendTLSPolicy
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute
from penstock.plan import Condition, ObjectStatus
from penstock.routing.certificates import Vault
from penstock.routing.model import UpstreamTls
from penstock.routing.services import ServedPort
from penstock.world import World

Target = tuple[str, str, str | None]
"""Namespace and name of a Service, and the name of one of its ports (None: all)."""


_ACCEPTED = Condition("Accepted", True, "Accepted")
_RESOLVED = Condition("ResolvedRefs", True, "ResolvedRefs")


@dataclass(slots=True)
class _Policy:
    document: Document
    policy: BackendTLSPolicy
    tls: UpstreamTls | None = None
    accepted: Condition = _ACCEPTED
    resolved: Condition = _RESOLVED
    wins: bool = False
    ancestors: dict[ObjectKey, None] = field(default_factory=dict)

    @property
    def targets(self) -> list[Target]:
        refs = self.policy.spec.target_refs
        namespace = self.document.key.namespace
        return [(namespace, r.name, r.section_name) for r in refs if (r.group, r.kind) == ("", "Service")]


class BackendTls:
    """The policies of one World. `of` must be asked before `statuses` are taken: it notes who asked."""

    def __init__(self, world: World, vault: Vault) -> None:
        self._vault = vault
        self._policies: list[_Policy] = []
        self._by_target: dict[Target, _Policy] = {}
        self._by_service: dict[tuple[str, str], list[_Policy]] = {}
        found = sorted(
            world.of_kind(BackendTLSPolicy), key=lambda p: (p[0].since, p[0].key.namespace, p[0].key.name)
        )
        for document, policy in found:
            each = _Policy(document, policy)
            self._policies.append(each)
            self._compile(each)
            for target in each.targets:
                self._by_service.setdefault(target[:2], []).append(each)
                if self._by_target.setdefault(target, each) is each:
                    each.wins = True
        self._mesh(world)

    def _compile(self, each: _Policy) -> None:
        rules = each.policy.spec.validation
        kinds = {"Hostname": "dns", "URI": "uri"}
        names = tuple((kinds[n.type], n.hostname or n.uri or "") for n in rules.subject_alt_names)
        authorities: str | None = None
        if rules.well_known_ca_certificates:
            if rules.well_known_ca_certificates != WELL_KNOWN:
                why = f'wellKnownCACertificates "{rules.well_known_ca_certificates}": only System is known'
                each.accepted = Condition("Accepted", False, "Invalid", why)
                return
        else:
            refs = [
                CertificateReference(name=r.name, group=r.group, kind=r.kind)
                for r in rules.ca_certificate_refs
            ]
            name = f"backend-tls/{each.document.key.namespace}/{each.document.key.name}"
            authorities, problem = self._vault.trusted(each.document, refs, name)
            if problem is not None:
                reason = "InvalidKind" if problem.reason == "InvalidCACertificateKind" else problem.reason
                each.resolved = Condition("ResolvedRefs", False, reason, problem.message)
            if not authorities:
                why = f"no authority can be used: {each.resolved.message}"
                each.accepted = Condition("Accepted", False, "NoValidCACertificate", why)
                return
        each.tls = UpstreamTls(rules.hostname, authorities, names)  # type: ignore[arg-type]

    def _of(self, served: ServedPort) -> _Policy | None:
        key = served.document.key
        own = self._by_target.get((key.namespace, key.name, served.port.name or None))
        return own or self._by_target.get((key.namespace, key.name, None))

    def owner(self, served: ServedPort) -> Document | None:
        """The policy about a port."""
        each = self._of(served)
        return each.document if each is not None else None

    def applies(self, served: ServedPort) -> bool:
        return self._of(served) is not None

    def of(self, served: ServedPort, ancestor: ObjectKey | None = None) -> UpstreamTls | None:
        """TLS to this port, for the Gateway `ancestor`; None without a policy, and where it cannot be met."""
        if ancestor is not None:
            for beside in self._by_service.get((served.document.key.namespace, served.document.key.name), ()):
                beside.ancestors[ancestor] = None
        each = self._of(served)
        return each.tls if each is not None else None

    def _mesh(self, world: World) -> None:
        """Services are the ancestors where a route of the mesh leads to them."""
        for key in _reached(world) if self._policies else ():
            for each in self._by_service.get((key.namespace, key.name), ()):
                each.ancestors[key] = None

    def statuses(self) -> Iterator[tuple[ObjectKey, ObjectStatus]]:
        for each in self._policies:
            accepted = each.accepted
            if not each.wins and accepted.status:
                older = [o.document.key for t in each.targets if (o := self._by_target.get(t)) is not None]
                why = f"{older[0]} means the same targets and is older" if older else "it means no Service"
                accepted = Condition("Accepted", False, "Conflicted" if older else "TargetNotFound", why)
            conditions = (accepted, each.resolved)
            pending = next((c.message for c in conditions if not c.status), "")
            if not pending and not each.ancestors:
                pending = "nothing that goes through the proxy leads to its targets"
            ancestors = tuple((ancestor, conditions) for ancestor in each.ancestors)
            yield each.document.key, ObjectStatus(pending=pending, extra={"ancestors": ancestors})


def _reached(world: World) -> Iterator[ObjectKey]:
    """Services that routes of the mesh name as backends."""
    for document in world.of_kinds(HTTPRoute, GRPCRoute):
        route = document.value
        assert isinstance(route, HTTPRoute | GRPCRoute)
        if not any(parent.kind == "Service" for parent in route.spec.parent_refs):
            continue
        for rule in route.spec.rules:
            for ref in rule.backend_refs:
                yield ObjectKey("Service", ref.namespace or document.key.namespace, ref.name)
