"""Access logs to the daemon over gRPC (ALS): one stream, told apart by the listener's name."""

from __future__ import annotations

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2, grpc_service_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.type.matcher.v3 import metadata_pb2, string_pb2, value_pb2
from envoy.type.tracing.v3 import custom_tag_pb2
from google.protobuf import wrappers_pb2

from penstock.envoy.names import ALS_CLUSTER
from penstock.envoy.protos import pack, seconds

_FLUSH = 0.1
"""Seconds an entry may wait: `penstock observe` is watched by people."""

_BUFFER = 1 << 17
"""Bytes of entries in one message: taking a message costs the daemon more than taking an entry."""

AUDIT = "audit:"
"""Before the name of the listener, in the log of what policies in audit would deny."""

UPSTREAM_PEER_TAG = "upstream_peer"
UPSTREAM_LOCAL_TAG = "upstream_local"
"""Custom tags with the URI SANs that the other end and Envoy itself proved upstream ("-" in plain text)."""


def _common(listener: str) -> als_pb2.CommonGrpcAccessLogConfig:
    return als_pb2.CommonGrpcAccessLogConfig(
        log_name=listener,
        grpc_service=grpc_service_pb2.GrpcService(
            envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=ALS_CLUSTER)
        ),
        transport_api_version=config_source_pb2.ApiVersion.V3,
        buffer_flush_interval=seconds(_FLUSH),
        buffer_size_bytes=wrappers_pb2.UInt32Value(value=_BUFFER),
        custom_tags=[
            custom_tag_pb2.CustomTag(tag=UPSTREAM_PEER_TAG, value="%UPSTREAM_PEER_URI_SAN%"),
            custom_tag_pb2.CustomTag(tag=UPSTREAM_LOCAL_TAG, value="%UPSTREAM_LOCAL_URI_SAN%"),
        ],
    )


def refused(listener: str) -> accesslog_pb2.AccessLog:
    """For a mesh TLS listener: connections that its filters do not tell of, because they never came to them.

    TLS failed, or the network RBAC filter found that the SNI is not the destination.
    """
    found = tcp(listener)
    found.filter.extension_filter.name = "envoy.access_loggers.extension_filters.cel"
    # An attribute is absent where nothing failed; then a term is an error, which is as good as false.
    only = cel_pb2.ExpressionFilter(
        expression='connection.transport_failure_reason != "" || '
        'connection.termination_details.startsWith("rbac_access_denied")'
    )
    found.filter.extension_filter.typed_config.CopyFrom(pack(only))
    return found


def failed(listener: str) -> accesslog_pb2.AccessLog:
    """For a listener in user space: connections that did not come about. What goes on in the others is told
    of by who sends it."""
    found = tcp(listener)
    found.filter.response_flag_filter.flags.extend(["UF", "NC", "UH"])
    return found


NO_NAME = "no-name:"
"""Before the name of the listener, in the log of connections whose server name is in no list."""


def no_name(listener: str) -> accesslog_pb2.AccessLog:
    """For a listener that looks at server names: connections that met no filter chain."""
    found = tcp(f"{NO_NAME}{listener}")
    found.filter.response_flag_filter.flags.append("NR")
    return found


def http(listener: str) -> accesslog_pb2.AccessLog:
    config = als_pb2.HttpGrpcAccessLogConfig(common_config=_common(listener))
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.http_grpc", typed_config=pack(config))


def tcp(listener: str) -> accesslog_pb2.AccessLog:
    config = als_pb2.TcpGrpcAccessLogConfig(common_config=_common(listener))
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.tcp_grpc", typed_config=pack(config))


def audit(listener: str, judge: str = "envoy.filters.http.upstream_rbac") -> accesslog_pb2.AccessLog:
    """Requests that the filter of rights would have denied, with the policies in audit enforced; `judge` is
    what that filter calls itself."""
    denied = accesslog_pb2.MetadataFilter(
        matcher=metadata_pb2.MetadataMatcher(
            filter=judge,
            path=[metadata_pb2.MetadataMatcher.PathSegment(key="shadow_engine_result")],
            value=value_pb2.ValueMatcher(string_match=string_pb2.StringMatcher(exact="denied")),
        ),
        match_if_key_not_found=wrappers_pb2.BoolValue(value=False),
    )
    made = http(f"{AUDIT}{listener}")
    made.filter.CopyFrom(accesslog_pb2.AccessLogFilter(metadata_filter=denied))
    return made
