"""HTTPPolicy → what is done with requests at its targets, and status.

Of several policies with the same target the oldest counts, then the first by name (GEP-713); the others say
Conflicted there. What cannot be resolved (keys, a service to ask) closes its target: a check that cannot be
made is not passed over.

Services that the proxy itself asks (`helpers`) are asked in the node's name, in plain text; the kernel judges
that as it judges the node's own processes.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from penstock.manifests import jwks
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import ConfigMap, Gateway, Secret
from penstock.manifests.http_policy_kinds import (
    HTTPPolicy,
    HTTPPolicyTarget,
    JwksReference,
)
from penstock.manifests.http_policy_kinds import JwtProvider as ProviderSpec
from penstock.manifests.kinds import Service
from penstock.manifests.route_kinds import GRPCRoute, HTTPRoute
from penstock.manifests.shared_kinds import GRPCAuthConfig, HTTPExternalAuth, ServiceBackend
from penstock.plan import Condition, ObjectStatus
from penstock.routing.backend_policies import HTTP_PROTOCOLS
from penstock.routing.filters import milliseconds
from penstock.routing.services import ServedPort
from penstock.routing.treatment import (
    Compression,
    ExternalAuth,
    Fault,
    Jwt,
    JwtProvider,
    RateLimit,
    Treatment,
)
from penstock.world import World

SOURCES = (ConfigMap, Secret)
"""Where else a policy has something from, besides Services."""

HELPER = "helper"
"""The way to Services that the proxy itself asks."""

Target = tuple[ObjectKey, int | str | None]
"""An object, and the name of one of its sections or the number of its port (None: all of it)."""

Resolve = Callable[[Document, ServiceBackend], tuple[ServedPort | None, Condition | None]]
"""The Service port that a document means, or why it means none."""

_ACCEPTED = Condition("Accepted", True, "Accepted")
_RESOLVED = Condition("ResolvedRefs", True, "ResolvedRefs")


@dataclass(slots=True)
class _Policy:
    document: Document
    treatment: Treatment
    resolved: Condition
    ancestors: dict[ObjectKey, Condition] = field(default_factory=dict)


class HttpPolicies:
    """Those of one World."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.helpers: dict[str, ServedPort] = {}
        """Those that policies ask; what rules of routes ask is told with the rules."""
        self._by_target: dict[Target, _Policy] = {}
        self._policies: list[_Policy] = []

    def read(self, resolve: Resolve) -> None:
        """Before anybody asks: `resolve` knows the Services."""
        self._resolve = resolve
        found = sorted(
            self._world.of_kind(HTTPPolicy), key=lambda p: (p[0].since, p[0].key.namespace, p[0].key.name)
        )
        for document, policy in found:
            each = _Policy(document, *self._treatment(document, policy))
            self._policies.append(each)
            for target in policy.spec.target_refs:
                self._place(each, target)

    def _place(self, each: _Policy, ref: HTTPPolicyTarget) -> None:
        """Whether a route or a Gateway is there is asked when status is: so that they may come and go without
        all being computed anew."""
        key = ObjectKey(ref.kind, each.document.key.namespace, ref.name)
        winner = self._by_target.setdefault((key, _section(self._world, key, ref)), each)
        if winner is not each:
            why = f"{winner.document.key} means the same target and is older"
            each.ancestors.setdefault(key, Condition("Accepted", False, "Conflicted", why))
        else:
            each.ancestors.setdefault(key, _ACCEPTED)

    # --- who asks ------------------------------------------------------------------------------------------

    def of(self, key: ObjectKey, section: int | str | None) -> Treatment | None:
        """What is said of a section of an object, over what is said of all of it."""
        own = self._by_target.get((key, section)) if section is not None else None
        whole = self._by_target.get((key, None))
        under = whole.treatment if whole is not None else None
        return own.treatment.over(under) if own is not None else under

    def of_service(self, served: ServedPort) -> Treatment | None:
        return self.of(served.document.key, served.port.port)

    def owner(self, part: str, *targets: Target) -> ObjectKey | None:
        """The policy that says `part` of a treatment, the nearest target first."""
        for target in targets:
            policy = self._by_target.get(target)
            if policy is not None and getattr(policy.treatment, part) is not None:
                return policy.document.key
        return None

    def steers(self, served: ServedPort) -> bool:
        """Whether requests to a port go through the proxy even without a route."""
        if served.port.protocol != "TCP":
            return False
        key = served.document.key
        if (key, served.port.port) in self._by_target:
            return True
        return (key, None) in self._by_target and served.port.app_protocol in HTTP_PROTOCOLS

    # --- what a policy says ------------------------------------------------------------------------------

    def _treatment(self, document: Document, policy: HTTPPolicy) -> tuple[Treatment, Condition]:
        spec = policy.spec
        resolved = _RESOLVED
        made = Treatment(
            _fault(policy),
            RateLimit(
                spec.rate_limit.requests,
                milliseconds(spec.rate_limit.interval) or 1000,
                spec.rate_limit.burst or spec.rate_limit.requests,
                spec.rate_limit.per,
            )
            if spec.rate_limit is not None
            else None,
            compression=Compression(
                tuple(spec.compression.types),
                spec.compression.min_size,
                tuple(spec.compression.content_types),
            )
            if spec.compression is not None
            else None,
        )
        if spec.jwt is not None:
            providers: list[JwtProvider] = []
            for each in spec.jwt.providers:
                provider, why = self._provider(document, each)
                if provider is not None:
                    providers.append(provider)
                else:
                    resolved = Condition("ResolvedRefs", False, "JwksNotFound", why)
            made = replace(made, jwt=Jwt(tuple(providers), spec.jwt.optional and bool(providers)))
        if spec.ext_auth is not None:
            auth, helper, problem = self.external_auth(document, spec.ext_auth)
            made, resolved = replace(made, auth=auth), problem or resolved
            if helper is not None:
                self.helpers[helper.name] = helper
        return made, resolved

    def external_auth(
        self, document: Document, auth: HTTPExternalAuth
    ) -> tuple[ExternalAuth, ServedPort | None, Condition | None]:
        """Also of the filter of an HTTPRoute. With the Service port that is asked, or why there is none."""
        grpc = auth.protocol == "GRPC"
        helper, problem = self._helper(document, auth.backend_ref, grpc=grpc)
        namespace = auth.backend_ref.namespace or document.key.namespace
        return (
            ExternalAuth(
                helper.name if helper is not None else None,
                f"{auth.backend_ref.name}.{namespace}",
                grpc,
                auth.http.path if auth.http else "",
                tuple((auth.grpc or auth.http or GRPCAuthConfig()).allowed_headers),
                tuple(auth.http.allowed_response_headers) if auth.http else (),
                auth.forward_body.max_size if auth.forward_body else 0,
            ),
            helper,
            problem,
        )

    def _helper(
        self, document: Document, ref: ServiceBackend, *, grpc: bool
    ) -> tuple[ServedPort | None, Condition | None]:
        found, problem = self._resolve(document, ref)
        if found is None:
            return None, problem or Condition("ResolvedRefs", False, "BackendNotFound", f"no {ref.name}")
        return replace(found, grpc=grpc, edge=HELPER), None

    def _provider(self, document: Document, spec: ProviderSpec) -> tuple[JwtProvider | None, str]:
        made = JwtProvider(
            spec.name,
            spec.issuer,
            tuple(spec.audiences),
            header=spec.header,
            forward=spec.forward,
            claims=tuple((c.claim, c.header.lower()) for c in spec.claims_to_headers),
        )
        keys = spec.jwks
        if keys.inline is not None:
            return replace(made, keys=keys.inline), ""
        if keys.remote is not None:
            helper, problem = self._helper(document, keys.remote.backend_ref, grpc=False)
            if helper is None:
                return None, problem.message if problem else ""
            self.helpers[helper.name] = helper
            namespace = keys.remote.backend_ref.namespace or document.key.namespace
            uri = f"http://{keys.remote.backend_ref.name}.{namespace}{keys.remote.path}"
            cache = milliseconds(keys.remote.cache) or 1000
            return replace(made, cluster=helper.name, uri=uri, cache=cache), ""
        assert keys.ref is not None
        text, why = self._text(document.key.namespace, keys.ref)
        if not why:
            why = jwks.fault(text)
            why = f"{keys.ref.kind} {keys.ref.name}: {keys.ref.key} {why}" if why else ""
        return (replace(made, keys=text), "") if not why else (None, why)

    def _text(self, namespace: str, ref: JwksReference) -> tuple[str, str]:
        key = ObjectKey(ref.kind, namespace, ref.name)
        document = self._world.documents.get(key)
        missing = f"{key} has no {ref.key}" if document is not None else f"there is no {key}"
        value = document.value if document is not None else None
        if isinstance(value, ConfigMap):
            text = value.data.get(ref.key)
            return (text, "") if text is not None else ("", missing)
        if isinstance(value, Secret):
            if ref.key in value.string_data:
                return value.string_data[ref.key], ""
            try:
                return b64decode(value.data[ref.key], validate=True).decode(), ""
            except (KeyError, Error, UnicodeDecodeError):
                return "", missing
        return "", missing

    def statuses(self, world: World) -> Iterator[tuple[ObjectKey, ObjectStatus]]:
        """In `world`, of which this knows the policies and the Services."""
        for each in self._policies:
            policy = each.document.value
            assert isinstance(policy, HTTPPolicy)
            accepted = dict(each.ancestors)
            for ref in policy.spec.target_refs:
                key = ObjectKey(ref.kind, each.document.key.namespace, ref.name)
                if why := _missing(world, key, ref):
                    accepted[key] = Condition("Accepted", False, "TargetNotFound", why)
            pending = next((c.message for c in (*accepted.values(), each.resolved) if not c.status), "")
            ancestors = tuple((key, (condition, each.resolved)) for key, condition in accepted.items())
            yield each.document.key, ObjectStatus(pending=pending, extra={"ancestors": ancestors})


def _section(world: World, key: ObjectKey, ref: HTTPPolicyTarget) -> int | str | None:
    """A port of a Service by its number."""
    document = world.documents.get(key)
    if document is not None and isinstance(document.value, Service) and ref.section_name is not None:
        return next(
            (p.port for p in document.value.spec.ports if p.name == ref.section_name), ref.section_name
        )
    return ref.port or ref.section_name


def _missing(world: World, key: ObjectKey, ref: HTTPPolicyTarget) -> str:
    """Why a target is not there; '' if it is."""
    document = world.documents.get(key)
    if document is None:
        return f"there is no {key}"
    wanted: int | str | None = ref.port or ref.section_name
    value, names = document.value, list[int | str | None]()
    if isinstance(value, Service):
        names = [name for port in value.spec.ports for name in (port.port, port.name)]
    elif isinstance(value, Gateway):
        names = [each.name for each in value.spec.listeners]
    elif isinstance(value, HTTPRoute | GRPCRoute):
        names = [rule.name for rule in value.spec.rules]
    return f"{key} has nothing called {wanted}" if wanted is not None and wanted not in names else ""


def _fault(policy: HTTPPolicy) -> Fault | None:
    fault = policy.spec.fault
    if fault is None:
        return None
    made = Fault()
    if fault.delay is not None:
        made = replace(made, delay=milliseconds(fault.delay.duration) or 0, delay_percent=fault.delay.percent)
    if fault.abort is not None:
        made = replace(
            made,
            http_status=fault.abort.http_status,
            grpc_status=fault.abort.grpc_status,
            abort_percent=fault.abort.percent,
        )
    return made
