"""The node's part in a rotation of its CA.

A rotation is a file in the CA directory. This follows it, has the loop publish what the stage asks for, and
reports it as proven once Envoy has acknowledged the trust bundle and every certificate (reports.py).
Everything goes by secrets (SDS): no listener, no cluster and no connection is touched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.cert_calls import TYPES, CertificateCalls
from penstock.mtls.authority import Authority, Reporting
from penstock.mtls.errors import AuthorityError
from penstock.mtls.issuer import Issuer
from penstock.mtls.reports import Report
from penstock.mtls.rotation import Rotation
from penstock.mtls.svid import SVID
from penstock.revoked import AddressesOf, Enforcer
from penstock.xds.server import XdsServer
from penstock.xds.snapshot import TypeUrl
from penstock.xds.watch import SyncState

if TYPE_CHECKING:
    from penstock.apply import Applier

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds after which a report says what is missing, while it still waits for Envoy."""
HANDSHAKE = 1.0
"""Seconds for which a handshake may go on with the certificate or the bundle that it began with. What comes
after a stage may not hit one, and nobody can be asked whether there still is one."""


class Certificates:
    """One for a daemon. `run` it, call `applied` after each change, and serve `commands.calls`."""

    def __init__(
        self,
        node: str,
        *,
        ca: Authority,
        issuer: Issuer,
        applier: Applier,
        server: XdsServer,
        reporter: Reporting,
        blocking: Callable[..., Awaitable[Any]],
        enforced: Path,
    ) -> None:
        """`enforced` is the file that tells which revocations are in force."""
        self._node, self._ca, self._issuer, self._applier = node, ca, issuer, applier
        self._server, self._reporter, self._blocking = server, reporter, blocking
        self._wake: Callable[[], None] = lambda: None
        self._kick = asyncio.Event()
        self._enforcer = Enforcer(enforced, ca, applier, server, blocking)
        self._applied = asyncio.Event()
        self._problem = ""
        self._complete: tuple[Rotation, float] | None = None
        """The stage for which Envoy has acknowledged all, and since when (monotonic)."""
        self.commands = CertificateCalls(
            node,
            ca=ca,
            issuer=issuer,
            applier=applier,
            server=server,
            blocking=blocking,
            next_change=self._next_change,
        )

    async def _next_change(self) -> None:
        applied = self._applied
        self._wake()
        await applied.wait()

    async def run(self, wake: Callable[[], None]) -> None:
        """Follow the CA directory for ever. `wake` sets the loop going."""
        self._wake = wake
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ca.run())
            tasks.create_task(self._follow())
            tasks.create_task(self._report_forever())
            tasks.create_task(self._enforcer.run(self._kick.set))

    def applied(self, addresses_of: AddressesOf) -> None:
        """A change was applied: what was missing may be there."""
        self._kick.set()
        self._enforcer.look(addresses_of)
        self._applied.set()
        self._applied = asyncio.Event()

    async def _follow(self) -> None:
        async for _ in self._ca.changes():
            await self._reload()

    async def _reload(self) -> None:
        before = self._ca.state
        try:
            await self._blocking(self._ca.reload)
            self._problem = ""
        except AuthorityError as error:
            log.error("%s", error)
            self._problem = str(error)
            self._kick.set()
            return
        failed = list(self._issuer.failures)
        if failed:
            # What the CA refused or did not answer may be different now.
            await self._blocking(self._issuer.renew, failed)
            self._wake()
        self._kick.set()
        if before != self._ca.state:
            under_way = self._ca.rotation
            log.info("the CA has changed", extra={"stage": under_way.stage if under_way else ""})
            self._wake()

    async def _report_forever(self) -> None:
        while True:
            await self._kick.wait()
            self._kick.clear()
            if self._ca.rotation is not None:
                outcome = await self._server.wait_acked(TYPES, PATIENCE)
                if not outcome.done:
                    self._kick.set()
            try:
                await self._blocking(self._reporter.write, self.report())
            except OSError as error:
                log.error("cannot report to the CA directory: %s", error)

    def report(self) -> Report:
        """How far this node is, by what Envoy has acknowledged at this moment."""
        under_way = self._ca.rotation
        held = {id(kept): kept for kept in self._applier.secrets.values()}.values()
        moved = [kept for kept in held if self._ca.keeps(kept.chain_pem)]
        reason = ""
        if under_way is not None:
            reason = self._missing(held)
            reason = self._handshakes(under_way, complete=not reason) or reason
        return Report(
            self._node,
            rotation=under_way.id if under_way else "",
            stage=under_way.stage if under_way else "",
            proven=under_way is not None and not reason,
            reason=reason,
            leaves=len(held),
            moved=len(moved),
            revocations=self._enforcer.number,
        )

    def _handshakes(self, under_way: Rotation, *, complete: bool) -> str:
        """Why a stage is not proven though all is acknowledged. Nothing follows the last one."""
        if not complete or len(under_way.ahead) == 1:
            self._complete = None
            return ""
        now = time.monotonic()
        if self._complete is None or self._complete[0] != under_way:
            self._complete = (under_way, now)
        left = self._complete[1] + HANDSHAKE - now
        if left > 0:
            # The loop's clock is coarser than ours: it may fire early, and then looks once more.
            asyncio.get_running_loop().call_later(left, self._kick.set)
            return "handshakes that began before are ending"
        return ""

    def _missing(self, held: Iterable[SVID]) -> str:
        if self._problem:
            return self._problem
        if self._applier.trusted != (self._ca.bundle_pem, self._ca.lists_pem):
            return "its trust bundle is not published yet"
        if why := self._ca.missing():
            return why
        waiting = [kept for kept in held if not self._ca.keeps(kept.chain_pem)]
        for kept in waiting:
            why = self._issuer.failures.get((kept.workload, kept.spiffe_id), "not issued yet")
            return f"{len(waiting)} certificates have not moved; {'/'.join(kept.workload)}: {why}"
        if not self._server.connected:
            return "its Envoy is not connected"
        if not self._server.settled(TYPES):
            return "its Envoy has not acknowledged everything"
        for client in self._server.state():
            for status in client.types.get(TypeUrl.SDS, ()):
                if status.state is SyncState.ERROR:
                    return f"its Envoy refuses {status.name}: {status.error}"
                if status.state is SyncState.STALE:
                    return f"its Envoy has not acknowledged {status.name}"
        return ""
