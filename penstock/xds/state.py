"""The state-of-the-world face of a session: Envoy's older variant, and the one that gRPC's own client speaks.

What differs from the incremental face, and the rules that a server gets wrong:
- A request names all that the client watches now, so what was added and dropped is the difference. No names
  mean everything only as long as the client has never named anything of that type on this stream; "*" says
  it at any time, and mixes with names.
- A request with the nonce of an older response was written before the newer one came: its names are not
  looked at, a newer request follows. (What it says about the older response counts.)
- Names that are added are answered, at an unchanged version too; so is whoever comes back with a version.
- Clusters, listeners and scopes travel whole: what is absent is deleted. So one response is on its way at a
  time, and a bad resource is left out by its last good version instead of by not being sent. Of the other
  types absence means nothing, and there are no words to say that one is gone.

A client that comes back does not say what it holds, and the first whole response takes away what is not
wanted any more: what the incremental face delays until routes have left it, this one cannot.
"""

from __future__ import annotations

from collections.abc import Set
from typing import ClassVar

from penstock.xds import wire
from penstock.xds.errors import ProtocolError
from penstock.xds.said import Response
from penstock.xds.session import Request, Session
from penstock.xds.snapshot import TypeUrl, version_of
from penstock.xds.watch import LEGACY_WILDCARD, Parcel, Watch


class StateSession(Session):
    complete: ClassVar[frozenset[TypeUrl]] = LEGACY_WILDCARD

    def encode(self, response: Response) -> bytes:
        return wire.state_response(
            response.type_url,
            response.version,
            response.nonce,
            response.resources,
            response.kept,
            ttl=self.understands_ttl,
        )

    def _asked(self, request: Request, names: Set[str]) -> int:
        if request.resource_locators:
            raise ProtocolError("resource_locators is not supported: ask by name")
        return len(request.resource_names)

    def _subscribe(self, watch: Watch, request: Request) -> None:
        names = set(request.resource_names)
        if not watch.opened:
            watch.named = bool(names)
            self._open(watch, names, {})
            watch.returning = bool(request.version_info)
            return
        if request.response_nonce not in ("", watch.last_nonce):
            return
        watch.named = watch.named or bool(names)
        everything = "*" in names or (not watch.named and watch.type_url in LEGACY_WILDCARD)
        wanted = names - {"*"} | ({"*"} if everything else set())
        before = watch.names | ({"*"} if watch.wildcard else set())
        if wanted != before:
            watch.change(wanted - before, before - wanted, self._snapshot)

    def _settle(self, watch: Watch, request: Request) -> list[Response]:
        """Who acknowledges a response took those before it, too, though it need not say so."""
        if request.response_nonce in watch.outstanding and not request.HasField("error_detail"):
            older = [nonce for nonce in watch.outstanding if int(nonce) < int(request.response_nonce)]
            for nonce in older:
                watch.ack(watch.outstanding.pop(nonce), self.snapshot)
        return super()._settle(watch, request)

    def _remove(self, watch: Watch, names: frozenset[str]) -> list[Response]:
        if watch.complete:
            return super()._remove(watch, names)
        watch.drop(names)
        return []

    def _response(self, watch: Watch, nonce: str, parcel: Parcel) -> Response:
        resources = parcel.resources
        version = self.snapshot.version(watch.type_url)
        if watch.complete:
            resources = watch.state(parcel)
            version = version_of(resources.values())
        return Response(
            watch.type_url,
            nonce,
            tuple(resources.values()),
            tuple(sorted(parcel.removed)),
            parcel.kept if not watch.complete else (),
            version,
        )
