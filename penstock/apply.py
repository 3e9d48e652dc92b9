"""Makes a Plan real: certificates, Envoy and the kernel, in the order that loses and leaks nothing.

    1  kernel   what needs no proxy: denials, plain allows, who is who; what waits for the proxy stays
                closed, or as it was (redirect/stage.py); proxied connections of addresses that change
                hands are reset
    2  secrets  certificates of workloads that came
    3  Envoy    make: clusters warm, then listeners, scopes and routes, each behind its ACKs
    4  kernel   redirects to listeners that are active
    5  Envoy    break: what nothing points at any more

Envoy may be away: then 1 holds, the named traffic is closed, and the next connection continues. A stage
waits at most PATIENCE; then what was held open is closed (design §1, "Waiting is closed").
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.collection import uncollecting
from penstock.dns.process import DnsProxy
from penstock.envoy.admin import Admin
from penstock.envoy.errors import EnvoyAdminError
from penstock.envoy.resources import Builder
from penstock.errors import HostError
from penstock.kernel import Kernel
from penstock.mtls.issuer import Issuer
from penstock.mtls.secrets import secrets, workload_secret
from penstock.mtls.svid import SVID
from penstock.plan import DNS_LISTENER, KernelTables, ListenerKey, Plan
from penstock.policy.kernel import listener_key
from penstock.redirect.stage import after_proxy
from penstock.routing.model import HttpChain, ListenerKind
from penstock.routing.transition import between
from penstock.world import Carried, Settings
from penstock.xds.order import Rollout
from penstock.xds.server import XdsServer
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl, resource

log = logging.getLogger(__name__)

DNS_PATIENCE = 4.0
"""Seconds for the DNS proxy to take what it is told, of which most is its start."""
DOOR_PATIENCE = 0.2
"""Seconds for sockets to be there at which questions can wait."""
PATIENCE = 5.0
"""Seconds that one change may keep what was allowed before open while the proxy is not ready."""


Trusted = tuple[bytes, bytes]
"""The roots, and the revocation lists, in PEM."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a Plan. `errors` are ours (a NACK, a map write, the CA); empty means all is in force."""

    errors: tuple[str, ...] = ()
    waiting_for: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    changed_entries: int = 0
    edge: Mapping[str, str] = field(default_factory=dict)
    """Listener of a Gateway → what it waits for; '' if it serves what the Plan says."""

    @property
    def settled(self) -> bool:
        return not self.errors and not self.waiting_for


@dataclass(frozen=True, slots=True)
class Closed:
    """The first step of a change. `carried` is what `World.carried` must be for the rest of it."""

    changed_entries: int
    carried: frozenset[Carried]
    errors: tuple[str, ...]
    seconds: float


class Applier:
    """The appliers of one node. `apply` is not reentrant: one change at a time."""

    def __init__(
        self,
        *,
        settings: Settings,
        kernel: Kernel,
        server: XdsServer,
        admin: Admin,
        issuer: Issuer,
        trusted: Callable[[], Trusted],
        blocking: Callable[..., Awaitable[Any]],
        dns: DnsProxy,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`trusted` gives whom to trust, which may change (a rotation of the CA, a revocation).

        `blocking(function, *arguments)` runs a call on the one thread that owns netlink and the disk.
        """
        self.kernel = kernel
        self._server, self._admin = server, admin
        self._issuer, self._trusted, self._clock = issuer, trusted, clock
        self.trusted: Trusted = (b"", b"")
        """The trust bundle that is published."""
        self._blocking = blocking
        self._dns = dns
        self._builder: Builder[Resource] = Builder(settings, resource)
        # Listener → version that is known to serve.
        self._active: dict[str, str] = {}
        self.svids: Mapping[str, SVID] = {}
        self._secrets: dict[str, tuple[SVID, Resource]] = {}
        self._bundle_resource: Resource | None = None
        self._plan: Plan | None = None
        """The last one that was to be made real."""

    @property
    def secrets(self) -> Mapping[str, SVID]:
        """What the published secrets hold, by name."""
        return {name: svid for name, (svid, _) in self._secrets.items()}

    @property
    def serving(self) -> frozenset[str]:
        """The listeners that are known to be active in this Envoy."""
        return frozenset(self._active)

    async def close(self, plan: Plan) -> Closed:
        """Step 1: what needs no proxy, and the end of connections that it must not carry any more."""
        started = time.perf_counter()
        errors: list[str] = []
        changed, carried = 0, self.kernel.carried
        try:
            changed, carried = await self.kernel.close(plan.kernel, errors)
        except (HostError, OSError) as e:
            errors.append(f"kernel: {e}")
        errors = [e if e.startswith("kernel") else f"kernel: {e}" for e in errors]
        return Closed(changed, carried, tuple(errors), time.perf_counter() - started)

    async def apply(self, plan: Plan, closed: Closed) -> Applied:
        """The other steps, after `close` for a Plan that differs at most in what `carried` asked for.

        What compiling has left to the garbage collector is not collected while somebody waits for a change.
        """
        with uncollecting():
            return await self._apply(plan, closed)

    async def _apply(self, plan: Plan, closed: Closed) -> Applied:
        errors = list(closed.errors)
        took = {"kernel_closed": round(closed.seconds, 6)}
        started = time.perf_counter() - closed.seconds
        patience = time.monotonic() + PATIENCE

        def lap(name: str) -> None:
            took[name] = round(time.perf_counter() - started, 6)

        wanted, changed = plan.kernel, closed.changed_entries
        try:
            self.svids = await self._blocking(self._issuer.reconcile, plan.secrets, self._clock())
        except Exception as e:
            errors.append(f"certificates: {e}")
            log.exception("certificates")
        errors += [f"certificate of {'/'.join(o[0])}: {why}" for o, why in self._issuer.failures.items()]
        snapshot = self._snapshot(plan)
        # What nothing protects need not wait, and stays as it is.
        bound = bool(plan.dns.rules)
        named = await self._dns.publish(plan.dns, DNS_PATIENCE if bound else DOOR_PATIENCE)
        named = named or (not bound and DNS_LISTENER in self.kernel.tables.listeners())
        lap("built")

        rollout = Rollout(self._server.published, snapshot, self._between(plan, snapshot))
        waiting = ""
        for stage in rollout.makes:
            outcome = await self._server.roll_to(stage, max(patience - time.monotonic(), 0.0))
            if not outcome.done:
                waiting = "Envoy has not answered: " + ", ".join(
                    t.rpartition(".")[2] for t in outcome.waiting
                )
                break
        ready = not waiting and await self._all_active(snapshot, patience)
        if not waiting and not ready:
            waiting = "a listener is not active in Envoy"
        refused = self._refusals()
        lap("proxy_ready")

        try:
            changed += self.kernel.tables.apply(
                self._steered(plan, wanted, snapshot, refused, proxy=not waiting, dns=named)
            )
        except (HostError, OSError) as e:
            errors.append(f"kernel: {e}")
        if changed and not errors:
            await self.kernel.end_unjudged(wanted)
        self._dns.release()
        lap("kernel_open")

        if not waiting:
            for stage in Rollout(self._server.published, snapshot).breaks:
                outcome = await self._server.roll_to(stage, PATIENCE)
                if not outcome.done:
                    waiting = "Envoy has not answered a removal"
                    break
        if not waiting and not named:
            waiting = "the DNS proxy has not answered"
        errors += [f"Envoy refused {kind} {name}: {why}" for (kind, name), why in self._refusals().items()]
        lap("done")
        edge = self._edge(plan, waiting, next((e for e in errors if e.startswith("kernel")), ""))
        return Applied(tuple(dict.fromkeys(errors)), waiting, took, changed, edge)

    def _steered(
        self,
        plan: Plan,
        wanted: KernelTables,
        snapshot: Snapshot,
        refused: Mapping[tuple[str, str], str],
        *,
        proxy: bool,
        dns: bool,
    ) -> KernelTables:
        active: set[ListenerKey] = {DNS_LISTENER} if dns else set()
        for listener in plan.proxy.listeners:
            item = snapshot.get(TypeUrl.LDS, listener.name)
            if item is not None and listener.name in self._active:
                active.add(listener_key(listener))
        classes_ready = all(
            each.name in self._active
            for each in plan.proxy.listeners
            if each.kind is ListenerKind.HTTP_SERVICE
        )
        held = {wanted.services[k].name for k in self.kernel.tables.http_services() if k in wanted.services}
        routed = held
        if proxy and classes_ready:
            routed = {
                table.name
                for table in plan.proxy.services
                if not any(
                    (kind, table.name) in refused
                    for kind in ("RouteConfiguration", "ScopedRouteConfiguration")
                )
            } | held
        return after_proxy(wanted, active, routed)

    # --- Envoy -----------------------------------------------------------------------------------------

    def _snapshot(self, plan: Plan) -> Snapshot:
        types: dict[str, dict[str, Resource]] = dict(self._builder.build(plan.proxy))
        trusted = self._trusted()
        if self._bundle_resource is None or trusted != self.trusted:
            self.trusted = trusted
            made = secrets({}, *trusted)
            self._bundle_resource = next(resource(name, message) for name, message in made.items())
        kept: dict[str, tuple[SVID, Resource]] = {}
        for name, svid in self.svids.items():
            before = self._secrets.get(name)
            if before is not None and before[0] == svid:
                kept[name] = before
            else:
                kept[name] = (svid, resource(name, workload_secret(name, svid)))
        self._secrets = kept
        given = types.get(TypeUrl.SDS, {})
        types[TypeUrl.SDS] = {**given, **{name: item for name, (_, item) in kept.items()}}
        types[TypeUrl.SDS][self._bundle_resource.name] = self._bundle_resource
        return Snapshot(types)

    def _between(self, plan: Plan, snapshot: Snapshot) -> Snapshot | None:
        """What Envoy is to hold until it has the tables of `snapshot`, made from `plan`."""
        before, self._plan = self._plan, plan
        if before is None:
            return None
        model = between(before.proxy, plan.proxy, same_policies=before.same_policies(plan))
        if model is None:
            return None
        return snapshot.with_types(self._builder.beside(model))

    def _refusals(self) -> dict[tuple[str, str], str]:
        return {(r.type_url.rpartition(".")[2], r.name): r.message for r in self._server.refusals()}

    def _edge(self, plan: Plan, waiting: str, fault: str) -> Mapping[str, str]:
        found = {}
        refusals = self._refusals()
        for listener in plan.proxy.edge:
            name = listener.name
            tables = [chain.table for chain in listener.chains if isinstance(chain, HttpChain)]
            refused = [refusals.get(("Listener", name))]
            refused += [refusals.get(("RouteConfiguration", table)) for table in tables]
            why = next((f"Envoy refused it: {each}" for each in refused if each), fault or waiting)
            if not why and name not in self._active:
                why = "its listener is not active in Envoy"
            found[name] = why
        return found

    async def _all_active(self, snapshot: Snapshot, deadline: float) -> bool:
        """After the LDS ACK, which is not readiness: wait until every listener serves and none is warming.

        Versions are no help: Envoy keeps the old version of a listener that differs in nothing it can see.
        """
        wanted = snapshot.of(TypeUrl.LDS)
        if all(self._active.get(name) == item.version for name, item in wanted.items()):
            return True
        pause = 0.002
        while True:
            try:
                states = await self._admin.listeners()
            except EnvoyAdminError:
                return False
            ready = {name for name, state in states.items() if state.active and not state.warming}
            self._active = {name: item.version for name, item in wanted.items() if name in ready}
            if len(self._active) == len(wanted):
                return True
            refused = self._refusals()
            if time.monotonic() > deadline or all(
                ("Listener", name) in refused for name in wanted.keys() - ready
            ):
                return False
            # Envoy tells nobody when a listener turns active; its admin interface can only be asked.
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)

    def forget_proxy(self) -> None:
        """Envoy is a new process: nothing of it is known to be active."""
        self._active = {}
