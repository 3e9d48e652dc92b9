"""The gRPC services of xDS: which method speaks which variant, of one type or of all.

Names are those of the API (envoy/service/*/v3/*.proto); the Python package has no base classes for them that
do without its generated servicers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.status.v3 import csds_pb2

from penstock.xds.delta import DeltaSession
from penstock.xds.errors import ProtocolError
from penstock.xds.session import Session
from penstock.xds.snapshot import TypeUrl
from penstock.xds.state import StateSession

_ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_CSDS = "envoy.service.status.v3.ClientStatusDiscoveryService"

_OF_ONE_TYPE: Mapping[TypeUrl, tuple[str, str]] = {
    TypeUrl.LDS: ("envoy.service.listener.v3.ListenerDiscoveryService", "Listeners"),
    TypeUrl.SRDS: ("envoy.service.route.v3.ScopedRoutesDiscoveryService", "ScopedRoutes"),
    TypeUrl.RDS: ("envoy.service.route.v3.RouteDiscoveryService", "Routes"),
    TypeUrl.CDS: ("envoy.service.cluster.v3.ClusterDiscoveryService", "Clusters"),
    TypeUrl.EDS: ("envoy.service.endpoint.v3.EndpointDiscoveryService", "Endpoints"),
    TypeUrl.SDS: ("envoy.service.secret.v3.SecretDiscoveryService", "Secrets"),
}
"""Type → its own service, and the word that its methods end in."""

Serve = Callable[[Callable[[], Session], Any, Any], Awaitable[None]]
"""Serves one stream: (how to make its session, requests, context)."""


@dataclass(frozen=True, slots=True)
class _Variant:
    face: type[Session]
    request: Any


_DELTA = _Variant(DeltaSession, discovery_pb2.DeltaDiscoveryRequest)
_STATE = _Variant(StateSession, discovery_pb2.DiscoveryRequest)


def _as_it_is(message: bytes) -> bytes:
    return message


def _stream(serve: Serve, variant: _Variant, only: TypeUrl | None) -> Any:
    async def handle(requests: Any, context: Any) -> None:
        await serve(lambda: variant.face(only), requests, context)

    return grpc.stream_stream_rpc_method_handler(
        handle, request_deserializer=variant.request.FromString, response_serializer=_as_it_is
    )


def discovery(serve: Serve) -> Iterator[grpc.GenericRpcHandler]:
    """All discovery services, each stream served by `serve`."""
    aggregated = {
        "DeltaAggregatedResources": _stream(serve, _DELTA, None),
        "StreamAggregatedResources": _stream(serve, _STATE, None),
    }
    yield grpc.method_handlers_generic_handler(_ADS, aggregated)
    for kind, (service, word) in _OF_ONE_TYPE.items():
        methods = {
            f"Delta{word}": _stream(serve, _DELTA, kind),
            f"Stream{word}": _stream(serve, _STATE, kind),
        }
        yield grpc.method_handlers_generic_handler(service, methods)


def status(
    tell: Callable[[Any], Any], refusal_of: Callable[[Any], Callable[[], str]]
) -> grpc.GenericRpcHandler:
    """Client status discovery; `tell` answers one ClientStatusRequest. `refusal_of` (context) gives what says
    why a client may not ask."""

    async def fetch(request: Any, context: Any) -> Any:
        return await answer(request, context, refusal_of(context))

    async def stream(requests: Any, context: Any) -> None:
        refusal = refusal_of(context)
        async for request in requests:
            await context.write(await answer(request, context, refusal))

    async def answer(request: Any, context: Any, refusal: Callable[[], str]) -> Any:
        if why := refusal():
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, why)
        try:
            return tell(request)
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    shapes = {
        "request_deserializer": csds_pb2.ClientStatusRequest.FromString,
        "response_serializer": csds_pb2.ClientStatusResponse.SerializeToString,
    }
    methods = {
        "FetchClientStatus": grpc.unary_unary_rpc_method_handler(fetch, **shapes),
        "StreamClientStatus": grpc.stream_stream_rpc_method_handler(stream, **shapes),
    }
    return grpc.method_handlers_generic_handler(_CSDS, methods)
