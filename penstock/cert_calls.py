"""What the commands ask of a daemon about certificates: the list, one in full, new ones now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cryptography import x509

from penstock.errors import PenstockError, UsageError
from penstock.mtls import show
from penstock.mtls.authority import Authority
from penstock.mtls.errors import VerifyError
from penstock.mtls.issuer import Issuer, Owner
from penstock.mtls.svid import SVID
from penstock.mtls.verify import verify
from penstock.xds.server import XdsServer
from penstock.xds.snapshot import TypeUrl
from penstock.xds.watch import SyncState

if TYPE_CHECKING:
    from penstock.apply import Applier

PATIENCE = 5.0
"""Seconds for one look at what Envoy has acknowledged."""
TYPES = (TypeUrl.CDS, TypeUrl.LDS, TypeUrl.SDS)
"""An Envoy that connects anew asks for secrets before it has acknowledged clusters and listeners."""
_STATES = {
    SyncState.SYNCED: "acknowledged",
    SyncState.STALE: "on its way",
    SyncState.ERROR: "refused",
    SyncState.NOT_SENT: "not asked for",
}


class CertificateCalls:
    """Serve `calls`; `entries` is for others who look."""

    def __init__(
        self,
        node: str,
        *,
        ca: Authority,
        issuer: Issuer,
        applier: Applier,
        server: XdsServer,
        blocking: Callable[..., Awaitable[Any]],
        next_change: Callable[[], Awaitable[None]],
    ) -> None:
        """`next_change` sets the loop going, and returns when a change was applied."""
        self._node, self._ca, self._issuer, self._applier = node, ca, issuer, applier
        self._server, self._blocking, self._next_change = server, blocking, next_change

    @property
    def calls(self) -> dict[str, Callable[[dict[str, Any]], Awaitable[Any]]]:
        return {
            "certs": self._list,
            "cert_inspect": self._inspect,
            "cert_rotate": self._rotate,
            "ca": self._where,
        }

    async def _where(self, _: dict[str, Any]) -> Any:
        return self._ca.where()

    async def _list(self, _: dict[str, Any]) -> Any:
        withheld = [
            {"workload": "/".join(workload), "spiffe_id": spiffe_id, "reason": why}
            for (workload, spiffe_id), why in self._issuer.withheld.items()
        ]
        return {"node": self._node, "certificates": self.entries(time.time()), "withheld": withheld}

    def entries(self, now: float) -> list[dict[str, Any]]:
        """Every certificate that is published, as `cert list` shows it."""
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
        entries = {(entry["workload"], entry["spiffe_id"]): entry for entry in self.entries(now)}
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
                while not (await self._server.wait_acked(TYPES, PATIENCE)).done:
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
            await self._next_change()
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
