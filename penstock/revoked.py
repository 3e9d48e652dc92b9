"""A node's part in a revocation: the end of every connection under a certificate that was taken back.

New connections are refused by Envoy once it has the list (trust bundle, by SDS). Neither a list nor a removed
secret closes what is open, so the proxy's connections of the workload are reset: after Envoy has acknowledged
the list, and once more when handshakes that began before it are over. Which revocations are in force is kept
on disk, so that a restart neither forgets one nor resets connections for an old one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.errors import HostError
from penstock.files import write_atomically
from penstock.mtls.revocation import Revocations
from penstock.redirect.sockets import reset_proxied
from penstock.world import Address
from penstock.xds.server import XdsServer
from penstock.xds.snapshot import TypeUrl

if TYPE_CHECKING:
    from penstock.apply import Applier
    from penstock.mtls.authority import Authority

log = logging.getLogger(__name__)

AddressesOf = Callable[[str], tuple[Address, ...]]
"""``namespace/name`` of a workload → its addresses."""

PATIENCE = 1.0
"""Seconds to wait for Envoy's acknowledgement before connections are reset without it (and again with it)."""
HANDSHAKE = 1.0
"""Seconds that a handshake may take which began under the list before."""
RETRY = 1.0


class _Enforced(msgspec.Struct):
    number: int = 0
    serials: set[str] = msgspec.field(default_factory=set)


class Enforcer:
    """One for a daemon: `run` it, and let it `look` after each change that was applied."""

    def __init__(
        self,
        path: Path,
        ca: Authority,
        applier: Applier,
        server: XdsServer,
        blocking: Callable[..., Awaitable[Any]],
    ) -> None:
        self._path, self._ca, self._applier = path, ca, applier
        self._server, self._blocking = server, blocking
        self._enforced = _read(path)
        self._kick = asyncio.Event()
        self._addresses_of: AddressesOf = lambda _: ()

    @property
    def number(self) -> int:
        """That of the revocations in force (`Revocations.number`)."""
        return self._enforced.number

    def look(self, addresses_of: AddressesOf) -> None:
        self._addresses_of = addresses_of
        self._kick.set()

    async def run(self, done: Callable[[], None]) -> None:
        """For ever. `done` is called whenever `number` has changed."""
        while True:
            await self._kick.wait()
            self._kick.clear()
            revoked = self._ca.revoked
            published = self._applier.trusted == (self._ca.bundle_pem, self._ca.lists_pem)
            if revoked.number == self._enforced.number or not published:
                continue
            if await self._enforce(revoked):
                done()
            else:
                asyncio.get_running_loop().call_later(RETRY, self._kick.set)

    async def _enforce(self, revoked: Revocations) -> bool:
        new = [c for c in revoked.certificates if c.serial not in self._enforced.serials]
        addresses = {address for c in new for address in self._addresses_of(c.owner)}
        acked = (await self._server.wait_acked((TypeUrl.SDS,), PATIENCE)).done
        try:
            await self._reset(addresses)
            if not acked:
                return False
            if addresses:
                await asyncio.sleep(HANDSHAKE)
                await self._reset(addresses)
            self._enforced = _Enforced(revoked.number, {c.serial for c in revoked.certificates})
            await self._blocking(write_atomically, self._path, msgspec.json.encode(self._enforced))
        except (HostError, OSError) as error:
            log.error("a revocation is not in force: %s", error)
            return False
        for owner in sorted({c.owner for c in new}):
            log.warning("revoked: connections were reset", extra={"workload": owner, "reason": "REVOKED"})
        return True

    async def _reset(self, addresses: set[Address]) -> None:
        if addresses:
            await self._blocking(reset_proxied, addresses)


def _read(path: Path) -> _Enforced:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Enforced)
    except (OSError, ValueError, msgspec.MsgspecError):
        return _Enforced()  # enforced once more: connections are reset that need not have been
