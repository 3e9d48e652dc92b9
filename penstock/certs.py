"""The daemon's side of certificates: what the commands ask, and the node's part in a rotation of the CA.

A rotation is a file in the CA directory. This follows it, has the loop publish what the stage asks for, and
reports it as proven once Envoy has acknowledged the trust bundle and every certificate (reports.py).
Everything goes by secrets (SDS): no listener, no cluster and no connection is touched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509

from penstock.errors import PenstockError, UsageError
from penstock.mtls import show
from penstock.mtls.authority import Authority, Reporting
from penstock.mtls.errors import AuthorityError, VerifyError
from penstock.mtls.issuer import Issuer, Owner
from penstock.mtls.reports import Report
from penstock.mtls.rotation import Rotation
from penstock.mtls.svid import SVID
from penstock.mtls.verify import verify
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
_TYPES = (TypeUrl.CDS, TypeUrl.LDS, TypeUrl.SDS)
"""An Envoy that connects anew asks for secrets before it has acknowledged clusters and listeners."""
_STATES = {
    SyncState.SYNCED: "acknowledged",
    SyncState.STALE: "on its way",
    SyncState.ERROR: "refused",
    SyncState.NOT_SENT: "not asked for",
}


class Certificates:
    """One for a daemon. `run` it, call `applied` after each change, and serve `calls`."""

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

    @property
    def calls(self) -> dict[str, Callable[[dict[str, Any]], Awaitable[Any]]]:
        return {
            "certs": self._list,
            "cert_inspect": self._inspect,
            "cert_rotate": self._rotate,
            "ca": self._where,
        }

    # --- a rotation of the CA ------------------------------------------------------------------------------

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
                outcome = await self._server.wait_acked(_TYPES, PATIENCE)
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
        if not self._server.settled(_TYPES):
            return "its Envoy has not acknowledged everything"
        for client in self._server.state():
            for status in client.types.get(TypeUrl.SDS, ()):
                if status.state is SyncState.ERROR:
                    return f"its Envoy refuses {status.name}: {status.error}"
                if status.state is SyncState.STALE:
                    return f"its Envoy has not acknowledged {status.name}"
        return ""

    # --- what the commands ask -----------------------------------------------------------------------------

    async def _where(self, _: dict[str, Any]) -> Any:
        return self._ca.where()

    async def _list(self, _: dict[str, Any]) -> Any:
        withheld = [
            {"workload": "/".join(workload), "spiffe_id": spiffe_id, "reason": why}
            for (workload, spiffe_id), why in self._issuer.withheld.items()
        ]
        return {"node": self._node, "certificates": self._entries(time.time()), "withheld": withheld}

    def _entries(self, now: float) -> list[dict[str, Any]]:
        states, failures = self._envoy_states(), dict(self._issuer.failures)
        entries = []
        for owner, (kept, names) in sorted(self._by_owner().items()):
            leaf = x509.load_pem_x509_certificates(kept.chain_pem)[0]
            entries.append(
                {
                    "workload": "/".join(kept.workload),
                    "spiffe_id": kept.spiffe_id,
                    **show.certificate(leaf, now),
                    "node": self._node,
                    "addresses": names,
                    "envoy": {name: _STATES[states.get(name, SyncState.NOT_SENT)] for name in names},
                    "error": failures.pop(owner, ""),
                }
            )
        return entries

    async def _inspect(self, request: dict[str, Any]) -> Any:
        """Raises PenstockError if there is no such certificate."""
        owners = self._named([request["workload"]])
        found = []
        now = time.time()
        entries = {(entry["workload"], entry["spiffe_id"]): entry for entry in self._entries(now)}
        for owner in owners:
            kept, _ = self._by_owner()[owner]
            try:
                verify(kept.chain_pem, self._ca.bundle_pem, now=now, spiffe_id=kept.spiffe_id)
                verified = ""
            except VerifyError as error:
                verified = str(error)
            chain = x509.load_pem_x509_certificates(kept.chain_pem)
            found.append(
                {
                    **entries["/".join(owner[0]), owner[1]],
                    "valid": not verified,
                    "problem": verified,
                    "issued": show.moment(kept.issued_at),
                    "chain": [show.certificate(each, now) for each in chain[1:]],
                    "roots": [show.certificate(root, now) for root in self._ca.roots],
                    "pem": kept.chain_pem.decode(),
                }
            )
        return found

    async def _rotate(self, request: dict[str, Any]) -> Any:
        """New keys and certificates now; answers when Envoy has acknowledged them.

        Raises PenstockError if one could not be issued, was refused, or was not acknowledged in time.
        """
        before = self._by_owner()
        owners = list(before) if request["all"] else self._named(request["names"])
        await self._blocking(self._issuer.renew, owners)
        try:
            async with asyncio.timeout(request["seconds"]):
                await self._until_renewed(owners, before)
                while not (await self._server.wait_acked(_TYPES, PATIENCE)).done:
                    pass
        except TimeoutError:
            why = "" if self._server.connected else ": it is not connected"
            raise PenstockError(
                f"Envoy has not acknowledged the new certificates in time{why}",
                hint="the new ones are made and will be delivered; penstock cert list shows how far they are",
            ) from None
        names = {name for owner in owners for name in before[owner][1]}
        for client in self._server.state():
            for status in client.types.get(TypeUrl.SDS, ()):
                if status.name in names and status.error:
                    raise PenstockError(f"Envoy refused the certificate of {status.name}: {status.error}")
        after = self._by_owner()
        return [
            {
                "workload": "/".join(owner[0]),
                "spiffe_id": owner[1],
                "old_serial": f"{before[owner][0].serial:x}",
                "serial": f"{after[owner][0].serial:x}",
                "not_after": show.moment(after[owner][0].not_after),
            }
            for owner in owners
            if owner in after
        ]

    async def _until_renewed(self, owners: Iterable[Owner], before: Mapping[Owner, tuple[SVID, Any]]) -> None:
        while True:
            applied = self._applied
            self._wake()
            await applied.wait()
            now = self._by_owner()
            same = [o for o in owners if o in now and now[o][0] is before[o][0]]
            if not same:
                return
            for owner in same:
                if why := self._issuer.failures.get(owner):
                    raise PenstockError(
                        f"no new certificate for {'/'.join(owner[0])}: {why}", hint="the old one stays in use"
                    )

    def _by_owner(self) -> dict[Owner, tuple[SVID, list[str]]]:
        """Every certificate that is published, with the names it has (addresses)."""
        found: dict[Owner, tuple[SVID, list[str]]] = {}
        for name, kept in sorted(self._applier.secrets.items()):
            found.setdefault((kept.workload, kept.spiffe_id), (kept, []))[1].append(name)
        return found

    def _named(self, names: Iterable[str]) -> list[Owner]:
        """Owners by ``namespace/name``, name alone, or address. Raises PenstockError if there is none."""
        held = self._by_owner()
        found: list[Owner] = []
        for name in names:
            matching = [
                owner
                for owner, (_, addresses) in held.items()
                if name in ("/".join(owner[0]), owner[0][1]) or name in addresses
            ]
            if not matching:
                raise PenstockError(f"no certificate of {name} on {self._node}", hint="penstock cert list")
            if len({owner[0] for owner in matching}) > 1:
                which = ", ".join("/".join(owner[0]) for owner in matching)
                raise UsageError(f"{name} is the name of several workloads", hint=f"say which: {which}")
            found += matching
        return list(dict.fromkeys(found))

    def _envoy_states(self) -> dict[str, SyncState]:
        return {
            status.name: status.state
            for client in self._server.state()
            for status in client.types.get(TypeUrl.SDS, ())
        }
