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
from typing import TYPE_CHECKING, Any

from asyncinotify import Inotify, Mask
from cryptography import x509

from penstock.errors import PenstockError, UsageError
from penstock.mtls import rotation, show
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.errors import AuthorityError, VerifyError
from penstock.mtls.issuer import Issuer, Owner
from penstock.mtls.reports import Report, Reporter
from penstock.mtls.svid import SVID
from penstock.mtls.verify import verify
from penstock.xds.server import XdsServer
from penstock.xds.snapshot import TypeUrl
from penstock.xds.watch import SyncState

if TYPE_CHECKING:
    from penstock.apply import Applier

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds after which a report says what is missing, while it still waits for Envoy."""
_TYPES = (TypeUrl.CDS, TypeUrl.LDS, TypeUrl.SDS)
"""An Envoy that connects anew asks for secrets before it has acknowledged clusters and listeners."""
_FILES = (rotation.FILE, "root.crt", "intermediate.crt")
_STATES = {
    SyncState.SYNCED: "acknowledged",
    SyncState.STALE: "on its way",
    SyncState.ERROR: "refused",
    SyncState.NOT_SENT: "not asked for",
}
LATE = 1 / 3
"""Renewal comes at half of a certificate's life; with less than this left of it something is wrong."""
ROOT_NEAR = 90 * 86400
INTERMEDIATE_NEAR = 30 * 86400


class Certificates:
    """One for a daemon. `run` it, call `applied` after each change, and serve `calls`."""

    def __init__(
        self,
        node: str,
        *,
        ca: CertificateAuthority,
        issuer: Issuer,
        applier: Applier,
        server: XdsServer,
        reporter: Reporter,
        blocking: Callable[..., Awaitable[Any]],
    ) -> None:
        self._node, self._ca, self._issuer, self._applier = node, ca, issuer, applier
        self._server, self._reporter, self._blocking = server, reporter, blocking
        self._wake: Callable[[], None] = lambda: None
        self._kick = asyncio.Event()
        self._applied = asyncio.Event()
        self._problem = ""

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
            tasks.create_task(self._follow())
            tasks.create_task(self._report_forever())

    def applied(self) -> None:
        """A change was applied: what was missing may be there."""
        self._kick.set()
        self._applied.set()
        self._applied = asyncio.Event()

    async def _follow(self) -> None:
        with Inotify() as inotify:
            inotify.add_watch(self._ca.directory, Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE)
            # What happened since the CA was opened.
            await self._reload()
            async for event in inotify:
                # Without a name: the queue overran, and anything may have happened.
                if event.name is None or str(event.name) in _FILES:
                    await self._reload()

    async def _reload(self) -> None:
        before = (self._ca.rotation, self._ca.bundle_pem, self._ca.intermediate)
        try:
            await self._blocking(self._ca.reload)
            self._problem = ""
        except AuthorityError as error:
            log.error("%s", error)
            self._problem = str(error)
            self._kick.set()
            return
        if before != (self._ca.rotation, self._ca.bundle_pem, self._ca.intermediate):
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
        reason = self._missing(held) if under_way else ""
        return Report(
            self._node,
            rotation=under_way.id if under_way else "",
            stage=under_way.stage if under_way else "",
            proven=under_way is not None and not reason,
            reason=reason,
            leaves=len(held),
            moved=len(moved),
        )

    def _missing(self, held: Iterable[SVID]) -> str:
        if self._problem:
            return self._problem
        if self._applier.bundle != self._ca.bundle_pem:
            return "its trust bundle is not published yet"
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
        return {"directory": str(self._ca.directory), "trust_domain": self._ca.trust_domain}

    async def _list(self, _: dict[str, Any]) -> Any:
        return {"node": self._node, "certificates": self._entries(time.time())}

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


def health(ca: CertificateAuthority, issuer: Issuer, svids: Mapping[str, SVID], now: float) -> dict[str, Any]:
    """Nearest end, ages, failures, and what should be looked at before it hurts."""
    held = list({id(kept): kept for kept in svids.values()}.values())
    nearest = min(held, key=lambda kept: kept.not_after, default=None)
    failures = [
        {"workload": "/".join(o[0]), "spiffe_id": o[1], "reason": w} for o, w in issuer.failures.items()
    ]
    root, intermediate = (c.not_valid_after_utc.timestamp() - now for c in (ca.root, ca.intermediate))
    under_way = ca.rotation
    warnings = []
    for kept in held:
        if kept.not_after - now < LATE * (kept.not_after - kept.issued_at):
            why = issuer.failures.get((kept.workload, kept.spiffe_id), "no reason known")
            left = show.remaining(kept.not_after - now)
            warnings.append(
                f"the certificate of {'/'.join(kept.workload)} was not renewed ({why}): {left} left"
            )
    if intermediate < min(INTERMEDIATE_NEAR, root):
        warnings.append(
            f"the CA's intermediate was not renewed: {show.remaining(intermediate)} left; "
            "put root.key into the CA directory, and run penstock ca rotate --intermediate"
        )
    if root < ROOT_NEAR:
        warnings.append(f"the CA's root has {show.remaining(root)} left: penstock ca rotate --root")
    if under_way is not None:
        since = show.remaining(now - under_way.started)
        warnings.append(
            f"a rotation of the CA's {under_way.kind} is at stage {under_way.stage}, begun {since} ago"
        )
    return {
        "nearest_expiry": show.moment(nearest.not_after) if nearest else None,
        "nearest_expiry_seconds": round(nearest.not_after - now, 1) if nearest else None,
        "nearest_expiry_workload": "/".join(nearest.workload) if nearest else None,
        "oldest_age_seconds": round(max((now - k.issued_at for k in held), default=0.0), 1),
        "lifetime_seconds": issuer.lifetime.total_seconds(),
        "failures": failures,
        "intermediate_expiry_seconds": round(intermediate),
        "root_expiry_seconds": round(root),
        "warnings": warnings,
    }
