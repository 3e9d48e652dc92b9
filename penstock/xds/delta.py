"""The incremental variant of xDS, as a face of the session core."""

from __future__ import annotations

from collections.abc import Set

from penstock.xds import wire
from penstock.xds.errors import ProtocolError
from penstock.xds.said import Response
from penstock.xds.session import Request, Session
from penstock.xds.watch import Watch


class DeltaSession(Session):
    """The incremental variant: a response carries what changed, and names what is gone.

    A nonce that is not outstanding does not discard the subscription changes in its request.
    """

    def encode(self, response: Response) -> bytes:
        return wire.delta_response(
            response.type_url,
            response.nonce,
            response.resources,
            response.removed,
            response.kept,
            ttl=self.understands_ttl,
        )

    def _asked(self, request: Request, names: Set[str]) -> int:
        if request.resource_locators_subscribe or request.resource_locators_unsubscribe:
            raise ProtocolError("resource_locators_subscribe is not supported: ask by name")
        told = (*request.resource_names_subscribe, *request.initial_resource_versions)
        return len(names) + sum(name not in names for name in told)

    def _subscribe(self, watch: Watch, request: Request) -> None:
        if not watch.opened:
            self._open(watch, request.resource_names_subscribe, dict(request.initial_resource_versions))
        elif request.resource_names_subscribe or request.resource_names_unsubscribe:
            watch.change(request.resource_names_subscribe, request.resource_names_unsubscribe, self._snapshot)
