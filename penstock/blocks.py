"""The daemon's side of `penstock block`: the calls, and the end of what was blocked for a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

from penstock.errors import PenstockError, UsageError
from penstock.redirect.blocklist import Blocked, Blocklist
from penstock.redirect.datapath import Datapath
from penstock.world import Network


class Blocks:
    """One for a daemon: serve `calls`. Programs are attached while anything is blocked."""

    def __init__(self, blocklist: Blocklist, datapath: Datapath) -> None:
        self._blocklist, self._datapath = blocklist, datapath
        self._timer: asyncio.TimerHandle | None = None
        self._datapath.guard(bool(blocklist))
        self._wake_at_end()

    @property
    def calls(self) -> Mapping[str, Callable[[dict[str, Any]], Awaitable[Any]]]:
        return {"block_add": self._add, "block_delete": self._delete, "block_list": self._list}

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._blocklist.close()

    async def _add(self, request: dict[str, Any]) -> Any:
        network = _network(request["cidr"])
        self._blocklist.add(network, request["seconds"])
        self._changed()
        return self._shown(network)

    async def _delete(self, request: dict[str, Any]) -> Any:
        network = _network(request["cidr"])
        if not self._blocklist.delete(network):
            raise PenstockError(f"{network} is not blocked", hint="penstock block list shows what is")
        self._changed()
        return {"cidr": str(network)}

    async def _list(self, _: dict[str, Any]) -> Any:
        self._blocklist.expire()
        self._changed()
        return [_plain(b) for b in self._blocklist.entries()]

    def _shown(self, network: Network) -> Any:
        return next(_plain(b) for b in self._blocklist.entries() if b.network == network)

    def _changed(self) -> None:
        self._datapath.guard(bool(self._blocklist))
        self._wake_at_end()

    def _wake_at_end(self) -> None:
        """The kernel needs no help to end an entry; this removes it, and the programs after the last one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        seconds = self._blocklist.next_end()
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds + 0.01, self._end)

    def _end(self) -> None:
        self._blocklist.expire()
        self._changed()


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(
            f"{text} is no network: {error}", hint="such as 192.0.2.0/24 or 2001:db8::/32"
        ) from None


def _plain(blocked: Blocked) -> dict[str, Any]:
    return {
        "cidr": str(blocked.network),
        "since": _time(blocked.since),
        "until": _time(blocked.until) if blocked.until is not None else None,
        "packets": blocked.packets,
        "bytes": blocked.bytes,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
