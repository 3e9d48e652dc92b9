"""Envoy's access log entries as records."""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from penstock.observe.als import RequestRecord, records


def common() -> accesslog_pb2.AccessLogCommon:
    properties = accesslog_pb2.AccessLogCommon(route_name="r", connection_termination_details="closed")
    for address, host, port in (
        (properties.downstream_remote_address, "203.0.113.9", 1),
        (properties.downstream_direct_remote_address, "10.0.0.1", 40000),
        (properties.downstream_local_address, "10.96.0.1", 80),
        (properties.upstream_remote_address, "10.0.0.2", 8080),
    ):
        address.socket_address.address = host
        address.socket_address.port_value = port
    properties.start_time.FromNanoseconds(1_700_000_000_500_000_000)
    properties.duration.FromMicroseconds(1234)
    properties.response_flags.no_route_found = True
    properties.response_flags.unauthorized_details.reason = 1
    peer = properties.tls_properties.peer_certificate_properties
    peer.subject_alt_name.add(uri="spiffe://d/ns/a/sa/b")
    peer.subject_alt_name.add(dns="not-a-uri")
    properties.tls_properties.local_certificate_properties.subject_alt_name.add(uri="spiffe://d/ns/c/sa/d")
    return properties


def test_an_http_request() -> None:
    entry = accesslog_pb2.HTTPAccessLogEntry(
        common_properties=common(), protocol_version=accesslog_pb2.HTTPAccessLogEntry.HTTP2
    )
    entry.request.request_method = base_pb2.POST
    entry.request.path = "/rewritten"
    entry.request.original_path = "/asked"
    entry.request.authority = "api"
    entry.request.request_body_bytes = 3
    entry.response.response_code.value = 403
    entry.response.response_body_bytes = 15
    entry.response.response_code_details = "rbac"
    message = als_pb2.StreamAccessLogsMessage(
        http_logs=als_pb2.StreamAccessLogsMessage.HTTPAccessLogEntries(log_entry=[entry])
    )
    assert list(records(message, "listener")) == [
        RequestRecord(
            time=1_700_000_000.5,
            log_name="listener",
            source=("10.0.0.1", 40000),
            destination=("10.96.0.1", 80),
            upstream=("10.0.0.2", 8080),
            method="POST",
            path="/asked",
            authority="api",
            code=403,
            flags=("no_route_found", "unauthorized_details"),
            details="rbac",
            duration_us=1234,
            bytes_in=3,
            bytes_out=15,
            protocol="HTTP/2",
            peer_ids=("spiffe://d/ns/a/sa/b",),
            local_ids=("spiffe://d/ns/c/sa/d",),
            route_name="r",
        )
    ]


def test_a_tcp_connection() -> None:
    entry = accesslog_pb2.TCPAccessLogEntry(common_properties=common())
    entry.connection_properties.received_bytes = 5
    entry.connection_properties.sent_bytes = 7
    message = als_pb2.StreamAccessLogsMessage(
        tcp_logs=als_pb2.StreamAccessLogsMessage.TCPAccessLogEntries(log_entry=[entry])
    )
    (record,) = records(message, "tls")
    assert (record.protocol, record.method, record.path, record.code) == ("TCP", "", "", 0)
    assert (record.bytes_in, record.bytes_out, record.details) == (5, 7, "closed")


def test_an_entry_that_says_nothing_is_a_record_too() -> None:
    message = als_pb2.StreamAccessLogsMessage()
    message.http_logs.log_entry.add(protocol_version=99).request.request_method = 99
    (record,) = records(message, "")
    assert (record.source, record.method, record.protocol, record.flags) == (("", 0), "", "HTTP", ())
