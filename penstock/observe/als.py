"""Envoy's access log over gRPC (envoy.service.accesslog.v3), turned into plain records.

Envoy streams entries to us and never gets an answer; it drops entries rather than wait for a slow
receiver. So the callback must be quick, and one that fails costs its own record only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from penstock.envoy.accesslog import UPSTREAM_LOCAL_TAG, UPSTREAM_PEER_TAG

log = logging.getLogger(__name__)

_SERVICE = "envoy.service.accesslog.v3.AccessLogService"

_PROTOCOLS = {
    accesslog_pb2.HTTPAccessLogEntry.HTTP10: "HTTP/1.0",
    accesslog_pb2.HTTPAccessLogEntry.HTTP11: "HTTP/1.1",
    accesslog_pb2.HTTPAccessLogEntry.HTTP2: "HTTP/2",
    accesslog_pb2.HTTPAccessLogEntry.HTTP3: "HTTP/3",
}

_METHODS = {number: name for name, number in base_pb2.RequestMethod.items() if number}

HostPort = tuple[str, int]
"""An IP address (or a pipe's path, with port 0) and a port; ("", 0) where Envoy named none."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One HTTP request, or one TCP connection (`protocol` "TCP", no method, path or code).

    `time` is seconds since the epoch at the start, `duration_us` microseconds until the last byte to the
    client. `flags` are the set fields of Envoy's ResponseFlags by name, `details` its response code or
    connection termination details. `source` and `destination` are the connection's own addresses (the
    original destination where the kernel redirected), `upstream` the chosen endpoint. `peer_ids` and
    `local_ids` are the URI SANs of the client's and our certificate, `upstream_…` those of the connection to
    the endpoint. Bytes are bodies for HTTP, the
    payload for TCP; `bytes_in` is from the client.
    """

    time: float
    log_name: str
    source: HostPort
    destination: HostPort
    upstream: HostPort
    method: str
    path: str
    authority: str
    code: int
    flags: tuple[str, ...]
    details: str
    duration_us: int
    bytes_in: int
    bytes_out: int
    protocol: str
    peer_ids: tuple[str, ...]
    local_ids: tuple[str, ...]
    route_name: str
    upstream_peer_ids: tuple[str, ...] = ()
    upstream_local_ids: tuple[str, ...] = ()
    server_name: str = ""
    """The SNI, where it was looked at."""
    tls_failure: str = ""
    """What Envoy says about a handshake that failed, with the client or with the endpoint."""
    cluster: str = ""
    """Where it was to go, as Envoy calls it."""
    begun: bool = False
    """A TCP connection that goes on: it has just come to the other end."""


class Budget:
    """How many entries are taken a second; the rest is counted and let go.

    A proxy under load logs more than anybody reads, and each entry costs the daemon more than it cost Envoy.
    Refusals and errors are what people look for: they may use twice the budget.
    """

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._since = clock()
        self._taken = 0
        self.skipped = 0

    def takes(self, *, failed: bool) -> bool:
        now = self._clock()
        if now - self._since >= 1.0:
            self._since, self._taken = now, 0
        if self._taken >= self._per_second * (2 if failed else 1):
            self.skipped += 1
            return False
        self._taken += 1
        return True


def access_log_service(
    callback: Callable[[RequestRecord], None], budget: Budget | None = None
) -> grpc.GenericRpcHandler:
    """A gRPC service that calls `callback` for the entries in `budget`, in its server's event loop."""

    async def stream(messages: AsyncIterator[Any], context: Any) -> Any:
        log_name = ""
        async for message in messages:
            # Only the first message of a stream says who it is.
            if message.HasField("identifier"):
                log_name = message.identifier.log_name
            for record in records(message, log_name, budget):
                try:
                    callback(record)
                except Exception:
                    log.exception("an access log entry of %s could not be taken", log_name)
        return als_pb2.StreamAccessLogsResponse()

    method = grpc.stream_unary_rpc_method_handler(
        stream,
        request_deserializer=als_pb2.StreamAccessLogsMessage.FromString,
        response_serializer=als_pb2.StreamAccessLogsResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(_SERVICE, {"StreamAccessLogs": method})


def records(message: Any, log_name: str, budget: Budget | None = None) -> Iterator[RequestRecord]:
    """The entries of one StreamAccessLogsMessage. `log_name` is that of the stream's first message."""
    for entry in message.http_logs.log_entry:
        if budget and not budget.takes(failed=entry.response.response_code.value >= 400):
            continue
        yield _record(
            log_name,
            entry.common_properties,
            method=_METHODS.get(entry.request.request_method, ""),
            path=entry.request.original_path or entry.request.path,
            authority=entry.request.authority,
            code=entry.response.response_code.value,
            details=entry.response.response_code_details,
            bytes_in=entry.request.request_body_bytes,
            bytes_out=entry.response.response_body_bytes,
            protocol=_PROTOCOLS.get(entry.protocol_version, "HTTP"),
        )
    for entry in message.tcp_logs.log_entry:
        common = entry.common_properties
        begun = common.access_log_type == accesslog_pb2.AccessLogType.TcpUpstreamConnected
        failed = bool(common.downstream_transport_failure_reason or common.upstream_transport_failure_reason)
        if budget and not budget.takes(failed=begun or failed):
            continue
        yield _record(
            log_name,
            entry.common_properties,
            details=entry.common_properties.connection_termination_details,
            bytes_in=entry.connection_properties.received_bytes,
            bytes_out=entry.connection_properties.sent_bytes,
            protocol="TCP",
            begun=begun,
        )


def _record(
    log_name: str,
    common: Any,
    *,
    details: str,
    bytes_in: int,
    bytes_out: int,
    protocol: str,
    method: str = "",
    path: str = "",
    authority: str = "",
    code: int = 0,
    begun: bool = False,
) -> RequestRecord:
    tls = common.tls_properties
    ended = common.time_to_last_downstream_tx_byte
    duration = common.duration if common.HasField("duration") else ended
    # A copy of a request (a mirror) comes by Envoy's user space: whose it is, its header has said.
    inside = common.downstream_direct_remote_address.HasField("envoy_internal_address")
    return RequestRecord(
        time=common.start_time.ToNanoseconds() / 1e9,
        log_name=log_name,
        # The direct address: behind x-forwarded-for the other one is what the client claims.
        source=_address(
            common.downstream_remote_address if inside else common.downstream_direct_remote_address
        ),
        destination=_address(
            common.upstream_remote_address
            if inside and common.HasField("upstream_remote_address")
            else common.downstream_local_address
        ),
        upstream=_address(common.upstream_remote_address),
        method=method,
        path=path,
        authority=authority,
        code=code,
        flags=_flags(common.response_flags),
        details=details,
        duration_us=duration.ToMicroseconds(),
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        protocol=protocol,
        peer_ids=_uris(tls.peer_certificate_properties),
        local_ids=_uris(tls.local_certificate_properties),
        upstream_peer_ids=_proven(common.custom_tags.get(UPSTREAM_PEER_TAG, "")),
        upstream_local_ids=_proven(common.custom_tags.get(UPSTREAM_LOCAL_TAG, "")),
        route_name=common.route_name,
        server_name=tls.tls_sni_hostname,
        cluster=common.upstream_cluster,
        tls_failure=common.downstream_transport_failure_reason or common.upstream_transport_failure_reason,
        begun=begun,
    )


def _address(address: Any) -> HostPort:
    if address.HasField("pipe"):
        return address.pipe.path, 0
    if address.HasField("envoy_internal_address"):
        # An endpoint that is reached by way of Envoy's user space is called after its address.
        host, _, port = address.envoy_internal_address.endpoint_id.rpartition(":")
        return (host.strip("[]"), int(port)) if port.isdigit() else ("", 0)
    return address.socket_address.address, address.socket_address.port_value


def _flags(flags: Any) -> tuple[str, ...]:
    return tuple(field.name for field, _ in flags.ListFields())


def _uris(certificate: Any) -> tuple[str, ...]:
    return tuple(san.uri for san in certificate.subject_alt_name if san.uri)


def _proven(tag: str) -> tuple[str, ...]:
    """Envoy writes "-" where there is no certificate, and joins several names by commas."""
    return tuple(tag.split(",")) if tag not in ("", "-") else ()
